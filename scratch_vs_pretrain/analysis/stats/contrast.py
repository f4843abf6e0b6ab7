"""Scratch against one other arm: from curves to the claims of an answer; pure, on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.crossing import Region, region, smoothed
from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    LEAST_SEEDS,
    OPEN,
    SHUT,
    UNDECIDED,
    Claim,
    Gate,
    Verdict,
    gate,
    judge,
    spread,
)


@dataclass(frozen=True)
class Curves:
    """What the finished runs of one arm with one schedule scored."""

    schedule: str
    length: int  # planned iterations
    seeds: tuple[int, ...]  # (n,) of the runs
    iterations: np.ndarray  # (k,) completed iterations at each evaluation, ascending
    values: np.ndarray  # (n, k) box AP in percent; NaN where a run has no such evaluation
    drops: tuple[int, ...] = ()  # iterations after which the rate is lower

    def of(self, seeds: Sequence[int], iterations: ArrayLike) -> np.ndarray:
        """Returns the (n, k) values of these seeds at these iterations."""
        rows = [self.seeds.index(seed) for seed in seeds]
        columns = np.searchsorted(self.iterations, iterations)
        return self.values[rows][:, columns]

    def finals(self) -> dict[int, float]:
        """Returns the value after the last planned iteration by seed, where there is one."""
        if self.length not in self.iterations:
            return {}
        last = self.of(self.seeds, [self.length])[:, 0]
        return {s: float(v) for s, v in zip(self.seeds, last, strict=True) if math.isfinite(v)}


@dataclass(frozen=True)
class Limits:
    """By which numbers a study is judged; runs of format 1 may state any of them."""

    margin: float = 0.5  # AP by which scratch may end behind and still counts as no worse
    working_share: float = 0.5  # share of the other arm's final AP from which on scratch "works"
    early_share: float = 0.5  # part of the shorter training that counts as early
    least_ap: float = 5.0  # the better arm's final AP below which nothing is judged
    many_images: float = 10_000  # from so many training images on, data are much
    few_images: float = 3_500  # up to so many, they are little
    few_instances: float = 3.0  # with fewer an image, they are little too
    # How much higher, as a share, scratch's final training loss may be to say that it fits its
    # training data as well.
    loss_excess: float = 0.05


@dataclass(frozen=True)
class Contrast:
    """The evidence on one question: does this arm's pre-training help?"""

    scratch: tuple[Curves, ...]  # by schedule, shortest first
    other: tuple[Curves, ...]  # likewise
    limits: Limits = Limits()
    # Standard deviation of the difference between two runs that the study assumes, in AP; used
    # below three seeds. None: it states none.
    sd: float | None = None
    # The study states that its longest training is long enough; used where no shorter schedule can
    # show it.
    converged: bool = False

    def ends(self) -> tuple[dict[int, float], dict[int, float]]:
        """Returns both arms' final values by seed, each at its longest schedule."""
        ours, theirs = (a[-1].finals() if a else {} for a in (self.scratch, self.other))
        return ours, theirs

    @property
    def learned(self) -> bool:
        """The better arm ends, on average, high enough for any claim."""
        ends = [float(np.mean([*finals.values()])) for finals in self.ends() if finals]
        return max(ends, default=-math.inf) >= self.limits.least_ap

    def common(self) -> tuple[tuple[Curves, Curves], ...]:
        """Returns both arms' curves of each schedule that they share, shortest first."""
        theirs = {(c.length, c.drops): c for c in self.other}
        return tuple(
            (ours, theirs[ours.length, ours.drops])
            for ours in self.scratch
            if (ours.length, ours.drops) in theirs
        )

    def shortest(self) -> tuple[Curves, Curves] | None:
        """Returns both arms' curves of the shortest schedule that they share, or of each one's."""
        if self.scratch and self.other:
            return (*self.common(), (self.scratch[0], self.other[0]))[0]
        return None


@dataclass(frozen=True)
class Judged:
    """What a contrast says."""

    early: Verdict  # whether pre-training helps over the first half of the shortest training
    at: Verdict  # at the end of the shortest schedule that both arms have
    end: Verdict  # at the end of each arm's longest schedule, if that is long enough
    until: float  # iterations that count as early
    of: int  # of so many, those of the shorter training
    shortest: str  # schedule of `at`; empty without a common one
    longest: str  # scratch's longest schedule
    shorter: str  # scratch's schedule at most half as long as its longest; empty without one
    gain: float  # AP that scratch gains from there, mean over seeds; NaN where unknown
    # Where the lead falls to the margin, along the longest schedule that both have; None without
    # one.
    catch_up: Region | None
    leads: dict[str, np.ndarray]  # (n,) over seeds, that each claim rests on

    @property
    def verdicts(self) -> tuple[Verdict, Verdict, Verdict]:
        return self.early, self.at, self.end


