"""Reads data sets once, images included, and lists everything that is wrong or odd in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import read_image
from tabulate import tabulate  # type: ignore[import-untyped]

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.catalog import image_errors
from scratch_vs_pretrain.data.coco import entry_problems, form_problems, without_gc
from scratch_vs_pretrain.data.datasets import annotations_of, location
from scratch_vs_pretrain.data.image_facts import ImageFacts, image_facts
from scratch_vs_pretrain.data.kinds import BREAKS, KINDS, Note
from scratch_vs_pretrain.data.records import Heads, findings
from scratch_vs_pretrain.data.voc import is_voc, voc_content, voc_problems
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.progress import Bar

_EXAMPLES = 3


@dataclass
class Report:
    """What was found.

    Attributes:
        images: how many there are, by data set.
        found: examples by (data set, kind), in the order of :data:`KINDS`.
        opened: whether the images were looked at, too.
    """

    images: dict[str, int] = field(default_factory=dict)
    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    opened: bool = True

    @property
    def breaks(self) -> bool:
        """Whether anything would break training."""
        return any(KINDS[kind].means == BREAKS for _, kind in self.found)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, with every example."""
        return {
            "images": self.images,
            "images_opened": self.opened,
            "breaks_training": self.breaks,
            "findings": [
                {"dataset": name, "kind": kind, "means": KINDS[kind].means}
                | {"training": KINDS[kind].fate, "count": len(notes), "where": notes}
                for (name, kind), notes in self.found.items()
            ],
        }

    def text(self) -> str:
        """Returns the table that `svp check-data` prints."""
        rows = [
            (name, kind, KINDS[kind].text(), len(notes), "; ".join(notes[:_EXAMPLES]))
            for (name, kind), notes in self.found.items()
        ]
        looked = ", ".join(f"{name}: {count:,} images" for name, count in self.images.items())
        looked += "" if self.opened else " (annotations alone, no image was opened)"
        if not rows:
            return f"{looked}\nnothing to report"
        header = ("data set", "found", "means", "count", "for example")
        table = tabulate(rows, header, tablefmt="plain", disable_numparse=True)
        verdict = "this would break training" if self.breaks else "nothing breaks training"
        return f"{looked}\n{table}\n{verdict}"


@dataclass(frozen=True)
class DataSet:
    """One to check.

    Attributes:
        name: for the report; of a VOC tree, as registered.
        annotations: in COCO format; of a VOC tree, the list of its images.
        images: the folder that file names are relative to.
        voc: whether it is a VOC tree.
        heads: what is to be learnt from it; None for all that it has.
        unreadable: the share of images that may be undecodable.
    """

    name: str
    annotations: Path
    images: Path
    voc: bool = False
    heads: Heads | None = None
    unreadable: float = 0.0


def registered_set(
    name: str, heads: Heads | None = None, unreadable: float | None = None
) -> DataSet:
    """Returns a data set by its registered name.

    Args:
        name: of the set.
        heads: see :class:`DataSet`.
        unreadable: see :class:`DataSet`; by default what training admits.

    Raises:
        UserError: no such data set, or its files are missing.
    """
    if unreadable is None:
        unreadable = default_config().SVP.MAX_UNREADABLE
    return DataSet(name, *location(name), is_voc(name), heads, unreadable)


def check(
    sets: Sequence[DataSet],
    workers: int | None = None,
    progress: bool = True,
    images: bool = True,
) -> Report:
    """Checks data sets: every image, several at a time, and every annotation.

    Args:
        sets: those of one study; images that are in several are reported.
        workers: threads that decode; None for one a core.
        progress: whether to draw a bar.
        images: whether to look at the images; else only at what lists them.

    Raises:
        UserError: annotations that cannot be read at all.
    """
    notes: list[tuple[str, Note]] = []
    contents: dict[str, set[str]] = {}
    report = Report(opened=images)
    for one in sets:
        with without_gc():
            looks, found = _check_set(one, workers, progress, images)
        report.images[one.name] = len(looks)
        notes += [(one.name, note) for note in found]
        for name, look in looks.items():
            if look.digest:
                contents.setdefault(look.digest, set()).add(f"{one.name} {name}")
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


