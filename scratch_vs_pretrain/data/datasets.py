"""What a data set's name means: registers a config's own sets and subsets with Detectron2.

Every process that resolves names goes through :func:`ensure`, so a name alone is enough anywhere.
Nothing here needs torch but registering itself.

Which images a subset's name, ``coco_2017_train_10k`` or ``coco_2017_train_10pct_s3``, means depends
on nothing but the image ids: sort them by the SHA-256 digest of ``svp-subset:<seed>:<image id>`` in
UTF-8 and take the first n. So the subsets of one set and one seed are nested, and the order of the
annotation file, the Python version, the platform and the process make no difference. A subset's
file is an ordinary COCO file, made once, so what reads data sets reads subsets; it lies in a folder
named by the fingerprint of the file that it was drawn from.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fvcore.common.config import CfgNode

from scratch_vs_pretrain._detectron2 import registered, registered_sets
from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import AnnotationFile, CocoFile, read_annotations, read_coco
from scratch_vs_pretrain.data.judge import Case, Heads, size_of
from scratch_vs_pretrain.data.voc import is_voc, voc_file, voc_location
from scratch_vs_pretrain.errors import UserError, regular, writable
from scratch_vs_pretrain.pictures import locate
from scratch_vs_pretrain.run_folder import read_bytes, write_atomically

_BONE_COLOUR = (102, 204, 255)
_SUBSETS: dict[str, Path] = {}
_NAMED_FILES = 3
_TAKEN = "is the name of another data set already; choose another name"
# COCO's sizes: areas in pixels, of the image as it is on disk.
SMALL, LARGE = 32**2, 96**2
# To be raised whenever the same annotation file would give another subset file.
CACHE_FORMAT = 3
# Of every subset's file.
_END = b"]}\n"
# Other names of registered data sets.
ALIASES = {"coco_35k": "coco_2014_valminusminival"}  # the paper's 35k images, also called val35k
UNITS = {"": Fraction(1), "k": Fraction(1000), "pct": Fraction(1, 100)}
_SIZE = r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?)(?P<unit>k|pct|)"
_NAME = re.compile(rf"(?P<base>.+)_(?P<size>{_SIZE})(?:_s(?P<seed>[0-9]{{1,12}}))?", re.ASCII)


@dataclass(frozen=True)
class Subset:
    """A part of the data set `base`: so many images, or such a fraction where `relative`."""

    name: str
    base: str
    size: Fraction
    relative: bool
    seed: int = 0

    def count(self, images: int) -> int:
        """Returns the number of images, of a base that has so many; halves are rounded up.

        Raises:
            UserError: the base has too few, or too few for a percentage of them to be an image.
        """
        wanted = self.size * images if self.relative else self.size
        count = math.floor(wanted + Fraction(1, 2))
        if count > images:
            raise UserError(
                f"{self.name}: {count:,} images are more than the {images:,} of {self.base}; "
                "choose a smaller size"
            )
        if count < 1:
            raise UserError(
                f"{self.name}: is less than one of the {images:,} images of {self.base}; "
                "choose a larger size"
            )
        return count


def register(cfg: CfgNode) -> None:
    """Registers every data set of ``SVP.DATASETS`` and ``SVP.VOC_DATASETS`` with Detectron2, and
    the subsets that the config trains on; the same again changes nothing.

    Raises:
        UserError: an entry is not as it should be, its annotation file cannot be used, or its name
            stands for other files already; a subset cannot be drawn, or is to be evaluated on.
    """
    from detectron2.data.datasets import register_coco_instances, register_pascal_voc

    for entry in cfg.SVP.DATASETS:
        strings = isinstance(entry, (list, tuple)) and all(isinstance(part, str) for part in entry)
        if not strings or len(entry) != 3 or not all(entry):
            raise UserError(f"SVP.DATASETS: {entry} must be [name, annotation file, image folder]")
        name, *paths = entry[0], *map(os.path.abspath, entry[1:])
        if registered(name) is None:
            metadata = _keypoint_metadata(read_annotations(Path(paths[0])))
            register_coco_instances(name, metadata, *paths)
        known = registered(name) or {}
        found = [os.path.abspath(known.get(key, "")) for key in ("json_file", "image_root")]
        if found != paths:
            raise UserError(f"SVP.DATASETS: {name} {_TAKEN}")
    for entry in cfg.SVP.VOC_DATASETS:
        try:
            name, root, split, year, classes = entry
            facts = [os.path.abspath(root), split, year, [str(one) for one in classes]]
        except (TypeError, ValueError):
            raise UserError(
                f"SVP.VOC_DATASETS: {entry} must be [name, root, split, year, [class, ...]]"
            ) from None
        if registered(name) is None:
            register_pascal_voc(name, *facts)
        known = registered(name) or {}
        found = [known.get(key) for key in ("dirname", "split", "year", "thing_classes")]
        if found != facts:
            raise UserError(f"SVP.VOC_DATASETS: {name} {_TAKEN}")
    refuse_subsets(cfg.DATASETS.TEST)
    ensure((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def subset_of(name: str, more: Iterable[str] = ()) -> Subset | None:
    """Returns the subset that a name means, None for the name of a full data set or of nothing.

    Reads no files. A registered name stands for itself, such as Detectron2's coco_2017_val_100;
    `more` are names that are not registered yet but can be the base.

    Raises:
        UserError: it reads like a subset's but makes no sense.
    """
    full = {*registered_sets(), *more, *ALIASES} - _SUBSETS.keys()
    return None if name in full else parse_subset(name, full)


def ensure(names: Iterable[str]) -> None:
    """Registers those of the names that mean a subset, or are another name of a registered set.

    A subset has its base's metadata, with all categories, and an annotation file of its own.
    """
    stated = ("name", "json_file", "image_root", "evaluator_type")
    for name in names:
        if registered(name) is not None:
            continue
        subset = subset_of(name)
        base = subset.base if subset else ALIASES.get(name)
        if base:
            from detectron2.data import MetadataCatalog
            from detectron2.data.datasets import register_coco_instances

            ensure([base])
            known = MetadataCatalog.get(base).as_dict()
            metadata = {key: value for key, value in known.items() if key not in stated}
            register_coco_instances(name, metadata, *map(str, source(name)))


def refuse_subsets(names: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raises UserError for a subset among the data sets to evaluate on; see :func:`subset_of`."""
    for name in names:
        if subset := subset_of(name, more):
            raise UserError(
                f"DATASETS.TEST: {name} is a subset of {subset.base}; evaluate on the full set, or "
                f"write a file of its own with `svp subset {name} --export FILE.json`"
            )


