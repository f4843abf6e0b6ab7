"""From COCO JSON to training records: one judgement of every entry, for training and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. `svp
check-data` lists the same findings, because it calls the same function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from scratch_vs_pretrain.data.image_facts import ImageFacts, image_notes
from scratch_vs_pretrain.data.kinds import Note
from scratch_vs_pretrain.data.masks import UnfitMask, surely_filled, trainable_mask

# Rounded annotations may end this far outside, in pixels; Detectron2 clips them.
TOLERANCE = 1.0
# Detectron2's filter_empty_instances leaves out boxes of shorter sides.
SHORTEST_SIDE = 1e-5


@dataclass(frozen=True)
class Heads:
    """What a model learns beside boxes: masks or not, and how many keypoints (0: none)."""

    masks: bool = False
    keypoints: int = 0


def judge(
    content: Mapping[str, Any], facts: Mapping[str, ImageFacts], heads: Heads
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Returns Detectron2's records of a data set, and everything that is not as it should be.

    Of data without findings the records are those of ``load_coco_json``, but for masks and
    keypoints that no head learns. They come in the order of the images, those without instances
    included.

    Args:
        content: COCO JSON, in which ``form_problems`` finds nothing.
        facts: by file name, of the images that could be read; others have their stated size.
        heads: what will be learnt.
    """
    images, annotations = content["images"], content["annotations"]
    sizes = {image["id"]: _size(image, facts) for image in images}
    records, notes = _judge(content, images, annotations, sizes, facts, heads, frozenset())
    return records, _notes_on_identities(annotations, sizes.keys()) + notes


def findings(
    content: Mapping[str, Any], facts: Mapping[str, ImageFacts], heads: Heads
) -> list[Note]:
    """Returns the findings of :func:`judge` in less time: of annotations that are plainly good no
    records are made."""
    annotations = content["annotations"]
    sizes = {image["id"]: _size(image, facts) for image in content["images"]}
    good = plainly_good(annotations, sizes, {one["id"] for one in content["categories"]}, heads)
    doubtful = list(itertools.compress(annotations, ~good))
    plain = itertools.compress(annotations, good & ~_has("iscrowd", annotations))
    learnt = set(map(itemgetter("image_id"), plain))
    open_cases = sizes.keys() - learnt | set(map(itemgetter("image_id"), doubtful))
    images = [
        image
        for image in content["images"]
        if image["id"] in open_cases or image["file_name"] in facts
    ]
    _, notes = _judge(content, images, doubtful, sizes, facts, heads, learnt)
    return _notes_on_identities(annotations, sizes.keys()) + notes


def plainly_good(
    annotations: Sequence[dict[str, Any]],
    sizes: Mapping[Any, tuple[int, int]],
    classes: Set[int],
    heads: Heads,
) -> np.ndarray:
    """Tells (n,) in which annotations :func:`judge` finds nothing for sure, all at a time.

    Args:
        annotations: in which ``form_problems`` finds nothing.
        sizes: width and height of each image by its id.
        classes: ids of the categories.
        heads: what will be learnt.
    """
    if heads.keypoints:
        return np.zeros(len(annotations), dtype=bool)
    # Loops in C alone: there may be a million annotations.
    count = len(annotations)
    places = dict(zip(sizes, range(len(sizes)), strict=True))
    of_images = map(itemgetter("image_id"), annotations)
    place = np.fromiter(map(places.get, of_images, repeat(len(sizes))), int, count)
    size = np.array([*sizes.values(), (-1, -1)], dtype=float)[place]
    of_classes = map(itemgetter("category_id"), annotations)
    good = np.fromiter(map(classes.__contains__, of_classes), bool, count)
    good &= ~_has("ignore", annotations)
    try:
        flat = itertools.chain.from_iterable(map(itemgetter("bbox"), annotations))
        boxes = np.fromiter(flat, float, 4 * count).reshape(-1, 4)
    except OverflowError:
        return np.zeros(len(annotations), dtype=bool)
    start, extent = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        end = start + extent
        seen = np.minimum(end, size) - np.maximum(start, 0)
        # Whatever is no number makes a comparison false.
        good &= ((extent > SHORTEST_SIDE) & (seen > SHORTEST_SIDE)).all(1)
        good &= ((start >= -TOLERANCE) & (end - size <= TOLERANCE)).all(1)
    if heads.masks:
        masks = list(map(dict.get, annotations, repeat("segmentation")))
        good &= _has("iscrowd", annotations) | surely_filled(masks, size)
    return good


