"""One judgement of every entry and of a data set as a whole, for training, planning and checking.

What would stop training in the middle, or teach it nonsense, is dropped or mended here. More than
a little of that, and what shows that numbers mean something else than COCO's, is never harmless.
`svp check-data` lists the same findings, because it calls the same function.
"""

import functools
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import CocoFile, Entry, Identity, Note, as_float, flag, repeated
from scratch_vs_pretrain.pictures import ImageFacts

# Detectron2's BoxMode.XYWH_ABS, whose module needs torch.
XYWH_ABS = 1
# Rounded annotations may end this far outside, in pixels; Detectron2 clips them.
TOLERANCE = 1.0
# Detectron2's filter_empty_instances leaves out boxes of shorter sides.
SHORTEST_SIDE = 1e-5
# COCO's scores have no annotations of a larger area.
LARGEST_AREA = 1e10
# Of its box, what the area of an annotation may be without a remark.
SMALLEST_PART, LARGEST_PART = 0.01, 2.0
# The share of instances that may be dropped (SVP.MAX_DROPPED).
MOST_DROPPED = 0.05
# A polygon may reach this many image sizes outside: rasterizing takes memory in proportion.
REACH = 1.0
# Pixels: a polygon of more area than this times its outline's length covers some.
_FAT = 1.1
# Annotations whose polygons are looked at together: enough for numpy, and little memory.
_TOGETHER = 5000
_BOXES_ALONE = "with MODEL.MASK_ON: False boxes alone are learnt"


class Unfit(Exception):
    """An annotation that cannot be learnt; its arguments are the kind of finding and a remark."""


class Heads(NamedTuple):
    """What a model learns beside boxes: masks or not, and how many keypoints (0: none)."""

    masks: bool = False
    keypoints: int = 0


@dataclass
class Case:
    """What is collected while a data set is judged."""

    file: CocoFile
    heads: Heads
    sizes: Mapping[Identity, tuple[int, int]]  # width and height of each image as it is, by id
    notes: list[Note] = field(default_factory=list)
    dropped: list[tuple[Entry, str]] = field(default_factory=list)  # or lost keypoints, and why

    @functools.cached_property
    def classes(self) -> dict[int, int]:
        """The class of each category id."""
        return {number: k for k, number in enumerate(sorted(c["id"] for c in self.file.categories))}

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """The box of each annotation; what is beyond floats is infinite."""
        flat = chain.from_iterable(map(itemgetter("bbox"), self.file.annotations))
        return np.fromiter(map(as_float, flat), float).reshape(-1, 4)

    @functools.cached_property
    def spaces(self) -> np.ndarray:
        """The size of each annotation's image, NaN where there is none."""
        owners, unknown = map(itemgetter("image_id"), self.file.annotations), (math.nan, math.nan)
        flat = chain.from_iterable(self.sizes.get(owner, unknown) for owner in owners)
        return np.fromiter(flat, float).reshape(-1, 2)

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """The area that each annotation states, NaN where there is none or it cannot be one."""
        stated: Any = map(dict.get, self.file.annotations, repeat("area"))
        numbers = (as_float(one) if type(one) in (int, float) else math.nan for one in stated)
        areas = np.fromiter(numbers, float)
        most = np.fmin((self.spaces + TOLERANCE).prod(1), LARGEST_AREA)
        return np.where((areas > 0) & (areas <= most), areas, math.nan)

    def note(self, entry: Entry, kind: str, remark: str = "") -> None:
        self.notes.append(Note(kind, f"annotation {entry['id']}{remark and f' ({remark})'}"))

    def drop(self, entry: Entry, kind: str, remark: str = "") -> None:
        self.note(entry, kind, remark)
        if not entry.get("iscrowd"):
            self.dropped.append((entry, kind))


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
    sizes = {image["id"]: size_of(image, facts) for image in file.images}
    case = Case(file, heads, sizes)
    objects: dict[Identity, list[dict[str, Any]]] = {image["id"]: [] for image in file.images}
    for entry, box, filled in _with_boxes(case):
        if entry["image_id"] in objects:
            try:
                objects[entry["image_id"]].append(_object(entry, case, box, filled))
            except Unfit as unfit:
                case.drop(entry, *unfit.args)
    records = []
    for image in file.images:
        name, (width, height) = image["file_name"], sizes[image["id"]]
        record = {"file_name": name, "height": height, "width": width, "image_id": image["id"]}
        records.append({**record, "annotations": objects[image["id"]]})
        if name in facts:
            case.notes += _image_notes(name, facts[name])
        if all(one.get("iscrowd") for one in objects[image["id"]]):
            case.notes.append(Note("image without instances", name))
    notes = [*file.notes, *_notes_on_entries(case)]  # which drops some
    notes += case.notes
    if most_dropped < 1:
        notes += [*_lost(case, most_dropped), *_looks_of_boxes(case)]
    notes += _nothing(case, chain.from_iterable(objects.values()))
    return records, [*notes, *_sizes(case, facts, judged=most_dropped < 1)]