def _check_set(
    one: DataSet, workers: int | None, progress: bool, images: bool
) -> tuple[dict[str, _Look], list[Note]]:
    """Returns what was seen of each image of a data set, by its name, and all findings."""
    content, unusable = _voc(one) if one.voc else _coco(one.annotations)
    names = [image["file_name"] for image in content["images"]]
    looks = dict.fromkeys(names, _Look(there=True))
    if images:
        looks = _look_at_images(one.images, names, one.name, workers, progress)
    facts = {name: look.facts for name, look in looks.items() if look.facts}
    seen = _image_notes(looks, one.unreadable * len(names))
    judged = findings(content, facts, one.heads or _all_heads(content))
    return looks, [*unusable, *seen, *judged]


def check_decodable(names: Sequence[str]) -> None:
    """Checks, by decoding them, that all images of registered data sets can be evaluated on.

    Raises:
        UserError: one cannot; an evaluation late in training would end the run.
    """
    for name in names:
        _, folder = location(name)
        looks = _look_at_images(folder, annotations_of(name).file_names, name, None, False)
        broken = [f"{file} ({look.problem})" for file, look in looks.items() if look.problem]
        if broken:
            raise UserError(
                f"{folder}: {len(broken)} of the {len(looks)} images of {name}, which is to be "
                f"evaluated on, cannot be decoded: {'; '.join(broken[:_EXAMPLES])}"
            )


def _coco(file: Path) -> tuple[dict[str, Any], list[Note]]:
    """Returns the entries of a COCO file that can be used, and what is wrong with the others."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); is it truncated?") from None
    problems = list(form_problems(content))
    usable: dict[str, Any] = {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file}: {problems[0]}")
        good = content[key]
        if problems and (wrong := entry_problems(key, good)):
            good = [entry for number, entry in enumerate(good) if number not in wrong]
        if key != "annotations":  # of several with one id the first
            unique = {entry["id"]: entry for entry in reversed(good)}
            good = list(reversed(unique.values()))
        usable[key] = good
    return usable, [Note("unusable entry", problem) for problem in problems]


def _voc(one: DataSet) -> tuple[dict[str, Any], list[Note]]:
    """Returns the images of a VOC set that can be used, and what is wrong or odd in the XML."""
    problems, images = voc_problems(one.name)
    notes = [Note("unusable XML", problem) for problem in problems]
    for image in images:
        file = f"{image.identity}.xml"
        if image.file_name not in (None, f"{image.identity}.jpg"):
            notes.append(Note("XML names another file", f"{file} ({image.file_name})"))
        if not image.plain:
            notes.append(Note("XML with fractions or without flags", file))
    return voc_content(one.name, images), notes


def _all_heads(content: Mapping[str, Any]) -> Heads:
    masks = any(one.get("segmentation") for one in content["annotations"] if not one.get("iscrowd"))
    named = (category.get("keypoints") for category in content["categories"])
    names = next((names for names in named if isinstance(names, list)), [])
    return Heads(masks, len(names))


@dataclass(frozen=True)
class _Look:
    """What was seen of an image file: whether it is there, its digest and facts if it decodes."""

    there: bool
    digest: str | None = None
    facts: ImageFacts | None = None
    problem: str = ""


def _look_at_images(
    folder: Path, names: Sequence[str], title: str, workers: int | None, progress: bool
) -> dict[str, _Look]:
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        looks = Bar(
            pool.map(_look, (folder / name for name in names)),
            desc=title,
            total=len(names),
            unit="image",
            disable=not progress,
        )
        return dict(zip(names, looks, strict=True))


def _look(file: Path) -> _Look:
    if not file.is_file():
        return _Look(there=False)
    try:
        with image_errors(file):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            read_image(str(file), "BGR")
    except UserError as error:
        return _Look(there=True, problem=str(error).removeprefix(f"{file}: "))
    return _Look(there=True, digest=digest, facts=image_facts(file))


def _image_notes(looks: Mapping[str, _Look], most_undecodable: float) -> list[Note]:
    missing = [name for name, look in looks.items() if not look.there]
    broken = [f"{name} ({look.problem})" for name, look in looks.items() if look.problem]
    kind = "undecodable image" if len(broken) > most_undecodable else "undecodable training image"
    return [
        *(Note("missing image", name) for name in missing),
        *(Note(kind, where) for where in broken),
    ]
