"""Reader of Detectron2's ``metrics.json``: one JSON object a line, appended to as training goes.

What the file does that a reader must know (``detectron2/utils/events.py``, ``engine/hooks.py``):

- NaN and infinity are written bare; a kill may leave the last line unfinished.
- ``iteration`` is 0-based. A row written during training at iteration i stands for i + 1
  completed iterations; the evaluation after the last one is written at the count itself.
- A resume repeats iterations, a reused folder appends a second run.
- An evaluation's row may come after training rows of later iterations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratch_vs_pretrain.analysis.runs.metrics_lines import Block, parse_lines
from scratch_vs_pretrain.errors import UserError

# "bbox/AP", "segm/AP75", "bbox/AP-person", "box_proposals/AR@100", "coco_2017_val/bbox/AP".
SCORE = re.compile(r"(?:.+/)?[^/]+/A[PR][^/-]*(?:-.*)?")

# Every training row of Detectron2 has one of them.
TRAINING_KEYS = ("total_loss", "lr")


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


def read_metrics(path: Path, *, own: bool = False, share: float = 1.0) -> Metrics:
    """Reads a ``metrics.json``; of an iteration written twice, the last value of a key counts.

    Args:
        path: the file.
        own: this package's trainer wrote it. A lock and a comparison of configs keep other runs out
            of its folder, so iterations that start again are a restart and not a second run; and
            every row's iteration is 0-based, the last evaluation's too.
        share: of the file's lines, from its end, to read: rounded, at least one.

    Raises:
        UserError: the file is missing, or a line is no row of metrics (the unfinished last line of
            a killed run is left out instead), or a second run was appended; names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    before = 0
    if share < 1:
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
        before = max(0, len(ends) - max(1, round(share * len(ends))))
    start = ends[before - 1] + 1 if before else 0
    return assemble(parse_lines(content[start:], path, before), path, own=own)


def assemble(blocks: Sequence[Block], path: Path, *, own: bool) -> Metrics:
    """Returns the curves of a file's parsed rows; arguments of :func:`read_metrics`."""
    written = [block.iterations for block in blocks]
    completed = [iterations + 1 for iterations in written]
    if not own:
        _refuse_mixed_runs(blocks, path)
        _mend_the_last(blocks, written, completed)

    holders: dict[str, tuple[int, ...]] = {}
    for index, block in enumerate(blocks):
        for key in block.keys:
            holders[key] = (*holders.get(key, ()), index)
    columns = [dict(zip(b.keys, np.ascontiguousarray(b.table.T), strict=True)) for b in blocks]
    chosen: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray | None]] = {}
    scores, training = {}, {}
    for key, where in holders.items():
        if key == "iteration":
            continue
        if where not in chosen:
            lines = np.concatenate([blocks[i].lines for i in where])
            chosen[where] = _last_wins(lines, np.concatenate([completed[i] for i in where]))
        iterations, kept = chosen[where]
        values = np.concatenate([columns[i][key] for i in where])
        values = values if kept is None else values[kept]
        if is_score(key):
            # pycocotools says -1 where there is no ground truth.
            scores[key] = Curve(iterations, np.where(values < 0, np.nan, values))
        else:
            training[key] = Curve(iterations, values)
    return Metrics(scores, training)


def _is_training(block: Block) -> bool:
    return any(key in block.keys for key in TRAINING_KEYS)


def _refuse_mixed_runs(blocks: Sequence[Block], path: Path) -> None:
    training = [block for block in blocks if _is_training(block)]
    if not training:
        return
    lines = np.concatenate([block.lines for block in training])
    order = np.argsort(lines)
    lines = lines[order]
    iterations = np.concatenate([block.iterations for block in training])[order]
    first = iterations[0]
    progressed = np.maximum.accumulate(iterations) > first
    restarted = np.flatnonzero(progressed & (iterations <= first))
    if len(restarted):
        row = restarted[0]
        raise UserError(
            f"{path}, line {lines[row]}: iterations start again at {iterations[row]} after "
            f"{iterations[:row].max()}, so a second run was written into this folder; "
            "move the lines of each run to a folder of its own"
        )


def _mend_the_last(
    blocks: Sequence[Block], written: Sequence[np.ndarray], completed: Sequence[np.ndarray]
) -> None:
    """Corrects the rows of the evaluation after the last iteration: alone, one past the end."""
    ends = [int(w.max()) for b, w in zip(blocks, written, strict=True) if _is_training(b)]
    for block, iterations, counts in zip(blocks, written, completed, strict=True):
        if ends and not _is_training(block):
            counts[iterations == max(ends) + 1] -= 1


def _last_wins(lines: np.ndarray, iterations: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the ascending iterations and the rows that count, None for all in their order."""
    if np.all(iterations[1:] > iterations[:-1]):
        return iterations, None
    order = np.lexsort((lines, iterations))
    iterations = iterations[order]
    last = np.append(iterations[1:] != iterations[:-1], True)
    return iterations[last], order[last]