def _has(key: str, annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.fromiter(map(bool, map(dict.get, annotations, repeat(key))), bool, len(annotations))


def _judge(
    content: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    sizes: Mapping[Any, tuple[int, int]],
    facts: Mapping[str, ImageFacts],
    heads: Heads,
    learnt: Set[Any],
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Judges some images and all of their annotations that need it.

    Args:
        content: all of the data set.
        images: to be judged.
        annotations: to be judged; of these images, or of none.
        sizes: width and height of all images by id.
        facts: as in :func:`judge`.
        heads: as in :func:`judge`.
        learnt: ids of images that have further instances.
    """
    notes: list[Note] = []
    classes = {number: k for k, number in enumerate(sorted(c["id"] for c in content["categories"]))}
    known = [entry for entry in annotations if entry["image_id"] in sizes]
    filled = iter([False] * len(known))
    if heads.masks:
        masks = [entry.get("segmentation") for entry in known]
        of_each = np.array([sizes[entry["image_id"]] for entry in known]).reshape(-1, 2)
        filled = iter(surely_filled(masks, of_each).tolist())
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for entry in known:
        size = sizes[entry["image_id"]]
        made = _object(entry, size, classes, heads, next(filled), notes.append)
        if made:
            objects[entry["image_id"]].append(made)
    records = []
    for image in images:
        width, height = sizes[image["id"]]
        if image["file_name"] in facts:
            notes += image_notes(image, facts[image["file_name"]])
        empty = all(one.get("iscrowd") for one in objects[image["id"]])
        if empty and image["id"] not in learnt:
            notes.append(Note("image without instances", image["file_name"]))
        records.append(
            {
                "file_name": image["file_name"],
                "height": height,
                "width": width,
                "image_id": image["id"],
                "annotations": objects[image["id"]],
            }
        )
    return records, notes


def _size(image: Mapping[str, Any], facts: Mapping[str, ImageFacts]) -> tuple[int, int]:
    found = facts.get(image["file_name"])
    return (found.width, found.height) if found else (image["width"], image["height"])


def _notes_on_identities(annotations: Sequence[Mapping[str, Any]], images: Set[Any]) -> list[Note]:
    different = len(set(map(itemgetter("id"), annotations)))
    if different == len(annotations) and images >= set(map(itemgetter("image_id"), annotations)):
        return []
    known, notes = set(), []
    for number, entry in enumerate(annotations):
        if entry["id"] in known:
            notes.append(Note("duplicate annotation id", f"annotations[{number}] ({entry['id']})"))
        known.add(entry["id"])
        if entry["image_id"] not in images:
            notes.append(Note("annotation of a missing image", f"annotation {entry['id']}"))
    return notes


def _object(
    entry: Mapping[str, Any],
    size: tuple[int, int],
    classes: Mapping[int, int],
    heads: Heads,
    filled: bool,
    note: Callable[[Note], None],
) -> dict[str, Any] | None:
    """Returns one annotation as Detectron2's records have it, None if it is dropped.

    Args:
        filled: its mask need not be looked at.
        note: receives every finding.
    """
    where = f"annotation {entry['id']}"
    if entry["category_id"] not in classes:
        note(Note("unknown category", f"{where} ({entry['category_id']})"))
        return None
    if entry.get("ignore"):
        note(Note("annotation marked ignore", where))
        return None
    box = _box(entry["bbox"], size, lambda kind: note(Note(kind, where)))
    if box is None:
        return None
    made = {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": classes[entry["category_id"]],
    }
    if "iscrowd" in entry:
        made["iscrowd"] = int(bool(entry["iscrowd"]))
    if made.get("iscrowd"):  # never learnt
        return made
    if heads.masks:
        mask = entry.get("segmentation")
        try:
            made["segmentation"], shortened = (
                (mask, False) if filled else trainable_mask(mask, *size)
            )
        except UnfitMask as unfit:
            kind, remark = unfit.args
            note(Note(kind, f"{where} ({remark})" if remark else where))
            return None
        if shortened:
            note(Note("polygon of fewer than three points", where))
    if heads.keypoints:
        made["keypoints"] = _keypoints(entry.get("keypoints"), heads.keypoints)
        if made["keypoints"] is None:
            note(Note("no valid keypoints", where))
            made["keypoints"] = [0.5, 0.5, 0] * heads.keypoints
    return made


def _box(
    bbox: list[float], size: tuple[int, int], found: Callable[[str], None]
) -> list[float] | None:
    try:
        left, top, width, height = (float(value) for value in bbox)
    except OverflowError:
        left = top = width = height = math.nan
    right, bottom = left + width, top + height
    if not (width > SHORTEST_SIDE and height > SHORTEST_SIDE and math.isfinite(right + bottom)):
        found("degenerate box")
        return None
    low = max(left, 0.0), max(top, 0.0)
    extent = min(right, size[0]) - low[0], min(bottom, size[1]) - low[1]
    if min(extent) <= SHORTEST_SIDE:
        found("box outside the image")
        return None
    beyond = max(-left, -top, right - size[0], bottom - size[1])
    if beyond <= TOLERANCE:
        return bbox
    found("box partly outside the image")
    return [*low, *extent]


def _keypoints(values: Any, number: int) -> list[float] | None:
    """Returns keypoints in continuous coordinates, as ``load_coco_json`` does; None if invalid."""
    if not isinstance(values, list) or len(values) != 3 * number:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(values)]
