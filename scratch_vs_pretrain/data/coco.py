"""COCO annotation files: read once, normalised, what follows from them, and kinds of findings.

Entries that mean what they should but are spelt differently are put right here, once, and noted.
Whether an entry can be trained on is judged in :mod:`scratch_vs_pretrain.data.judge`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, get_args

import msgspec
from msgspec import Meta
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.types import StrictFloat, StrictInt
from typing_extensions import TypedDict

from scratch_vs_pretrain.errors import UserError, regular

COCO_KEYPOINTS = 17

Entry = dict[str, Any]
Identity = int | str
# A file's path, size and time of change.
FileState = tuple[Path, int, int]

_FLAGS = {"0": 0, "0.0": 0, "false": 0, "": 0, "none": 0, "no": 0}
_FLAGS |= {"1": 1, "1.0": 1, "true": 1, "yes": 1}


def flag(value: Any) -> Any:
    """Returns 0 or 1 of what stands for one of them, anything else as it is."""
    return value if type(value) is int else _FLAGS.get(str(value).strip().lower(), value)


# No reader of images takes more pixels, and scores are computed by classes of 64 bits.
Pixels = Annotated[int, Field(lt=2**31), Meta(lt=2**31)]
ClassId = Annotated[int, Field(ge=-(2**63), lt=2**63), Meta(ge=-(2**63), le=2**63 - 1)]


# By msgspec what is as it should be, by pydantic, which puts right what it can, all else.
class _Image(TypedDict):
    id: Identity
    file_name: str
    height: Pixels
    width: Pixels


class _Annotation(TypedDict):
    id: Identity
    image_id: Identity
    category_id: ClassId
    bbox: Annotated[
        list[StrictInt | StrictFloat],
        Field(min_length=4, max_length=4),
        Meta(min_length=4, max_length=4),
    ]
    iscrowd: NotRequired[Annotated[int, Field(ge=0, le=1), BeforeValidator(flag), Meta(ge=0, le=1)]]


class _Category(TypedDict):
    id: ClassId
    name: Annotated[str, Field(coerce_numbers_to_str=True)]


_LISTS: dict[str, Any] = {"images": list[_Image], "annotations": list[_Annotation]}
_LISTS["categories"] = list[_Category]
_READERS = {k: TypeAdapter(v, config=ConfigDict(extra="allow")) for k, v in _LISTS.items()}
# What is right in a field, where that is no whole number.
_GIVE = {"file_name": "text", "name": "text", "bbox": "[x, y, w, h]", "iscrowd": "0 or 1"}


class Note(NamedTuple):
    """One finding: its kind, a key of :data:`KINDS`, and where."""

    kind: str
    where: str


class Kind(NamedTuple):
    """What one kind of finding means for training, and what training does about it, if anything."""

    means: str
    fate: str


BREAKS, SPOILS = "breaks training", "spoils the result"
MENDED, ODD = "harmless", "worth knowing"
# Of what means one of these no number can be trusted.
SEVERE = (BREAKS, SPOILS)
_KINDS = (
    (BREAKS, "", "missing image, undecodable image, unusable entry, unusable XML"),
    (BREAKS, "", "nothing to learn"),
    (SPOILS, "", "instances lost, category lost, ids of two kinds, categories numbered from 0"),
    (SPOILS, "", "boxes as parts of the image, boxes as two corners"),
    (SPOILS, "", "size that contradicts the boxes"),
    # At most SVP.MAX_UNREADABLE of them, and only where nothing is evaluated on them.
    (MENDED, "another image takes its place", "undecodable training image"),
    (MENDED, "read as it is meant", "other spelling"),
    (MENDED, "used", "file of another name"),
    (MENDED, "true size used", "another size than stated"),
    (MENDED, "dropped", "unknown category, object of another class, annotation of a missing image"),
    (MENDED, "dropped", "annotation marked ignore, degenerate box, box outside the image"),
    (MENDED, "clipped", "box partly outside the image"),
    (MENDED, "dropped", "no mask, invalid mask, RLE of another size, empty mask"),
    (MENDED, "polygon left out", "polygon of fewer than three points"),
    (MENDED, "its box's used", "impossible area"),
    (MENDED, "taken as unlabelled", "no valid keypoints"),
    (MENDED, "left out", "image without instances"),
    (MENDED, "converted", "greyscale image"),
    (MENDED, "scaled to 8 bits", "deep image"),
    (MENDED, "converted", "CMYK image"),
    (MENDED, "turned", "EXIF-rotated image"),
    (ODD, "", "duplicate annotation id, annotation id 0, annotation without area"),
    (ODD, "", "area unlike its box, same box twice, box one pixel wide, boxes under 2 pixels"),
    (ODD, "", "same file listed twice, same image twice in a data set"),
    (ODD, "", "same image in several data sets, XML names another file"),
    (ODD, "", "XML with fractions or without flags"),
)
# In the order in which they are listed.
KINDS = {kind: Kind(means, fate) for means, fate, kinds in _KINDS for kind in kinds.split(", ")}


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file, or a VOC tree as one, whose path is that of its list of images: its
    entries that can be used, normalised."""

    path: Path
    sha256: str
    images: list[Entry]  # by ascending id, those of a VOC tree in the order of its list
    annotations: list[Entry]
    categories: list[Entry]
    unusable: tuple[str, ...] = ()  # what keeps the file or others of its entries from being used
    notes: tuple[Note, ...] = ()  # what was spelt in another way
    info: Any = None  # what the file says of itself

    def ids(self) -> list[Identity]:
        """Returns the image ids, ascending, numbers before texts."""
        return sorted(map(itemgetter("id"), self.images), key=id_order)

    @functools.cached_property
    def facts(self) -> AnnotationFile:
        """What has to be known of the file where its annotations are not loaded."""
        categories = sorted(self.categories, key=itemgetter("id"))
        instances = [entry for entry in self.annotations if not entry.get("iscrowd")]
        masks = list(map(dict.get, instances, repeat("segmentation")))
        names, sigmas, unfit = _keypoints(categories)
        points = len(names) or COCO_KEYPOINTS
        lacks = {"keypoints": unfit or keypoint_lack(self.annotations, points)}
        if not any(map(dict.get, self.annotations, repeat("segmentation"))):
            lacks["segm"] = "no annotation has a mask"
        if not self.annotations:
            lacks = dict.fromkeys(("bbox", "segm", "keypoints"), "there are no annotations")
        return AnnotationFile(
            file_names=tuple(map(itemgetter("file_name"), self.images)),
            annotations=len(self.annotations),
            categories=tuple(category["name"] for category in categories),
            keypoints=names,
            skeleton=_skeleton(categories, len(names)),
            sha256=self.sha256,
            sigmas=sigmas,
            masks=any(masks),
            labelled=not unfit and any(map(dict.get, instances, repeat("keypoints"))),
            run_lengths=dict in set(map(type, masks)),
            lacks={task: lack for task, lack in lacks.items() if lack},
        )


