"""PASCAL VOC trees: read once, checked, and as COCO JSON.

Boxes and their order are those of Detectron2's ``load_voc_instances``.
"""

from __future__ import annotations

import functools
import hashlib
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from scratch_vs_pretrain.data.coco import AnnotationFile
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
    if name not in DatasetCatalog:
        return False
    known = MetadataCatalog.get(name)
    return known.get("dirname") is not None and known.get("split") is not None


def voc_location(name: str) -> tuple[Path, Path]:
    """Returns the file that lists the images of a VOC set, and the tree's root.

    Raises:
        UserError: there is no such file.
    """
    known = MetadataCatalog.get(name)
    root = Path(known.dirname)
    listing = root / "ImageSets" / "Main" / f"{known.split}.txt"
    if not listing.is_file():
        hint = f"; set DETECTRON2_DATASETS to the folder that holds {root.name}"
        raise UserError(
            f"{name}: no such file as {listing}{hint if name.startswith('voc_') else ''}"
        )
    return listing, root


def voc_index(name: str) -> AnnotationFile:
    """Returns what is to be known of a VOC set, read once per process until its list changes.

    File names are relative to the tree's root; sha256 is of the list of images and the digests of
    their annotations.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    listing, root = voc_location(name)
    images, digest = _read(listing, root, _state(listing))
    classes = tuple(MetadataCatalog.get(name).thing_classes)
    return AnnotationFile(
        file_names=tuple(f"JPEGImages/{image.identity}.jpg" for image in images),
        annotations=sum(len(image.objects) for image in images),
        categories=classes,
        keypoints=(),
        skeleton=(),
        usable=any(one.name in classes for image in images for one in image.objects),
        sha256=digest,
        lacks=dict.fromkeys(("segm", "keypoints"), "VOC trees have boxes alone"),
    )


def voc_images(name: str) -> tuple[VocImage, ...]:
    """Returns what the XML files of a VOC set say, in the order of its list.

    Raises:
        UserError: as :func:`voc_index`.
    """
    listing, root = voc_location(name)
    return _read(listing, root, _state(listing))[0]


def voc_content(name: str, images: Iterable[VocImage] | None = None) -> dict[str, Any]:
    """Returns a VOC set as COCO JSON, for training; file names are relative to the tree's root.

    Objects of other classes have category id 0, which no category has. Difficult objects are like
    any other: Detectron2 trains on them.

    Args:
        name: of a registered VOC set.
        images: those of :func:`voc_problems` instead of all.

    Raises:
        UserError: as :func:`voc_index`.
    """
    classes = list(MetadataCatalog.get(name).thing_classes)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in voc_images(name) if images is None else images:
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
            # The first pixel has number 1, and the last one belongs to the box.
            width, height = right - left + 1, bottom - top + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.identity,
                    "category_id": classes.index(one.name) + 1 if one.name in classes else 0,
                    "bbox": [left - 1, top - 1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "difficult": int(one.difficult),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def voc_ground_truth(name: str) -> dict[str, Any]:
    """Returns a VOC set as COCO JSON, for COCO's numbers beside VOC's.

    Difficult objects are crowds: VOC's evaluation neither rewards nor punishes detections of them,
    and COCO's treats crowds so. Objects of other classes are left out, as VOC's does.

    Raises:
        UserError: as :func:`voc_index`.
    """
    content = voc_content(name)
    content["annotations"] = [
        {**one, "iscrowd": one["difficult"]} for one in content["annotations"] if one["category_id"]
    ]
    return content


def voc_classes(trees: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Returns the classes of the objects in (root, split) trees, in alphabetical order.

    Raises:
        UserError: as :func:`voc_index`, or there is no object.
    """
    names: Counter[str] = Counter()
    for root, split in trees:
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        for image in _read(listing, root, _state(listing))[0]:
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


def voc_problems(name: str) -> tuple[list[str], list[VocImage]]:
    """Returns what is wrong with the XML files of a VOC set, and the images of the good ones.

    Raises:
        UserError: the list of images cannot be used.
    """
    listing, root = voc_location(name)
    problems, images = [], []
    for identity in _identities(listing):
        try:
            images.append(_parse(root, identity)[0])
        except UserError as error:
            problems.append(str(error))
    return problems, images


def _state(listing: Path) -> tuple[int, int]:
    try:
        state = listing.stat()
    except OSError as error:
        raise UserError(f"{listing}: cannot be read ({error.strerror})") from None
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _read(listing: Path, root: Path, state: tuple[int, int]) -> tuple[tuple[VocImage, ...], str]:
    images, lines = [], []
    for identity in _identities(listing):
        image, digest = _parse(root, identity)
        images.append(image)
        lines.append(f"{identity} {digest}\n")
    return tuple(images), hashlib.sha256("".join(lines).encode()).hexdigest()


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
