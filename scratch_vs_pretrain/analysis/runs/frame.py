"""The tidy frame: one row per run, metric and iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.runs.numbers import Piece, pieces
from scratch_vs_pretrain.analysis.runs.records import Records

COLUMNS = (
    *("study", "arm", "schedule", "seed", "iteration", "images", "epochs", "trunk"),
    *("metric", "value", "state", "source"),
)


def tidy(runs: Records) -> pd.DataFrame:
    """Reads the runs' numbers.

    Returns:
        the columns of :data:`COLUMNS`, runs in the given order: study, arm, schedule, trunk,
        metric, state and source (the file) are categorical, in order of appearance; seed and images
        nullable integers; iteration counts completed iterations; value is NaN where there is none.
        Rows that a branch has copied from its trunk name the trunk's schedule; elsewhere trunk is
        missing. Without them every iteration of every training is there once.

    Raises:
        UserError: a damaged file; names it and the key or line.
    """
    return frame_of(runs, [list(pieces(run)) for run in runs])


def frame_of(runs: Records, read: Sequence[Sequence[Piece]]) -> pd.DataFrame:
    """Returns the frame of :func:`tidy` of runs and the pieces that were read of each."""
    of = [run for run, some in zip(runs, read, strict=True) for _ in some]
    joined = [piece for some in read for piece in some]
    lengths = np.array([len(piece.values) for piece in joined], np.int64)
    iterations = np.concatenate([np.empty(0, np.int64), *(piece.iterations for piece in joined)])
    images = _numbers([r.images_per_batch for r in of], lengths) * iterations
    epochs = images / _numbers([r.train_images for r in of], lengths)
    trunks = _categories([run.branch_of for run in of], lengths)
    own = iterations > np.repeat(np.array([run.branch_at for run in of], np.int64), lengths)
    # A name for each row of a piece, or one for all.
    names = [name for piece in joined for name in piece.metrics]
    named = [len(p.values) // len(p.metrics) for p in joined for _ in p.metrics]
    return pd.DataFrame(
        {
            "study": _categories([r.setting for r in of], lengths),
            "arm": _categories([r.arm for r in of], lengths),
            "schedule": _categories([r.schedule for r in of], lengths),
            "seed": _numbers([r.seed for r in of], lengths),
            "iteration": iterations,
            "images": images,
            "epochs": epochs.to_numpy(float, na_value=np.nan),
            "trunk": pd.Categorical.from_codes(np.where(own, -1, trunks.codes), dtype=trunks.dtype),
            "metric": _categories(names, named),
            "value": np.concatenate([np.empty(0), *(piece.values for piece in joined)]),
            "state": _categories([r.state for r in of], lengths),
            "source": _categories([str(piece.source) for piece in joined], lengths),
        },
        copy=False,
    )


def _categories(
    values: Sequence[str | None], lengths: Sequence[int] | np.ndarray
) -> pd.Categorical:
    """Returns each value as often as `lengths` says; categories in order of appearance."""
    shown = dict.fromkeys(v for v, n in zip(values, lengths, strict=True) if n and v is not None)
    codes = {name: code for code, name in enumerate(shown)}
    small = np.min_scalar_type(-len(codes) - 1)
    repeated = np.repeat(np.array([codes.get(v or "", -1) for v in values], small), lengths)
    return pd.Categorical.from_codes(repeated, categories=pd.Index(list(codes), dtype=object))


def _numbers(values: Sequence[int | None], lengths: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.array(values, "Int64").repeat(lengths)
