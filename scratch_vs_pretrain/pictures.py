"""Image files: where they are, what their headers say, and how deep ones become 8 bits."""

import contextlib
import io
import os
import posixpath
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from scratch_vs_pretrain.errors import UserError, regular

# What opening an image that is none, or a broken one, raises.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_ORIENTATION = 0x0112
_TURNED_SIDEWAYS = (5, 6, 7, 8)
# Opening files waits for the disk, or for a network.
_THREADS = 16
# Bits that samples come in; 10 to 14 of them are kept in files of 16.
_DEPTHS = (8, 10, 12, 14, 16)
# How Pillow names colours of 16 bits in what it is to decode. It keeps their upper bytes; with the
# other order of bytes named, the lower ones.
_COLOURS = re.compile(r"'((?:RGB[AXa]?|CMYK|LA);16)([BLN])'")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
DEEP = "svp-deep://"


@dataclass(frozen=True)
class ImageFacts:
    """One image file as Detectron2 reads it: `turned` as EXIF asks for, its mode Pillow's or, of
    colours of 16 bits, such as "RGB;16"."""

    width: int
    height: int
    turned: bool
    mode: str

    @property
    def deep(self) -> bool:
        """Whether its pixels are numbers of more than 8 bits, or fractions."""
        return self.mode[0] in "IF" or ";16" in self.mode


class Located(NamedTuple):
    """Where the images of a data set are."""

    files: Mapping[str, str]  # names relative to the image folder, by the names that are listed
    missing: Sequence[str]  # names of which there is no file
    unusable: Mapping[str, str]  # what is wrong with names that lead out of the folder

    def checked(self, listing: Path) -> Self:
        """Returns itself, where no name leads out of the folder; `listing` is the file with them.

        Raises:
            UserError: a name does.
        """
        for problem in self.unusable.values():
            raise UserError(f"{listing}: {problem}")
        return self


def locate(folder: Path, names: Sequence[str]) -> Located:
    """Finds images by the names that annotations give them.

    A name may be an absolute path, or one with "..", that ends inside the folder; it may have
    Windows' backslashes, and its ending another case than the file's.
    """
    present: dict[str, dict[str, str]] = {}

    def there(head: str) -> dict[str, str]:
        if head not in present:
            try:
                found = sorted(entry.name for entry in os.scandir(folder / head) if _is_file(entry))
            except (OSError, ValueError):
                found = []
            # Any spelling of the ending leads to a file; its own leads there first.
            present[head] = {_any_ending(name): name for name in found}
            present[head] |= {name: name for name in found}
        return present[head]

    files, missing, unusable = {}, [], {}
    for name in names:
        head, tail = posixpath.split(name)
        plain = not name.startswith("/") and ".." not in head.split("/")
        if plain and tail in there(head):
            files[name] = name
            continue
        odd = not plain or "\\" in name
        inside = _inside(folder, name.replace("\\", "/")) if odd else name
        if inside is None:
            unusable[name] = f"an image is {name}, which leads out of the image folder {folder}"
            continue
        head, tail = posixpath.split(inside)
        found = there(head).get(tail) or there(head).get(_any_ending(tail))
        if found is None:
            missing.append(name)
        files[name] = posixpath.join(head, found or tail)
    return Located(files, missing, unusable)


def _is_file(entry: os.DirEntry[str]) -> bool:
    # Most are told without asking the disk again.
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry)


def _any_ending(name: str) -> str:
    stem, ending = posixpath.splitext(name)
    return f"{stem}\0{ending.lower()}"


def _inside(folder: Path, name: str) -> str | None:
    """Returns a path relative to the folder, None where it leads out of it."""
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    return os.path.relpath(path, root) if path.startswith(root.rstrip("/") + "/") else None


def image_facts(file: Path) -> ImageFacts | None:
    """Returns what an image's header says, None where it cannot be read."""
    try:
        with Image.open(regular(file)) as image:
            width, height = image.size
            # A PNG's EXIF data may stand behind the pixels, which Pillow would decode first.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = _orientation(image) if has_exif else 1
            deep = _COLOURS.search(str(image.tile))
            mode = deep[1] if deep else image.mode
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


