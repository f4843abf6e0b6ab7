"""What is wrong or odd in annotations, without looking at the images."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from scratch_vs_pretrain.data.voc import voc_ground_truth, voc_location
from scratch_vs_pretrain.errors import UserError

# Rounded annotations may end this far outside, in pixels.
TOLERANCE = 1.0


@dataclass(frozen=True)
class Note:
    """One finding: its kind, of `check.KINDS`, and where."""

    kind: str
    where: str


def check_entries(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Note]]:
    """Checks COCO JSON, of which the three lists are known to be there.

    Returns:
        the images that can be looked at, and what was found.
    """
    notes: list[Note] = []
    images: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(content["images"]):
        if not _is_image(image):
            notes.append(Note("no COCO entry", f"images[{number}]"))
        elif image["id"] in images:
            notes.append(Note("duplicate image id", f"images[{number}] ({image['id']})"))
        elif Path(image["file_name"]).is_absolute() or ".." in Path(image["file_name"]).parts:
            notes.append(Note("path out of the image folder", image["file_name"]))
        else:
            images[image["id"]] = image
    categories = {entry.get("id") for entry in content["categories"] if isinstance(entry, dict)}
    known: set[Any] = set()
    annotated: set[Any] = set()
    for number, entry in enumerate(content["annotations"]):
        if not _is_annotation(entry):
            notes.append(Note("no COCO entry", f"annotations[{number}]"))
            continue
        where = f"annotation {entry['id']}"
        if entry["id"] in known:
            notes.append(Note("duplicate annotation id", f"annotations[{number}] ({entry['id']})"))
        known.add(entry["id"])
        annotated.add(entry["image_id"])
        if entry["category_id"] not in categories:
            notes.append(Note("unknown category", f"{where} ({entry['category_id']})"))
        image = images.get(entry["image_id"])
        if image is None:
            notes.append(Note("annotation of a missing image", where))
        else:
            notes += _check_geometry(entry, image, where)
    notes += [
        Note("image without annotation", image["file_name"])
        for identity, image in images.items()
        if identity not in annotated
    ]
    return list(images.values()), notes


def voc_entries(name: str) -> tuple[list[dict[str, Any]], list[Note]]:
    """Checks a registered VOC set; the images are named relative to the tree's root."""
    try:
        truth = voc_ground_truth(name)
    except UserError as error:
        return [], [Note("unusable XML", str(error))]
    images, notes = check_entries(truth)
    _, root = voc_location(name)
    for image in images:
        file = root / "Annotations" / f"{image['id']}.xml"
        stated = ElementTree.parse(file).getroot().findtext("filename")
        if stated is not None and stated.strip() != image["file_name"]:
            notes.append(Note("XML names another file", f"{file.name} ({stated.strip()})"))
    return [{**one, "file_name": f"JPEGImages/{one['file_name']}"} for one in images], notes


def _is_image(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("id"), (int, str))
        and isinstance(entry.get("file_name"), str)
        and all(isinstance(entry.get(side), int) for side in ("height", "width"))
    )


def _is_annotation(entry: Any) -> bool:
    bbox = entry.get("bbox") if isinstance(entry, dict) else None
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(isinstance(value, (int, float)) for value in bbox)
        and all(isinstance(entry.get(key), (int, str)) for key in ("id", "image_id"))
        and isinstance(entry.get("category_id"), int)
    )


def _check_geometry(
    entry: Mapping[str, Any], image: Mapping[str, Any], where: str
) -> Iterator[Note]:
    left, top, width, height = entry["bbox"]
    if not (width > 0 and height > 0):  # also NaN
        yield Note("degenerate box", where)
    elif (
        min(left, top) < -TOLERANCE
        or left + width > image["width"] + TOLERANCE
        or top + height > image["height"] + TOLERANCE
    ):
        yield Note("box outside the image", where)
    mask = entry.get("segmentation")
    if not mask:
        return
    size = [image["height"], image["width"]]
    try:
        if isinstance(mask, dict):
            if list(mask["size"]) != size:
                yield Note("RLE of another size", f"{where} ({mask['size']}, image {size})")
                return
            code = mask
            if isinstance(mask["counts"], list):
                if sum(mask["counts"]) != size[0] * size[1]:
                    raise ValueError("its runs are not as many pixels as the image")
                code = mask_api.frPyObjects(mask, *size)
            area = int(mask_api.area(code))
        else:
            # Detectron2 leaves out polygons of fewer than three points.
            polygons = [one for one in mask if len(one) >= 6 and len(one) % 2 == 0]
            codes = mask_api.frPyObjects(polygons, *size) if polygons else []
            area = sum(int(mask_api.area(code)) for code in codes)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        yield Note("invalid mask", f"{where} ({' '.join(str(error).split())})")
        return
    if area == 0:
        yield Note("empty mask", where)
