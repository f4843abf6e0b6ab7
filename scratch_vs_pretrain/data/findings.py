"""What can be wrong or odd in a data set, and the judgement of one as a whole.

More than a little of what is dropped, and what shows that numbers mean something else than COCO's,
is never harmless.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from scratch_vs_pretrain.data.coco import CocoFile, Entry, Identity, Note, as_float, repeated
from scratch_vs_pretrain.pictures import ImageFacts

BREAKS, SPOILS = "breaks training", "spoils the result"
MENDED, ODD = "harmless", "worth knowing"
# Of what means one of these no number can be trusted.
SEVERE = (BREAKS, SPOILS)

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


class Kind(NamedTuple):
    """What one kind of finding means for training, and what training does about it, if anything."""

    means: str
    fate: str = ""

    def text(self) -> str:
        """Returns both, for a table."""
        return f"{self.means}: {self.fate}" if self.fate else self.means


def _kinds(kind: Kind, *names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, kind)


# In the order in which they are listed.
KINDS = {
    **_kinds(Kind(BREAKS), "missing image", "undecodable image", "unusable entry"),
    **_kinds(Kind(BREAKS), "unusable XML", "nothing to learn"),
    **_kinds(Kind(SPOILS), "instances lost", "category lost", "ids of two kinds"),
    **_kinds(Kind(SPOILS), "categories numbered from 0", "boxes as parts of the image"),
    **_kinds(Kind(SPOILS), "boxes as two corners", "size that contradicts the boxes"),
    # At most SVP.MAX_UNREADABLE of them, and only where nothing is evaluated on them.
    "undecodable training image": Kind(MENDED, "another image takes its place"),
    "other spelling": Kind(MENDED, "read as it is meant"),
    "file of another name": Kind(MENDED, "used"),
    "another size than stated": Kind(MENDED, "true size used"),
    **_kinds(Kind(MENDED, "dropped"), "unknown category", "object of another class"),
    **_kinds(Kind(MENDED, "dropped"), "annotation of a missing image", "annotation marked ignore"),
    **_kinds(Kind(MENDED, "dropped"), "degenerate box", "box outside the image"),
    "box partly outside the image": Kind(MENDED, "clipped"),
    **_kinds(Kind(MENDED, "dropped"), "no mask", "invalid mask", "RLE of another size"),
    "empty mask": Kind(MENDED, "dropped"),
    "polygon of fewer than three points": Kind(MENDED, "polygon left out"),
    "impossible area": Kind(MENDED, "its box's used"),
    "no valid keypoints": Kind(MENDED, "taken as unlabelled"),
    "image without instances": Kind(MENDED, "left out"),
    "greyscale image": Kind(MENDED, "converted"),
    "deep image": Kind(MENDED, "scaled to 8 bits"),
    "CMYK image": Kind(MENDED, "converted"),
    "EXIF-rotated image": Kind(MENDED, "turned"),
    **_kinds(Kind(ODD), "duplicate annotation id", "annotation id 0", "annotation without area"),
    **_kinds(Kind(ODD), "area unlike its box", "same box twice", "box one pixel wide"),
    "boxes under 2 pixels": Kind(ODD),
    **_kinds(Kind(ODD), "same file listed twice", "same image twice in a data set"),
    **_kinds(Kind(ODD), "same image in several data sets", "XML names another file"),
    **_kinds(Kind(ODD), "XML with fractions or without flags"),
}


@dataclass(frozen=True)
class Heads:
    """What a model learns beside boxes: masks or not, and how many keypoints (0: none)."""

    masks: bool = False
    keypoints: int = 0


@dataclass
class Case:
    """What is collected while a data set is judged.

    Attributes:
        entries: its annotations.
        classes: the class of each category id.
        sizes: width and height of each image as it is.
        notes: all findings.
        dropped: instances that are, with the kind of finding.
    """

    entries: Sequence[Entry]
    heads: Heads
    classes: Mapping[int, int]
    sizes: Mapping[Identity, tuple[int, int]]
    notes: list[Note] = field(default_factory=list)
    dropped: list[tuple[Entry, str]] = field(default_factory=list)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """The box of each annotation; what is beyond floats is infinite."""
        flat = itertools.chain.from_iterable(map(itemgetter("bbox"), self.entries))
        return np.fromiter(map(as_float, flat), float).reshape(-1, 4)

    @functools.cached_property
    def spaces(self) -> np.ndarray:
        """The size of each annotation's image, NaN where there is none."""
        owners, unknown = map(itemgetter("image_id"), self.entries), (math.nan, math.nan)
        flat = itertools.chain.from_iterable(self.sizes.get(owner, unknown) for owner in owners)
        return np.fromiter(flat, float).reshape(-1, 2)

    @functools.cached_property
    def areas(self) -> np.ndarray:
        """The area that each annotation states, NaN where there is none or it cannot be one."""
        stated: Any = map(dict.get, self.entries, itertools.repeat("area"))
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