@dataclass(frozen=True)
class AnnotationFile:
    """What has to be known of a file where its annotations, so many, are not loaded."""

    file_names: tuple[str, ...]  # of all images, relative to the image folder
    annotations: int
    categories: tuple[str, ...]  # names in the order of the ids
    keypoints: tuple[str, ...]  # names, none where the categories have none in common
    skeleton: tuple[tuple[int, int], ...]  # pairs of keypoints, from 1; only drawn, never learnt
    sha256: str
    lacks: Mapping[str, str]  # what keeps a task from being scored, by task
    sigmas: tuple[float, ...] = ()  # of object keypoint similarity, none where none are stated
    masks: bool = False  # whether any annotation that is no crowd has one
    labelled: bool = False  # whether any of those has keypoints
    run_lengths: bool = False  # whether any of the masks is one of run lengths, no polygons


# Files that somebody holds; annotations of a large one take gigabytes, so nobody else keeps them.
_HELD: weakref.WeakValueDictionary[FileState, CocoFile] = weakref.WeakValueDictionary()


def open_coco(path: Path) -> CocoFile:
    """Reads an annotation file, unless it is held already and has its size and time still. What is
    not in COCO format is told by `unusable`; no JSON at all is a UserError."""
    key = state_of(path)
    held = _HELD.get(key)
    if held is None:
        with readable(path), without_gc():
            data = path.read_bytes()
            held = coco_file(path, hashlib.sha256(data).hexdigest(), parse(path, data))
        _HELD[key] = held
    return held


def read_coco(path: Path, optional: Sequence[str] = ()) -> CocoFile:
    """Reads a file of which every entry is to be used, or raises a UserError that names one which
    cannot be; `optional` lists may be missing."""
    file = open_coco(path)
    for problem in file.unusable:
        if not any(problem.endswith(f"no list of {key}") for key in optional):
            raise UserError(f"{path}: {problem}")
    return file


def read_annotations(path: Path) -> AnnotationFile:
    """Returns the facts of an annotation file, see :func:`read_coco`, once until it changes."""
    return _facts(state_of(path))


@functools.lru_cache(maxsize=16)
def _facts(state: FileState) -> AnnotationFile:
    return read_coco(state[0]).facts


