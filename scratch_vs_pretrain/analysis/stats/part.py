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
    MOST_SEEDS,
    Contrast,
    Curves,
    Judged,
    Lack,
    judge_contrast,
    lacks_of,
    shared_leads,
)
from scratch_vs_pretrain.analysis.stats.cost import on_processors
from scratch_vs_pretrain.analysis.stats.setting import Setting
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, LEVEL, bounds, spread


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


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its pointwise 95 % interval."""

    iterations: np.ndarray  # (k,)
    mean: np.ndarray  # (k,)
    low: np.ndarray  # (k,), NaN below three seeds
    high: np.ndarray  # (k,)
    seeds: int


@dataclass(frozen=True)
class Part:
    """Scratch against one other arm at one size: what was found, and what a picture of it shows."""

    name: str  # what it is among the others of its answer; empty if it is the only one
    setting: Setting  # the runs
    contrast: Contrast  # their curves
    judged: Judged  # the verdicts
    needs: tuple[Need, ...]  # what would decide what is undecided, cheapest first
    curves: dict[str, Band]  # of each arm's longest schedule, by arm, scratch first
    lead: Band | None  # of the longest schedule that both have; None without one

    @property
    def title(self) -> str:
        return f"{self.setting.name}: {self.setting.scratch} and {self.setting.other}"

    @property
    def drops(self) -> tuple[int, ...]:
        """Iterations after which the rate is lower, of scratch's longest schedule."""
        return self.contrast.scratch[-1].drops if self.contrast.scratch else ()


def part_of(setting: Setting, alpha: float) -> Part:
    """Judges one setting, in its part of the answer's error."""
    contrast = setting.contrast()
    judged, common = judge_contrast(contrast, alpha), contrast.common()
    arms = dict(zip(setting.arms, contrast.arms, strict=True))
    return Part(
        "" if setting.alone else setting.name.partition(", ")[2],
        setting,
        contrast,
        judged,
        _needs_of(setting, contrast, judged, alpha),
        {name: _band(arm[-1].iterations, arm[-1].values) for name, arm in arms.items() if arm},
        _band(*shared_leads(*common[-1])) if common else None,
    )


def _band(iterations: np.ndarray, values: np.ndarray) -> Band:
    columns = [spread(column) for column in values.T]
    low, high = np.array([bounds(c, (1 - LEVEL) / 2) for c in columns], float).reshape(-1, 2).T
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
    lacks = lacks_of(contrast, judged, alpha / len(judged.verdicts))
    return tuple(sorted((_need(setting, contrast, one) for one in lacks), key=lambda n: n.price))


def _need(setting: Setting, contrast: Contrast, lack: Lack) -> Need:
    both = contrast.scratch[-1:] + contrast.other[-1:]
    length = max((c.length for c in both), default=0) or max(r.iterations for r in setting.runs)
    if lack.longer:
        return _longer(setting, both, length, lack)
    common = contrast.common()
    if lack.claim != "end" and common:
        length = common[0][0].length
    planned = [r for r in setting.runs if r.iterations == length]
    more = None if math.isinf(lack.seeds) else max(1, int(lack.seeds) - lack.have)
    cost = mean_hours(planned or setting.runs)
    hours = None if cost is None or more is None else 2 * more * cost
    return Need(lack.claim, "seeds", more, length, hours, on_processors(setting.runs))


def _longer(setting: Setting, both: Sequence[Curves], length: int, lack: Lack) -> Need:
    """Twice the longest training: from the first rate drop on, before which they are one run."""
    seeds = max(LEAST_SEEDS, lack.have)
    total: float | None = 0.0
    for curves in both:
        runs = [run for run in setting.runs if run.schedule == curves.schedule]
        hours = mean_hours(runs)
        shared = min(curves.drops[:1] or (0,)) * min(len(curves.seeds), seeds)
        share = (2 * length * seeds - shared) / curves.length
        total = None if total is None or hours is None else total + share * hours
    return Need(lack.claim, "length", seeds, 2 * length, total, on_processors(setting.runs))


def mean_hours(runs: Iterable[RunRecord]) -> float | None:
    """Returns the mean device hours of finished runs, each alone; None where unknown."""
    hours = [r.seconds * r.devices / 3600 for r in runs if r.state == "finished" and r.seconds]
    return float(np.mean(hours)) if hours else None
