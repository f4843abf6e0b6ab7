"""COCO annotation files: read once, normalised, and what follows from them.

Entries that mean what they should but are spelt differently are put right here, once, and noted.
Whether an entry can be trained on is judged in :mod:`scratch_vs_pretrain.data.judge`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import math
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from scratch_vs_pretrain.errors import UserError

# What is needed of each entry. Identities are integers in COCO, strings elsewhere.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": int, "width": int},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_EXPECTED = {str: "text", int: "a whole number", list: "a list", (int, str): "a number or text"}
# In pixels; no reader of images takes longer ones.
LONGEST_SIDE = 2**31 - 1
_WHOLE: dict[str, tuple[str, ...]] = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}
_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_CROWD = {"0": 0, "false": 0, "": 0, "1": 1, "true": 1}

COCO_KEYPOINTS = 17
# The mean of COCO's 17, for keypoints whose categories state none.
USUAL_SIGMA = 0.067

Entry = dict[str, Any]
Identity = int | str


@dataclass(frozen=True)
class Note:
    """One finding: its kind, a key of ``findings.KINDS``, and where."""

    kind: str
    where: str


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file, or a VOC tree as one.

    Attributes:
        path: of the file, or of the list of a VOC tree's images.
        sha256: of the file.
        images, annotations, categories: the entries that can be used, normalised; images by
            ascending id, those of a VOC tree in the order of its list.
        unusable: what keeps the file or others of its entries from being used.
        notes: what was spelt in another way.
        info: what the file says of itself.
    """

    path: Path
    sha256: str
    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    unusable: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    info: Any = None

    def ids(self) -> list[Identity]:
        """Returns the image ids, ascending, numbers before texts."""
        return sorted(map(itemgetter("id"), self.images), key=id_order)

    @functools.cached_property
    def facts(self) -> AnnotationFile:
        """What has to be known of the file where its annotations are not loaded."""
        categories = sorted(self.categories, key=itemgetter("id"))
        instances = [entry for entry in self.annotations if not entry.get("iscrowd")]
        masks = list(map(dict.get, instances, itertools.repeat("segmentation")))
        names, sigmas, unfit = _keypoints(categories)
        return AnnotationFile(
            file_names=tuple(map(itemgetter("file_name"), self.images)),
            annotations=len(self.annotations),
            categories=tuple(category["name"] for category in categories),
            keypoints=names,
            skeleton=_skeleton(categories, len(names)),
            usable=not set(map(itemgetter("id"), self.images)).isdisjoint(
                map(itemgetter("image_id"), instances)
            ),
            sha256=self.sha256,
            sigmas=sigmas,
            masks=any(masks),
            labelled=not unfit and any(map(dict.get, instances, itertools.repeat("keypoints"))),
            run_lengths=dict in set(map(type, masks)),
            lacks=_lacks(self.annotations, len(names) or COCO_KEYPOINTS, unfit),
        )


