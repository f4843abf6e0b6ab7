"""Reads a COCO annotation file once, checks its form and keeps what is asked of it again."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

# What training needs of each entry. Identities are integers in COCO, strings elsewhere.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": int, "width": int},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}

# What each annotation must have so that a task can be scored, beside ids and category.
_SCORED_BY = {
    "bbox": ("bbox", "area"),
    "segm": ("segmentation", "area"),
    "keypoints": ("keypoints", "num_keypoints", "bbox", "area"),
}
COCO_KEYPOINTS = 17
# The mean of COCO's 17, for keypoints whose categories state none.
USUAL_SIGMA = 0.067


@dataclass(frozen=True)
class AnnotationFile:
    """What has to be known of an annotation file before its annotations are loaded.

    Attributes:
        file_names: of all images, relative to the image folder.
        annotations: their number.
        categories: names in the order of the category ids.
        keypoints: names of the keypoints, empty where the categories have none.
        skeleton: pairs of positions in `keypoints`, counted from 1.
        sigmas: of object keypoint similarity, one a keypoint, or empty where none are stated.
        usable: whether any image has an annotation that is no crowd.
        masks, labelled: whether any annotation that is no crowd has a mask, or keypoints.
        run_lengths: whether any of those masks is one of run lengths, no polygons.
        lacks: the first thing that keeps a task from being scored, by task.
        sha256: of the file.
    """

    file_names: tuple[str, ...]
    annotations: int
    categories: tuple[str, ...]
    keypoints: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]
    usable: bool
    sha256: str
    sigmas: tuple[float, ...] = ()
    masks: bool = False
    labelled: bool = False
    run_lengths: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Collects no garbage inside; parsing JSON makes none, and looking takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
        with without_gc():
            content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); is it truncated?") from None
    for problem in form_problems(content):
        raise UserError(f"{file}: {problem}")
    images, annotations = content["images"], content["annotations"]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    instances = [entry for entry in annotations if not entry.get("iscrowd")]
    annotated = {entry["image_id"] for entry in instances}
    keypoints, skeleton = _keypoints(file, categories)
    lacks = {
        task: find_lack(content, task, len(keypoints) or COCO_KEYPOINTS) for task in _SCORED_BY
    }
    return AnnotationFile(
        file_names=tuple(image["file_name"] for image in images),
        annotations=len(annotations),
        categories=tuple(category["name"] for category in categories),
        keypoints=keypoints,
        skeleton=skeleton,
        usable=any(image["id"] in annotated for image in images),
        sha256=hashlib.sha256(data).hexdigest(),
        sigmas=_sigmas(file, categories, len(keypoints)),
        masks=any(entry.get("segmentation") for entry in instances),
        labelled=any(entry.get("keypoints") for entry in instances),
        run_lengths=any(isinstance(entry.get("segmentation"), dict) for entry in instances),
        lacks={task: lack for task, lack in lacks.items() if lack},
    )


def form_problems(content: Any) -> Iterator[str]:
    """Finds what keeps JSON from being read as COCO's; each says where.

    What can be left out or mended entry by entry is none: see
    :mod:`scratch_vs_pretrain.data.records`.
    """
    problems: dict[str, dict[int, str]] = {}
    for key in _FIELDS:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            yield f"not in COCO format; it has no list of {key}"
            return
        problems[key] = entry_problems(key, entries)
        for number, problem in problems[key].items():
            yield f"not in COCO format; {key}[{number}] {problem}"
    for key in ("images", "categories"):
        known: set[Any] = set()
        for number, entry in enumerate(content[key]):
            if number in problems[key]:
                continue
            if entry["id"] in known:
                yield (
                    f"{key}[{number}] has the id {entry['id']!r} of one before it; give each an "
                    "id of its own"
                )
            known.add(entry["id"])


def entry_problems(key: str, entries: list[Any]) -> dict[int, str]:
    """Returns what keeps entries of the list `key` from being read, by their position."""
    if _plainly_good(key, entries):
        return {}
    found = ((number, entry_problem(key, entry)) for number, entry in enumerate(entries))
    return {number: problem for number, problem in found if problem}


def _plainly_good(key: str, entries: list[Any]) -> bool:
    """Tells that :func:`entry_problem` finds nothing in any entry, looking at one field of all at
    a time, which takes a tenth of the time. False where that is not certain."""
    try:
        columns = {name: list(map(itemgetter(name), entries)) for name in _FIELDS[key]}
    except (KeyError, TypeError):
        return False
    for name, kind in _FIELDS[key].items():
        if not set(map(type, columns[name])) <= {*(kind if isinstance(kind, tuple) else (kind,))}:
            return False
    if key == "images":
        return not any(name.startswith("/") or ".." in name for name in columns["file_name"])
    if key == "annotations":
        numbers = set(map(type, itertools.chain.from_iterable(columns["bbox"])))
        return set(map(len, columns["bbox"])) <= {4} and numbers <= {int, float}
    return True


def entry_problem(key: str, entry: Any) -> str | None:
    """Returns what keeps an entry of the list `key` from being read, None if it can be."""
    for name, kind in _FIELDS[key].items():
        if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
            return f"has no valid {name}"
    if key == "images":
        name = entry["file_name"]
        if name.startswith("/") or ".." in name.split("/"):
            return f"is {name}, which leads out of the image folder"
    if key == "annotations":
        bbox = entry["bbox"]
        if len(bbox) != 4 or not all(isinstance(value, (int, float)) for value in bbox):
            return f"has bbox {bbox}; give [x, y, w, h]"
    return None


def find_lack(content: Mapping[str, Any], task: str, keypoints: int) -> str | None:
    """Returns what keeps COCO JSON from being the ground truth of a task, None if nothing does.

    Args:
        content: of a file; annotations need not be there.
        task: "bbox", "segm" or "keypoints".
        keypoints: their number.
    """
    annotations = content.get("annotations")
    if not annotations:
        return "there are no annotations"
    for annotation in annotations:
        for key in _SCORED_BY[task]:
            if annotation.get(key) in (None, []):
                return f"annotation {annotation.get('id')} has no {key}"
        if task == "keypoints" and len(annotation["keypoints"]) != 3 * keypoints:
            found = len(annotation["keypoints"]) // 3
            return f"annotation {annotation.get('id')} has {found} keypoints, not {keypoints}"
    return None


def _sigmas(file: Path, categories: list[dict[str, Any]], keypoints: int) -> tuple[float, ...]:
    stated: Any = next((one["sigmas"] for one in categories if one.get("sigmas")), [])
    numbers = isinstance(stated, list) and all(isinstance(one, (int, float)) for one in stated)
    if (
        not numbers
        or len(stated) not in (0, keypoints)
        or not all(0 < one < math.inf for one in stated)
    ):
        raise UserError(f"{file}: the sigmas of a category must be {keypoints} positive numbers")
    return tuple(float(one) for one in stated)


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
