"""From the tidy frame to the lines of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.metrics_file import is_score
from scratch_vs_pretrain.analysis.runs import UNKNOWN
from scratch_vs_pretrain.errors import UserError

X_AXES = {"iterations": "iteration", "images": "images", "epochs": "epochs"}
BANDS = ("range", "std")

# States whose curves are complete; of a plain Detectron2 folder the state is unknown.
COMPLETE = ("finished", UNKNOWN)

# Points of a logged curve under one median, so that about 60 independent ones are left.
SMOOTH_POINTS = 60

# More points of such a curve than a figure is pixels wide only make its file large.
MOST_POINTS = 600


@dataclass(frozen=True)
class Line:
    """One curve of a figure: the mean over complete runs, or one run that is not complete.

    Attributes:
        arm: the arm, or the study where arms are unknown.
        schedule: its schedule.
        x: (n,) on the figure's axis.
        mean: (n,) over seeds, at iterations that all seeds have.
        low: (n,) lower edge of the band.
        high: (n,) upper edge.
        seeds: runs behind it.
        complete: False for a run that is not finished.
    """

    arm: str
    schedule: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    complete: bool


def named_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame with arms that are unique: "study arm" where there are several studies."""
    study, arm = frame.study.astype(str), frame.arm.astype(str)
    several = frame.study.nunique() > 1
    names = study.where(arm == UNKNOWN, study + " " + arm if several else arm)
    order = list(dict.fromkeys(names))
    return frame.assign(arm=pd.Categorical(names, categories=order))


def known_metrics(frame: pd.DataFrame, metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the metrics to draw; by default the main AP of each task that was evaluated.

    Raises:
        UserError: one that nobody logged, or none to draw by default.
    """
    logged = set(frame[frame.value.notna()].metric)
    main = ("bbox/AP", "segm/AP", "keypoints/AP")
    wanted = tuple(metrics) if metrics else tuple(metric for metric in main if metric in logged)
    unknown = [metric for metric in wanted if metric not in logged]
    if unknown or not wanted:
        short = sorted(name for name in logged if "-" not in name and "@" not in name)
        raise UserError(
            f"no run here has {', '.join(unknown) or 'an AP'}; "
            f"there is {', '.join(short) or 'nothing yet'}"
        )
    return wanted


def of_schedule(frame: pd.DataFrame, schedule: str | None) -> pd.DataFrame:
    """Returns the rows of one schedule, by default of each arm's longest.

    Raises:
        UserError: nobody trained that schedule.
    """
    if schedule is None:
        ends = frame.groupby(["arm", "schedule"], observed=True).iteration.max()
        longest = set(ends.groupby("arm", observed=True).idxmax())
        return frame[pd.MultiIndex.from_frame(frame[["arm", "schedule"]]).isin(longest)]
    if schedule not in set(frame.schedule):
        raise UserError(
            f"no run has the schedule {schedule}; there is {', '.join(set(frame.schedule))}"
        )
    return frame[frame.schedule == schedule]


def lines_of(frame: pd.DataFrame, metric: str, x: str, band: str) -> list[Line]:
    """Returns the metric's lines: per arm and schedule the mean, then each incomplete run.

    Raises:
        UserError: unknown x or band, or x cannot be told from the runs.
    """
    if x not in X_AXES:
        raise UserError(f"unknown x axis {x!r}; choose one of {', '.join(X_AXES)}")
    if band not in BANDS:
        raise UserError(f"unknown band {band!r}; choose one of {', '.join(BANDS)}")
    rows = frame[(frame.metric == metric) & frame.value.notna()]
    lines = []
    for (arm, schedule), group in rows.groupby(["arm", "schedule"], observed=True, sort=True):
        positions = _positions(group, x)
        complete = group.state.isin(COMPLETE)
        seeds = group.assign(seed=group.seed.fillna(-1))
        tables = [seeds[complete].pivot(index="iteration", columns="seed", values="value")]
        for _, run in seeds[~complete].groupby("seed"):
            tables.append(run.pivot(index="iteration", columns="seed", values="value"))
        for index, table in enumerate(tables):
            table = table.dropna()
            if len(table):
                if not is_score(metric):
                    table = table.rolling(1 + len(table) // SMOOTH_POINTS, min_periods=1).median()
                    every = -(-len(table) // MOST_POINTS)
                    table = table.iloc[(len(table) - 1) % every :: every]
                at = table.index.to_numpy() * positions
                lines.append(line_of(str(arm), str(schedule), at, table, band, index == 0))
    return sorted(lines, key=lambda line: not line.complete)


def line_of(
    arm: str, schedule: str, x: np.ndarray, table: pd.DataFrame, band: str, complete: bool
) -> Line:
    """Returns the line of a table with a row per x and a column per seed."""
    values = table.to_numpy(float)
    mean = values.mean(axis=1)
    low, high = values.min(axis=1), values.max(axis=1)
    if band == "std":
        deviation = values.std(axis=1, ddof=1) if values.shape[1] > 1 else np.zeros(len(mean))
        low, high = mean - deviation, mean + deviation
    return Line(arm, schedule, x, mean, low, high, values.shape[1], complete)


def _positions(group: pd.DataFrame, x: str) -> float:
    """Returns the length of one iteration on the axis."""
    first = group.iloc[0]
    value = first[X_AXES[x]]
    if pd.isna(value):
        raise UserError(
            f"{first.source}: its run does not say how many {x} an iteration has; "
            "draw it over iterations"
        )
    return float(value) / float(first.iteration)


def rate_drops(frame: pd.DataFrame, x: str) -> list[float]:
    """Returns where the learning rate falls to half or less from one logged row to the next."""
    drops = set()
    rates = frame[frame.metric == "lr"].sort_values("iteration")
    for _, run in rates.groupby(["arm", "schedule", "seed"], observed=True, dropna=False):
        at, rate = run.iteration.to_numpy(), run.value.to_numpy()
        fell = np.flatnonzero(rate[1:] <= 0.5 * rate[:-1])
        drops |= {float(at[k]) * _positions(run, x) for k in fell}
    return sorted(drops)
