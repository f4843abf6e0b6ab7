"""Lines of ``metrics.json`` to arrays: one table for all rows with the same keys.

Rows of one kind have their keys in the same order (Detectron2 sorts them), so what stands between
the quotation marks is compared as a whole and only the numbers are parsed. Whatever that cannot
prove to be such a row goes through ``json``, a line at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from scratch_vs_pretrain.errors import UserError

# Integers up to here are exact in float64.
LARGEST_ITERATION = 2**53

# Few enough lines for the processor's cache, enough to spread what a chunk costs.
CHUNK_LINES = 256

# Of numbers, NaN, Infinity and null; and what turns the rest of a row into a list of numbers, in
# which anything that stands where it should not is no JSON.
NUMBER_CHARACTERS = b"0123456789.+-eENaInfityul"
TO_LIST = bytes.maketrans(b":,{}", b",   ")


@dataclass(frozen=True)
class Block:
    """All rows that have the same keys.

    Attributes:
        keys: k names, "iteration" among them.
        lines: (n,) line numbers, from 1, ascending.
        table: (n, k) float64; NaN for null.
    """

    keys: tuple[str, ...]
    lines: np.ndarray
    table: np.ndarray

    @property
    def iterations(self) -> np.ndarray:
        """(n,) int64, as written: 0-based."""
        return self.table[:, self.keys.index("iteration")].astype(np.int64)


def parse_lines(content: bytes, path: Path, before: int = 0) -> tuple[Block, ...]:
    """Returns the rows of a ``metrics.json`` or of its end, one block per set of keys.

    Args:
        content: whole lines; the last may be unfinished and is then left out.
        path: named in messages.
        before: lines of the file before `content`.

    Raises:
        UserError: a line is no row of metrics; names it.
    """
    lines = content.split(b"\n")
    if not lines[-1] or _is_broken(lines[-1]):
        lines.pop()
    parts: dict[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for start in range(0, len(lines), CHUNK_LINES):
        chunk = lines[start : start + CHUNK_LINES]
        for keys, where, table in _tables(chunk, before + start + 1, path):
            parts.setdefault(keys, []).append((where, table))
    return joined(
        tuple(
            Block(keys, np.concatenate([n for n, _ in part]), np.concatenate([t for _, t in part]))
            for keys, part in parts.items()
        )
    )


def joined(*files: tuple[Block, ...]) -> tuple[Block, ...]:
    """Returns the blocks of a file's parts, in the order of their first lines."""
    parts: dict[tuple[str, ...], list[Block]] = {}
    for blocks in files:
        for block in blocks:
            parts.setdefault(block.keys, []).append(block)
    return tuple(sorted(map(_one, parts.values()), key=lambda block: int(block.lines[0])))


def _one(blocks: list[Block]) -> Block:
    lines = np.concatenate([block.lines for block in blocks])
    table = np.concatenate([block.table for block in blocks])
    if np.any(lines[1:] < lines[:-1]):
        order = np.argsort(lines)
        lines, table = lines[order], table[order]
    return Block(blocks[0].keys, lines, table)


Part = tuple[tuple[str, ...], np.ndarray, np.ndarray]


def _tables(lines: Sequence[bytes], first: int, path: Path) -> Iterator[Part]:
    """Yields the rows of some lines, of which the first has the number `first`."""
    fast = _same_keys(lines)
    if fast is not None:
        yield fast[0], np.arange(first, first + len(lines)), fast[1]
        return
    # Lines of different keys mostly have different numbers of them.
    alike: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        if line and not line.isspace():
            alike.setdefault(line.count(b'"'), []).append(index)
    for indices in alike.values():
        group = [lines[index] for index in indices]
        numbers = first + np.array(indices, np.int64)
        fast = _same_keys(group)
        if fast is not None:
            yield fast[0], numbers, fast[1]
        else:
            yield from _one_by_one(group, numbers, path)


def _one_by_one(lines: Sequence[bytes], numbers: np.ndarray, path: Path) -> Iterator[Part]:
    kinds: dict[tuple[str, ...], tuple[list[int], list[list[float]]]] = {}
    for line, number in zip(lines, numbers.tolist(), strict=True):
        row = _row(line, path, number)
        where, values = kinds.setdefault(tuple(row), ([], []))
        where.append(number)
        values.append(_checked(row, path, number))
    for keys, (where, values) in kinds.items():
        yield keys, np.array(where, np.int64), np.array(values, float)


def _same_keys(lines: Sequence[bytes]) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Returns keys and (n, k) numbers, None unless all lines surely are rows with the same keys."""
    try:
        keys = tuple(json.loads(lines[0]))
    except (ValueError, RecursionError, TypeError):
        return None
    raw = lines[0].split(b'"')[1::2]
    n, k = len(lines), len(raw)
    pieces = b"\n".join(lines).split(b'"')
    if len(keys) != k or "iteration" not in keys or pieces[1::2] != raw * n or pieces[0] != b"{":
        return None
    # What is left is ": 1.5, : 2}\n{: 1.5, : 2}" and so on.
    rest = b"".join(pieces[2::2])
    frame = b": , " * (k - 1) + b": }"
    if rest.translate(None, NUMBER_CHARACTERS) != b"\n{".join([frame] * n):
        return None
    try:
        table = np.array(_values(b"[" + rest.translate(TO_LIST)[1:] + b"]")).reshape(n, k)
    except (ValueError, RecursionError, OverflowError):
        return None
    if table.dtype.kind != "f":
        return None
    iterations = table[:, keys.index("iteration")]
    counts = (iterations >= 0) & (iterations < LARGEST_ITERATION)
    return (keys, table) if np.all(counts & (iterations == np.floor(iterations))) else None


def _values(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)  # NaN and infinity are no JSON, and Detectron2 writes them.


def _is_broken(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(
            f"{path}, line {number}: not a JSON object, the line is damaged; "
            "delete this line, its iteration is lost"
        )
    return row


def _checked(row: dict[str, Any], path: Path, number: int) -> list[float]:
    iteration = row.get("iteration")
    if type(iteration) is not int or not 0 <= iteration < LARGEST_ITERATION:
        raise UserError(
            f"{path}, line {number}: 'iteration' is not a count; "
            "is this the metrics.json of Detectron2?"
        )
    values = []
    for key, value in row.items():
        if value is not None and not isinstance(value, (int, float)):
            raise UserError(
                f"{path}, line {number}: the value of {key!r} is not a number; "
                "is this the metrics.json of Detectron2?"
            )
        values.append(_to_float(value))
    return values


def _to_float(value: float | None) -> float:
    if value is None:
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf
