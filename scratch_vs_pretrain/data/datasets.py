"""What a data set's name means: registers a config's own sets and subsets with Detectron2.

Every process that resolves names goes through :func:`ensure`, so a name alone is enough anywhere.
Nothing here needs torch but registering itself.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scratch_vs_pretrain._detectron2 import registered, registered_sets
from scratch_vs_pretrain.data.coco import AnnotationFile, CocoFile, read_annotations, read_coco
from scratch_vs_pretrain.data.findings import Case, Heads, size_of
from scratch_vs_pretrain.data.subsets import ALIASES, Subset, digest, parse_subset, subset_file
from scratch_vs_pretrain.data.voc import is_voc, voc_file, voc_location
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pictures import locate
from scratch_vs_pretrain.run_folder import write_atomically

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_BONE_COLOUR = (102, 204, 255)
_SUBSETS: dict[str, Path] = {}
_NAMED_FILES = 3
# COCO's sizes: areas in pixels, of the image as it is on disk.
SMALL, LARGE = 32**2, 96**2


def register(cfg: CfgNode) -> None:
    """Registers every data set of ``SVP.DATASETS`` and ``SVP.VOC_DATASETS`` with Detectron2, and
    the subsets that the config trains on; the same again changes nothing.

    Raises:
        UserError: an entry is no such triple, its annotation file cannot be used, or its name
            stands for other files already; a subset cannot be drawn, or is to be evaluated on.
    """
    from detectron2.data.datasets import register_coco_instances

    for entry in cfg.SVP.DATASETS:
        name, annotations, images = _triple(entry)
        known = registered(name)
        if known is None:
            metadata = _keypoint_metadata(read_annotations(Path(annotations)))
            register_coco_instances(name, metadata, annotations, images)
            continue
        paths = [os.path.abspath(known.get(key, "")) for key in ("json_file", "image_root")]
        if paths != [annotations, images]:
            raise UserError(
                f"SVP.DATASETS: {name} is the name of another data set already; choose another name"
            )
    for entry in cfg.SVP.VOC_DATASETS:
        _register_voc(entry)
    refuse_subsets(cfg.DATASETS.TEST)
    ensure((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def find_subset(name: str, more: Iterable[str] = ()) -> Subset | None:
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
    for name in names:
        if registered(name) is not None:
            continue
        if name in ALIASES:
            _register(name, ALIASES[name], *source(name))
        elif subset := find_subset(name):
            ensure([subset.base])
            _register(name, subset.base, *source(name))


def refuse_subsets(names: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raises UserError for a subset among the data sets to evaluate on; see :func:`find_subset`."""
    for name in names:
        if subset := find_subset(name, more):
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
    if subset := find_subset(name):
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


def describe(names: Sequence[str]) -> dict[str, Any]:
    """Returns what run.json records of registered data sets, which must share their categories:
    names, counts over all of them, crowds and empty images included, and the sha256 of the file, or
    of several files' digests, one a line."""
    files = [annotations_of(name) for name in names]
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
    if missing := check_names(annotations, images, names):
        named = ", ".join(missing[:_NAMED_FILES]) + (", .." if missing[_NAMED_FILES:] else "")
        raise UserError(
            f"{images}: {len(missing)} of the {len(names)} images of {name} are "
            f"missing: {named}; restore them or take them out of {annotations}"
        )


def check_names(annotations: Path, images: Path, names: Sequence[str]) -> Sequence[str]:
    """Returns those images of a data set that are not there; refuses those outside its folder."""
    located = locate(images, names)
    for problem in located.unusable.values():
        raise UserError(f"{annotations}: {problem}")
    return located.missing


def subset_text(name: str, file: CocoFile) -> str:
    """Returns the description of a data set as `svp subset` prints it; sizes are COCO's."""
    instances = [entry for entry in file.annotations if not entry.get("iscrowd")]
    of_category = Counter(map(itemgetter("category_id"), instances))
    case = Case(instances, Heads(), {}, {one["id"]: size_of(one, {}) for one in file.images})
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
    try:
        write_atomically(target, file.path.read_bytes())
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def _register(name: str, base: str, annotations: Path, images: Path) -> None:
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    stated = ("name", "json_file", "image_root", "evaluator_type")
    known = MetadataCatalog.get(base).as_dict()
    metadata = {key: value for key, value in known.items() if key not in stated}
    register_coco_instances(name, metadata, str(annotations), str(images))


def _register_voc(entry: Any) -> None:
    try:
        name, root, split, year, classes = entry
        classes = [str(one) for one in classes]
    except (TypeError, ValueError):
        raise UserError(
            f"SVP.VOC_DATASETS: {entry} must be [name, root, split, year, [class, ...]]"
        ) from None
    from detectron2.data.datasets import register_pascal_voc

    root = os.path.abspath(root)
    if registered(name) is None:
        register_pascal_voc(name, root, split, year, classes)
    known = registered(name) or {}
    facts = [known.get(key) for key in ("dirname", "split", "year", "thing_classes")]
    if facts != [root, split, year, classes]:
        raise UserError(
            f"SVP.VOC_DATASETS: {name} is the name of another data set already; choose another name"
        )


def _triple(entry: Any) -> tuple[str, str, str]:
    strings = isinstance(entry, (list, tuple)) and all(isinstance(part, str) for part in entry)
    if not strings or len(entry) != 3 or not all(entry):
        raise UserError(f"SVP.DATASETS: {entry} must be [name, annotation file, image folder]")
    return entry[0], os.path.abspath(entry[1]), os.path.abspath(entry[2])


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
