"""One judgement of every entry and of a data set as a whole, for training, planning and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. More than
a little of that, and what shows that numbers mean something else than COCO's, is never harmless.
`svp check-data` lists the same findings, because it calls the same function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np

from scratch_vs_pretrain.data.coco import CocoFile, Entry, Identity, Note
from scratch_vs_pretrain.data.findings import (
    MOST_DROPPED,
    SHORTEST_SIDE,
    TOLERANCE,
    Case,
    Heads,
    as_float,
    has,
    size_of,
    whole,
)
from scratch_vs_pretrain.data.masks import Unfit, surely_filled, trainable_mask
from scratch_vs_pretrain.data.pictures import ImageFacts

# Detectron2's BoxMode.XYWH_ABS, whose module needs torch.
XYWH_ABS = 1


def judge(
    file: CocoFile,
    facts: Mapping[str, ImageFacts],
    heads: Heads,
    most_dropped: float = MOST_DROPPED,
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Returns Detectron2's records of a data set, and everything that is not as it should be.

    Of data without findings the records are those of ``load_coco_json``, but for masks and
    keypoints that no head learns. They come in the order of the images, those without instances
    included.

    Args:
        file: of which every entry can be used.
        facts: by file name, of the images that could be read; others have their stated size.
        heads: what will be learnt.
        most_dropped: the share of instances that may be dropped; at 1 the data set as a whole is
            not judged, and whole categories may be lost.
    """
    case = _case(file, facts, heads)
    good = plainly_good(file.annotations, case.sizes, case.classes.keys(), heads)
    records = _judge(case, file.images, file.annotations, good.tolist(), facts, frozenset())
    return records, whole(case, file, facts, most_dropped)


def findings(
    file: CocoFile,
    facts: Mapping[str, ImageFacts],
    heads: Heads,
    most_dropped: float = MOST_DROPPED,
) -> list[Note]:
    """Returns the findings of :func:`judge` in less time: of annotations that are plainly good no
    records are made."""
    case, annotations = _case(file, facts, heads), file.annotations
    good = plainly_good(annotations, case.sizes, case.classes.keys(), heads)
    settled = good & (heads.keypoints == 0)
    doubtful = list(itertools.compress(annotations, ~settled))
    plain = itertools.compress(annotations, settled & ~has("iscrowd", annotations))
    learnt = set(map(itemgetter("image_id"), plain))
    open_cases = case.sizes.keys() - learnt | set(map(itemgetter("image_id"), doubtful))
    images = [
        image for image in file.images if image["id"] in open_cases or image["file_name"] in facts
    ]
    _judge(case, images, doubtful, good[~settled].tolist(), facts, learnt)
    return whole(case, file, facts, most_dropped)


def scorable(file: CocoFile, sizes: Mapping[Identity, tuple[int, int]], task: str) -> list[Entry]:
    """Returns the annotations that a task is scored on: by training's rules, without those that no
    detection could match. Those without area have their box's.

    Crowds stay, and so do annotations marked ``ignore``, as pycocotools has them.

    Args:
        file: of a test set.
        sizes: width and height of each image.
        task: "bbox", "segm" or "keypoints".
    """
    annotations = file.annotations
    classes = {one["id"]: 0 for one in file.categories}
    case = Case(Heads(masks=task == "segm"), classes, sizes)
    good = plainly_good(annotations, sizes, classes.keys(), case.heads)
    good |= has("iscrowd", annotations)
    kept = []
    for entry, plain in zip(annotations, good.tolist(), strict=True):
        if not plain:
            if entry["image_id"] not in sizes:
                continue
            try:
                _object({**entry, "ignore": 0}, sizes[entry["image_id"]], case, False)
            except Unfit:
                continue
        if not isinstance(entry.get("area"), (int, float)):
            entry = {**entry, "area": float(entry["bbox"][2]) * float(entry["bbox"][3])}
        kept.append(entry)
    return kept


def _case(file: CocoFile, facts: Mapping[str, ImageFacts], heads: Heads) -> Case:
    classes = {number: k for k, number in enumerate(sorted(c["id"] for c in file.categories))}
    return Case(heads, classes, {image["id"]: size_of(image, facts) for image in file.images})


def plainly_good(
    annotations: Sequence[dict[str, Any]],
    sizes: Mapping[Any, tuple[int, int]],
    classes: Set[int],
    heads: Heads,
) -> np.ndarray:
    """Tells (n,) in which annotations :func:`judge` finds nothing for sure, all at a time; it does
    not look at keypoints.

    Args:
        annotations: that can be used.
        sizes: width and height of each image by its id.
        classes: ids of the categories.
        heads: what will be learnt.
    """
    # Loops in C alone: there may be a million annotations.
    count = len(annotations)
    places = dict(zip(sizes, range(len(sizes)), strict=True))
    of_images = map(itemgetter("image_id"), annotations)
    place = np.fromiter(map(places.get, of_images, repeat(len(sizes))), int, count)
    size = np.array([*sizes.values(), (-1, -1)], dtype=float)[place]
    of_classes = map(itemgetter("category_id"), annotations)
    good = np.fromiter(map(classes.__contains__, of_classes), bool, count)
    good &= ~has("ignore", annotations)
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
        good &= has("iscrowd", annotations) | surely_filled(masks, size)
    return good


