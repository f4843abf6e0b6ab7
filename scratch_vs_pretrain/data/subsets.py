"""Named subsets: which images ``coco_2017_train_10k`` or ``coco_2017_train_10pct_s3`` means.

The rule, which depends on nothing but the image ids: sort the ids by the SHA-256 digest of
``svp-subset:<seed>:<image id>`` in UTF-8 and take the first n. So the subsets of one set and one
seed are nested, and the order of the annotation file, the Python version, the platform and the
process make no difference.

A subset's file is an ordinary COCO file, made once, so whatever reads data sets reads subsets. It
lies in a folder named by the fingerprint of the file that it was drawn from.
"""

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import Entry, Identity
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically

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
        _refuse_misspelt(name, bases)
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


def _refuse_misspelt(name: str, bases: Iterable[str]) -> None:
    """Raises UserError for a registered name with something size-like but wrong behind it."""
    for base in sorted(bases, key=len, reverse=True):
        rest = name.removeprefix(f"{base}_")
        if rest != name and re.match(r"[+-]?\.?[0-9]", rest):
            raise UserError(
                f"{name}: {rest} is no size of a subset; write one such as 500, 3.5k, 10k or "
                "10pct, with a seed behind it such as 10k_s3 if you like"
            )


def cache_folder() -> Path:
    """Returns where subset files are kept until somebody deletes it."""
    if "SVP_CACHE" in os.environ:
        return Path(os.environ["SVP_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "scratch_vs_pretrain"


def subset_file(subset: Subset, annotations: Path) -> Path:
    """Returns a subset's annotation file, made from that of its base unless it is there."""
    size = str(subset.size).replace("/", "_of_")
    part = f"{'part_' if subset.relative else ''}{size}_s{subset.seed}.json"
    file = cache_folder() / "subsets" / _fingerprint(annotations) / part
    if _is_whole(file):
        return file
    content = extract(annotations, lambda ids: draw(ids, subset.count(len(ids)), subset.seed))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        coco.read_annotations(file)
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot keep subsets there ({error.strerror}); set SVP_CACHE to "
            "another folder"
        ) from None
    except UserError as error:
        file.unlink(missing_ok=True)  # what is wrong came with the annotations
        raise UserError(str(error).replace(str(file), f"{annotations} ({subset.name})")) from None
    return file


def _is_whole(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_END), os.SEEK_END)
            return opened.read() == _END
    except OSError:
        return False


def _fingerprint(annotations: Path) -> str:
    # No program can set a change time, so a file that was changed never keeps its fingerprint.
    with coco.readable(annotations):
        path = annotations.resolve()
        state = path.stat()
    facts = [CACHE_FORMAT, str(path), state.st_ino, state.st_size]
    facts += [state.st_mtime_ns, state.st_ctime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


class _Owner(msgspec.Struct):
    image_id: int | float | str


class _Outline(msgspec.Struct):
    images: list[Entry]
    categories: list[Entry]
    annotations: list[msgspec.Raw]


def extract(path: Path, draw: Callable[[list[Identity]], list[Identity]]) -> bytes:
    """Returns a COCO file of the images that `draw` takes of all ids: ascending, with their
    annotations in the order of the file, which alone are parsed, and all categories. Raises
    UserError for an annotation of an image that is not listed."""
    with coco.readable(path), coco.without_gc():
        content, owners = _outline(path, path.read_bytes())
    entries = content.get("annotations") if isinstance(content, dict) else None
    listed = {**content, "annotations": []} if isinstance(entries, list) else content
    file = coco.coco_file(path, "", listed)
    for problem in file.unusable:
        raise UserError(f"{path}: {problem}")
    known = {image["id"] for image in file.images}
    for number, owner in enumerate(owners):
        if owner not in known:
            text = f"belongs to image {owner!r}, which is not among the images"
            raise UserError(f"{path}: annotations[{number}] {text}; add the image or take it out")
    chosen = set(draw([image["id"] for image in file.images]))
    images = [image for image in file.images if image["id"] in chosen]
    taken = itertools.compress(entries or (), map(chosen.__contains__, owners))
    rest = json.dumps({"images": images, "categories": content["categories"]}).encode()[:-1]
    return rest + b', "annotations": [' + b",\n".join(map(_text, taken)) + _END


def _outline(path: Path, data: bytes) -> tuple[Any, list[Any]]:
    """Returns a file with its annotations as bytes, where that is possible, and their images."""
    try:
        found = msgspec.json.decode(data, type=_Outline)
        owner = msgspec.json.Decoder(_Owner).decode
        owners: list[Any] = [owner(entry).image_id for entry in found.annotations]
        return msgspec.structs.asdict(found), owners
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        content = coco.parse(path, data)
    entries = content.get("annotations") if isinstance(content, dict) else None
    owners = [one.get("image_id") if isinstance(one, dict) else None for one in entries or ()]
    return content, [one if isinstance(one, (int, float, str)) else None for one in owners]


def _text(entry: Any) -> bytes:
    return bytes(entry) if isinstance(entry, msgspec.Raw) else json.dumps(entry).encode()
