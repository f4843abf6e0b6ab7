"""Whether a number trained on data sets can be trusted: reads them once, images included, and lists
everything that is wrong or odd in them."""

import dataclasses
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped]

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import KINDS, MENDED, SEVERE, Note
from scratch_vs_pretrain.data.datasets import annotations_of, location
from scratch_vs_pretrain.data.judge import MOST_DROPPED, Heads, judge
from scratch_vs_pretrain.data.voc import is_voc, voc_file
from scratch_vs_pretrain.errors import UserError, regular
from scratch_vs_pretrain.pictures import ImageFacts, eight_bits, image_errors, image_facts, locate
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.text import printable

_EXAMPLES = 3

# Of images that decode, their digests and what their headers say.
Looks = dict[str, tuple[str, ImageFacts | None]]


@dataclass
class Report:
    """What was found; `found` by (data set, kind), in the order of :data:`KINDS`."""

    images: dict[str, int] = field(default_factory=dict)  # how many there are, by data set
    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    opened: bool = True  # whether the images were looked at, too
    hints: list[str] = field(default_factory=list)  # what to change in the program that exported

    @property
    def breaks(self) -> bool:
        """Whether a number trained on the data cannot be trusted, or there will be none."""
        return self.verdict().startswith("no")

    def verdict(self) -> str:
        """Answers whether a number trained on the data can be trusted, in one line."""
        rows = [(name, kind, KINDS[kind].means, len(w)) for (name, kind), w in self.found.items()]
        severe = [f"{name}: {kind} ({n:,})" for name, kind, means, n in rows if means in SEVERE]
        if severe:
            return "no: " + "; ".join(severe)
        mended = sum(n for *_, means, n in rows if means == MENDED)
        unseen = "" if self.opened else ", as far as the annotations tell"
        repairs = f", with {mended:,} repair{'s' * (mended > 1)}" if mended else ""
        return f"yes{repairs}{unseen}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything, with every example."""
        return {
            "trust": self.verdict(),
            "images": self.images,
            "images_opened": self.opened,
            "breaks_training": self.breaks,
            "findings": [
                {"dataset": name, "kind": kind, "means": KINDS[kind].means}
                | {"training": KINDS[kind].fate, "count": len(notes), "where": notes}
                for (name, kind), notes in self.found.items()
            ],
            "hints": self.hints,
        }

    def text(self) -> str:
        """Returns the verdict and the table that `svp check-data` prints."""
        rows = []
        for (name, kind), where in self.found.items():
            means = ": ".join(filter(None, KINDS[kind]))
            row = (name, kind, means, f"{len(where):,}", "; ".join(where[:_EXAMPLES]))
            rows.append(tuple(map(printable, row)))
        looked = ", ".join(f"{name}: {count:,} images" for name, count in self.images.items())
        looked += "" if self.opened else " (annotations alone, no image was opened)"
        answer = f"Can a number trained on this be trusted? {self.verdict()}"
        below = ["nothing to report"]
        if rows:
            header = ("data set", "found", "means", "count", "for example")
            table = tabulate(rows, header, tablefmt="plain", disable_numparse=True)
            below = [*table.splitlines(), *self.hints]
        return "\n".join(map(printable, [answer, looked, *below]))


@dataclass(frozen=True)
class DataSet:
    """One to check."""

    name: str  # for the report; of a VOC tree, as registered
    annotations: Path  # in COCO format; of a VOC tree, the list of its images
    images: Path  # the folder that file names are relative to
    voc: bool = False
    heads: Heads | None = None  # what is to be learnt from it; None for all that it has
    unreadable: float = 0.0  # the share of images that may be undecodable
    dropped: float = MOST_DROPPED  # the share of instances that may be