def judge_contrast(contrast: Contrast, alpha: float = ALPHA) -> Judged:
    """Judges all claims together, of which any is wrong with at most `alpha`."""
    early, until = early_leads(contrast)
    common = contrast.common()
    at = paired(*(c.finals() for c in common[0])) if common else np.empty(0)
    end = paired(*contrast.ends())
    leads = {"early": early, "at": at, "end": end}
    door = end_gate(contrast)
    *claims, last = (_claim(name, values, contrast) for name, values in leads.items())
    if door is not SHUT:
        claims.append(replace(last, gate=door, assuming=last.assuming or door is OPEN))
    # What cannot be judged by design, whatever the numbers are, takes no part of the error.
    testable = [claim for claim in claims if np.isfinite(claim.lead.error)]
    tested = {v.claim: v for v in judge(testable, contrast.limits.margin, alpha)}
    for claim in (*claims[:2], last):
        if claim.name not in tested:
            tested[claim.name] = _untested(claim, contrast, alpha, bool(len(end)))
    if len(end) and not contrast.learned:
        tested = {k: replace(v, verdict=UNDECIDED, reason="short") for k, v in tested.items()}
    shorter = half_as_long(contrast.scratch)
    first = contrast.shortest()
    return Judged(
        tested["early"],
        tested["at"],
        tested["end"],
        until,
        min(curves.length for curves in first) if first else 0,
        common[0][0].schedule if common else "",
        contrast.scratch[-1].schedule if contrast.scratch else "",
        shorter.schedule if shorter else "",
        float(spread(_gains(contrast.scratch, shorter)).mean),
        _catch_up(contrast),
        leads,
    )


def _untested(claim: Claim, contrast: Contrast, alpha: float, finished: bool) -> Verdict:
    (shown,) = judge([claim], contrast.limits.margin, alpha)
    reason = shown.reason
    if claim.lead.n == 0:
        reason = "unasked" if finished else "nothing"
    elif shown.low is not None:
        reason = "short"
    return replace(shown, verdict=UNDECIDED, reason=reason)


def _claim(name: str, leads: np.ndarray, contrast: Contrast) -> Claim:
    found = spread(leads, contrast.sd)
    return Claim(name, found, OPEN, math.isinf(found.df))


def paired(scratch: dict[int, float], other: dict[int, float]) -> np.ndarray:
    """Returns the (n,) leads of the seeds that both arms have."""
    return np.array(list(lead_by_seed(scratch, other).values()), float)


def lead_by_seed(scratch: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    return {seed: other[seed] - scratch[seed] for seed in scratch if seed in other}


def early_leads(contrast: Contrast) -> tuple[np.ndarray, float]:
    """Returns the mean lead over the early training by seed, and up to which iteration that is.

    The mean is over iterations, not over evaluations, so that evaluating more often early does
    not weigh more; and at the first, highest rate only, so that both arms are in one phase.
    """
    first = contrast.shortest()
    if first is None:
        return np.empty(0), math.nan
    ours, theirs = first
    until = contrast.limits.early_share * min(ours.length, theirs.length)
    until = min([until, *ours.drops[:1], *theirs.drops[:1]])
    at, leads = shared_leads(ours, theirs)
    early = at <= until
    at, leads = at[early], leads[:, early]
    if len(at) < 2:
        return leads.mean(axis=1) if len(at) else np.empty(0), until
    return np.trapezoid(leads, at, axis=1) / (at[-1] - at[0]), until


def shared_leads(ours: Curves, theirs: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Returns (k,) iterations and (n, k) leads that all seeds of both arms have."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    at = np.intersect1d(ours.iterations, theirs.iterations)
    if not seeds or not len(at):
        return np.empty(0), np.empty((0, 0))
    leads = theirs.of(seeds, at) - ours.of(seeds, at)
    kept = np.isfinite(leads).any(axis=1)
    known = np.isfinite(leads[kept]).all(axis=0)
    return at[known], leads[kept][:, known]


def half_as_long(arm: Sequence[Curves]) -> Curves | None:
    """Returns the longest schedule that is at most half as long as the arm's longest."""
    fitting = [c for c in arm if 2 * c.length <= arm[-1].length]
    return fitting[-1] if fitting else None


def _gains(arm: Sequence[Curves], short: Curves | None) -> np.ndarray:
    return np.empty(0) if short is None else paired(short.finals(), arm[-1].finals())


def end_gate(contrast: Contrast) -> Gate:
    """Returns the gate of claims about the end; SHUT where nothing tells whether it is one."""
    ours, theirs = shorter = half_as_long(contrast.scratch), half_as_long(contrast.other)
    if ours is None and theirs is None:
        return OPEN if contrast.converged else SHUT
    arms, sd = (contrast.scratch, contrast.other), contrast.sd
    gains = [
        None if short is None else spread(_gains(arm, short), sd)
        for arm, short in zip(arms, shorter, strict=True)
    ]
    change = None
    if ours is not None and theirs is not None:
        before = lead_by_seed(ours.finals(), theirs.finals())
        after = lead_by_seed(arms[0][-1].finals(), arms[1][-1].finals())
        # Four runs make a change of the lead, two a lead.
        change = spread(paired(before, after), None if sd is None else sd * math.sqrt(2))
    return gate(gains[0], gains[1], change, contrast.limits.margin)


def _catch_up(contrast: Contrast) -> Region | None:
    common = contrast.common()
    if not common:
        return None
    ours, theirs = common[-1]
    at, leads = shared_leads(ours, theirs)
    at, leads = at[at > 0], leads[:, at > 0]
    if len(at) < 2 or (len(leads) < LEAST_SEEDS and contrast.sd is None):
        return None
    grid, curves = smoothed(at, leads, ours.drops)
    return region(grid, curves, contrast.limits.margin, sd=contrast.sd)
