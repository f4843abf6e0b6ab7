"""Scratch against one other arm: its verdicts, what they still need, and what a picture shows.

Needs cost what the measured seconds of the runs there are tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.contrast import (
    Contrast,
    Curves,
    Judged,
    judge_contrast,
    shared_leads,
)
from scratch_vs_pretrain.analysis.stats.cost import on_processors
from scratch_vs_pretrain.analysis.stats.crossing import Region
from scratch_vs_pretrain.analysis.stats.setting import Setting
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SD,
    LEAST_SEEDS,
    LEVEL,
    UNDECIDED,
    Verdict,
    bounds,
    quantile,
    spread,
)

MOST_SEEDS = 100


@dataclass(frozen=True)
class Need:
    """Runs that would decide a claim."""

    claim: str  # "early", "at" or "end"
    kind: str  # "seeds" (more of them) or "length" (a longer schedule)
    seeds: int | None  # pairs to add; None if more than 100
    iterations: int  # length of the runs
    hours: float | None  # of all of them together; None where the runs do not tell their time
    cpu: bool  # the hours are a processor's

    @property
    def price(self) -> float:
        """The hours; infinite where they are unknown."""
        return math.inf if self.hours is None else self.hours

    def text(self, verb: str = "add") -> str:
        """Says it: "add 2 seeds, 0.4 GPU hours"."""
        more = " more" * (verb != "add")
        cost = "" if self.hours is None else f", {hours_text(self.hours, self.cpu)}"
        if self.kind == "length":
            each = f" for {self.seeds} seeds" if (self.seeds or 0) > 1 else ""
            what = f"{verb} {self.iterations:,}{more} iterations{each}{cost}"
            return f"{what}, thanks to the shared trunk"
        if self.seeds is None:
            return f"not by {MOST_SEEDS} seeds: the lead is too near to the margin, or to 0"
        return f"{verb} {self.seeds}{more} seed{'s' * (self.seeds > 1)}{cost}"


def cheapest(needs: Iterable[Need]) -> Need:
    """Returns the need that takes the fewest hours."""
    return min(needs, key=lambda need: need.price)


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its pointwise 95 % interval."""

    iterations: np.ndarray  # (k,)
    mean: np.ndarray  # (k,)
    low: np.ndarray  # (k,), NaN below three seeds
    high: np.ndarray  # (k,)
    seeds: int


@dataclass(frozen=True)
class Picture:
    """What a picture of the answer shows: curves with bands, and where scratch catches up."""

    title: str
    metric: str  # "bbox/AP"
    margin: float  # in AP
    curves: dict[str, Band]  # of each arm's longest schedule, by arm, scratch first
    lead: Band | None  # of the longest schedule that both have; None without one
    catch_up: Region | None  # None where it cannot be judged
    # Iterations after which the rate is lower, of scratch's longest schedule.
    drops: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Scratch against one other arm at one size."""

    name: str  # what it is among the others of its answer; empty if it is the only one
    setting: Setting  # the runs
    judged: Judged  # the verdicts
    picture: Picture  # to draw
    needs: tuple[Need, ...]  # what would decide what is undecided, cheapest first


def part_of(setting: Setting, alpha: float) -> Part:
    """Judges one setting, in its part of the answer's error."""
    contrast = setting.contrast()
    judged = judge_contrast(contrast, alpha)
    name = "" if setting.alone else setting.name.partition(", ")[2]
    picture = _picture(setting, contrast, judged)
    return Part(name, setting, judged, picture, _needs_of(setting, contrast, judged, alpha))


def _picture(setting: Setting, contrast: Contrast, judged: Judged) -> Picture:
    curves = {
        name: _band(arm[-1].iterations, arm[-1].values)
        for name, arm in ((setting.scratch, contrast.scratch), (setting.other, contrast.other))
        if arm
    }
    common = contrast.common()
    lead = _band(*shared_leads(*common[-1])) if common else None
    longest = contrast.scratch[-1:]
    return Picture(
        f"{setting.name}: {setting.scratch} and {setting.other}",
        setting.metric,
        contrast.limits.margin,
        curves,
        lead,
        judged.catch_up,
        longest[0].drops if longest else (),
    )