def coco_file(path: Path, sha256: str, content: Any) -> CocoFile:
    """Returns COCO JSON as a file: its entries normalised, those that cannot be used left out."""
    top = content if isinstance(content, dict) else {}
    stated = {key: one if isinstance(one := top.get(key), list) else [] for key in _READERS}
    unusable = [
        f"not in COCO format; it has no list of {key}"
        for key, entries in stated.items()
        if entries is not top.get(key)
    ]
    notes: list[Note] = []
    # Category ids that are words are numbered in alphabetical order, which is Detectron2's; none
    # where numbers are among them or all are written as text.
    named = [one.get("id") for one in stated["categories"] if isinstance(one, dict)]
    texts = sorted({one for one in named if isinstance(one, str)})
    wordy = len(texts) == len(named) and not all(text.strip().isdecimal() for text in texts)
    words = {word: number for number, word in enumerate(texts, 1)} if wordy else {}
    lists = {key: _read(key, some, words, unusable, notes) for key, some in stated.items()}
    for key in ("images", "categories"):  # of several with one id the first
        again = set(repeated([entry["id"] for entry in lists[key]]))
        for n in sorted(again):
            found = _short(lists[key][n]["id"])
            text = f"has the id {found} of one before it; give each an id of its own"
            unusable.append(f"{key}[{n}] {text}")
        lists[key] = [entry for n, entry in enumerate(lists[key]) if n not in again]
    lists["images"].sort(key=lambda image: id_order(image["id"]))
    info = top.get("info")
    return CocoFile(path, sha256, **lists, unusable=tuple(unusable), notes=tuple(notes), info=info)


def _read(
    key: str, entries: list[Any], words: dict[str, int], unusable: list[str], notes: list[Note]
) -> list[Entry]:
    """Returns those entries of a list that can be used, with each value as COCO has it where no
    doubt is what is meant."""
    with contextlib.suppress(msgspec.ValidationError):
        msgspec.convert(entries, _LISTS[key])
        return entries
    meant = entries
    if words and key != "images":
        name = "id" if key == "categories" else "category_id"
        meant = [
            {**one, name: words.get(str(one.get(name)), one.get(name))}
            if isinstance(one, dict)
            else one
            for one in entries
        ]
    try:
        read = _READERS[key].validate_python(meant)
    except ValidationError as error:
        problems = {one["loc"][0]: _problem(one) for one in reversed(error.errors())}
        unusable += [f"not in COCO format; {key}[{n}] {problems[n]}" for n in sorted(problems)]
        usable: Sequence[int] = [n for n in range(len(entries)) if n not in problems]
        read = _READERS[key].validate_python([meant[n] for n in usable])
        entries = [entries[n] for n in usable]
    else:
        usable = range(len(entries))
    for name in get_args(_LISTS[key])[0].__annotations__:
        # Whatever is put right becomes another type.
        kinds = [list(map(type, map(dict.get, some, repeat(name)))) for some in (entries, read)]
        if kinds[0] != kinds[1]:
            notes += [
                Note("other spelling", f"{key}[{n}].{name} ({_short(entry.get(name))})")
                for n, entry, stated, kind in zip(usable, entries, *kinds, strict=True)
                if stated is not kind
            ]
    return read


def _problem(error: Any) -> str:
    _, *path = error["loc"]
    if not path:
        return f"is {_short(error['input'])}; give an object"
    found = f"no {path[0]}" if error["type"] == "missing" else f"{path[0]} {_short(error['input'])}"
    return f"has {found}; give {_GIVE.get(path[0], 'a whole number')}"


def _short(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:
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


def state_of(path: Path) -> FileState:
    """Returns a file's state, by which it is known again, or raises a UserError."""
    with readable(path):
        state = regular(path).stat()
    return path, state.st_size, state.st_mtime_ns


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror})") from None


def parse(path: Path, data: bytes) -> Any:
    """Returns an annotation file's JSON, or raises a UserError."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(data)
    try:  # NaN and lone surrogates are no JSON, but Python and pycocotools read them
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).split("; use sys.")[0]
        raise UserError(f"{path}: not valid JSON ({reason}); is it truncated?") from None


def id_order(identity: Identity) -> tuple[bool, Identity]:
    """Image ids are ordered by this: numbers before texts."""
    return isinstance(identity, str), identity


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


def are_numbers(values: Any, count: int) -> bool:
    """Tells whether a value is a list of so many finite numbers."""
    plain = isinstance(values, list) and set(map(type, values)) <= {int, float}
    return plain and len(values) == count and all(map(math.isfinite, map(as_float, values)))


def _skeleton(categories: Sequence[Entry], keypoints: int) -> tuple[tuple[int, int], ...]:
    """Returns the first category's bones; of one that makes no sense none, because training
    needs no skeleton and it is only drawn."""
    stated = next((one.get("skeleton") for one in categories if one.get("keypoints")), None)
    try:
        bones = tuple((int(a), int(b)) for a, b in stated or ())
    except (OverflowError, TypeError, ValueError):
        return ()
    return bones if all(1 <= end <= keypoints for bone in bones for end in bone) else ()


def keypoint_lack(annotations: Sequence[Entry], keypoints: int) -> str:
    """Returns which annotation has not so many keypoints, all numbers; empty if all have."""
    for entry in annotations:
        stated = entry.get("keypoints")
        if not are_numbers(stated, 3 * keypoints):
            found = len(stated) // 3 if isinstance(stated, list) else 0
            lack = f"{found} keypoints, not {keypoints}" if found else "no keypoints"
            odd = f"keypoints that are no {3 * keypoints} numbers"
            return f"annotation {entry['id']} has {odd if found == keypoints else lack}"
    return ""