def annotations_of(name: str) -> AnnotationFile:
    """Returns what is to be known of a data set's annotation file, see :func:`coco_of`."""
    return voc_file(name).facts if is_voc(name) else read_annotations(source(name)[0])


def coco_of(name: str, optional: Sequence[str] = ()) -> CocoFile:
    """Returns a data set's annotations, those of a VOC tree as COCO's; `optional` lists may be
    missing."""
    return voc_file(name) if is_voc(name) else read_coco(source(name)[0], optional)


def location(name: str) -> tuple[Path, Path]:
    """Returns what lists the images of a data set, which is there, and their folder."""
    return voc_location(name) if is_voc(name) else source(name)


def source(name: str) -> tuple[Path, Path]:
    """Returns the annotation file and image folder of a data set; that of a subset is made."""
    if name in ALIASES and registered(name) is None:
        return source(ALIASES[name])
    if subset := subset_of(name):
        annotations, images = source(subset.base)
        if name not in _SUBSETS:
            _SUBSETS[name] = subset_file(subset, annotations)
        return _SUBSETS[name], images
    known = registered(name)
    if known is None:
        near = difflib.get_close_matches(name, registered_sets(), n=1)
        hint = f"did you mean {near[0]}?" if near else "state its files under data in a study"
        raise UserError(f"{name}: no such data set is registered; {hint}")
    if known.get("json_file") is None or known.get("image_root") is None:
        raise UserError(f"{name}: is not in COCO format; choose a COCO-format data set")
    annotations = Path(known["json_file"])
    if not annotations.is_file():
        raise UserError(f"{name}: no such annotation file as {annotations}{remedy(name)}")
    return annotations, Path(known["image_root"])


