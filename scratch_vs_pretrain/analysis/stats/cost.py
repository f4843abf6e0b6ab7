"""What training has cost at each row of the tidy frame: the x axes of figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.samples import pretraining
from scratch_vs_pretrain.errors import UserError

# Column of the frame and title of each axis.
AXES = {
    "iterations": ("iteration", "iterations"),
    "images": ("images", "images"),
    "epochs": ("epochs", "epochs"),
    "pixels": ("pixels", "pixels, those of pre-training included"),
    "gpu-hours": ("gpu_hours", "GPU hours"),
}
X_AXES = tuple(AXES)

PIXELS = "samples/pixels"


def with_costs(frame: pd.DataFrame, runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Returns the tidy frame of `runs` with what only their ``run.json`` tells of each row.

    Returns:
        the frame with the columns ``pixels`` (those of pre-training too, see
        :func:`.budget.pretraining`) and ``gpu_hours`` (seconds of training and evaluation times
        devices; a branch's include its trunk's), NaN where unknown; ``assumed``, whether the
        pixels rest on an assumed pre-training; ``cpu``, whether the hours are a processor's.
    """
    pixels, hours = np.full((2, len(frame)), np.nan)
    assumed, cpu = np.zeros((2, len(frame)), bool)
    keys = ["study", "arm", "schedule", "seed"]
    groups = frame.assign(seed=frame.seed.fillna(-1)).groupby(keys, observed=True).indices
    places: dict[Any, Any] = dict(groups)
    for run in runs:
        seed = -1 if run.seed is None else run.seed
        rows = places.get((run.study, run.arm, run.schedule, seed))
        if rows is None:
            continue
        part = frame.iloc[rows]
        pixels[rows] = _pixels(run, part)
        if run.seconds and run.iteration:
            hours[rows] = run.devices / 3600 * _seconds(run, part.iteration.to_numpy(float))
        assumed[rows] = pretraining(run.init).assumed
        cpu[rows] = run.provenance.get("device") == "cpu"
    return frame.assign(pixels=pixels, gpu_hours=hours, assumed=assumed, cpu=cpu)


def _seconds(run: RunRecord, at: np.ndarray) -> np.ndarray:
    """Returns the seconds up to each iteration: every iteration of one start takes as long."""
    knots = {0: 0.0, run.iteration: run.seconds or 0.0}
    if run.trunk_seconds:
        knots[run.branch_at] = run.trunk_seconds
    x = sorted(knots)
    return np.interp(at, x, [knots[iteration] for iteration in x])


def _pixels(run: RunRecord, rows: pd.DataFrame) -> np.ndarray:
    """Returns the pixels seen at each row: between logged counts training sees them evenly."""
    counted = rows[(rows.metric == PIXELS) & rows.value.notna()].sort_values("iteration")
    x, y = counted.iteration.to_numpy(float), counted.value.to_numpy(float)
    total = run.samples.get("pixels")
    if total is not None and run.iteration > x.max(initial=0):
        x, y = np.append(x, run.iteration), np.append(y, total)
    before = pretraining(run.init).counts.pixels
    at = rows.iteration.to_numpy(float)
    if before is None or len(x) == 0:
        return np.full(len(at), np.nan)
    seen = np.interp(at, np.append(0, x), np.append(0, y))
    return np.where(at <= x[-1], before + seen, np.nan)


@dataclass(frozen=True)
class Hours:
    """GPU hours of several runs.

    Attributes:
        spent: a trunk that schedules share counts once.
        alone: what the same runs would have cost without sharing.
    """

    spent: float
    alone: float


def total_hours(runs: Sequence[RunRecord]) -> Hours | None:
    """Returns the GPU hours of runs together, None where one does not tell its time."""
    if not runs or any(run.seconds is None for run in runs):
        return None
    alone = sum((run.seconds or 0) * run.devices for run in runs)
    shared = sum(run.trunk_seconds * run.devices for run in runs)
    return Hours((alone - shared) / 3600, alone / 3600)


def axis_column(x: str, frame: pd.DataFrame) -> str:
    """Returns the frame's column of an axis.

    Raises:
        UserError: there is no such axis (without :func:`with_costs` only the first three).
    """
    if x not in AXES or AXES[x][0] not in frame.columns:
        raise UserError(f"unknown x axis {x!r}; choose one of {', '.join(X_AXES)}")
    return AXES[x][0]


def axis_title(x: str, frame: pd.DataFrame) -> str:
    """Returns what stands under an axis; a processor's hours are not called GPU hours."""
    return "CPU hours" if x == "gpu-hours" and frame.cpu.all() else AXES[x][1]


def axis_sentences(x: str, frame: pd.DataFrame) -> Iterator[str]:
    """Yields what a caption must say about an axis."""
    if x == "pixels" and frame.assumed.any():
        arms = ", ".join(frame[frame.assumed].arm.astype(str).unique())
        yield f"Assumed of {arms}: pre-training on ImageNet, 100 epochs of 224 x 224 pixels."
    if x == "gpu-hours":
        yield "Hours include evaluations."
