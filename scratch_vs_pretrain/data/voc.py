"""PASCAL VOC trees: read once, checked, and as COCO annotations.

Boxes and their order are those of Detectron2's ``load_voc_instances``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.data.coco import CocoFile, Note, coco_file
from scratch_vs_pretrain.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = ("truncated", "difficult")


@dataclass(frozen=True)
class VocObject:
    """One object of an image; corners as in the XML, where the first pixel has number 1."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """What one XML file says.

    Attributes:
        identity: the file's name without its ending.
        file_name: as the XML states it, None if it does not.
        plain: Detectron2's evaluator can read the file: corners and flags are whole numbers, and
            nothing it wants is missing.
    """

    identity: str
    width: int
    height: int
    objects: tuple[VocObject, ...]
    file_name: str | None
    plain: bool


def is_voc(name: str) -> bool:
    """Tells whether a registered data set is a VOC tree."""
    known = registered(name) or {}
    return known.get("dirname") is not None and known.get("split") is not None


def voc_location(name: str) -> tuple[Path, Path]:
    """Returns the file that lists the images of a VOC set, and the tree's root.

    Raises:
        UserError: there is no such file.
    """
    known = registered(name) or {}
    root = Path(known["dirname"])
    listing = root / "ImageSets" / "Main" / f"{known['split']}.txt"
    if not listing.is_file():
        hint = f"; set DETECTRON2_DATASETS to the folder that holds {root.name}"
        raise UserError(
            f"{name}: no such file as {listing}{hint if name.startswith('voc_') else ''}"
        )
    return listing, root


def voc_images(name: str) -> tuple[VocImage, ...]:
    """Returns what the XML files of a VOC set say, in the order of its list.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    listing, root = voc_location(name)
    return _strictly(_read(listing, root, _state(listing))).images


def voc_file(name: str, strict: bool = True) -> CocoFile:
    """Returns a VOC set as COCO annotations, read once per process until its list changes.

    File names are relative to the tree's root; sha256 is of the list of images and the digests of
    their annotations. Objects of other classes than the set's are left out. ``difficult`` stays
    with each annotation: Detectron2 trains on difficult objects as on any other.

    Args:
        name: of a registered VOC set.
        strict: whether every XML file has to be usable.

    Raises:
        UserError: the list of images, or with `strict` an XML file, cannot be used.
    """
    from detectron2.data import MetadataCatalog

    listing, root = voc_location(name)
    if strict:
        tree = _strictly(_read(listing, root, _state(listing)))
    else:  # to check it; XML files may have changed, and the list of them not
        tree = _parse_all(listing, root)
    return _as_coco(listing, tree, tuple(MetadataCatalog.get(name).thing_classes))


@functools.lru_cache(maxsize=8)
def _as_coco(listing: Path, tree: _Tree, classes: tuple[str, ...]) -> CocoFile:
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    notes = []
    numbers = {name: number for number, name in enumerate(classes, 1)}
    for image in tree.images:
        file = f"{image.identity}.xml"
        if image.file_name not in (None, f"{image.identity}.jpg"):
            notes.append(Note("XML names another file", f"{file} ({image.file_name})"))
        if not image.plain:
            notes.append(Note("XML with fractions or without flags", file))
        listed.append(
            {
                "id": image.identity,
                "file_name": f"JPEGImages/{image.identity}.jpg",
                "height": image.height,
                "width": image.width,
            }
        )
        for one in image.objects:
            left, top, right, bottom = one.corners
            if one.name not in numbers:
                notes.append(Note("object of another class", f"{file} ({one.name})"))
                continue
            if right == left or bottom == top:
                notes.append(Note("box one pixel wide", f"{file} ({one.name})"))
            # The first pixel has number 1, and the last one belongs to the box.
            width, height = right - left + 1, bottom - top + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.identity,
                    "category_id": numbers[one.name],
                    "bbox": [left - 1, top - 1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "difficult": int(one.difficult),
                }
            )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    made = coco_file(listing, tree.sha256, content)
    return dataclasses.replace(made, unusable=tree.problems, notes=tuple(notes))