def remedy(name: str) -> str:
    """Returns the end of a sentence about a data set whose files are missing."""
    if name.startswith(("coco_", "keypoints_coco_", "lvis_")):
        return "; set DETECTRON2_DATASETS to the folder that holds it"
    return ""


def describe(
    names: Sequence[str], facts: Callable[[str], AnnotationFile] = annotations_of
) -> dict[str, Any]:
    """Returns what run.json records of data sets, by default registered ones, which must share
    their categories: names, counts over all of them, crowds and empty images included, and the
    sha256 of the file, or of several files' digests, one a line."""
    files = [facts(name) for name in names]
    for name, file in zip(names, files, strict=True):
        if file.categories != files[0].categories:
            raise UserError(
                f"{name}: its categories differ from those of {names[0]}; "
                "data sets that are used together must share them"
            )
    digests = [file.sha256 for file in files]
    lines = "".join(f"{digest}\n" for digest in digests)
    return {
        "names": list(names),
        "images": sum(len(file.file_names) for file in files),
        "annotations": sum(file.annotations for file in files),
        "sha256": digests[0] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest(),
    }


def check_files(names: Sequence[str]) -> None:
    """Raises UserError where annotations cannot be used or images are not there; opens no image."""
    for name in names:
        annotations, images = location(name)
        if not images.is_dir():
            raise UserError(f"{name}: no such image folder as {images}{remedy(name)}")
        check_images(name, annotations, images, annotations_of(name).file_names)


def check_images(name: str, annotations: Path, images: Path, names: Sequence[str]) -> None:
    """Refuses a data set whose images are not all there."""
    if missing := locate(images, names).checked(annotations).missing:
        named = ", ".join(missing[:_NAMED_FILES]) + (", .." if missing[_NAMED_FILES:] else "")
        raise UserError(
            f"{images}: {len(missing)} of the {len(names)} images of {name} are "
            f"missing: {named}; restore them or take them out of {annotations}"
        )


def subset_text(name: str, file: CocoFile) -> str:
    """Returns the description of a data set as `svp subset` prints it; sizes are COCO's."""
    instances = [entry for entry in file.annotations if not entry.get("iscrowd")]
    of_category = Counter(map(itemgetter("category_id"), instances))
    sizes = {one["id"]: size_of(one, {}) for one in file.images}
    case = Case(dataclasses.replace(file, annotations=instances), Heads(), sizes)
    areas = np.where(np.isnan(case.areas), case.boxes[:, 2:].prod(1), case.areas)
    # COCO's ranges include both ends; the smaller one gets what lies on a border.
    small, large = (areas <= SMALL).sum(), (areas > LARGE).sum()
    empty = {image["id"] for image in file.images} - {one["image_id"] for one in instances}
    categories = sorted(file.categories, key=lambda one: (-of_category[one["id"]], one["id"]))
    there = [f"{c['name']} {of_category[c['id']]:,}" for c in categories if of_category[c["id"]]]
    absent = [c["name"] for c in categories if not of_category[c["id"]]]
    rows = {
        "images": f"{len(file.images):,} ({len(empty):,} without instances)",
        "instances": f"{len(instances):,}, and {len(file.annotations) - len(instances):,} crowds",
        "instances per image": f"{len(instances) / len(file.images):.2f}" if file.images else "-",
        "sizes": f"{small:,} small, {len(areas) - small - large:,} medium, {large:,} large",
        "categories present": f"{len(there)}: {', '.join(there)}" if there else "0",
        "categories absent": f"{len(absent)}: {', '.join(absent)}" if absent else "0",
        "sha256 of the image ids": digest(file.ids()),
    }
    width = max(map(len, rows))
    return "\n".join([name, *(f"  {title:{width}}  {text}" for title, text in rows.items())])