def registered_set(
    name: str,
    heads: Heads | None = None,
    unreadable: float | None = None,
    dropped: float = MOST_DROPPED,
) -> DataSet:
    """Returns a registered data set, by default with training's limit of unreadable images."""
    if unreadable is None:
        unreadable = default_config().SVP.MAX_UNREADABLE
    return DataSet(name, *location(name), is_voc(name), heads, unreadable, dropped)


def check(
    sets: Sequence[DataSet], workers: int | None = None, progress: bool = True, images: bool = True
) -> Report:
    """Checks every annotation of one study's data sets and, unless `images` is False, every image,
    with so many `workers` (None: one a core).

    Raises:
        UserError: annotations that cannot be read at all.
    """
    notes: list[tuple[str, Note]] = []
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    report = Report(opened=images)
    for one in sets:
        with coco.without_gc():
            count, hints, looks, found = _check_set(one, workers, progress, images)
        report.images[one.name] = count
        report.hints += hints
        notes += [(one.name, note) for note in found]
        for image, (digest, _) in looks.items():
            alike[digest].append((one.name, image))
    for where in alike.values():
        names = Counter(name for name, _ in where)
        for name in (name for name, count in names.items() if count > 1):
            same = " = ".join(sorted(image for owner, image in where if owner == name))
            notes.append((name, Note("same image twice in a data set", same)))
        if len(names) > 1:
            same = " = ".join(sorted(map(" ".join, where)))
            notes.append(("all", Note("same image in several data sets", same)))
    order = list(KINDS)
    for name, note in sorted(notes, key=lambda one: order.index(one[1].kind)):
        report.found.setdefault((name, note.kind), []).append(note.where)
    report.hints = list(dict.fromkeys(report.hints))
    return report


def _check_set(
    one: DataSet, workers: int | None, progress: bool, images: bool
) -> tuple[int, list[str], Looks, list[Note]]:
    """Returns how many images are usable, hints, what was seen of each image, and all findings."""
    file = voc_file(one.name, strict=False) if one.voc else coco.open_coco(one.annotations)
    if file.unusable and "it has no list of" in file.unusable[0]:
        raise UserError(f"{one.annotations}: {file.unusable[0]}")
    names = [image["file_name"] for image in file.images]
    located = locate(one.images, names)
    kind = "unusable XML" if one.voc else "unusable entry"
    notes = [Note(kind, problem) for problem in (*file.unusable, *located.unusable.values())]
    renamed = [pair for pair in located.files.items() if images and pair[0] != pair[1]]
    notes += [Note("file of another name", f"{name} ({used})") for name, used in renamed]
    inside = [image for image in file.images if image["file_name"] not in located.unusable]
    file = dataclasses.replace(file, images=inside)
    looks: Looks = {}
    if images:
        missing = set(located.missing)
        there = {name: path for name, path in located.files.items() if name not in missing}
        looks, broken = _look_at_images(one.images, there, one.name, workers, progress)
        few = len(broken) <= one.unreadable * len(names)
        kind = "undecodable training image" if few else "undecodable image"
        notes += [Note("missing image", name) for name in located.missing]
        notes += [Note(kind, where) for where in broken]
    facts = {name: seen for name, (_, seen) in looks.items() if seen}
    points = len(file.facts.keypoints) if file.facts.labelled else 0
    heads = one.heads or Heads(file.facts.masks, points)
    notes += judge(file, facts, heads, one.dropped)[1]
    return len(file.images), _export_hints(file, {note.kind for note in notes}), looks, notes


def check_decodable(names: Sequence[str]) -> None:
    """Raises UserError where images of registered data sets cannot be decoded, before an evaluation
    late in training would end the run."""
    for name in names:
        _, folder = location(name)
        files = locate(folder, annotations_of(name).file_names).files
        if broken := _look_at_images(folder, files, name, None, False)[1]:
            raise UserError(
                f"{folder}: {len(broken)} of the {len(files)} images of {name}, which is to be "
                f"evaluated on, cannot be decoded: {'; '.join(broken[:_EXAMPLES])}"
            )


