"""The tidy frame: one row per run, metric and iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.evaluations import evaluations
from scratch_vs_pretrain.analysis.metrics_file import read_metrics
from scratch_vs_pretrain.run_folder import RunFolder

if TYPE_CHECKING:
    from scratch_vs_pretrain.analysis.runs import RunRecord

COLUMNS = (
    "study",
    "arm",
    "schedule",
    "seed",
    "iteration",
    "images",
    "epochs",
    "metric",
    "value",
    "state",
    "source",
)


@dataclass(frozen=True)
class _Piece:
    """Rows of one run from one file: n metrics, (n,) completed iterations, (n,) values."""

    run: int
    metrics: Sequence[str]
    iterations: np.ndarray
    values: np.ndarray
    source: Path


def tidy(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Reads the runs' numbers.

    Scores come from ``evaluations/``, and from ``metrics.json`` where an iteration has no file
    there; everything else from ``metrics.json``.

    Returns:
        the columns of :data:`COLUMNS`, runs in the given order: study, arm, schedule, metric,
        state and source (the file) are categorical, in order of appearance; seed and images
        nullable integers; iteration counts completed iterations; value is NaN where there is none.

    Raises:
        UserError: a damaged file; names it and the key or line.
    """
    pieces = [piece for index, run in enumerate(runs) for piece in _pieces(index, run)]
    lengths = [len(piece.values) for piece in pieces]
    run = np.repeat(np.array([piece.run for piece in pieces], np.int64), lengths)
    iterations = _joined([piece.iterations for piece in pieces], np.int64)
    images = _spread([r.images_per_batch for r in runs], run, "Int64") * iterations
    epochs = images / _spread([r.train_images for r in runs], run, "Float64")
    sources = np.repeat(np.arange(len(pieces)), lengths)
    return pd.DataFrame(
        {
            "study": _spread([r.study for r in runs], run),
            "arm": _spread([r.arm for r in runs], run),
            "schedule": _spread([r.schedule for r in runs], run),
            "seed": _spread([r.seed for r in runs], run, "Int64"),
            "iteration": iterations,
            "images": images,
            "epochs": epochs.to_numpy(float, na_value=np.nan),
            "metric": _categories([name for piece in pieces for name in piece.metrics]),
            "value": _joined([piece.values for piece in pieces], float),
            "state": _spread([r.state for r in runs], run),
            "source": _spread([str(piece.source) for piece in pieces], sources),
        },
        columns=list(COLUMNS),
    )


def _pieces(index: int, run: RunRecord) -> Iterator[_Piece]:
    evaluated = []
    for evaluation in evaluations(run.folder) if run.own else ():
        evaluated.append(evaluation.iteration)
        names = tuple(evaluation.scores)
        iterations = np.full(len(names), evaluation.iteration, np.int64)
        values = np.array([evaluation.scores[name] for name in names], float)
        yield _Piece(index, names, iterations, values, evaluation.file)
    file = RunFolder(run.folder).metrics_file
    if not file.exists():
        return
    metrics = read_metrics(file, own=run.own)
    for name, curve in metrics.scores.items():
        new = ~np.isin(curve.iterations, evaluated)
        yield _Piece(
            index, (name,) * int(new.sum()), curve.iterations[new], curve.values[new], file
        )
    for name, curve in metrics.training.items():
        yield _Piece(index, (name,) * len(curve.values), curve.iterations, curve.values, file)


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _categories(values: Sequence[str]) -> pd.Series:
    return pd.Series(values, dtype=pd.CategoricalDtype(list(dict.fromkeys(values))))


def _spread(values: Sequence[Any], rows: np.ndarray, dtype: str | None = None) -> pd.Series:
    """Returns a column of values[rows], categorical unless a dtype is given."""
    column = pd.Series(list(values), dtype=dtype) if dtype else _categories(values)
    return column.iloc[rows].reset_index(drop=True)