def _band(iterations: np.ndarray, values: np.ndarray) -> Band:
    if not values.size:
        nothing = np.empty(0)
        return Band(nothing, nothing, nothing, nothing, 0)
    columns = [spread(values[:, at]) for at in range(values.shape[1])]
    low, high = np.array([bounds(c, (1 - LEVEL) / 2) for c in columns], float).T
    return Band(iterations, np.array([float(c.mean) for c in columns]), low, high, len(values))


def hours_text(hours: float, cpu: bool) -> str:
    """Returns hours as one says them."""
    unit = "CPU" if cpu else "GPU"
    if hours < 0.095:
        return f"{max(1, round(60 * hours))} {unit} minutes"
    return f"{hours:.1f} {unit} hours" if hours < 100 else f"{hours:,.0f} {unit} hours"


def _needs_of(
    setting: Setting, contrast: Contrast, judged: Judged, alpha: float
) -> tuple[Need, ...]:
    """Returns what would decide each undecided claim, cheapest first."""
    found = [
        _need(setting, contrast, judged, verdict, alpha / len(judged.verdicts))
        for verdict in judged.verdicts
        if verdict.verdict == UNDECIDED and verdict.reason != "unasked"
    ]
    return tuple(sorted(found, key=lambda need: need.price))


def _need(
    setting: Setting, contrast: Contrast, judged: Judged, verdict: Verdict, alpha: float
) -> Need:
    both = contrast.scratch[-1:] + contrast.other[-1:]
    length = max((c.length for c in both), default=0) or max(r.iterations for r in setting.runs)
    if verdict.reason == "short":
        return _longer(setting, both, length, verdict)
    common = contrast.common()
    if verdict.claim != "end" and common:
        length = common[0][0].length
    planned = [r for r in setting.runs if r.iterations == length]
    have = verdict.seeds
    if verdict.reason in ("seeds", "nothing"):
        more: int | None = LEAST_SEEDS - have
    else:
        fewest = seeds_to_decide(judged.leads[verdict.claim], contrast, alpha)
        more = None if fewest is None else max(1, fewest - have)
    cost = mean_hours(planned or setting.runs)
    hours = None if cost is None or more is None else 2 * more * cost
    return Need(verdict.claim, "seeds", more, length, hours, on_processors(setting.runs))


def _longer(setting: Setting, both: Sequence[Curves], length: int, verdict: Verdict) -> Need:
    """Twice the longest training: from the first rate drop on, before which they are one run."""
    seeds = max(LEAST_SEEDS, verdict.seeds)
    total: float | None = 0.0
    for curves in both:
        runs = [run for run in setting.runs if run.schedule == curves.schedule]
        hours = mean_hours(runs)
        shared = min(curves.drops[:1] or (0,)) * min(len(curves.seeds), seeds)
        share = (2 * length * seeds - shared) / curves.length
        total = None if total is None or hours is None else total + share * hours
    return Need(verdict.claim, "length", seeds, 2 * length, total, on_processors(setting.runs))


def mean_hours(runs: Iterable[RunRecord]) -> float | None:
    """Returns the mean device hours of finished runs, each alone; None where unknown."""
    hours = [r.seconds * r.devices / 3600 for r in runs if r.state == "finished" and r.seconds]
    return float(np.mean(hours)) if hours else None


def seeds_to_decide(leads: np.ndarray, contrast: Contrast, alpha: float) -> int | None:
    """Returns how many seeds decide a claim if mean and spread stay as they are.

    Returns:
        None if more than :data:`MOST_SEEDS`.
    """
    mean, sd = float(leads.mean()), contrast.sd
    if sd is None or len(leads) >= LEAST_SEEDS:
        sd = float(leads.std(ddof=1))
    sd = max(sd, LEAST_SD)
    distance = max(mean, contrast.limits.margin - mean)
    for n in range(max(LEAST_SEEDS, len(leads)), MOST_SEEDS + 1):
        if distance > quantile(1 - alpha, n - 1) * sd / math.sqrt(n):
            return n
    return None
