"""One judgement of every entry and of a data set as a whole, for training, planning and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. More than
a little of that, and what shows that numbers mean something else than COCO's, is never harmless.
`svp check-data` lists the same findings, because it calls the same function.
"""

from __future__ import annotations

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
    stated_area,
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
    keypoints that no head learns; images without instances are included.

    Args:
        file: of which every entry can be used.
        facts: by file name, of the images that could be read; others have their stated size.
        heads: what will be learnt.
        most_dropped: the share of instances that may be; at 1 the whole is not judged.
    """
    classes = {number: k for k, number in enumerate(sorted(c["id"] for c in file.categories))}
    case = Case(heads, classes, {image["id"]: size_of(image, facts) for image in file.images})
    objects: dict[Identity, list[dict[str, Any]]] = {image["id"]: [] for image in file.images}
    for entry, filled in _with_filled(file.annotations, case):
        if entry["image_id"] in objects:
            try:
                objects[entry["image_id"]].append(_object(entry, case, filled))
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
    case = Case(Heads(masks=task == "segm"), {one["id"]: 0 for one in file.categories}, sizes)
    kept = []
    for entry, filled in _with_filled(file.annotations, case):
        if not entry.get("iscrowd"):
            if entry["image_id"] not in sizes:
                continue
            try:
                _object({**entry, "ignore": 0}, case, filled)
            except Unfit:
                continue
        if stated_area(entry) is None:
            width, height = map(as_float, entry["bbox"][2:])
            entry = {**entry, "area": width * height}
        kept.append(entry)
    return kept


def unscored(file: CocoFile, kept: list[Entry], task: str, most_dropped: float) -> str:
    """Returns what keeps a test set from being scored on, of which `kept` are :func:`scorable`;
    empty if nothing does."""
    instances, left = (
        sum(not one.get("iscrowd") or bool(one.get("difficult")) for one in entries)
        for entries in (file.annotations, kept)
    )
    if not instances:
        return "no annotation is an instance" if file.annotations else "there are no annotations"
    if instances - left <= most_dropped * instances:
        return ""
    what = "mask" if task == "segm" else "box"
    return (
        f"{instances - left:,} of {instances:,} annotations have no {what} that can be scored "
        "(`svp check-data` lists them)"
    )


def _image_notes(name: str, facts: ImageFacts) -> Iterator[Note]:
    """Finds what an image differs in from a plain colour photograph."""
    if facts.turned:
        yield Note("EXIF-rotated image", name)
    if facts.deep:
        yield Note("deep image", f"{name} ({facts.mode})")
    if facts.mode in ("L", "LA", "1"):
        yield Note("greyscale image", name)
    if facts.mode == "CMYK":
        yield Note("CMYK image", name)


def _with_filled(entries: list[Entry], case: Case) -> Iterator[tuple[Entry, bool]]:
    """Yields annotations and whether their mask is learnt and :func:`surely_filled`."""
    for start in range(0, len(entries), _TOGETHER):
        some = entries[start : start + _TOGETHER]
        masks = [entry.get("segmentation") if case.heads.masks else None for entry in some]
        sizes = [case.sizes.get(entry["image_id"], (0, 0)) for entry in some]
        yield from zip(some, surely_filled(masks, sizes), strict=True)


def _object(entry: Entry, case: Case, filled: bool) -> dict[str, Any]:
    """Returns one annotation as Detectron2's records have it, or raises Unfit; `case` receives what
    is mended, and `filled` says that its mask is :func:`surely_filled`."""
    size = case.sizes[entry["image_id"]]
    if entry["category_id"] not in case.classes:
        raise Unfit("unknown category", str(entry["category_id"]))
    if (mark := entry.get("ignore")) and flag(mark):
        raise Unfit("annotation marked ignore")
    box, mended = _box(entry["bbox"], size)
    made = {
        "bbox": box,
        "bbox_mode": XYWH_ABS,
        "category_id": case.classes[entry["category_id"]],
    }
    if mended:
        case.note(entry, "box partly outside the image")
    if "iscrowd" in entry:
        made["iscrowd"] = int(bool(entry["iscrowd"]))
    if made.get("iscrowd"):  # never learnt
        return made
    if case.heads.masks:
        mask: Any = entry.get("segmentation")
        made["segmentation"] = learnt = mask if filled else trainable_mask(mask, *size)
        if isinstance(learnt, list) and len(learnt) < len(mask):
            case.note(entry, "polygon of fewer than three points")
    if case.heads.keypoints:
        made["keypoints"] = _keypoints(entry.get("keypoints"), case.heads.keypoints)
        if made["keypoints"] is None:
            case.note(entry, "no valid keypoints")
            made["keypoints"] = [0.5, 0.5, 0] * case.heads.keypoints
    return made


def _box(bbox: list[float], size: tuple[int, int]) -> tuple[list[float], bool]:
    """Returns a box as it is learnt, and whether it had to be clipped."""
    left, top, width, height = bbox
    try:
        right, bottom = float(left + width), float(top + height)
    except OverflowError:
        right = bottom = math.inf
    # Whatever is no number makes a comparison false.
    if not (width > SHORTEST_SIDE and height > SHORTEST_SIDE and math.isfinite(right + bottom)):
        raise Unfit("degenerate box")
    low_x, low_y = max(left, 0.0), max(top, 0.0)
    extent_x, extent_y = min(right, size[0]) - low_x, min(bottom, size[1]) - low_y
    if not (extent_x > SHORTEST_SIDE and extent_y > SHORTEST_SIDE):
        raise Unfit("box outside the image")
    if max(-left, -top, right - size[0], bottom - size[1]) <= TOLERANCE:
        return bbox, False
    return [low_x, low_y, extent_x, extent_y], True


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
    """Tells which masks are polygons of which each covers pixels, without rasterizing them, which
    takes ten times as long; False where that is not certain.

    Rasterizing moves an outline by less than 0.3 pixel (it rounds to fifths of a pixel, twice), so
    a disc of radius 1.01 inside a polygon keeps one of 0.71, which holds the centre of a pixel. Of
    a simple polygon without such a disc every point is within 1.01 of the outline, and its area is
    at most 1.01 times the outline's length (Sz.-Nagy, 1959).

    Args:
        masks: COCO segmentations of any content.
        sizes: of each mask's image, width and height.
    """
    filled = np.array([type(mask) is list and _are_polygons(mask) for mask in masks], bool)
    polygons = list(chain.from_iterable(compress(masks, filled)))
    values = array("d")  # takes numbers alone, numpy also texts of numbers
    try:
        for polygon in polygons:
            values.fromlist(polygon)
    except (TypeError, OverflowError):
        return [False] * len(masks)
    if polygons:
        x, y = np.frombuffer(values).reshape(-1, 2).T
        counts = [len(mask) for mask in compress(masks, filled)]
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


def _are_polygons(mask: list[Any]) -> bool:
    lengths = [len(one) if type(one) is list else 0 for one in mask]
    return bool(lengths) and min(lengths) >= 6 and not any(length % 2 for length in lengths)
