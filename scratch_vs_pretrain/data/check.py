"""Reads data sets once, images included, and lists everything that is wrong or odd in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tabulate import tabulate  # type: ignore[import-untyped]
from tqdm import tqdm

from scratch_vs_pretrain.data.check_annotations import Note, check_entries, voc_entries
from scratch_vs_pretrain.data.registration import location
from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError

BREAKS, HARMLESS, ODD = "breaks training", "harmless", "worth knowing"

# What is found, what it means for training, and why.
KINDS = {
    "missing image": BREAKS,
    "undecodable image": BREAKS,
    "another size than stated": BREAKS,
    "no COCO entry": BREAKS,
    "unknown category": BREAKS,
    "duplicate image id": BREAKS,
    "duplicate annotation id": BREAKS,
    "path out of the image folder": BREAKS,
    "invalid mask": BREAKS,
    "RLE of another size": BREAKS,
    "unusable XML": BREAKS,
    # Detectron2 clips boxes, leaves out instances without area and images without instances, and
    # converts what Pillow can decode.
    "annotation of a missing image": HARMLESS,
    "degenerate box": HARMLESS,
    "box outside the image": HARMLESS,
    "empty mask": HARMLESS,
    "image without annotation": HARMLESS,
    "greyscale image": HARMLESS,
    "CMYK image": HARMLESS,
    "EXIF-rotated image": HARMLESS,
    "same image in several data sets": ODD,
    "XML names another file": ODD,
}
_ORIENTATION = 0x0112
_EXAMPLES = 3


@dataclass
class Report:
    """What was found.

    Attributes:
        images: how many were looked at, by data set.
        found: examples by (data set, kind), in the order of :data:`KINDS`.
    """

    images: dict[str, int] = field(default_factory=dict)
    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @property
    def breaks(self) -> bool:
        """Whether anything would break training."""
        return any(KINDS[kind] == BREAKS for _, kind in self.found)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, with every example."""
        return {
            "images": self.images,
            "breaks_training": self.breaks,
            "findings": [
                {"dataset": name, "kind": kind, "means": KINDS[kind], "count": len(notes)}
                | {"where": notes}
                for (name, kind), notes in self.found.items()
            ],
        }

    def text(self) -> str:
        """Returns the table that `svp check-data` prints."""
        rows = [
            (name, kind, KINDS[kind], len(notes), "; ".join(notes[:_EXAMPLES]))
            for (name, kind), notes in self.found.items()
        ]
        looked = ", ".join(f"{name}: {count:,} images" for name, count in self.images.items())
        if not rows:
            return f"{looked}\nnothing to report"
        header = ("data set", "found", "means", "count", "for example")
        table = tabulate(rows, header, tablefmt="plain", disable_numparse=True)
        verdict = "this would break training" if self.breaks else "nothing breaks training"
        return f"{looked}\n{table}\n{verdict}"


@dataclass(frozen=True)
class DataSet:
    """One to check: its name, its annotation file or VOC list, and the folder of its images."""

    name: str
    annotations: Path
    images: Path
    voc: bool = False


def registered_set(name: str) -> DataSet:
    """Returns a data set by its registered name.

    Raises:
        UserError: no such data set, or its files are missing.
    """
    return DataSet(name, *location(name), voc=is_voc(name))


def check(sets: Sequence[DataSet], workers: int | None = None, progress: bool = True) -> Report:
    """Checks data sets, annotations first and then every image, several at a time.

    Args:
        sets: those of one study; images that are in several are reported.
        workers: threads that decode; None for one a core.
        progress: whether to draw a bar.

    Raises:
        UserError: annotations that cannot be read at all.
    """
    notes: list[tuple[str, Note]] = []
    contents: dict[str, set[str]] = {}
    report = Report()
    for one in sets:
        images, found = voc_entries(one.name) if one.voc else check_entries(_coco(one.annotations))
        report.images[one.name] = len(images)
        digests, seen = _check_images(one, images, workers, progress)
        notes += [(one.name, note) for note in (*found, *seen)]
        for name, digest in digests:
            contents.setdefault(digest, set()).add(f"{one.name} {name}")
    for where in contents.values():
        if len({text.split(" ", 1)[0] for text in where}) > 1:
            notes.append(
                ("all", Note("same image in several data sets", " = ".join(sorted(where))))
            )
    for kind in KINDS:
        for name, note in notes:
            if note.kind == kind:
                report.found.setdefault((name, kind), []).append(note.where)
    return report


def _coco(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); is it truncated?") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: not in COCO format; it has no list of {key}")
    return content


def _check_images(
    one: DataSet, images: Iterable[dict[str, Any]], workers: int | None, progress: bool
) -> tuple[list[tuple[str, str]], list[Note]]:
    """Returns the digest of every image that is there, by name, and what is wrong or odd."""

    def look(image: dict[str, Any]) -> tuple[str | None, list[Note]]:
        return _check_image(one.images / image["file_name"], image)

    images = list(images)
    digests, notes = [], []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        looks = tqdm(
            pool.map(look, images),
            desc=one.name,
            total=len(images),
            unit="image",
            disable=not progress,
        )
        for image, (digest, found) in zip(images, looks, strict=True):
            notes += found
            if digest:
                digests.append((image["file_name"], digest))
    return digests, notes


def _check_image(file: Path, stated: dict[str, Any]) -> tuple[str | None, list[Note]]:
    name = stated["file_name"]
    if not file.is_file():
        return None, [Note("missing image", name)]
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        with Image.open(file) as image:
            image.load()
            return digest, list(_oddities(image, stated))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        return None, [Note("undecodable image", f"{name} ({' '.join(str(error).split())})")]


def _oddities(image: Image.Image, stated: dict[str, Any]) -> Iterator[Note]:
    name, (width, height) = stated["file_name"], image.size
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        yield Note("EXIF-rotated image", name)
    if orientation in (5, 6, 7, 8):  # Detectron2 turns it
        width, height = height, width
    if (width, height) != (stated["width"], stated["height"]):
        told = f"{stated['width']} x {stated['height']} stated, {width} x {height} found"
        yield Note("another size than stated", f"{name} ({told})")
    if image.mode in ("L", "LA", "1", "I;16"):
        yield Note("greyscale image", name)
    if image.mode == "CMYK":
        yield Note("CMYK image", name)
