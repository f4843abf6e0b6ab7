"""The paired statistics of a study as tables: the final gap, and where scratch catches up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, final_results, notes, pairs
from scratch_vs_pretrain.analysis.stats.contest import Contest, contests
from scratch_vs_pretrain.analysis.stats.paired import (
    SEEDS_FOR_P,
    Gap,
    catch_up,
    catch_up_over_seeds,
    paired_gap,
)
from scratch_vs_pretrain.analysis.tables.pairs import MAIN, metric_label, metrics_of, within_noise
from scratch_vs_pretrain.analysis.tables.table import Cell, Estimate, Table

if TYPE_CHECKING:
    import pandas as pd

AXES = ("iterations", "images", "pixels", "gpu-hours")
NOT_REACHED = "not reached"

GAP_NOTES = (
    "t and BCa: 95 % intervals of the mean gap, from three seeds on; BCa is too narrow for few "
    "seeds (docs/benchmarks.md), so the t interval decides what is within noise.",
    f"p: two-sided, over all sign flips, from {SEEDS_FOR_P} seeds on; below it cannot fall under "
    "0.05.",
)


def gap_table(runs: Sequence[RunRecord], *, best: bool = False) -> Table:
    """Returns the final gap, scratch less each other arm, paired by seed, with its statistics.

    Args:
        runs: of one study.
        best: as for :func:`.results.final_results`.

    Raises:
        UserError: see :func:`.results.final_results`.
    """
    results = final_results(runs, best=best)
    scratch = results.longest(results.scratch)
    rows: list[tuple[Cell, ...]] = []
    for arm in results.others:
        other = results.longest(arm)
        found = pairs(results, (scratch.arm, scratch.schedule), (arm, other.schedule))
        for metric in metrics_of(results, MAIN):
            values = [(a.scores.get(metric), b.scores.get(metric)) for a, b in found]
            finite = [(a, b) for a, b in values if a is not None and b is not None]
            finite = [(a, b) for a, b in finite if math.isfinite(a - b)]
            if finite:
                gap = paired_gap(*zip(*finite, strict=True))
                rows.append((_arms(scratch, other), metric_label(metric), *_cells(gap, other)))
    header = ("arms", "metric", "seeds", "gap", "t low", "t high", "BCa low", "BCa high", "p")
    return Table(
        f"{results.study}: final AP of {scratch.arm} less the other arm's, paired by seed",
        (*header, "within noise"),
        tuple(rows),
        (*notes(results), *GAP_NOTES),
    )


def _arms(scratch: RunRecord, other: RunRecord) -> str:
    return f"{scratch.arm} {scratch.schedule} - {other.arm} {other.schedule}"


def _cells(gap: Gap, run: RunRecord) -> tuple[Cell, ...]:
    t, bca = gap.t_interval or (None, None), gap.bca_interval or (None, None)
    reach = None if gap.t_interval is None else (gap.t_interval[1] - gap.t_interval[0]) / 2
    mean = Estimate(gap.mean, signed=True)
    ends = [None if end is None else Estimate(end, signed=True) for end in (*t, *bca)]
    p = None if gap.p is None else f"{gap.p:.3f}"
    noise = within_noise(Estimate(gap.mean, reach), run)
    return (len(gap.differences), mean, *ends, p, noise)


def catch_up_table(runs: Sequence[RunRecord], frame: pd.DataFrame | None = None) -> Table:
    """Returns from where on scratch stays no further behind than the study's margin.

    Both arms are taken at their longest schedule. Against the other arm "at the same point", and
    against its final value; in iterations, images, pixels with those of pre-training, and GPU
    hours, as far as they are known.

    Raises:
        UserError: see :func:`.results.final_results`.
    """
    from scratch_vs_pretrain.analysis.runs.frame import tidy
    from scratch_vs_pretrain.analysis.stats.cost import total_hours, with_costs

    results = final_results(runs)
    frame = with_costs(tidy(runs), runs) if frame is None else frame
    found = contests(results)
    hours = total_hours(runs)
    spent = () if hours is None else (_spent(hours.spent, hours.alone),)
    margins = dict.fromkeys(f"{c.limits.margin:g} {metric_label(c.metric)}" for c in found)
    header = ("arms", "value", "in", "other's end", "seeds", "reached", "from", "low", "high")
    return Table(
        f"{results.study}: from where {results.scratch} stays within {', '.join(margins)}",
        (*header, "by seed"),
        tuple(row for contest in found for row in _catch_up_rows(contest, frame)),
        (*notes(results), *_catch_up_notes(results, frame), *spent),
    )


def _catch_up_rows(contest: Contest, frame: pd.DataFrame) -> Iterator[tuple[Cell, ...]]:
    from scratch_vs_pretrain.analysis.stats.cost import AXES as COLUMNS

    ours, theirs = (contest.results.longest(arm) for arm in (contest.scratch, contest.other))
    rows = frame[(frame.metric == contest.metric) & (frame.state == "finished")]
    curves = [
        {
            seed: part.sort_values("iteration")
            for seed, part in rows[(rows.arm == r.arm) & (rows.schedule == r.schedule)].groupby(
                "seed"
            )
        }
        for r in (ours, theirs)
    ]
    seeds = [seed for seed in curves[0] if seed in curves[1]]
    for at_end in (False, True):
        for axis in AXES:
            column = COLUMNS[axis][0]
            both = [(curves[0][seed], curves[1][seed]) for seed in seeds]
            if not both or any(arm[column].isna().any() for pair in both for arm in pair):
                continue
            points = [
                catch_up(
                    one[column].to_numpy(float),
                    one.value,
                    two[column].to_numpy(float),
                    two.value,
                    delta=contest.limits.margin,
                    at_end=at_end,
                )
                for one, two in both
            ]
            apart = [one[column].iloc[-1] < two[column].iloc[0] for one, two in both]
            yield (
                _arms(ours, theirs),
                "its last" if at_end else "at the same point",
                axis,
                _amount(float(sum(two[column].iloc[-1] for _, two in both)) / len(both), axis),
                *_points(points, axis, not at_end and any(apart)),
            )


def _points(points: list[float | None], axis: str, apart: bool) -> tuple[Cell, ...]:
    if apart:
        return (len(points), None, "it begins later", None, None, None)
    summary = catch_up_over_seeds(points)
    low, high = summary.interval or (None, None)
    reached = sum(point is not None for point in points)
    each = [_text(point, axis) for point in points]
    ends = [None if end is None else _amount(end, axis) for end in (low, high)]
    mean: Cell = NOT_REACHED if summary.mean is None else _amount(summary.mean, axis)
    return (len(points), reached, mean, *ends, ", ".join(each) if len(each) > 1 else None)


def _amount(value: float, axis: str) -> Cell:
    return _hours(value) if axis == "gpu-hours" else round(value)


def _text(value: float | None, axis: str) -> str:
    if value is None:
        return NOT_REACHED
    return _hours(value) if axis == "gpu-hours" else f"{value:,.0f}"


def _hours(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _catch_up_notes(results: Results, frame: pd.DataFrame) -> Iterator[str]:
    from scratch_vs_pretrain.analysis.stats.cost import axis_sentences

    yield (
        "From: the mean over seeds, where every seed reached it; low and high: its 95 % t "
        "interval, from three seeds on. Straight lines join evaluations; beyond its end the other "
        "arm keeps its last value."
    )
    yield "Pixels include those of pre-training; hours include evaluations."
    yield from axis_sentences("pixels", frame)
    if frame.cpu.all():
        yield "Hours are a processor's."


def _spent(spent: float, alone: float) -> str:
    if math.isclose(spent, alone):
        return f"All runs together: {_hours(spent)} hours."
    return (
        f"All runs together: {_hours(spent)} hours, a trunk that schedules share counted once; "
        f"each alone: {_hours(alone)}."
    )