def export(file: CocoFile, target: Path) -> Path:
    """Copies a data set's annotations to a new COCO file and returns it."""
    if file.path.suffix != ".json":
        raise UserError(f"{file.path}: is no COCO file; only those can be exported")
    if target.exists():
        raise UserError(f"{target}: exists already; choose another file name")
    content = read_bytes(file.path)
    with writable(target):
        write_atomically(target, content)
    return target


def _keypoint_metadata(file: AnnotationFile) -> dict[str, Any]:
    """Returns Detectron2's keypoint metadata, empty where no category has keypoints.

    The names of a keypoint and its mirror image differ in "left" and "right" alone.
    """
    names = file.keypoints
    if not names:
        return {}
    from detectron2.data.datasets import builtin_meta

    pairs = ((name, name.replace("left", "right")) for name in names)
    rules = [(names[a - 1], names[b - 1], _BONE_COLOUR) for a, b in file.skeleton]
    if names == builtin_meta.COCO_PERSON_KEYPOINT_NAMES:
        rules = builtin_meta.KEYPOINT_CONNECTION_RULES
    return {
        "keypoint_names": names,
        "keypoint_flip_map": tuple((a, b) for a, b in pairs if a != b and b in names),
        "keypoint_connection_rules": rules,
    }


def parse_subset(name: str, registered: Iterable[str]) -> Subset | None:
    """Returns the subset that a name means, None if it does not read like a subset's.

    That is ``<dataset>_<size>`` or ``<dataset>_<size>_s<seed>``, where a size is a number of images
    (``500``), of thousands of them (``3.5k``) or a percentage (``10pct``). Data sets that are
    `registered` can be the base; they are no subsets.

    Raises:
        UserError: the size makes no sense, or the base is not registered.
    """
    bases = {*registered, *ALIASES}
    found = _NAME.fullmatch(name)
    if not found or found["base"] not in bases:
        for base in sorted(bases, key=len, reverse=True):
            rest = name.removeprefix(f"{base}_")
            if rest != name and re.match(r"[+-]?\.?[0-9]", rest):
                raise UserError(
                    f"{name}: {rest} is no size of a subset; write one such as 500, 3.5k, 10k or "
                    "10pct, with a seed behind it such as 10k_s3 if you like"
                )
        if not found:
            return None
        raise UserError(
            f"{name}: reads like a subset of {found['base']}, which is not registered; "
            "name a registered full data set, such as coco_2017_train"
        )
    size = Fraction(found["number"]) * UNITS[found["unit"]]
    relative = found["unit"] == "pct"
    if size == 0:
        raise UserError(f"{name}: a subset of size 0 has nothing to train on; choose a larger size")
    if relative and size > 1:
        raise UserError(f"{name}: {found['size']} is more than the whole; choose at most 100pct")
    if not relative and size.denominator != 1:
        raise UserError(f"{name}: {found['size']} is no whole number of images; such as 3.5k or 10")
    return Subset(name, found["base"], size, relative, int(found["seed"] or 0))


def draw(ids: Sequence[int | str], count: int, seed: int) -> list[int | str]:
    """Returns the ids of a subset of distinct ones, in the order of the module's rule."""

    def key(identity: int | str) -> tuple[bytes, bool]:
        text = f"svp-subset:{seed}:{identity}"
        # 7 and "7" may both be ids.
        return hashlib.sha256(text.encode()).digest(), isinstance(identity, str)

    return sorted(ids, key=key)[:count]