@dataclass(frozen=True)
class AnnotationFile:
    """What has to be known of a file where its annotations are not loaded.

    Attributes:
        file_names: of all images, relative to the image folder.
        annotations: their number.
        categories: names in the order of the ids.
        keypoints: their names, empty where the categories have none in common.
        skeleton: pairs of positions in `keypoints`, counted from 1; only drawn, never learnt.
        usable: whether any image has an annotation that is no crowd.
        masks, labelled: whether any annotation that is no crowd has a mask, or keypoints.
        run_lengths: whether any of those masks is one of run lengths, no polygons.
        sigmas: of object keypoint similarity, one a keypoint, or empty where none are stated.
        lacks: what keeps a task from being scored, by task.
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


# Files that somebody holds; annotations of a large one take gigabytes, so nobody else keeps them.
_HELD: weakref.WeakValueDictionary[tuple[Path, int, int], CocoFile] = weakref.WeakValueDictionary()


def open_coco(path: Path) -> CocoFile:
    """Reads an annotation file, unless it is held already and has its size and time still.

    Raises:
        UserError: it is missing or no JSON. What is not in COCO format is told by `unusable`.
    """
    key = _state(path)
    held = _HELD.get(key)
    if held is None:
        data = read_bytes(path)
        with without_gc():
            held = coco_file(path, hashlib.sha256(data).hexdigest(), parse(path, data))
        _HELD[key] = held
    return held


def read_coco(path: Path, optional: Sequence[str] = ()) -> CocoFile:
    """Reads an annotation file of which every entry is to be used; `optional` lists may be missing.

    Raises:
        UserError: it is missing, no JSON, or not in COCO format; the message names the entry.
    """
    file = open_coco(path)
    for problem in file.unusable:
        if not any(problem.endswith(f"no list of {key}") for key in optional):
            raise UserError(f"{path}: {problem}")
    return file


def read_annotations(path: Path) -> AnnotationFile:
    """Returns the facts of an annotation file, once per process until its size or time changes.

    Raises:
        UserError: as :func:`read_coco`.
    """
    return _facts(*_state(path))


@functools.lru_cache(maxsize=16)
def _facts(path: Path, size: int, modified: int) -> AnnotationFile:
    return read_coco(path).facts


def coco_file(path: Path, sha256: str, content: Any) -> CocoFile:
    """Returns COCO JSON as a file: its entries normalised, those that cannot be used left out."""
    unusable: list[str] = []
    notes: list[Note] = []
    lists: dict[str, list[Entry]] = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            unusable.append(f"not in COCO format; it has no list of {key}")
            entries = []
        if not _plainly_good(key, entries):
            numbers = _category_numbers(content.get("categories"))
            normal = [
                _normal(key, number, one, numbers, notes) for number, one in enumerate(entries)
            ]
            wrong = {n: text for n, one in enumerate(normal) if (text := entry_problem(key, one))}
            unusable += [f"not in COCO format; {key}[{n}] {text}" for n, text in wrong.items()]
            entries = [one for number, one in enumerate(normal) if number not in wrong]
        if key != "annotations":  # of several with one id the first
            again = set(repeated([entry["id"] for entry in entries]))
            for n in sorted(again):
                found = _short(entries[n]["id"])
                text = f"has the id {found} of one before it; give each an id of its own"
                unusable.append(f"{key}[{n}] {text}")
            entries = [entry for n, entry in enumerate(entries) if n not in again]
        lists[key] = entries
    lists["images"].sort(key=lambda image: id_order(image["id"]))
    unusable.sort(key=lambda text: "it has no list of" not in text)
    info = content.get("info") if isinstance(content, dict) else None
    return CocoFile(path, sha256, **lists, unusable=tuple(unusable), notes=tuple(notes), info=info)


def entry_problem(key: str, entry: Any) -> str | None:
    """Returns what keeps an entry of the list `key` from being read, None if it can be."""
    if not isinstance(entry, dict):
        return f"is {_short(entry)}; give an object"
    for name, kind in _FIELDS[key].items():
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = f"{name} {_short(value)}" if name in entry else f"no {name}"
            return f"has {found}; give {_EXPECTED[kind]}"
    if key == "images" and max(entry["width"], entry["height"]) > LONGEST_SIDE:
        size = f"{_short(entry['width'])} x {_short(entry['height'])}"
        return f"has the size {size}, which no image has; give its width and height in pixels"
    if key == "annotations":
        bbox = entry["bbox"]
        if len(bbox) != 4 or not all(isinstance(value, (int, float)) for value in bbox):
            return f"has bbox {_short(bbox)}; give [x, y, w, h]"
        if entry.get("iscrowd", 0) not in (0, 1):
            return f"has iscrowd {_short(entry['iscrowd'])}; give 0 or 1"
    return None


def _short(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer of thousands of digits
        return "of thousands of digits"


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


def _state(path: Path) -> tuple[Path, int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror})") from None
    return path, state.st_size, state.st_mtime_ns


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror})") from None


def parse(path: Path, data: bytes) -> Any:
    """Returns an annotation file's JSON, or raises a UserError."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # NaN and lone surrogates are no JSON, but Python and pycocotools read them
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).split("; use sys.")[0]
        raise UserError(f"{path}: not valid JSON ({reason}); is it truncated?") from None


def id_order(identity: Identity) -> tuple[bool, Identity]:
    """Returns what image ids are ordered by: numbers before texts."""
    return isinstance(identity, str), identity


def _plainly_good(key: str, entries: list[Any]) -> bool:
    """Tells that there is nothing to normalise or to leave out in any entry, looking at one field
    of all at a time, which takes a tenth of the time. False where that is not certain."""
    try:
        columns = {name: list(map(itemgetter(name), entries)) for name in _FIELDS[key]}
        for name, kind in _FIELDS[key].items():
            kinds = {*(kind if isinstance(kind, tuple) else (kind,))}
            if not set(map(type, columns[name])) <= kinds:
                return False
        if key == "images":
            return max((0, *columns["width"], *columns["height"])) <= LONGEST_SIDE
        if key == "annotations":
            crowds = set(map(dict.get, entries, itertools.repeat("iscrowd"), itertools.repeat(0)))
            numbers = set(map(type, itertools.chain.from_iterable(columns["bbox"])))
            four = set(map(len, columns["bbox"])) <= {4} and numbers <= {int, float}
            return four and crowds <= {0, 1} and float not in set(map(type, crowds))
    except (KeyError, TypeError):
        return False
    return True


