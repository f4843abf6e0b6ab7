"""From the tidy frame to the lines of a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.runs.metrics import is_score
from scratch_vs_pretrain.analysis.runs.records import UNKNOWN
from scratch_vs_pretrain.analysis.stats.cost import axis_column
from scratch_vs_pretrain.errors import UserError

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
        trunk: the schedule from which a branch has its first points; None elsewhere.
        own: the first of its points that is not its trunk's.
    """

    arm: str
    schedule: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    complete: bool
    trunk: str | None = None
    own: int = 0


def named_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame with arms that are unique: "study arm" where there are several studies."""
    several = frame.study.nunique() > 1
    pairs = frame[["study", "arm"]].drop_duplicates().astype(str)
    names = {
        (study, arm): study if arm == UNKNOWN else f"{study} {arm}" if several else arm
        for study, arm in pairs.itertuples(index=False)
    }
    order = list(dict.fromkeys(names.values()))
    # By codes: a name for each of millions of rows takes seconds.
    code = np.full((len(frame.study.cat.categories), len(frame.arm.cat.categories)), -1)
    for (study, arm), name in names.items():
        place = frame.study.cat.categories.get_loc(study), frame.arm.cat.categories.get_loc(arm)
        code[place] = order.index(name)
    codes = np.empty(0, np.int64)
    if len(frame):
        codes = code[frame.study.cat.codes, frame.arm.cat.codes]
    categories = pd.Index(order, dtype=object)
    return frame.assign(arm=pd.Categorical.from_codes(codes, categories=categories))


def known_metrics(frame: pd.DataFrame, metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the metrics to draw, as :func:`choose_metrics` among those with a value."""
    return choose_metrics(set(frame[frame.value.notna()].metric), metrics)


def choose_metrics(
    known: Collection[str], wanted: Sequence[str] | None, runs: str = "run"
) -> tuple[str, ...]:
    """Returns the wanted metrics, by default the main AP of each task that was evaluated.

    Raises:
        UserError: one that nobody logged, or none by default.
    """
    main = ("bbox/AP", "segm/AP", "keypoints/AP")
    chosen = tuple(wanted) if wanted else tuple(metric for metric in main if metric in known)
    unknown = [metric for metric in chosen if metric not in known]
    if unknown or not chosen:
        short = sorted(name for name in known if "-" not in name and "@" not in name)
        raise UserError(
            f"no {runs} here has {', '.join(unknown) or 'an AP'}; "
            f"there is {', '.join(short) or 'nothing yet'}"
        )
    return chosen


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
    column = axis_column(x, frame)
    if band not in BANDS:
        raise UserError(f"unknown band {band!r}; choose one of {', '.join(BANDS)}")
    rows = frame[(frame.metric == metric) & frame.value.notna()]
    lines = []
    for (arm, schedule), group in rows.groupby(["arm", "schedule"], observed=True, sort=True):
        complete = group.state.isin(COMPLETE)
        parts = [group[complete]]
        parts += [run for _, run in group[~complete].groupby("seed", dropna=False)]
        for index, part in enumerate(parts):
            part = part.assign(seed=part.seed.fillna(-1))
            table = part.pivot(index="iteration", columns="seed", values="value").dropna()
            if table.empty:
                continue
            if not is_score(metric):
                table = _smoothed(table)
            places = part.pivot(index="iteration", columns="seed", values=column)
            at = _position(places.loc[table.index], str(part.source.iloc[0]), x)
            line = line_of(str(arm), str(schedule), at, table, band, index == 0)
            copied = part[part.trunk.notna()]
            if len(copied):
                own = int(np.searchsorted(table.index, copied.iteration.max(), side="right"))
                line = dataclasses.replace(line, trunk=str(copied.trunk.iloc[0]), own=own)
            lines.append(line)
    return sorted(lines, key=lambda line: not line.complete)


def _smoothed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.rolling(1 + len(table) // SMOOTH_POINTS, min_periods=1).median()
    every = -(-len(table) // MOST_POINTS)
    return table.iloc[(len(table) - 1) % every :: every]


def _position(places: pd.DataFrame, source: str, x: str) -> np.ndarray:
    """Returns where rows lie on an axis: the mean over seeds."""
    values = places.to_numpy(float, na_value=np.nan)
    if np.isnan(values).any():
        raise UserError(
            f"{source}: its run does not say how many {x} an iteration has; draw it over iterations"
        )
    return values.mean(axis=1)


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


def rate_drops(frame: pd.DataFrame, x: str) -> dict[str, tuple[float, ...]]:
    """Returns per arm where the learning rate falls to half or less, a mean over runs.

    It falls between one logged row and the next.
    """
    column = axis_column(x, frame)
    drops: dict[str, list[float]] = {}
    rates = frame[frame.metric == "lr"].sort_values("iteration")
    for (arm, _), runs in rates.groupby(["arm", "schedule"], observed=True):
        places: dict[int, list[float]] = {}
        for _, run in runs.groupby("seed", dropna=False):
            rate = run.value.to_numpy()
            fell = np.flatnonzero(rate[1:] <= 0.5 * rate[:-1])
            at = run[column].to_numpy(float, na_value=np.nan)
            for iteration, place in zip(run.iteration.to_numpy()[fell], at[fell], strict=True):
                places.setdefault(int(iteration), []).append(float(place))
        drops.setdefault(str(arm), []).extend(float(np.mean(p)) for p in places.values())
    return {arm: tuple(sorted(set(found))) for arm, found in drops.items() if found}