def facts_of_images(folder: Path, names: Mapping[str, str]) -> dict[str, ImageFacts]:
    """Returns the facts of those images that can be read; names are those of ``Located.files``."""
    with ThreadPoolExecutor(min(_THREADS, 4 * (os.cpu_count() or 1))) as pool:
        found = pool.map(image_facts, (folder / file for file in names.values()))
        return {name: facts for name, facts in zip(names, found, strict=True) if facts}


def eight_bits(file: Path) -> Image.Image:
    """Reads a picture of deep pixels as one of 8 bits, turned as EXIF asks for, without alpha.

    Whole numbers are scaled by the smallest of 8, 10, 12, 14 and 16 bits that hold the brightest
    sample of the picture, fractions in [0, 1] by 255; fractions up to 255 stay.

    Raises:
        ValueError: other fractions, negative numbers, or more than 16 bits.
    """
    with Image.open(file) as image:
        mode = image.mode
        values = _samples(image, file).astype(np.float64)
        orientation = _orientation(image)  # behind a PNG's pixels, which looking for it decodes
    low, high = values.min(), values.max()
    if not low >= 0:
        raise ValueError("has pixels below 0 or that are no numbers; convert it to 8 bits")
    scales = (1, 255) if mode == "F" else (2**depth - 1 for depth in _DEPTHS)
    most = next((scale for scale in scales if high <= scale), None)
    if most is None:
        raise ValueError(f"has pixels up to {high:g}; convert it to 8 bits")
    scaled = Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
    made = Image.frombytes("CMYK", scaled.size, scaled.tobytes()) if mode == "CMYK" else scaled
    made.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(made)


def deep_as_rgb(file: Path) -> Image.Image | None:
    """Returns a picture of deep pixels after :func:`eight_bits`; None for any other one."""
    facts = image_facts(file)
    return eight_bits(file).convert("RGB") if facts and facts.deep else None


def _samples(image: ImageFile, file: Path) -> np.ndarray:
    """Returns a deep picture's samples, (height, width) or (height, width, colours)."""
    colours = _COLOURS.search(str(image.tile))
    if colours is None:
        return np.asarray(image)
    if colours[1] == "LA;16":
        # Its four bytes are one more picture of four.
        image._mode = "RGBA"
        grey = _decoded(image, "RGBA")
        return 256.0 * grey[..., 0] + grey[..., 1]
    upper = np.asarray(image)
    with Image.open(file) as again:
        lower = _decoded(again, colours[1] + _OTHER_BYTE[colours[2]])
    values = 256.0 * upper + lower
    return values if image.mode == "CMYK" else values[..., :3]


def _decoded(image: ImageFile, raw: str) -> np.ndarray:
    """Decodes a picture as if its pixels were kept in another way."""
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile
    ]
    return np.asarray(image)


@contextlib.contextmanager
def image_errors(file_name: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what Detectron2's ``DatasetMapper`` or ``read_image`` raises for a missing or damaged
    image, or one of another size than stated, into a UserError that names the file."""
    try:
        yield
    except (*IMAGE_ERRORS, AssertionError, struct.error) as error:
        name, reason = os.fspath(file_name).removeprefix(DEEP), " ".join(str(error).split())
        raise UserError(
            f"{name}: cannot be read as the annotations describe it ({reason}); "
            "restore the file or take it out of the annotations"
        ) from None


def register_deep_images() -> None:
    """Teaches Detectron2's ``PathManager``, through which it reads images, names that begin with
    :data:`DEEP`: what it gets is the picture after :func:`eight_bits`. Its own conversion to RGB
    makes all above 255 white, and all fractions black."""
    from detectron2.utils.file_io import PathHandler, PathManager

    class DeepImages(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return [DEEP]

        def _isfile(self, path: str, **kwargs: Any) -> bool:
            return os.path.isfile(path.removeprefix(DEEP))

        def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
            made = io.BytesIO()
            eight_bits(Path(path.removeprefix(DEEP))).convert("RGB").save(made, "PPM")
            made.seek(0)
            return made

    PathManager.register_handler(DeepImages(), allow_override=True)
