"""What the headers of image files say, read without decoding the pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from scratch_vs_pretrain.data.kinds import Note

# What opening an image that is none, or a broken one, raises.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_ORIENTATION = 0x0112
_TURNED_SIDEWAYS = (5, 6, 7, 8)
# Opening files waits for the disk, or for a network.
_THREADS = 16


@dataclass(frozen=True)
class ImageFacts:
    """One image file as Detectron2 reads it.

    Attributes:
        width, height: in pixels, after the turn that EXIF asks for.
        turned: whether EXIF asks for one.
        mode: Pillow's, such as "RGB".
    """

    width: int
    height: int
    turned: bool
    mode: str


def image_facts(file: Path) -> ImageFacts | None:
    """Returns what an image's header says, None where it cannot be read."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            # A PNG's EXIF data may stand behind the pixels, which Pillow would decode first.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = _orientation(image) if has_exif else 1
            mode = image.mode
    except IMAGE_ERRORS:
        return None
    if orientation in _TURNED_SIDEWAYS:
        width, height = height, width
    return ImageFacts(width, height, orientation in range(2, 9), mode)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as in Detectron2's read_image
        return 1


def facts_of_images(folder: Path, names: Sequence[str]) -> dict[str, ImageFacts]:
    """Returns the facts of those images, by name relative to `folder`, that can be read."""
    with ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1))) as pool:
        found = pool.map(image_facts, (folder / name for name in names))
        return {name: facts for name, facts in zip(names, found, strict=True) if facts}


def image_notes(image: Mapping[str, Any], facts: ImageFacts) -> Iterator[Note]:
    """Finds what an image differs in from its COCO entry and from a plain colour photograph."""
    name, stated = image["file_name"], (image["width"], image["height"])
    if (facts.width, facts.height) != stated:
        told = f"{stated[0]} x {stated[1]} stated, {facts.width} x {facts.height} found"
        yield Note("another size than stated", f"{name} ({told})")
    if facts.turned:
        yield Note("EXIF-rotated image", name)
    if facts.mode in ("L", "LA", "1", "I;16"):
        yield Note("greyscale image", name)
    if facts.mode == "CMYK":
        yield Note("CMYK image", name)