def voc_classes(trees: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Returns the classes of the objects in (root, split) trees, in alphabetical order.

    Raises:
        UserError: as :func:`voc_images`, or there is no object.
    """
    names: Counter[str] = Counter()
    for root, split in trees:
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        for image in _strictly(_read(listing, root, _state(listing))).images:
            names.update(one.name for one in image.objects)
        if not names:
            raise UserError(f"{listing}: no image of it has an object")
    return tuple(sorted(names))


def voc_count(root: Path, split: str) -> int:
    """Returns how many images a VOC set lists.

    Raises:
        UserError: the list cannot be used.
    """
    return len(_identities(root / "ImageSets" / "Main" / f"{split}.txt"))


def _state(listing: Path) -> tuple[int, int]:
    try:
        state = listing.stat()
    except OSError as error:
        raise UserError(f"{listing}: cannot be read ({error.strerror})") from None
    return state.st_size, state.st_mtime_ns


@dataclass(frozen=True, eq=False)
class _Tree:
    """What a VOC set's usable XML files say, and what is wrong with the others."""

    images: tuple[VocImage, ...]
    problems: tuple[str, ...]
    sha256: str


def _strictly(tree: _Tree) -> _Tree:
    for problem in tree.problems:
        raise UserError(problem)
    return tree


@functools.lru_cache(maxsize=8)
def _read(listing: Path, root: Path, state: tuple[int, int]) -> _Tree:
    return _parse_all(listing, root)


def _parse_all(listing: Path, root: Path) -> _Tree:
    images, lines, problems = [], [], []
    for identity in _identities(listing):
        try:
            image, digest = _parse(root, identity)
        except UserError as error:
            problems.append(str(error))
            continue
        images.append(image)
        lines.append(f"{identity} {digest}\n")
    sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    return _Tree(tuple(images), tuple(problems), sha256)


def _identities(listing: Path) -> list[str]:
    try:
        lines = listing.read_text().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{listing}: cannot be read ({error})") from None
    identities = [line.strip() for line in lines if line.strip()]
    if not identities:
        raise UserError(f"{listing}: is empty; list the images of the set in it, one a line")
    for number, identity in enumerate(identities, 1):
        if len(identity.split()) != 1:
            raise UserError(f"{listing}: line {number}: give one image name, without its ending")
        if identity.startswith("/") or ".." in identity.split("/"):
            raise UserError(f"{listing}: line {number}: {identity} leads out of the tree")
    if len(set(identities)) < len(identities):
        repeated = next(one for one in identities if identities.count(one) > 1)
        raise UserError(f"{listing}: lists {repeated} twice; take one of them out")
    return identities


def _parse(root: Path, identity: str) -> tuple[VocImage, str]:
    """Returns what an image's XML file says, and the file's sha256."""
    file = root / "Annotations" / f"{identity}.xml"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{file}: not valid XML ({error}); is it truncated?") from None
    width, height = (
        int(_number(file, tree, f"size/{side}", "the image")) for side in ("width", "height")
    )
    objects = tuple(
        _object(file, entry, f"object {number}")
        for number, entry in enumerate(tree.findall("object"), 1)
    )
    image = VocImage(
        identity,
        width,
        height,
        objects,
        file_name=(tree.findtext("filename") or "").strip() or None,
        plain=all(_is_plain(entry) for entry in tree.findall("object")),
    )
    return image, hashlib.sha256(data).hexdigest()


def _object(file: Path, entry: ElementTree.Element, where: str) -> VocObject:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{file}: {where} has no name; write its class there")
    left, top, right, bottom = (
        _number(file, entry, f"bndbox/{corner}", where) for corner in _CORNERS
    )
    difficult = (entry.findtext("difficult") or "0").strip()
    return VocObject(name, (left, top, right, bottom), difficult not in ("", "0"))


def _is_plain(entry: ElementTree.Element) -> bool:
    wanted = (*(f"bndbox/{corner}" for corner in _CORNERS), *_FLAGS)
    try:
        for path in wanted:
            int(entry.findtext(path) or "")
    except ValueError:
        return False
    name = entry.findtext("name") or ""
    return entry.find("pose") is not None and name == name.strip()


def _number(file: Path, parent: ElementTree.Element, path: str, where: str) -> float:
    """Returns a number, a whole one as int; VOC 2012 has a few fractions."""
    text = (parent.findtext(path) or "").strip()
    try:
        number = float(text)
        if math.isfinite(number):
            return int(number) if number == int(number) else number
    except ValueError:
        pass
    raise UserError(f"{file}: {where} has no number as {path.replace('/', '.')} (it is {text!r})")