def _look_at_images(
    folder: Path, files: Mapping[str, str], title: str, workers: int | None, progress: bool
) -> tuple[Looks, list[str]]:
    """Returns what was seen of images that decode, and which of the others are broken and how."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        found = pool.map(_look, (folder / file for file in files.values()))
        bar = Bar(found, desc=title, total=len(files), unit="image", disable=not progress)
        looks = dict(zip(files, bar, strict=True))
    broken = [f"{name} ({look})" for name, look in looks.items() if isinstance(look, str)]
    return {name: look for name, look in looks.items() if not isinstance(look, str)}, broken


def _look(file: Path) -> tuple[str, ImageFacts | None] | str:
    """Returns an image's digest and facts if it decodes, or what is wrong."""
    from detectron2.data.detection_utils import read_image

    try:
        with image_errors(file):
            digest = hashlib.sha256(regular(file).read_bytes()).hexdigest()
            facts = image_facts(file)
            if facts and facts.deep:
                eight_bits(file)
            else:
                read_image(str(file), "BGR")
            return digest, facts
    except UserError as error:
        return str(error).removeprefix(f"{file}: ")


# What to change in the program that exported a file, by a kind of finding in it.
_CVAT_BOXES = "rectangles have no mask in its COCO 1.0; draw polygons"
_WITH_IMAGES = "export as `COCO with images`"
_EXPORTS = {
    "Roboflow": {
        "annotation id 0": "it numbers annotations from 0; nothing is to be done",
        "EXIF-rotated image": "switch Auto-Orient on when the version is generated",
        "size that contradicts the boxes": "switch Auto-Orient on, and export the images of the "
        "same version",
        "same image twice in a data set": "augmented copies are part of the version; generate one "
        "without augmentation",
        "same image in several data sets": "split before augmenting, or generate without it",
    },
    "CVAT": {
        "missing image": "tick `Save images` in the export dialog",
        "no mask": _CVAT_BOXES,
        "instances lost": _CVAT_BOXES,
    },
    "Label Studio": {
        "missing image": f"{_WITH_IMAGES}, and give its images folder",
        "unusable entry": f"{_WITH_IMAGES}: the plain export has paths of its server",
        "file of another name": "its export writes paths of the machine it ran on",
        "categories numbered from 0": 'write category="1", "2", ... into the labels of the '
        "labelling interface",
        "instances lost": "rectangle labels have no mask; use polygons or brushes",
    },
    "labelme": {
        "polygon of fewer than three points": "lines, points and rectangles are no polygons; draw "
        "polygons",
        "instances lost": "only its polygons become masks; draw polygons",
        "missing image": "convert with labelme2coco.py, which copies the images to JPEGImages",
    },
    "VGG Image Annotator": {
        "ids of two kinds": "its COCO export writes image_id as text; write the numbers that "
        "images have",
        "unknown category": "give each region the attribute that holds the category",
    },
}


def _exporter(file: coco.CocoFile) -> str:
    """Returns which annotation program wrote a file, empty where that cannot be seen."""
    stated = str(file.info).lower()
    for name in _EXPORTS:
        if name.lower() in stated:
            return name
    first = file.annotations[0] if file.annotations else {}
    if isinstance(first.get("attributes"), dict) and "occluded" in first["attributes"]:
        return "CVAT"
    if any(".rf." in image["file_name"] for image in file.images[:1]):
        return "Roboflow"
    if any(category["name"] in ("_background_", "__ignore__") for category in file.categories):
        return "labelme"
    return ""


def _export_hints(file: coco.CocoFile, kinds: Set[str]) -> list[str]:
    """Returns what to change where a file was exported, of what was found in it."""
    name = _exporter(file)
    remedies = _EXPORTS.get(name, {})
    return [
        f"This looks like an export of {name} ({kind}): {remedies[kind]}."
        for kind in KINDS
        if kind in kinds and kind in remedies
    ]