def whole(
    case: Case, file: CocoFile, facts: Mapping[str, ImageFacts], most_dropped: float
) -> list[Note]:
    """Returns all notes: of the file, of identities, of entries, and of the whole."""
    notes = [*file.notes, *_notes_on_identities(case, file)]
    notes += case.notes
    if all(entry.get("iscrowd") for entry in case.entries):
        every = len(case.entries)
        text = f"all {every} annotations are crowds" if every else "no annotations"
        notes.append(Note("nothing to learn", text))
    if most_dropped < 1:
        notes += _lost(case, file, most_dropped)
        notes += _looks_of_boxes(case)
    return notes + list(_sizes(case, file, facts, judged=most_dropped < 1))


def _notes_on_identities(case: Case, file: CocoFile) -> Iterator[Note]:
    annotations = file.annotations
    ids = list(map(itemgetter("id"), annotations))
    if 0 in set(ids):
        yield Note("annotation id 0", "pycocotools takes a match with it for none; renumbered here")
    for number in repeated(ids):
        yield Note("duplicate annotation id", f"annotations[{number}] ({ids[number]})")
    if not case.sizes.keys() >= set(map(itemgetter("image_id"), annotations)):
        for entry in annotations:
            if entry["image_id"] not in case.sizes:
                case.drop(entry, "annotation of a missing image")
    yield from _looks_of_areas(case)
    names = list(map(itemgetter("file_name"), file.images))
    yield from (Note("same file listed twice", names[number]) for number in repeated(names))
    boxes = list(map(tuple, map(itemgetter("bbox"), annotations)))
    if len(set(boxes)) < len(boxes):
        where = map(itemgetter("image_id", "category_id"), annotations)
        for number in repeated(list(zip(where, boxes, strict=True))):
            yield Note("same box twice", f"annotation {annotations[number]['id']}")


def _looks_of_areas(case: Case) -> Iterator[Note]:
    """Finds areas that are none, or that no shape or a hair alone has in its box."""
    for number in np.flatnonzero(np.isnan(case.areas)).tolist():
        entry = case.entries[number]
        if entry.get("area") is None:
            yield Note("annotation without area", f"annotation {entry['id']}")
        elif min(entry["bbox"][2:]) > 0:
            yield Note("impossible area", f"annotation {entry['id']}")
    extent = case.boxes[:, 2:]
    with np.errstate(over="ignore"):
        box = np.where(extent > SHORTEST_SIDE, extent + TOLERANCE, math.nan).prod(1)
    odd = (case.areas > LARGEST_PART * box) | (case.areas < SMALLEST_PART * box)
    for number in np.flatnonzero(odd & np.isfinite(box)).tolist():
        entry = case.entries[number]
        where = f"annotation {entry['id']} (area {entry['area']:g}, box {{:g}} x {{:g}})"
        yield Note("area unlike its box", where.format(*case.boxes[number, 2:]))


def _lost(case: Case, file: CocoFile, most_dropped: float) -> Iterator[Note]:
    """Judges what is dropped of a whole data set."""
    had = Counter(e["category_id"] for e in file.annotations if not e.get("iscrowd"))
    instances = had.total()
    images, owners = set(map(type, case.sizes)), {type(e["image_id"]) for e, _ in case.dropped}
    strangers = any(kind == "annotation of a missing image" for _, kind in case.dropped)
    if images and strangers and owners - images:
        texts = "text" if str in owners else "numbers", "text" if str in images else "numbers"
        yield Note("ids of two kinds", f"image_id is {texts[0]}, the ids of images are {texts[1]}")
    used = Counter(map(itemgetter("category_id"), file.annotations))
    if 0 in used and case.classes and min(case.classes) > 0 and max(used) < max(case.classes):
        yield Note(
            "categories numbered from 0",
            f"annotations have 0 to {max(used)}, categories {min(case.classes)} to "
            f"{max(case.classes)}",
        )
    lost = len(case.dropped)
    if instances and lost > most_dropped * instances:
        kinds = Counter(kind for _, kind in case.dropped)
        text = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        text += "; " * bool(look := _look_of_masks(case)) + look
        share = f"{100 * lost / instances:.3g} %"
        yield Note("instances lost", f"{lost:,} of {instances:,} ({share}): {text}")
    of_each = Counter(entry["category_id"] for entry, _ in case.dropped)
    for category in file.categories:
        count = of_each[category["id"]]
        if count and count == had[category["id"]]:
            yield Note("category lost", f"{category['name']}, all {count:,} of its instances")


_BOXES_ALONE = "with MODEL.MASK_ON: False boxes alone are learnt"


def _look_of_masks(case: Case) -> str:
    masks: list[Any] = [
        one.get("segmentation") for one, kind in case.dropped if kind.endswith("mask")
    ]
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
        yield Note(
            "boxes as two corners",
            f"{of_all(beyond)} leave the image, none does if read as x1, y1, x2, y2",
        )


def _sizes(
    case: Case, file: CocoFile, facts: Mapping[str, ImageFacts], judged: bool
) -> Iterator[Note]:
    """Judges the images whose files have another size than stated.

    Their annotations belong to the size that all of them fit into. Where they fit into both, a
    size that is turned (without EXIF saying so) or scaled is no slip of a pen.
    """
    other = {
        image["id"]: image for image in file.images if case.sizes[image["id"]] != size_of(image, {})
    }
    reach: dict[Identity, np.ndarray] = {}
    for entry, box in zip(case.entries, case.boxes, strict=True) if other else ():
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
