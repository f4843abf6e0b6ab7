"""Describes registered data sets and checks their files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from scratch_vs_pretrain.data.datasets import (
    annotations_of,
    ensure,
    location,
    register,
    remedy,
)
from scratch_vs_pretrain.errors import UserError

__all__ = [
    "DataSummary",
    "category_count",
    "check_files",
    "describe",
    "ensure",
    "image_errors",
    "register",
]

_NAMED_FILES = 3


@dataclass(frozen=True)
class DataSummary:
    """What identifies the data of a run.

    Attributes:
        names: of the data sets, as registered.
        images, annotations: in all of them together, crowds and empty images included.
        categories: names in the order of the category ids.
        sha256: of the annotation file; with several data sets, of their digests, one a line.
    """

    names: tuple[str, ...]
    images: int
    annotations: int
    categories: tuple[str, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Returns what run.json records."""
        return {
            "names": list(self.names),
            "images": self.images,
            "annotations": self.annotations,
            "sha256": self.sha256,
        }


def describe(names: Sequence[str]) -> DataSummary:
    """Returns what identifies registered data sets.

    Raises:
        UserError: a name is not registered, an annotation file cannot be used, or the data sets
            differ in their categories.
    """
    files = [annotations_of(name) for name in names]
    for name, file in zip(names, files, strict=True):
        if file.categories != files[0].categories:
            raise UserError(
                f"{name}: its categories differ from those of {names[0]}; "
                "data sets that are used together must share them"
            )
    digests = [file.sha256 for file in files]
    lines = "".join(f"{digest}\n" for digest in digests)
    return DataSummary(
        names=tuple(names),
        images=sum(len(file.file_names) for file in files),
        annotations=sum(file.annotations for file in files),
        categories=files[0].categories if files else (),
        sha256=digests[0] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest(),
    )


def category_count(name: str) -> int:
    """Returns the number of categories of a registered data set."""
    return len(annotations_of(name).categories)


def check_files(names: Sequence[str]) -> None:
    """Checks, without opening the images, that data sets can be trained or evaluated on.

    Raises:
        UserError: a name is not registered, an annotation file cannot be used or has no image
            with an annotation that is no crowd, or images are missing.
    """
    for name in names:
        annotations, images = location(name)
        index = annotations_of(name)
        if not index.usable:
            raise UserError(
                f"{annotations}: no image has an annotation (other than a crowd); "
                f"there is nothing to train or evaluate on in {name}"
            )
        if not images.is_dir():
            raise UserError(f"{name}: no such image folder as {images}{remedy(name)}")
        missing = _missing(images, index.file_names)
        if missing:
            named = ", ".join(missing[:_NAMED_FILES]) + (", .." if missing[_NAMED_FILES:] else "")
            raise UserError(
                f"{images}: {len(missing)} of the {len(index.file_names)} images of {name} are "
                f"missing: {named}; restore them or take them out of {annotations}"
            )


@contextlib.contextmanager
def image_errors(file_name: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what reading and mapping one image may raise into a UserError that names the file.

    To be put around Detectron2's ``DatasetMapper`` or ``read_image``: a missing or truncated file,
    one that is no image, or whose size is not the stated one.
    """
    try:
        yield
    except (AssertionError, EOFError, OSError, SyntaxError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())
    except Image.DecompressionBombError as error:
        reason = str(error)
    else:
        return
    raise UserError(
        f"{file_name}: cannot be read as the annotations describe it ({reason}); "
        "restore the file or take it out of the annotations"
    )


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns those names, relative to `folder`, of which there is no file."""
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        head, tail = os.path.split(name)
        if head not in present:
            try:
                present[head] = {entry.name for entry in os.scandir(folder / head)}
            except OSError:
                present[head] = set()
        if tail not in present[head]:
            missing.append(name)
    return missing