def scorable(file: CocoFile, sizes: Mapping[Identity, tuple[int, int]], task: str) -> list[Entry]:
    """Returns the annotations that a task is scored on: by training's rules, without those that no
    detection could match. Those without an area that can be one have their box's. Crowds stay, and
    so do annotations marked ``ignore``, as pycocotools has them."""
    case = Case(file, Heads(masks=task == "segm"), sizes)
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
    """Yields annotations, each with its box as it is learnt, clipped where it lies partly outside
    the image, or what keeps it from that, and whether its mask is learnt and surely filled."""
    start, extent = case.boxes[:, :2], case.boxes[:, 2:]
    with np.errstate(all="ignore"):
        end, low = start + extent, np.maximum(start, 0)
        inside = np.minimum(end, case.spaces) - low
        degenerate = ~((extent > SHORTEST_SIDE).all(1) & np.isfinite(end).all(1))
        outside = ~(inside > SHORTEST_SIDE).all(1)
        partly = (np.maximum(-start, end - case.spaces) > TOLERANCE).any(1)
    boxes: list[Any] = [entry["bbox"] for entry in case.file.annotations]
    for number in np.flatnonzero(partly).tolist():
        boxes[number] = [*low[number].tolist(), *inside[number].tolist()]
    for wrong, kind in ((outside, "box outside the image"), (degenerate, "degenerate box")):
        for number in np.flatnonzero(wrong).tolist():
            boxes[number] = kind
    for first in range(0, len(boxes), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        some = case.file.annotations[part]
        masks = [entry.get("segmentation") if case.heads.masks else None for entry in some]
        sizes = [case.sizes.get(entry["image_id"], (0, 0)) for entry in some]
        yield from zip(some, boxes[part], surely_filled(masks, sizes), strict=True)


def _object(entry: Entry, case: Case, box: str | list[float], filled: bool) -> dict[str, Any]:
    """Returns one annotation as Detectron2's records have it, or raises Unfit; `case` receives what
    is mended, `box` and `filled` are those of :func:`_with_boxes`."""
    if entry["category_id"] not in case.classes:
        raise Unfit("unknown category", str(entry["category_id"]))
    if (mark := entry.get("ignore")) and flag(mark):
        raise Unfit("annotation marked ignore")
    if isinstance(box, str):
        raise Unfit(box)
    category = case.classes[entry["category_id"]]
    made = {"bbox": box, "bbox_mode": XYWH_ABS, "category_id": category}
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
        made["keypoints"] = _keypoints(entry, case)
    return made


def _keypoints(entry: Entry, case: Case) -> list[float]:
    """Returns keypoints in continuous coordinates, as ``load_coco_json`` does."""
    values: Any = entry.get("keypoints")
    if coco.are_numbers(values, 3 * case.heads.keypoints):
        return [value if i % 3 == 2 else value + 0.5 for i, value in enumerate(values)]
    lose = case.drop if values else case.note  # where none are stated, none are lost
    lose(entry, "no valid keypoints")
    return [0.5, 0.5, 0] * case.heads.keypoints


def trainable_mask(mask: Any, width: int, height: int) -> Any:
    """Returns a COCO segmentation of any content as Detectron2's records have it, without polygons
    of fewer than three points, which Detectron2 leaves out, too; or raises Unfit."""
    if not mask:
        raise Unfit("no mask")
    try:
        if not isinstance(mask, dict):
            return _polygons(mask, width, height)
        if list(mask["size"]) != [height, width]:
            raise Unfit("RLE of another size", f"{mask['size']}, image {[height, width]}")
        counts = mask["counts"]
        runs = counts if isinstance(counts, list) else _runs(counts)
        whole = runs is not counts or all(run % 1 == 0 for run in runs)
        if not whole or min(runs, default=0) < 0 or sum(runs) != height * width:
            raise ValueError("its runs are no whole numbers that make up the image")
        if not any(runs[1::2]):
            raise Unfit("empty mask")
        return mask_api.frPyObjects(mask, height, width) if runs is counts else dict(mask)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Unfit("invalid mask", " ".join(str(error).split())) from None


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


def _notes_on_entries(case: Case) -> Iterator[Note]:
    """Finds what can be told of ids, images, areas and boxes without judging what is learnt."""
    annotations = case.file.annotations
    ids = list(map(itemgetter("id"), annotations))
    if 0 in set(ids):
        yield Note("annotation id 0", "pycocotools takes a match with it for none; renumbered here")
    for number in repeated(ids):
        yield Note("duplicate annotation id", f"annotations[{number}] ({ids[number]})")
    if not case.sizes.keys() >= set(map(itemgetter("image_id"), annotations)):
        for entry in annotations:
            if entry["image_id"] not in case.sizes:
                case.drop(entry, "annotation of a missing image")
    for number in np.flatnonzero(np.isnan(case.areas)).tolist():
        entry = annotations[number]
        if entry.get("area") is None:
            yield Note("annotation without area", f"annotation {entry['id']}")
        elif min(entry["bbox"][2:]) > 0:
            yield Note("impossible area", f"annotation {entry['id']}")
    extent = case.boxes[:, 2:]
    with np.errstate(over="ignore"):
        box = np.where(extent > SHORTEST_SIDE, extent + TOLERANCE, math.nan).prod(1)
    # No shape has more of its box, and a hair alone less.
    odd = (case.areas > LARGEST_PART * box) | (case.areas < SMALLEST_PART * box)
    for number in np.flatnonzero(odd & np.isfinite(box)).tolist():
        entry = annotations[number]
        where = f"annotation {entry['id']} (area {entry['area']:g}, box {{:g}} x {{:g}})"
        yield Note("area unlike its box", where.format(*case.boxes[number, 2:]))
    names = list(map(itemgetter("file_name"), case.file.images))
    yield from (Note("same file listed twice", names[number]) for number in repeated(names))
    boxes = list(map(tuple, map(itemgetter("bbox"), annotations)))
    if len(set(boxes)) < len(boxes):
        owners = map(itemgetter("image_id", "category_id"), annotations)
        for number in repeated(list(zip(owners, boxes, strict=True))):
            yield Note("same box twice", f"annotation {annotations[number]['id']}")


def _lost(case: Case, most_dropped: float) -> Iterator[Note]:
    """Judges what is dropped of a whole data set."""
    had = Counter(e["category_id"] for e in case.file.annotations if not e.get("iscrowd"))
    instances = had.total()
    images, owners = set(map(type, case.sizes)), {type(e["image_id"]) for e, _ in case.dropped}
    strangers = any(kind == "annotation of a missing image" for _, kind in case.dropped)
    if images and strangers and owners - images:
        texts = "text" if str in owners else "numbers", "text" if str in images else "numbers"
        yield Note("ids of two kinds", f"image_id is {texts[0]}, the ids of images are {texts[1]}")
    used = Counter(map(itemgetter("category_id"), case.file.annotations))
    low, high = min(case.classes, default=0), max(case.classes, default=0)
    if 0 in used and low > 0 and max(used) < high:
        text = f"annotations have 0 to {max(used)}, categories {low} to {high}"
        yield Note("categories numbered from 0", text)
    lost = len(case.dropped)
    if instances and lost > most_dropped * instances:
        kinds = Counter(kind for _, kind in case.dropped)
        text = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        text += "; " * bool(look := _look_of_masks(case)) + look
        share = f"{100 * lost / instances:.3g} %"
        yield Note("instances lost", f"{lost:,} of {instances:,} ({share}): {text}")
    of_each = Counter(entry["category_id"] for entry, _ in case.dropped)
    for category in case.file.categories:
        count = of_each[category["id"]]
        if count and count == had[category["id"]]:
            yield Note("category lost", f"{category['name']}, all {count:,} of its instances")


def _nothing(case: Case, objects: Iterable[dict[str, Any]]) -> Iterator[Note]:
    """Tells that of all objects that are left none is learnt."""
    kept = [one for one in objects if not one.get("iscrowd")]
    seen = any(mark > 0 for one in kept for mark in one.get("keypoints", ())[2::3])
    if not kept:
        every = len(case.file.annotations)
        fate = "dropped or crowds" if case.dropped else "crowds"
        text = f"all {every} annotations are {fate}" if every else "no annotations"
        yield Note("nothing to learn", text)
    elif case.heads.keypoints and not seen:
        text = f"no keypoint is labelled; {_BOXES_ALONE.replace('MASK', 'KEYPOINT')}"
        yield Note("nothing to learn", text)


def _look_of_masks(case: Case) -> str:
    dropped = (one for one, kind in case.dropped if kind.endswith("mask"))
    masks: list[Any] = [one.get("segmentation") for one in dropped]
    if masks and all(isinstance(mask, list) and mask for mask in masks):
        if all(isinstance(mask[0], (int, float)) for mask in masks):
            return "segmentation is one flat list here, COCO has a list of such lists"
        if not any(map(any, masks)):
            return f"the polygons are empty; {_BOXES_ALONE}"
    return _BOXES_ALONE if masks and not any(masks) else ""


def _looks_of_boxes(case: Case) -> Iterator[Note]:
    """Tells boxes that are no x, y, width and height in pixels by what all of them have."""
    sound = np.isfinite(case.boxes).all(1) & np.isfinite(case.spaces).all(1)
    boxes, size = case.boxes[sound], case.spaces[sound]
    if not len(boxes):
        return
    start, extent = boxes[:, :2], boxes[:, 2:]
    with np.errstate(over="ignore"):
        parts = ((boxes >= 0) & (boxes <= 1)).all(1)
        tiny = (extent < 2).any(1) & (extent > SHORTEST_SIDE).all(1)
        beyond = (start + extent > size + TOLERANCE).any(1)
    corners = (extent > start).all(1) & (extent <= size + TOLERANCE).all(1)

    def of_all(chosen: np.ndarray) -> str:
        return f"{chosen.sum():,} of {len(boxes):,} boxes"

    if parts.mean() >= 0.5:
        yield Note("boxes as parts of the image", f"{of_all(parts)} lie in [0, 1]; COCO has pixels")
    elif tiny.mean() >= 0.2:
        yield Note("boxes under 2 pixels", of_all(tiny))
    if corners.mean() >= 0.99 and beyond.mean() > 0.05:
        text = f"{of_all(beyond)} leave the image, none does if read as x1, y1, x2, y2"
        yield Note("boxes as two corners", text)


def _sizes(case: Case, facts: Mapping[str, ImageFacts], judged: bool) -> Iterator[Note]:
    """Judges the images whose files have another size than stated.

    Their annotations belong to the size that all of them fit into. Where they fit into both, a
    size that is turned (without EXIF saying so) or scaled is no slip of a pen.
    """
    images = {image["id"]: image for image in case.file.images}
    other = {k: one for k, one in images.items() if case.sizes[k] != size_of(one, {})}
    reach: dict[Identity, np.ndarray] = {}
    for entry, box in zip(case.file.annotations, case.boxes, strict=True) if other else ():
        if entry["image_id"] in other and np.isfinite(box).all():
            end = np.maximum(box[:2] + box[2:], reach.get(entry["image_id"], 0))
            reach[entry["image_id"]] = end
    for identity, image in other.items():
        stated, found = size_of(image, {}), case.sizes[identity]
        end = reach.get(identity, np.zeros(2))
        fits = [bool((end <= np.add(size, TOLERANCE)).all()) for size in (stated, found)]
        ratio = [f / max(s, 1) for f, s in zip(found, stated, strict=True)]
        turned = found == stated[::-1] and not facts[image["file_name"]].turned
        scaled = abs(ratio[0] - ratio[1]) < 0.02 * ratio[0] and not 0.9 < ratio[0] < 1.1
        doubtful = (turned or scaled) and fits[0] == fits[1]
        wrong = judged and identity in reach and (fits == [True, False] or doubtful)
        kind = "size that contradicts the boxes" if wrong else "another size than stated"
        sizes = f"{stated[0]} x {stated[1]} stated, {found[0]} x {found[1]} found"
        yield Note(kind, f"{image['file_name']} ({sizes})")


def size_of(image: Mapping[str, Any], facts: Mapping[str, ImageFacts]) -> tuple[int, int]:
    found = facts.get(image["file_name"])
    return (found.width, found.height) if found else (image["width"], image["height"])
