"""Parsed rows of ``metrics.json`` files kept between reads, so that only what was appended is read.

A file's rows are trusted as long as the file is no shorter than it was and its first and last
kilobytes before the old end are the same; else all of it is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scratch_vs_pretrain.analysis.runs.metrics import Metrics, assemble
from scratch_vs_pretrain.analysis.runs.metrics_lines import Block, joined, parse_lines
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically

FORMAT = 1
EDGE = 4096


@dataclass(frozen=True)
class _Known:
    """What was read before.

    Attributes:
        size: bytes, whole lines.
        lines: how many.
        edges: digest of the first and the last of these bytes.
        blocks: their rows.
    """

    size: int = 0
    lines: int = 0
    edges: str = ""
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class RowCache:
    """Reads ``metrics.json`` files, keeping their rows in `folder`.

    A read is a :data:`scratch_vs_pretrain.analysis.runs.frame.Reader`.
    """

    folder: Path

    def read(self, path: Path, own: bool) -> Metrics:
        """Reads a ``metrics.json``; see :func:`.metrics_file.read_metrics`.

        Raises:
            UserError: as there; or `folder` cannot be written.
        """
        place = self.folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.npz"
        known = _load(place)
        try:
            with path.open("rb") as file:
                if known.size and _edges(file, known.size) != known.edges:
                    known = _Known()
                file.seek(known.size)
                tail = file.read()
                whole = tail.rfind(b"\n") + 1
                blocks = joined(known.blocks, parse_lines(tail[:whole], path, known.lines))
                lines = known.lines + tail.count(b"\n", 0, whole)
                if whole:
                    size = known.size + whole
                    _save(place, _Known(size, lines, _edges(file, size), blocks))
        except OSError as error:
            name = error.filename or path
            raise UserError(f"{name}: cannot be read or written ({error.strerror})") from None
        last = parse_lines(tail[whole:], path, lines)
        return assemble(joined(blocks, last), path, own=own)


def _edges(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    for start in (0, max(0, size - EDGE)):
        file.seek(start)
        digest.update(file.read(min(EDGE, size - start)))
    return digest.hexdigest()


def _save(place: Path, known: _Known) -> None:
    head = {
        "format": FORMAT,
        "size": known.size,
        "lines": known.lines,
        "edges": known.edges,
        "keys": [block.keys for block in known.blocks],
    }
    arrays = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    for index, block in enumerate(known.blocks):
        arrays |= {f"lines{index}": block.lines, f"table{index}": block.table}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, buffer.getbuffer())


def _load(place: Path) -> _Known:
    """Returns what is kept; nothing where there is none or it cannot be used."""
    unusable = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
    with contextlib.suppress(*unusable), np.load(place, allow_pickle=False) as file:
        head = json.loads(file["head"].tobytes())
        if head["format"] == FORMAT:
            blocks = tuple(
                Block(tuple(keys), file[f"lines{index}"], file[f"table{index}"])
                for index, keys in enumerate(head["keys"])
            )
            return _Known(head["size"], head["lines"], head["edges"], blocks)
    return _Known()
