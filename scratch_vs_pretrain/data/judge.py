"""One judgement of every entry and of a data set as a whole, for training, planning and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. More than
a little of that, and what shows that numbers mean something else than COCO's, is never harmless.
`svp check-data` lists the same findings, because it calls the same function.
"""

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from scratch_vs_pretrain.data.coco import CocoFile, Entry, Identity, Note, as_float, flag
from scratch_vs_pretrain.data.findings import (
    MOST_DROPPED,
    SHORTEST_SIDE,
    TOLERANCE,
    Case,
    Heads,
    size_of,
    whole,
)
from scratch_vs_pretrain.pictures import ImageFacts

# Detectron2's BoxMode.XYWH_ABS, whose module needs torch.
XYWH_ABS = 1
# A polygon may reach this many image sizes outside: rasterizing takes memory in proportion.
REACH = 1.0
# Pixels: a polygon of more area than this times its outline's length covers some.
_FAT = 1.1
# Annotations whose polygons are looked at together: enough for numpy, and little memory.
_TOGETHER = 5000


class Unfit(Exception):
    """An annotation that cannot be learnt; its arguments are the kind of finding and a remark."""


def judge(
    file: CocoFile,
    facts: Mapping[str, ImageFacts],
    heads: Heads,
    most_dropped: float = MOST_DROPPED,
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Returns Detectron2's records of a data set, and everything that is not as it should be.

    Of data without findings the records are those of ``load_coco_json``, but for masks and
    keypoints that no head learns; images without instances are included. Images without `facts`,
    by file name, have their stated size. At `most_dropped` 1 the whole is not judged."""
    classes = {number: k for k, number in enumerate(sorted(c["id"] for c in file.categories))}
    sizes = {image["id"]: size_of(image, facts) for image in file.images}
    case = Case(file.annotations, heads, classes, sizes)
    objects: dict[Identity, list[dict[str, Any]]] = {image["id"]: [] for image in file.images}
    for entry, box, filled in _with_boxes(case):
        if entry["image_id"] in objects:
            try:
                objects[entry["image_id"]].append(_object(entry, case, box, filled))
            except Unfit as unfit:
                case.drop(entry, *unfit.args)
    records = []
    for image in file.images:
        name, (width, height) = image["file_name"], case.sizes[image["id"]]
        record = {"file_name": name, "height": height, "width": width, "image_id": image["id"]}
        records.append({**record, "annotations": objects[image["id"]]})
        if name in facts:
            case.notes += _image_notes(name, facts[name])
        if all(one.get("iscrowd") for one in objects[image["id"]]):
            case.notes.append(Note("image without instances", name))
    return records, whole(case, file, facts, most_dropped)


def scorable(file: CocoFile, sizes: Mapping[Identity, tuple[int, int]], task: str) -> list[Entry]:
    """Returns the annotations that a task is scored on: by training's rules, without those that no
    detection could match. Those without an area that can be one have their box's. Crowds stay, and
    so do annotations marked ``ignore``, as pycocotools has them."""
    classes = {one["id"]: 0 for one in file.categories}
    case = Case(file.annotations, Heads(masks=task == "segm"), classes, sizes)
    kept = []
    for (entry, box, filled), area in zip(_with_boxes(case), case.areas, strict=True):
        if not entry.get("iscrowd"):
            if entry["image_id"] not in sizes:
                continue
            try:
                _object({**entry, "ignore": 0}, case, box, filled)
            except Unfit:
                continue
        if math.isnan(area):
            width, height = map(as_float, entry["bbox"][2:])
            entry = {**entry, "area": width * height}
        kept.append(entry)
    return kept


def _image_notes(name: str, facts: ImageFacts) -> Iterator[Note]:
    """Finds what an image differs in from a plain colour photograph."""
    if facts.turned:
        yield Note("EXIF-rotated image", name)
    if facts.deep:
        yield Note("deep image", f"{name} ({facts.mode})")
    if facts.mode in ("L", "LA", "1", "CMYK"):
        yield Note("CMYK image" if facts.mode == "CMYK" else "greyscale image", name)


def _with_boxes(case: Case) -> Iterator[tuple[Entry, str | list[float], bool]]:
    """Yields annotations, each with its box as it is learnt, or what is wrong with that, and
    whether its mask is learnt and :func:`surely_filled`."""
    boxes = _boxes(case)
    for start in range(0, len(boxes), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        some = case.entries[part]
        masks = [entry.get("segmentation") if case.heads.masks else None for entry in some]
        sizes = [case.sizes.get(entry["image_id"], (0, 0)) for entry in some]
        yield from zip(some, boxes[part], surely_filled(masks, sizes), strict=True)


def _boxes(case: Case) -> list[str | list[float]]:
    """Returns boxes as they are learnt, clipped where they lie partly outside the image, or what
    keeps them from being learnt."""
    start, extent = case.boxes[:, :2], case.boxes[:, 2:]
    with np.errstate(all="ignore"):
        end, low = start + extent, np.maximum(start, 0)
        inside = np.minimum(end, case.spaces) - low
        degenerate = ~((extent > SHORTEST_SIDE).all(1) & np.isfinite(end).all(1))
        outside = ~(inside > SHORTEST_SIDE).all(1)
        partly = (np.maximum(-start, end - case.spaces) > TOLERANCE).any(1)
    made = [entry["bbox"] for entry in case.entries]
    for number in np.flatnonzero(partly).tolist():
        made[number] = [*low[number].tolist(), *inside[number].tolist()]
    for number in np.flatnonzero(outside).tolist():
        made[number] = "box outside the image"
    for number in np.flatnonzero(degenerate).tolist():
        made[number] = "degenerate box"
    return made


def _object(entry: Entry, case: Case, box: str | list[float], filled: bool) -> dict[str, Any]:
    """Returns one annotation as Detectron2's records have it, or raises Unfit; `case` receives what
    is mended, `box` and `filled` are those of :func:`_with_boxes`."""
    if entry["category_id"] not in case.classes:
        raise Unfit("unknown category", str(entry["category_id"]))
    if (mark := entry.get("ignore")) and flag(mark):
        raise Unfit("annotation marked ignore")
    if isinstance(box, str):
        raise Unfit(box)
    made = {
        "bbox": box,
        "bbox_mode": XYWH_ABS,
        "category_id": case.classes[entry["category_id"]],
    }
    if box is not entry["bbox"]:
        case.note(entry, "box partly outside the image")
    if "iscrowd" in entry:
        made["iscrowd"] = int(bool(entry["iscrowd"]))
    if made.get("iscrowd"):  # never learnt
        return made
    if case.heads.masks:
        mask: Any = entry.get("segmentation")
        size = case.sizes[entry["image_id"]]
        made["segmentation"] = learnt = mask if filled else trainable_mask(mask, *size)
        if isinstance(learnt, list) and len(learnt) < len(mask):
            case.note(entry, "polygon of fewer than three points")
    if case.heads.keypoints:
        made["keypoints"] = _keypoints(entry.get("keypoints"), case.heads.keypoints)
        if made["keypoints"] is None:
            case.note(entry, "no valid keypoints")
            made["keypoints"] = [0.5, 0.5, 0] * case.heads.keypoints
    return made


def _keypoints(values: Any, number: int) -> list[float] | None:
    """Returns keypoints in continuous coordinates, as ``load_coco_json`` does; None if invalid."""
    if not isinstance(values, list) or len(values) != 3 * number:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(values)]


def trainable_mask(mask: Any, width: int, height: int) -> Any:
    """Returns a COCO segmentation of any content as Detectron2's records have it, without polygons
    of fewer than three points, which Detectron2 leaves out, too; or raises Unfit."""
    if not mask:
        raise Unfit("no mask")
    try:
        if isinstance(mask, dict):
            return _run_lengths(mask, [height, width])
        return _polygons(mask, width, height)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Unfit("invalid mask", " ".join(str(error).split())) from None


def _run_lengths(mask: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    if list(mask["size"]) != size:
        raise Unfit("RLE of another size", f"{mask['size']}, image {size}")
    counts = mask["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError("its runs are not as many pixels as the image")
    if not any(runs[1::2]):
        raise Unfit("empty mask")
    return mask_api.frPyObjects(mask, *size) if runs is counts else dict(mask)


def _runs(counts: str | bytes) -> list[int]:
    """Returns the run lengths that COCO's compressed text stands for.

    As ``rleFrString`` of pycocotools' maskApi.c reads them, which checks nothing: runs that end
    early would leave a part of the decoded mask to chance.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError("its text is none of run lengths")
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its text ends within a number")
    return runs


def _polygons(mask: Any, width: int, height: int) -> list[list[float]]:
    polygons = [one for one in mask if len(one) >= 6 and len(one) % 2 == 0]
    if not polygons:
        raise Unfit("empty mask", "no polygon has three points")
    for one in polygons:
        if not all(map(math.isfinite, one)):
            raise ValueError("a corner is no number")
        for values, side in ((one[::2], width), (one[1::2], height)):
            if min(values) < -REACH * side or max(values) > (1 + REACH) * side:
                raise ValueError("a corner is far outside the image")
    if not mask_api.area(mask_api.frPyObjects(polygons, height, width)).any():
        raise Unfit("empty mask")
    return polygons


def surely_filled(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> list[bool]:
    """Tells which masks are surely polygons of which each covers pixels, in a tenth of the time
    that rasterizing them takes.

    Rasterizing moves an outline by less than 0.3 pixel (it rounds to fifths of a pixel, twice), so
    a disc of radius 1.01 inside a polygon keeps one of 0.71, which holds the centre of a pixel. Of
    a simple polygon without such a disc every point is within 1.01 of the outline, and its area is
    at most 1.01 times the outline's length (Sz.-Nagy, 1959). `sizes` are those of their images."""
    lists = [mask if type(mask) is list else () for mask in masks]
    counts = np.fromiter(map(len, lists), int)
    sides = (len(one) if type(one) is list else 0 for one in chain.from_iterable(lists))
    lengths = np.fromiter(sides, int)
    filled = counts > 0
    filled[np.repeat(np.arange(len(masks)), counts)[(lengths < 6) | (lengths % 2 > 0)]] = False
    polygons = list(chain.from_iterable(compress(masks, filled)))
    values = array("d")  # takes numbers alone, numpy also texts of numbers
    try:
        for polygon in polygons:
            values.fromlist(polygon)
    except (TypeError, OverflowError):
        return [False] * len(masks)
    if polygons:
        x, y = np.frombuffer(values).reshape(-1, 2).T
        counts = counts[filled]
        most_x, most_y = np.repeat(list(compress(sizes, filled)), counts, axis=0).T
        ends = np.cumsum([len(one) // 2 for one in polygons])
        starts = np.concatenate([[0], ends[:-1]])
        following = np.arange(1, len(x) + 1)
        following[ends - 1] = starts
        with np.errstate(all="ignore"):
            area = np.add.reduceat(x * y[following] - x[following] * y, starts)
            outline = np.add.reduceat(np.hypot(x[following] - x, y[following] - y), starts)
            sure = abs(area) > 2 * _FAT * outline
        for side, most in ((x, most_x), (y, most_y)):
            sure &= np.minimum.reduceat(side, starts) >= 0
            sure &= np.maximum.reduceat(side, starts) <= most
        filled[filled] = np.logical_and.reduceat(sure, np.cumsum([0, *counts[:-1]]))
    return filled.tolist()
