"""Reads a COCO annotation file once, checks its form and keeps what is asked of it again."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

# What training needs of each entry. Identities are integers in COCO, strings elsewhere.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": int, "width": int},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


@dataclass(frozen=True)
class AnnotationFile:
    """What has to be known of an annotation file before its annotations are loaded.

    Attributes:
        file_names: of all images, relative to the image folder.
        annotations: their number.
        categories: names in the order of the category ids.
        keypoints: names of the keypoints, empty where the categories have none.
        skeleton: pairs of positions in `keypoints`, counted from 1.
        usable: whether any image has an annotation that is no crowd.
        sha256: of the file.
    """

    file_names: tuple[str, ...]
    annotations: int
    categories: tuple[str, ...]
    keypoints: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    usable: bool
    sha256: str


def read_annotations(file: Path) -> AnnotationFile:
    """Reads an annotation file, once per process as long as its size and time stay the same.

    Raises:
        UserError: it is missing, no JSON, or not in COCO format; the message names the entry.
    """
    try:
        stat = file.stat()
        return _read(file, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None


@functools.lru_cache(maxsize=16)
def _read(file: Path, size: int, modified: int) -> AnnotationFile:
    data = file.read_bytes()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); is it truncated?") from None
    for key in _FIELDS:
        _check_entries(file, content, key)
    images, annotations = content["images"], content["annotations"]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    _check_annotations(file, annotations, {category["id"] for category in categories})
    for image in images:
        if image["file_name"].startswith("/") or ".." in image["file_name"].split("/"):
            raise UserError(f"{file}: {image['file_name']} leads out of the image folder")
    annotated = {entry["image_id"] for entry in annotations if not entry.get("iscrowd")}
    keypoints, skeleton = _keypoints(file, categories)
    return AnnotationFile(
        file_names=tuple(image["file_name"] for image in images),
        annotations=len(annotations),
        categories=tuple(category["name"] for category in categories),
        keypoints=keypoints,
        skeleton=skeleton,
        usable=any(image["id"] in annotated for image in images),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _check_entries(file: Path, content: Any, key: str) -> None:
    """Checks that `content` has a list `key` whose entries have the required fields."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{file}: not in COCO format; it has no list of {key}")
    for number, entry in enumerate(entries):
        for field, kind in _FIELDS[key].items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise UserError(f"{file}: not in COCO format; {key}[{number}] has no valid {field}")


def _check_annotations(file: Path, annotations: list[dict[str, Any]], known: set[int]) -> None:
    for number, entry in enumerate(annotations):
        if entry["category_id"] not in known:
            raise UserError(
                f"{file}: annotations[{number}] has category_id {entry['category_id']}, "
                "which none of the categories has"
            )
        bbox = entry["bbox"]
        if len(bbox) != 4 or not all(isinstance(value, (int, float)) for value in bbox):
            raise UserError(f"{file}: annotations[{number}] has bbox {bbox}; give [x, y, w, h]")


def _keypoints(
    file: Path, categories: list[dict[str, Any]]
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    described = [category for category in categories if category.get("keypoints")]
    if not described:
        return (), ()
    names = described[0]["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: the keypoints of a category must be a list of names")
    if any(category["keypoints"] != names for category in described):
        raise UserError(f"{file}: its categories have different keypoints; they must share them")
    try:
        skeleton = tuple((int(a), int(b)) for a, b in described[0].get("skeleton") or ())
        if any(not 1 <= end <= len(names) for bone in skeleton for end in bone):
            raise ValueError
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"{file}: the skeleton must be pairs of 1 to {len(names)}") from None
    return tuple(names), skeleton
