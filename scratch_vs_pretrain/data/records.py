"""From COCO JSON to training records: one judgement of every entry, for training and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. `svp
check-data` lists the same findings, because it calls the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    notes: list[Note] = []
    classes = {number: k for k, number in enumerate(sorted(c["id"] for c in content["categories"]))}
    sizes = {image["id"]: _size(image, facts) for image in content["images"]}
    known = [entry for entry in content["annotations"] if entry["image_id"] in sizes]
    notes += _notes_on_identities(content["annotations"], sizes.keys())
    filled = iter([False] * len(known))
    if heads.masks:
        masks = [entry.get("segmentation") for entry in known]
        filled = iter(surely_filled(masks, [sizes[entry["image_id"]] for entry in known]).tolist())
    objects: dict[Any, list[dict[str, Any]]] = {identity: [] for identity in sizes}
    for entry in known:
        size = sizes[entry["image_id"]]
        made = _object(entry, size, classes, heads, next(filled), notes.append)
        if made:
            objects[entry["image_id"]].append(made)
    records = []
    for image in content["images"]:
        width, height = sizes[image["id"]]
        if image["file_name"] in facts:
            notes += image_notes(image, facts[image["file_name"]])
        if all(one.get("iscrowd") for one in objects[image["id"]]):
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


def _notes_on_identities(
    annotations: Iterable[Mapping[str, Any]], images: Iterable[Any]
) -> list[Note]:
    there, known, notes = set(images), set(), []
    for number, entry in enumerate(annotations):
        if entry["id"] in known:
            notes.append(Note("duplicate annotation id", f"annotations[{number}] ({entry['id']})"))
        known.add(entry["id"])
        if entry["image_id"] not in there:
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
