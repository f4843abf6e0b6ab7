"""All numbers of one run: from ``evaluations/``, and from ``metrics.json`` what is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratch_vs_pretrain.analysis.runs.evaluations import evaluations
from scratch_vs_pretrain.analysis.runs.metrics import Curve, Metrics, is_score, logged
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.run_folder import RunFolder


@dataclass(frozen=True)
class Piece:
    """Numbers of one run from one file."""

    metrics: tuple[str, ...]  # a name for each row, or one for all
    iterations: np.ndarray  # (n,) completed iterations
    values: np.ndarray  # (n,)
    source: Path  # the file

    def named(self) -> Iterator[tuple[str, slice]]:
        """Yields each name with its rows."""
        if len(self.metrics) == 1:
            yield self.metrics[0], slice(None)
        else:
            yield from ((name, slice(at, at + 1)) for at, name in enumerate(self.metrics))


def pieces(
    run: RunRecord, numbers: Metrics | None = None, evaluated: bool = True
) -> Iterator[Piece]:
    """Yields what the files of one run hold, none of them empty.

    What evaluations measure comes from ``evaluations/``, and from ``metrics.json`` where an
    iteration has no file there; everything else from ``metrics.json``.

    Args:
        run: the run.
        numbers: of its ``metrics.json``; None: all of them.
        evaluated: read its evaluations too.
    """
    read = evaluations(run.folder) if run.own and evaluated else ()
    for one in read:
        values = np.array(list(one.scores.values()), float)
        if one.scores:
            at = np.full(len(values), one.iteration, np.int64)
            yield Piece(tuple(one.scores), at, values, one.file)
    file = RunFolder(run.folder).metrics_file
    known, measured = [one.iteration for one in read], {name for one in read for name in one.scores}
    for name, curve in (logged(run) if numbers is None else numbers).items():
        new = np.full(len(curve.values), True)
        if name in measured or is_score(name):
            new = ~np.isin(curve.iterations, known)
        if new.any():
            yield Piece((name,), curve.iterations[new], curve.values[new], file)


def names(run: RunRecord) -> set[str]:
    """Returns the metrics of which a run has any value."""
    return {
        name
        for piece in pieces(run)
        for name, rows in piece.named()
        if np.isfinite(piece.values[rows]).any()
    }


def curve(run: RunRecord, metric: str) -> Curve:
    """Returns the finite values of a metric by completed iterations, ascending."""
    found = [
        (piece.iterations[rows], piece.values[rows])
        for piece in pieces(run)
        if metric in piece.metrics
        for name, rows in piece.named()
        if name == metric
    ]
    iterations, values = np.concatenate([np.empty((2, 0)), *found], axis=1)
    order = np.argsort(iterations, kind="stable")
    order = order[np.isfinite(values[order])]
    return Curve(iterations[order].astype(np.int64), values[order])