def digest(ids: Iterable[int | str]) -> str:
    """Returns the SHA-256 of an id list: ascending, one a line (numbers before texts)."""
    lines = "".join(f"{identity}\n" for identity in sorted(ids, key=coco.id_order))
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_folder() -> Path:
    """Returns where subset files are kept until somebody deletes it."""
    if "SVP_CACHE" in os.environ:
        return Path(os.environ["SVP_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "scratch_vs_pretrain"


def subset_file(subset: Subset, annotations: Path) -> Path:
    """Returns a subset's annotation file, made from that of its base unless it is there."""
    # No program can set a change time, so a file that was changed never keeps its fingerprint.
    with coco.readable(annotations):
        path = annotations.resolve()
        state = regular(path).stat()
    facts = [CACHE_FORMAT, str(path), state.st_ino, state.st_size]
    facts += [state.st_mtime_ns, state.st_ctime_ns]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    size = str(subset.size).replace("/", "_of_")
    part = f"{'part_' if subset.relative else ''}{size}_s{subset.seed}.json"
    file = cache_folder() / "subsets" / fingerprint / part
    with contextlib.suppress(OSError), file.open("rb") as opened:
        opened.seek(-len(_END), os.SEEK_END)
        if opened.read() == _END:
            return file
    content = extract(annotations, lambda ids: draw(ids, subset.count(len(ids)), subset.seed))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        read_annotations(file)
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot keep subsets there ({error.strerror}); set SVP_CACHE to "
            "another folder"
        ) from None
    except UserError as error:
        file.unlink(missing_ok=True)  # what is wrong came with the annotations
        raise UserError(str(error).replace(str(file), f"{annotations} ({subset.name})")) from None
    return file


class _Owner(msgspec.Struct):
    image_id: int | float | str


class _Outline(msgspec.Struct):
    images: list[coco.Entry]
    categories: list[coco.Entry]
    annotations: list[msgspec.Raw]


def extract(path: Path, draw: Callable[[list[coco.Identity]], list[coco.Identity]]) -> bytes:
    """Returns a COCO file of the images that `draw` takes of all ids: ascending, with their
    annotations in the order of the file, which alone are written anew, and all categories.

    Raises:
        UserError: an annotation of an image that is not listed, or what else keeps the file from
            being used.
    """
    with coco.readable(path), coco.without_gc():
        content, entries, owners = _outline(path, path.read_bytes())
    file = coco.coco_file(path, "", content)
    for problem in file.unusable:
        raise UserError(f"{path}: {problem}")
    known = {image["id"] for image in file.images}
    for number, owner in enumerate(owners):
        if owner not in known:
            text = f"belongs to image {owner!r}, which is not among the images"
            raise UserError(f"{path}: annotations[{number}] {text}; add the image or take it out")
    chosen = set(draw([image["id"] for image in file.images]))
    images = [image for image in file.images if image["id"] in chosen]
    rest = json.dumps({"images": images, "categories": content["categories"]}).encode()[:-1]
    taken = itertools.compress(entries, map(chosen.__contains__, owners))
    texts = (one if isinstance(one, msgspec.Raw) else json.dumps(one).encode() for one in taken)
    return rest + b', "annotations": [' + b",\n".join(texts) + _END


def _outline(path: Path, data: bytes) -> tuple[Any, list[Any], list[Any]]:
    """Returns a file without its annotations, these as bytes where that is possible, and what
    images they belong to."""
    try:
        found = msgspec.json.decode(data, type=_Outline)
        owner = msgspec.json.Decoder(_Owner).decode
        owners: list[Any] = [owner(entry).image_id for entry in found.annotations]
        content: Any = {"images": found.images, "categories": found.categories}
        return {**content, "annotations": []}, found.annotations, owners
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = coco.parse(path, data)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return content, [], []
    owners = [one.get("image_id") if isinstance(one, dict) else None for one in entries]
    owners = [one if isinstance(one, (int, float, str)) else None for one in owners]
    return {**content, "annotations": []}, entries, owners