def _judge(
    case: Case,
    images: Sequence[Entry],
    annotations: Sequence[Entry],
    good: Iterable[bool],
    facts: Mapping[str, ImageFacts],
    learnt: Set[Any],
) -> list[dict[str, Any]]:
    """Judges some images and all of their annotations that need it.

    Args:
        case: receives all findings.
        images: to be judged.
        annotations: to be judged; of these images, or of none.
        good: which of them are plainly good.
        facts: as in :func:`judge`.
        learnt: ids of images that have further instances.
    """
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for entry, plain in zip(annotations, good, strict=True):
        if entry["image_id"] not in case.sizes:
            continue
        try:
            made = _object(entry, case.sizes[entry["image_id"]], case, plain)
            objects[entry["image_id"]].append(made)
        except Unfit as unfit:
            case.drop(entry, *unfit.args)
    records = []
    for image in images:
        width, height = case.sizes[image["id"]]
        if image["file_name"] in facts:
            case.notes += _image_notes(image, facts[image["file_name"]])
        empty = all(one.get("iscrowd") for one in objects[image["id"]])
        if empty and image["id"] not in learnt:
            case.notes.append(Note("image without instances", image["file_name"]))
        records.append(
            {
                "file_name": image["file_name"],
                "height": height,
                "width": width,
                "image_id": image["id"],
                "annotations": objects[image["id"]],
            }
        )
    return records


def _image_notes(image: Entry, facts: ImageFacts) -> Iterator[Note]:
    """Finds what an image differs in from a plain colour photograph."""
    name = image["file_name"]
    if facts.turned:
        yield Note("EXIF-rotated image", name)
    if facts.deep:
        yield Note("deep image", f"{name} ({facts.mode})")
    if facts.mode in ("L", "LA", "1"):
        yield Note("greyscale image", name)
    if facts.mode == "CMYK":
        yield Note("CMYK image", name)


def _object(entry: Entry, size: tuple[int, int], case: Case, plain: bool) -> dict[str, Any]:
    """Returns one annotation as Detectron2's records have it.

    Args:
        entry: the annotation.
        size: of its image.
        case: receives what is mended.
        plain: it is plainly good.

    Raises:
        Unfit: it is to be dropped.
    """
    box = entry["bbox"]
    if not plain:
        box = _learnt_box(entry, size, case)
    made = {
        "bbox": box,
        "bbox_mode": XYWH_ABS,
        "category_id": case.classes[entry["category_id"]],
    }
    if "iscrowd" in entry:
        made["iscrowd"] = int(bool(entry["iscrowd"]))
    if made.get("iscrowd"):  # never learnt
        return made
    if case.heads.masks:
        mask = entry.get("segmentation")
        made["segmentation"], shortened = (mask, False) if plain else trainable_mask(mask, *size)
        if shortened:
            case.notes.append(
                Note("polygon of fewer than three points", f"annotation {entry['id']}")
            )
    if case.heads.keypoints:
        made["keypoints"] = _keypoints(entry.get("keypoints"), case.heads.keypoints)
        if made["keypoints"] is None:
            case.notes.append(Note("no valid keypoints", f"annotation {entry['id']}"))
            made["keypoints"] = [0.5, 0.5, 0] * case.heads.keypoints
    return made


def _learnt_box(entry: Entry, size: tuple[int, int], case: Case) -> list[float]:
    if entry["category_id"] not in case.classes:
        raise Unfit("unknown category", str(entry["category_id"]))
    if entry.get("ignore"):
        raise Unfit("annotation marked ignore")
    box, kind = _box(entry["bbox"], size)
    if box is None:
        raise Unfit(kind)
    if kind:
        case.notes.append(Note(kind, f"annotation {entry['id']}"))
    return box


def _box(bbox: list[float], size: tuple[int, int]) -> tuple[list[float] | None, str]:
    """Returns a box as it is learnt, None if it is dropped, and what is wrong with it."""
    left, top, width, height = map(as_float, bbox)
    right, bottom = left + width, top + height
    if not (width > SHORTEST_SIDE and height > SHORTEST_SIDE and math.isfinite(right + bottom)):
        return None, "degenerate box"
    low = max(left, 0.0), max(top, 0.0)
    extent = min(right, size[0]) - low[0], min(bottom, size[1]) - low[1]
    if min(extent) <= SHORTEST_SIDE:
        return None, "box outside the image"
    beyond = max(-left, -top, right - size[0], bottom - size[1])
    if beyond <= TOLERANCE:
        return bbox, ""
    return [*low, *extent], "box partly outside the image"


def _keypoints(values: Any, number: int) -> list[float] | None:
    """Returns keypoints in continuous coordinates, as ``load_coco_json`` does; None if invalid."""
    if not isinstance(values, list) or len(values) != 3 * number:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(values)]
