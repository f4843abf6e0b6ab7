"""PASCAL VOC trees: read once, checked for what Detectron2 needs, and as COCO ground truth.

Training records are Detectron2's own (``load_voc_instances``), difficult objects included.
"""

from __future__ import annotations

import functools
import hashlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from scratch_vs_pretrain.data.annotations import AnnotationFile
from scratch_vs_pretrain.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


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
        raise UserError(
            f"{name}: no such file as {listing}; set DETECTRON2_DATASETS to the folder that holds "
            f"{root.name}"
        )
    return listing, root


def voc_index(name: str) -> AnnotationFile:
    """Returns what is to be known of a VOC set, read once per process until its list changes.

    File names are relative to the tree's root; sha256 is of the list of images and the digests of
    their annotations.

    Raises:
        UserError: a file is missing, or is not as Detectron2's loader or evaluator needs it.
    """
    listing, root = voc_location(name)
    return _read(listing, root, tuple(MetadataCatalog.get(name).thing_classes), _state(listing))


def voc_ground_truth(name: str) -> dict[str, Any]:
    """Returns a VOC set as COCO JSON, for COCO's numbers beside VOC's.

    Boxes are those of Detectron2's loader. Difficult objects are crowds: VOC's evaluation neither
    rewards nor punishes detections of them, and COCO's treats crowds so.

    Raises:
        UserError: as :func:`voc_index`.
    """
    listing, root = voc_location(name)
    voc_index(name)
    classes = tuple(MetadataCatalog.get(name).thing_classes)
    return _ground_truth(listing, root, classes, _state(listing))


def _state(listing: Path) -> tuple[int, int]:
    state = listing.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _read(
    listing: Path, root: Path, classes: tuple[str, ...], state: tuple[int, int]
) -> AnnotationFile:
    identities = _identities(listing)
    annotations, lines = 0, []
    for identity in identities:
        file = _annotation_file(root, identity)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None
        annotations += _check(file, data, classes)
        lines.append(f"{identity} {hashlib.sha256(data).hexdigest()}\n")
    return AnnotationFile(
        file_names=tuple(f"JPEGImages/{identity}.jpg" for identity in identities),
        annotations=annotations,
        categories=classes,
        keypoints=(),
        skeleton=(),
        usable=annotations > 0,
        sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
    )


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


def _annotation_file(root: Path, identity: str) -> Path:
    return root / "Annotations" / f"{identity}.xml"


def _check(file: Path, data: bytes, classes: tuple[str, ...]) -> int:
    """Returns the number of objects of one image, all of them checked."""
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not valid XML ({error}); is it truncated?") from None
    for side in ("width", "height"):
        _number(file, tree, f"size/{side}", int)
    objects = tree.findall("object")
    for number, entry in enumerate(objects, 1):
        where = f"object {number}"
        name = entry.findtext("name")
        if name not in classes:
            raise UserError(
                f"{file}: {where} is of class {name}, which is not among the {len(classes)} classes"
            )
        for corner in _CORNERS:
            # The evaluator takes whole numbers alone, as VOC has them.
            _number(file, entry, f"bndbox/{corner}", int, where)
        for flag in ("truncated", "difficult"):
            _number(file, entry, flag, int, where)
        if entry.find("pose") is None:
            raise UserError(f"{file}: {where} has no pose; write <pose>Unspecified</pose>")
    return len(objects)


def _number(
    file: Path, parent: ElementTree.Element, path: str, kind: type, where: str = "the image"
) -> None:
    text = parent.findtext(path)
    try:
        kind(text or "")
    except ValueError:
        raise UserError(
            f"{file}: {where} has no whole number as {path.replace('/', '.')} (it is {text!r})"
        ) from None


@functools.lru_cache(maxsize=4)
def _ground_truth(
    listing: Path, root: Path, classes: tuple[str, ...], state: tuple[int, int]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for identity in _identities(listing):
        tree = ElementTree.parse(_annotation_file(root, identity)).getroot()
        size = {side: int(tree.findtext(f"size/{side}") or 0) for side in ("height", "width")}
        images.append({"id": identity, "file_name": f"{identity}.jpg", **size})
        for entry in tree.findall("object"):
            left, top, right, bottom = (
                int(entry.findtext(f"bndbox/{corner}") or 0) for corner in _CORNERS
            )
            # The first pixel has number 1, and the last one belongs to the box.
            width, height = right - left + 1, bottom - top + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": identity,
                    "category_id": classes.index(entry.findtext("name") or "") + 1,
                    "bbox": [left - 1, top - 1, width, height],
                    "area": width * height,
                    "iscrowd": int(entry.findtext("difficult") or 0),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
