"""Reader of Detectron2's ``metrics.json``: one JSON object a line, appended to as training goes.

What the file does that a reader must know (``detectron2/utils/events.py``, ``engine/hooks.py``):

- NaN and infinity are written bare; a kill may leave the last line unfinished.
- ``iteration`` is 0-based. A row written during training at iteration i stands for i + 1
  completed iterations; the evaluation after the last one is written at the count itself.
- A resume repeats iterations, a reused folder appends a second run.
- An evaluation's row may come after training rows of later iterations.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratch_vs_pretrain.errors import UserError

# "bbox/AP", "segm/AP75", "bbox/AP-person", "box_proposals/AR@100", "coco_2017_val/bbox/AP".
SCORE = re.compile(r"(?:.+/)?[^/]+/A[PR][^/-]*(?:-.*)?")

# Every training row of Detectron2 has one of them.
TRAINING_KEYS = ("total_loss", "lr")

# Integers up to here are exact in float64.
LARGEST_ITERATION = 2**53


@dataclass(frozen=True)
class Curve:
    """One scalar over training.

    Attributes:
        iterations: (n,) int64, completed iterations, strictly increasing.
        values: (n,) float64; may hold NaN and infinities.
    """

    iterations: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Metrics:
    """What one ``metrics.json`` holds.

    Attributes:
        scores: AP and AR by metric ("bbox/AP"), in percent, NaN where there is none.
        training: everything else: losses, "lr", "time", "samples/images".
    """

    scores: dict[str, Curve]
    training: dict[str, Curve]


def is_score(key: str) -> bool:
    """Tells a detection score (AP, AR) from what training logs."""
    return SCORE.fullmatch(key) is not None


def read_metrics(path: Path, *, own: bool = False) -> Metrics:
    """Reads a ``metrics.json``; of an iteration written twice, the last value of a key counts.

    Args:
        path: the file.
        own: this package's trainer wrote it. A lock and a comparison of configs keep other runs out
            of its folder, so iterations that start again are a restart and not a second run; and
            every row's iteration is 0-based, the last evaluation's too.

    Raises:
        UserError: the file is missing, or a line is no row of metrics (the unfinished last line of
            a killed run is left out instead), or a second run was appended; names the line.
    """
    rows, numbers = _parse(path)
    iterations = np.array(
        [_iteration(row, path, n) for row, n in zip(rows, numbers, strict=True)], np.int64
    )
    is_training = np.array([any(key in row for key in TRAINING_KEYS) for row in rows], bool)
    completed = iterations + 1
    if not own:
        _refuse_mixed_runs(iterations[is_training], np.array(numbers)[is_training], path)
        completed[_after_the_last(iterations, is_training)] -= 1

    scores, training = {}, {}
    for key, (lines, values) in _columns(rows, numbers, path).items():
        curve = _last_wins(completed[lines], values)
        if is_score(key):
            # pycocotools says -1 where there is no ground truth.
            scores[key] = Curve(curve.iterations, np.where(curve.values < 0, np.nan, curve.values))
        else:
            training[key] = curve
    return Metrics(scores, training)


def _parse(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the rows and their line numbers."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    lines = content.split(b"\n")
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    lines = [lines[number - 1] for number in numbers]
    try:
        # One call for the whole file takes half the time of one call a line.
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(type(row) is dict for row in rows):
            return rows, numbers
    except (ValueError, RecursionError):
        pass
    if not content.endswith(b"\n") and _is_broken(lines[-1]):
        lines.pop()
        numbers.pop()
    return [_row(line, path, n) for line, n in zip(lines, numbers, strict=True)], numbers


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


def _iteration(row: dict[str, Any], path: Path, number: int) -> int:
    iteration = row.get("iteration")
    if type(iteration) is not int or not 0 <= iteration < LARGEST_ITERATION:
        raise UserError(
            f"{path}, line {number}: 'iteration' is not a count; "
            "is this the metrics.json of Detectron2?"
        )
    return iteration


def _refuse_mixed_runs(iterations: np.ndarray, numbers: np.ndarray, path: Path) -> None:
    if len(iterations) == 0:
        return
    first = iterations[0]
    progressed = np.maximum.accumulate(iterations) > first
    restarted = np.flatnonzero(progressed & (iterations <= first))
    if len(restarted):
        line = restarted[0]
        raise UserError(
            f"{path}, line {numbers[line]}: iterations start again at {iterations[line]} after "
            f"{iterations[:line].max()}, so a second run was written into this folder; "
            "move the lines of each run to a folder of its own"
        )


def _after_the_last(iterations: np.ndarray, is_training: np.ndarray) -> np.ndarray:
    """Marks the rows of the evaluation after the last iteration: alone, one past the end."""
    if not is_training.any():
        return np.zeros(len(iterations), bool)
    return ~is_training & (iterations == iterations[is_training].max() + 1)


def _columns(
    rows: list[dict[str, Any]], numbers: list[int], path: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns for each key the indices of its rows, ascending, and its values."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        kinds.setdefault(tuple(row), []).append(index)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for keys, indices in kinds.items():
        table = _numbers([rows[index] for index in indices])
        if table is None:
            table = np.array([_checked(rows[i], path, numbers[i]) for i in indices], float)
        for column, key in enumerate(keys):
            if key != "iteration":
                parts.setdefault(key, []).append((np.array(indices), table[:, column]))
    return {key: _merge(pieces) for key, pieces in parts.items()}


def _merge(pieces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(pieces) == 1:
        return pieces[0]
    indices = np.concatenate([indices for indices, _ in pieces])
    values = np.concatenate([values for _, values in pieces])
    order = np.argsort(indices)
    return indices[order], values[order]


def _numbers(rows: list[dict[str, Any]]) -> np.ndarray | None:
    """Returns the rows' values as one float array, None where not all are numbers."""
    try:
        table = np.array([list(row.values()) for row in rows])
    except (ValueError, OverflowError):
        return None
    return table.astype(float) if table.ndim == 2 and table.dtype.kind in "iuf" else None


def _checked(row: dict[str, Any], path: Path, number: int) -> list[float]:
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


def _last_wins(iterations: np.ndarray, values: np.ndarray) -> Curve:
    order = np.argsort(iterations, kind="stable")
    iterations, values = iterations[order], values[order]
    last = np.append(iterations[1:] != iterations[:-1], True)[: len(iterations)]
    return Curve(iterations[last], values[last])
