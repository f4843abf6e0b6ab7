"""All numbers of one run: from ``evaluations/``, and from ``metrics.json`` what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratch_vs_pretrain.analysis.runs.evaluations import evaluations
from scratch_vs_pretrain.analysis.runs.metrics import Curve, Metrics, logged
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.run_folder import RunFolder


@dataclass(frozen=True)
class Piece:
    """Numbers of one run from one file."""

    metrics: str | tuple[str, ...]  # a name for each row, or one for all
    iterations: np.ndarray  # (n,) completed iterations
    values: np.ndarray  # (n,)
    source: Path  # the file


def pieces(
    run: RunRecord, numbers: Metrics | None = None, evaluated: bool = True
) -> Iterator[Piece]:
    """Yields what the files of one run hold, none of them empty.

    A score comes from ``evaluations/``, and from ``metrics.json`` where an iteration has no file
    there; everything else from ``metrics.json``.

    Args:
        run: the run.
        numbers: of its ``metrics.json``; None: all of them.
        evaluated: read its evaluations too.
    """
    numbers = logged(run) if numbers is None else numbers
    known = []
    for evaluation in evaluations(run.folder) if run.own and evaluated else ():
        known.append(evaluation.iteration)
        metrics = tuple(evaluation.scores)
        iterations = np.full(len(metrics), evaluation.iteration, np.int64)
        if metrics:
            values = np.array(list(evaluation.scores.values()), float)
            yield Piece(metrics, iterations, values, evaluation.file)
    file = RunFolder(run.folder).metrics_file
    for name, one in numbers.scores.items():
        new = ~np.isin(one.iterations, known)
        if new.any():
            yield Piece(name, one.iterations[new], one.values[new], file)
    for name, one in numbers.training.items():
        yield Piece(name, one.iterations, one.values, file)


def names(run: RunRecord) -> set[str]:
    """Returns the metrics of which a run has any value."""
    found: set[str] = set()
    for piece in pieces(run):
        finite = np.isfinite(piece.values)
        if isinstance(piece.metrics, str):
            found |= {piece.metrics} if finite.any() else set()
        else:
            found |= {name for name, known in zip(piece.metrics, finite, strict=True) if known}
    return found


def curve(run: RunRecord, metric: str) -> Curve:
    """Returns the finite values of a metric by completed iterations, ascending."""
    columns = [np.empty((2, 0))]
    for piece in pieces(run):
        if metric == piece.metrics:
            columns.append(np.array([piece.iterations, piece.values]))
        elif not isinstance(piece.metrics, str) and metric in piece.metrics:
            at = piece.metrics.index(metric)
            columns.append(np.array([piece.iterations[at : at + 1], piece.values[at : at + 1]]))
    iterations, values = np.concatenate(columns, axis=1)
    order = np.argsort(iterations, kind="stable")
    order = order[np.isfinite(values[order])]
    return Curve(iterations[order].astype(np.int64), values[order])