def _category_numbers(categories: Any) -> dict[str, int]:
    """Returns the number of each category id that is text: the one it reads as, if all do, or
    else its place in alphabetical order, which is Detectron2's."""
    entries = categories if isinstance(categories, list) else ()
    ids = [one.get("id") for one in entries if isinstance(one, dict)]
    texts = sorted({one for one in ids if isinstance(one, str)})
    if all(map(_NUMBER.fullmatch, texts)) and len({int(text) for text in texts}) == len(texts):
        return {text: int(text) for text in texts}
    return {text: n for n, text in enumerate(texts, 1)} if len(texts) == len(ids) else {}


def _normal(
    key: str, number: int, entry: Any, numbers: Mapping[str, int], notes: list[Note]
) -> Any:
    """Returns an entry with each value as COCO has it, where no doubt is what is meant."""
    if not isinstance(entry, dict):
        return entry
    changes: Entry = {}
    for name in _WHOLE[key]:
        value = entry.get(name)
        if isinstance(value, float) and value.is_integer():
            changes[name] = int(value)
        elif isinstance(value, str) and (name == "category_id" or key == "categories"):
            fallback = int(value) if _NUMBER.fullmatch(value) else value
            changes[name] = numbers.get(value, fallback)
    if key == "categories" and isinstance(entry.get("name"), (int, float)):
        changes["name"] = str(entry["name"])
    crowd = entry.get("iscrowd", 0)
    if key == "annotations" and type(crowd) not in (int, bool):
        plain = str(crowd).strip().lower() if isinstance(crowd, str) else crowd
        if plain is None or (isinstance(plain, float) and plain in (0, 1)):
            changes["iscrowd"] = int(plain or 0)
        elif isinstance(plain, str) and plain in _CROWD:
            changes["iscrowd"] = _CROWD[plain]
    for name, value in changes.items():
        if value != entry[name] or type(value) is not type(entry[name]):
            notes.append(Note("other spelling", f"{key}[{number}].{name} ({_short(entry[name])})"))
    return {**entry, **changes} if changes else entry


def repeated(values: Sequence[Any]) -> Iterator[int]:
    """Yields the positions of values that were there before."""
    if len(set(values)) < len(values):
        known: set[Any] = set()
        for number, value in enumerate(values):
            if value in known:
                yield number
            known.add(value)


def _keypoints(categories: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[float, ...], str]:
    """Returns names and sigmas of keypoints, or why the categories do not state them in common."""
    described = [category["keypoints"] for category in categories if category.get("keypoints")]
    if not described:
        return (), (), ""
    names = described[0]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return (), (), "the keypoints of a category are no list of names"
    if any(other != names for other in described):
        return (), (), "the categories have different keypoints"
    stated: Any = next((one["sigmas"] for one in categories if one.get("sigmas")), [])
    numbers = isinstance(stated, list) and all(isinstance(one, (int, float)) for one in stated)
    sigmas = tuple(map(as_float, stated)) if numbers else ()
    fits = numbers and len(sigmas) in (0, len(names))
    if not fits or not all(0 < sigma < math.inf for sigma in sigmas):
        return (), (), f"the sigmas of a category are not {len(names)} positive numbers"
    return tuple(names), sigmas, ""


def as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _skeleton(categories: Sequence[Entry], keypoints: int) -> tuple[tuple[int, int], ...]:
    """Returns the first category's bones; of one that makes no sense none, because training
    needs no skeleton and it is only drawn."""
    stated = next((one.get("skeleton") for one in categories if one.get("keypoints")), None)
    try:
        bones = tuple((int(a), int(b)) for a, b in stated or ())
    except (OverflowError, TypeError, ValueError):
        return ()
    return bones if all(1 <= end <= keypoints for bone in bones for end in bone) else ()


def _lacks(annotations: Sequence[Entry], keypoints: int, unfit: str) -> dict[str, str]:
    """Returns what keeps annotations from being the ground truth of a task, by task."""
    if not annotations:
        return dict.fromkeys(("bbox", "segm", "keypoints"), "there are no annotations")
    lacks = {"keypoints": unfit or keypoint_lack(annotations, keypoints)}
    if not any(map(dict.get, annotations, itertools.repeat("segmentation"))):
        lacks["segm"] = "no annotation has a mask"
    return {task: lack for task, lack in lacks.items() if lack}


def keypoint_lack(annotations: Sequence[Entry], keypoints: int) -> str:
    """Returns which annotation has not so many keypoints; empty if all have."""
    for entry in annotations:
        stated = entry.get("keypoints")
        found = len(stated) // 3 if isinstance(stated, list) else 0
        if found != keypoints:
            count = f"{found} keypoints, not {keypoints}" if found else "no keypoints"
            return f"annotation {entry['id']} has {count}"
    return ""
