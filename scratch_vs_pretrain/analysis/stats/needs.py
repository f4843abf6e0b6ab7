"""What would decide an undecided claim, and what it costs by the measured seconds of the runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.contrast import Contrast, Curves, Judged
from scratch_vs_pretrain.analysis.stats.cost import on_processors
from scratch_vs_pretrain.analysis.stats.evidence import Setting
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SD,
    LEAST_SEEDS,
    UNDECIDED,
    Verdict,
    quantile,
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


def hours_text(hours: float, cpu: bool) -> str:
    """Returns hours as one says them."""
    unit = "CPU" if cpu else "GPU"
    if hours < 0.095:
        return f"{max(1, round(60 * hours))} {unit} minutes"
    return f"{hours:.1f} {unit} hours" if hours < 100 else f"{hours:,.0f} {unit} hours"


def needs_of(
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
        fewest = seeds_to_decide(judged.leads[verdict.claim], contrast.margin, alpha, contrast.sd)
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


def seeds_to_decide(
    leads: np.ndarray, margin: float, alpha: float, sd: float | None = None
) -> int | None:
    """Returns how many seeds decide a claim if mean and spread stay as they are.

    Returns:
        None if more than :data:`MOST_SEEDS`.
    """
    mean = float(leads.mean())
    if sd is None or len(leads) >= LEAST_SEEDS:
        sd = float(leads.std(ddof=1))
    sd = max(sd, LEAST_SD)
    distance = max(mean, margin - mean)
    for n in range(max(LEAST_SEEDS, len(leads)), MOST_SEEDS + 1):
        if distance > quantile(1 - alpha, n - 1) * sd / math.sqrt(n):
            return n
    return None
