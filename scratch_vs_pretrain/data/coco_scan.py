"""Takes a part out of a COCO annotation file without parsing all of it.

Most of such a file is polygons. Here the annotations are told apart by their outer braces, and only
those of the wanted images are ever read, so time and memory follow the part, not the whole.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

_STRING = rb'"(?:[^"\\]++|\\.)*+"'


def _object(depth: int) -> bytes:
    inner = rb"|" + _object(depth - 1) if depth else rb""
    return rb'\{(?:[^{}"]++|' + _STRING + inner + rb")*+\}"


# An object with others in it up to this depth, in one match; deeper ones go by tokens.
_OBJECT = re.compile(_object(2), re.DOTALL)
_TOKEN = re.compile(_STRING + rb'|[{}\[\]]|[^\s,:{}\[\]"]+', re.DOTALL)
_KEY = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_SPACE = re.compile(rb"\s*")
_IMAGE_ID = re.compile(rb'"image_id"\s*:\s*(-?[0-9]+)(?=[\s,}])')


class _Malformed(Exception):
    """What is there at a byte is not what JSON has there."""


class CocoScan:
    """An annotation file, opened and indexed.

    Attributes:
        images: the entries of all images.
    """

    def __init__(self, file: Path) -> None:
        """
        Raises:
            UserError: the file is missing, no JSON or not in COCO format, lists an image twice, or
                has an annotation of an image that it does not list.
        """
        self.file = file
        self._starts, self._ends = array("Q"), array("Q")
        self._image_ids: list[int | str] = []
        self._other: dict[str, Any] = {}
        try:
            with file.open("rb") as opened:
                self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._index()
        except OSError as error:
            raise UserError(f"{file}: cannot read the annotations ({error.strerror})") from None
        except _Malformed as error:
            raise UserError(
                f"{file}: not valid JSON at byte {error.args[0]}; is it truncated?"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: not valid JSON ({error}); is it truncated?") from None
        self.images = self._entries("images", ("id", "file_name", "height", "width"))
        self._check_identities()

    def extract(self, wanted: Sequence[int | str]) -> bytes:
        """Returns a COCO file of the wanted images: ascending, with their annotations in the order
        of the file, and all categories."""
        chosen = set(wanted)
        images = [image for image in self.images if image["id"] in chosen]
        images.sort(key=lambda image: (isinstance(image["id"], str), image["id"]))
        annotations = b",\n".join(
            self._bytes[start:end]
            for start, end, image in zip(self._starts, self._ends, self._image_ids, strict=True)
            if image in chosen
        )
        rest = {"images": images, "categories": self._entries("categories", ("id", "name"))}
        return json.dumps(rest).encode()[:-1] + b', "annotations": [' + annotations + b"]}\n"

    def _entries(self, key: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        entries = self._other.get(key)
        if not isinstance(entries, list):
            raise UserError(f"{self.file}: not in COCO format; it has no list of {key}")
        for number, entry in enumerate(entries):
            for field in fields:
                if not isinstance(entry, dict) or field not in entry:
                    raise UserError(
                        f"{self.file}: not in COCO format; {key}[{number}] has no valid {field}"
                    )
            if not isinstance(entry["id"], (int, str)):
                raise UserError(f"{self.file}: not in COCO format; {key}[{number}] has no valid id")
        return entries

    def _check_identities(self) -> None:
        known: set[int | str] = set()
        for number, image in enumerate(self.images):
            if image["id"] in known:
                raise UserError(
                    f"{self.file}: images[{number}] has the id {image['id']!r} of an image before "
                    "it; give each image an id of its own"
                )
            known.add(image["id"])
        for number, image_id in enumerate(self._image_ids):
            if image_id not in known:
                raise UserError(
                    f"{self.file}: annotations[{number}] belongs to image {image_id!r}, which is "
                    "not among the images; add the image or take the annotation out"
                )

    def _index(self) -> None:
        found = False
        at = self._expect(b"{", self._space(0))
        while self._bytes[at : at + 1] != b"}":
            key = _KEY.match(self._bytes, at)
            if key is None:
                raise _Malformed(at)
            name, at = json.loads(key[1]), key.end()
            if name == "annotations" and self._bytes[at : at + 1] == b"[":
                found, at = True, self._elements(at, self._note_annotation)
            else:
                end = self._skip(at)
                if name in ("images", "categories"):
                    self._other[name] = json.loads(self._bytes[at:end])
                at = end
            at = self._next(at, b"}")
        if not found:
            raise UserError(f"{self.file}: not in COCO format; it has no list of annotations")

    def _elements(self, at: int, note: Callable[[int, int], None]) -> int:
        """Notes the extent of every object of the list that begins at `at`; returns its end."""
        at = self._space(at + 1)
        while self._bytes[at : at + 1] != b"]":
            whole = _OBJECT.match(self._bytes, at)
            end = whole.end() if whole else self._skip(at)
            note(at, end)
            at = self._next(end, b"]")
        return at + 1

    def _note_annotation(self, start: int, end: int) -> None:
        text = self._bytes[start:end]
        # Where the key appears once, it is the annotation's own.
        image_id: Any
        found = _IMAGE_ID.search(text) if text.count(b"image_id") == 1 else None
        if found:
            image_id = int(found[1])
        else:
            entry = json.loads(text)
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if not isinstance(image_id, (int, str)):
                raise UserError(
                    f"{self.file}: not in COCO format; annotations[{len(self._starts)}] has no "
                    "valid image_id"
                )
        self._starts.append(start)
        self._ends.append(end)
        self._image_ids.append(image_id)

    def _skip(self, at: int) -> int:
        """Returns the end of the value that begins at `at`."""
        depth = 0
        for token in _TOKEN.finditer(self._bytes, at):
            depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
            if depth == 0:
                return token.end()
            if depth < 0:
                break
        raise _Malformed(at)

    def _next(self, at: int, closing: bytes) -> int:
        """Returns where the next entry begins, or where `closing` is."""
        at = self._space(at)
        if self._bytes[at : at + 1] == closing:
            return at
        at = self._space(self._expect(b",", at))
        if self._bytes[at : at + 1] == closing:
            raise _Malformed(at)
        return at

    def _space(self, at: int) -> int:
        found = _SPACE.match(self._bytes, at)
        return found.end() if found else at

    def _expect(self, byte: bytes, at: int) -> int:
        if self._bytes[at : at + 1] != byte:
            raise _Malformed(at)
        return at + 1
