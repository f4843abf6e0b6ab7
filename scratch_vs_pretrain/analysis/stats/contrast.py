"""Scratch against one other arm: from curves to the claims of an answer, and where it catches up.

Pure, on arrays. Those of :func:`regions` and :func:`smoothed` may have leading axes, one entry for
each simulated study.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    LEAST_SD,
    LEAST_SEEDS,
    LEVEL,
    NO,
    OPEN,
    SHUT,
    UNDECIDED,
    Claim,
    Gate,
    Verdict,
    bounds,
    gate,
    judge,
    quantile,
    spread,
)

# More seeds are never said to be needed.
MOST_SEEDS = 100

# Of where a lead reaches a bound, as differences of log iterations. 0.5: from 0.6 to 1.6 times the
# iteration.
WINDOW = 0.5  # of the smoother, to either side
STAY = 0.15  # over so much a lead is to stay inside the bound, or it has not come there
POINTS = 300


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

    @property
    def arms(self) -> tuple[tuple[Curves, ...], tuple[Curves, ...]]:
        return self.scratch, self.other

    @property
    def sd_of_change(self) -> float | None:
        """Standard deviation of the difference between two leads, which are of four runs."""
        return None if self.sd is None else self.sd * math.sqrt(2)

    def ends(self) -> tuple[dict[int, float], dict[int, float]]:
        """Returns both arms' final values by seed, each at its longest schedule."""
        ours, theirs = (arm[-1].finals() if arm else {} for arm in self.arms)
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
class Region:
    """Where the mean lead reaches a bound."""

    # The earliest point that the data allow: 0 if it may lie before them, infinite if the lead is
    # above the bound up to their end, so that the point is censored.
    low: float
    high: float  # the latest; infinite if the data allow that it is not reached by their end
    # Where the mean itself reaches it to stay; infinite if it does not, NaN unknown.
    estimate: float
    end: float  # of the data


@dataclass(frozen=True)
class Lack:
    """What would bring a claim its verdict."""

    claim: str  # "early", "at" or "end"
    # That would, if means and noise stayed as they are; infinite if more than MOST_SEEDS.
    seeds: float = math.inf
    # Longer training is lacking; so many seeds tell from none what the arm that keeps the claim
    # open gained by it so far.
    longer: bool = False
    have: int = 0  # seeds so far
    of: str = "lead"  # what the seeds tell: the "lead", or the "gain" by longer training


@dataclass(frozen=True)
class Judged:
    """What a contrast says."""

    # Whether pre-training helps: "early", over the first half of the shortest training; "at" the
    # end of the shortest schedule that both arms have; at the "end" of each arm's longest schedule,
    # if that is long enough.
    verdicts: tuple[Verdict, ...]
    until: float  # iterations that count as early
    shortest: str  # schedule of "at"; empty without a common one
    # Where the lead falls to the margin, along the longest schedule that both have; None without
    # one.
    catch_up: Region | None
    # The verdicts that can have a line: "at" needs a schedule that both arms have.
    asked: tuple[Verdict, ...]
    lacks: tuple[Lack, ...]  # of those that are undecided

    @property
    def end(self) -> Verdict:
        return self.verdicts[-1]


def judge_contrast(contrast: Contrast, alpha: float = ALPHA) -> Judged:
    """Judges all claims together, of which any is wrong with at most `alpha`."""
    early, until = early_leads(contrast)
    common = contrast.common()
    at = paired(*(c.finals() for c in common[0])) if common else np.empty(0)
    end = paired(*contrast.ends())
    leads = {"early": early, "at": at, "end": end}
    claims = [Claim(name, spread(values, contrast.sd)) for name, values in leads.items()]
    door = end_gate(contrast)
    claims[-1] = replace(claims[-1], gate=door)
    verdicts = judge(claims, contrast.limits.margin, alpha)
    if (door is OPEN or door.assuming) and verdicts[-1].low is not None:
        verdicts[-1] = replace(verdicts[-1], assuming=True)
    low = {"early": under_least(contrast, until), "at": under_least(contrast)}
    verdicts = [
        replace(v, verdict=UNDECIDED, reason="low") if v.verdict == NO and low.get(v.claim) else v
        for v in verdicts
    ]
    if len(end) and not contrast.learned:
        verdicts = [replace(v, verdict=UNDECIDED, reason="short") for v in verdicts]
    elif len(end) or (all(contrast.arms) and not all(contrast.ends())):
        why = "unasked" if len(end) else "unmeasured"
        verdicts = [replace(v, reason=why) if v.reason == "nothing" else v for v in verdicts]
    shortest = common[0][0].schedule if common else ""
    asked = tuple(v for v in verdicts if common or v.claim != "at")
    lacks = tuple(
        _lack(contrast, v, leads[v.claim], alpha / len(verdicts))
        for v in asked
        if v.verdict == UNDECIDED and v.reason not in ("unasked", "low", "unmeasured")
    )
    return Judged(tuple(verdicts), until, shortest, _catch_up(contrast), asked, lacks)


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


def under_least(contrast: Contrast, until: float = math.inf) -> bool:
    """Returns whether no run of the shortest schedule has learned enough by then for a lead."""
    seen = [c.values[:, c.iterations <= until].ravel() for c in contrast.shortest() or ()]
    return bool(np.nanmax(np.concatenate([*seen, [-math.inf]])) < contrast.limits.least_ap)


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


def half_as_long(arm: tuple[Curves, ...]) -> Curves | None:
    """Returns the longest schedule that is at most half as long as the arm's longest."""
    return next((c for c in reversed(arm) if 2 * c.length <= arm[-1].length), None)


def growth(contrast: Contrast) -> list[np.ndarray | None]:
    """Returns what each arm gains, and how the lead changes, from half as long to the longest.

    Each is (n,) over seeds; None without a schedule that is at most half as long.
    """
    ours, theirs = (half.finals() if half else None for half in map(half_as_long, contrast.arms))
    ends, change = contrast.ends(), None
    if ours is not None and theirs is not None:
        change = paired(lead_by_seed(ours, theirs), lead_by_seed(*ends))
    gains = [
        half if half is None else paired(half, end)
        for half, end in zip((ours, theirs), ends, strict=True)
    ]
    return [*gains, change]


def end_gate(contrast: Contrast) -> Gate:
    """Returns the gate of claims about the end; SHUT where nothing tells whether it is one."""
    grown, noises = growth(contrast), (contrast.sd, contrast.sd, contrast.sd_of_change)
    if grown[0] is None and grown[1] is None:
        return OPEN if contrast.converged else SHUT
    ours, theirs, change = (
        values if values is None else spread(values, noise)
        for values, noise in zip(grown, noises, strict=True)
    )
    return gate(ours, theirs, change, contrast.limits.margin)


def open_end(contrast: Contrast, verdict: Verdict) -> int:
    """Returns whose further gain keeps the end undecided: 0, scratch's, or 1, the other arm's.

    It is the arm that is behind, which more training might bring ahead.
    """
    return int(verdict.high is not None and verdict.high < contrast.limits.margin)


def _lack(contrast: Contrast, verdict: Verdict, leads: np.ndarray, alpha: float) -> Lack:
    """Returns what an undecided claim lacks, tested at about `alpha`."""
    claim, have, seeds = verdict.claim, verdict.seeds, float(LEAST_SEEDS)
    if verdict.reason == "short":
        gains = growth(contrast)[open_end(contrast, verdict)]
        if not contrast.learned or gains is None or not len(gains):
            return Lack(claim, seeds, True, have)  # The gain is not known, and no number.
        if gains.mean() < contrast.limits.margin:
            return _lack_of_seeds_for_the_end(contrast, verdict, alpha)
        return Lack(claim, _fewest_seeds(gains, gains.mean(), contrast.sd, alpha), True, have)
    if verdict.reason == "noise":
        distance = max(leads.mean(), contrast.limits.margin - leads.mean())
        seeds = _fewest_seeds(leads, distance, contrast.sd, alpha)
    return Lack(claim, seeds, have=have)


def _lack_of_seeds_for_the_end(contrast: Contrast, verdict: Verdict, alpha: float) -> Lack:
    """Returns how many seeds show that training was long enough for what the leads say."""
    (ours, theirs, lead), margin = growth(contrast), contrast.limits.margin
    ways = []
    if verdict.low is not None and verdict.low > 0:
        ways.append((ours, margin, alpha))
    if verdict.high is not None and verdict.high < margin:
        ways += [(theirs, margin, alpha / 2), (lead, 0.0, alpha / 2)]
    needed = [
        (_fewest_seeds(values, bound - values.mean(), contrast.sd, error), len(values))
        for values, bound, error in ways
        if values is not None and len(values)
    ]
    seeds, have = min(needed)
    return Lack(verdict.claim, seeds, have=have, of="gain")


def _fewest_seeds(values: np.ndarray, distance: float, sd: float | None, alpha: float) -> float:
    """Returns how many seeds show that a mean lies so far from a bound, which is tested at `alpha`.

    The spread of (n,) values stays as it is; below three, the assumed `sd` stands in. Of a single
    value without it none is known, and three are the first step.
    """
    if sd is None or len(values) >= LEAST_SEEDS:
        if len(values) < 2:
            return LEAST_SEEDS
        sd = float(values.std(ddof=1))
    sd = max(sd, LEAST_SD)
    for n in range(max(LEAST_SEEDS, len(values)), MOST_SEEDS + 1):
        if distance > quantile(1 - alpha, n - 1) * sd / math.sqrt(n):
            return n
    return math.inf


def _catch_up(contrast: Contrast) -> Region | None:
    if not (common := contrast.common()):
        return None
    ours, theirs = common[-1]
    at, leads = shared_leads(ours, theirs)
    at, leads = at[at > 0], leads[:, at > 0]
    if len(at) < 2 or (len(leads) < LEAST_SEEDS and contrast.sd is None):
        return None
    return region(*smoothed(at, leads, ours.drops), contrast.limits.margin, sd=contrast.sd)


def smoothed(
    iterations: ArrayLike, values: np.ndarray, drops: ArrayLike = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Smooths curves over the logarithm of iterations; never across a drop of the rate.

    Each is smoothed alone, by local quadratic regression (Cleveland 1979, JASA 74).

    Args:
        iterations: (k,) of the evaluations, ascending, above 0.
        values: (..., k); of (g,) other iterations they are returned.
        drops: iterations after which the rate is another.
    """
    at = np.asarray(iterations, float)
    grid = np.geomspace(at[0], at[-1], POINTS) if len(at) > 1 else at
    phase = np.searchsorted(drops, at, side="left")
    weights = np.zeros((len(grid), len(at)))
    known = np.unique(phase)
    # A stretch whose own phase was not evaluated takes the nearest later evaluation's phase.
    of = known[np.minimum(np.searchsorted(known, np.searchsorted(drops, grid)), len(known) - 1)]
    for one in known:
        rows, columns = np.flatnonzero(of == one), np.flatnonzero(phase == one)
        weights[np.ix_(rows, columns)] = _local(np.log(at[columns]), np.log(grid[rows]))
    return grid, values @ weights.T


def _local(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Returns (g, k) weights of local quadratic regression, tricube in a window."""
    degree = min(2, len(x) - 1)
    distance = np.abs(grid[:, None] - x)
    nearest = np.sort(distance, axis=1)[:, min(degree + 1, len(x) - 1)]
    width = np.maximum(WINDOW, 1.01 * nearest)
    tricube = np.clip(1 - (distance / width[:, None]) ** 3, 0, None) ** 3
    powers = (x - grid[:, None])[..., None] ** np.arange(degree + 1)
    weighted = powers * tricube[..., None]
    inverse = np.linalg.pinv(np.swapaxes(powers, 1, 2) @ weighted)
    return (inverse @ np.swapaxes(weighted, 1, 2))[:, 0]


def regions(
    grid: np.ndarray, values: np.ndarray, bound: float, *, sd: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (...) low, high and estimate, as :class:`Region` has them.

    They are Fieller's (1954, J. R. Stat. Soc. B 16): all points at which a two-sided t test over
    seeds does not reject "the mean lead here is the bound". The smoother is linear in the
    evaluations, so that the t test stays exact for normal noise, whether evaluations of a run are
    independent or not, and however often a run is evaluated. No crossing of single noisy curves is
    ever taken: those come late by construction. ``benchmarks/verdicts.py`` measures how often the
    region holds the true point.

    (..., n, g) leads of n seeds over (g,) grid, ascending and above 0, reach the bound from above.
    Below three seeds, `sd` is the assumed standard deviation of a lead.
    """
    found = spread(np.swapaxes(values, -1, -2), sd)
    low, high = bounds(found, (1 - LEVEL) / 2)
    known = np.isfinite(low).all(axis=-1)
    # Between few and noisy evaluations the lower bound dips below any lead; within the smoother's
    # window, all points are nearly one test, so that asking for all of them costs little error.
    begins = np.array([0.0, *grid[:-1], math.inf])[_stays(grid, low <= bound, WINDOW)]
    ends, estimate = (
        np.append(grid, math.inf)[_stays(grid, inside, STAY)]
        for inside in (high < bound, found.mean <= bound)
    )
    ends = np.maximum(ends, begins)
    return (
        np.where(known, begins, math.nan),
        np.where(known, ends, math.nan),
        np.where(known, np.clip(estimate, begins, ends), estimate),
    )


def _stays(grid: np.ndarray, inside: np.ndarray, stretch: float) -> np.ndarray:
    """Returns the place from which `inside` holds over a stretch, or to the end; g if none is."""
    until = np.searchsorted(grid, grid * math.exp(stretch))
    outside = np.concatenate(
        [np.zeros((*inside.shape[:-1], 1)), np.cumsum(~inside, axis=-1)], axis=-1
    )
    holds = outside[..., until] == outside[..., : len(grid)]
    return np.where(holds.any(axis=-1), np.argmax(holds, axis=-1), len(grid))


def region(
    grid: np.ndarray, values: np.ndarray, bound: float, *, sd: float | None = None
) -> Region:
    """Returns the region of one study; see :func:`regions`."""
    return Region(*map(float, (*regions(grid, values, bound, sd=sd), grid[-1])))


def catch_up_text(region: Region | None) -> str:
    """Returns "caught up between 4,300 and 6,200"; empty where nothing can be said."""
    if region is None or math.isnan(region.low):
        return ""
    if math.isinf(region.low):
        return f"had not caught up by {region.end:,.0f}"
    if math.isinf(region.high):
        earliest = f", not before {_round(region.low)}" * bool(region.low)
        return f"may have caught up by {region.end:,.0f}{earliest}"
    if not region.low:
        return f"caught up by {_round(region.high)}"
    return f"caught up between {_round(region.low)} and {_round(region.high)}"


def _round(iterations: float) -> str:
    """Returns two digits of it: what a region's end is known to, at best."""
    digits = max(0, math.floor(math.log10(max(iterations, 1))) - 1)
    return f"{round(iterations, -digits):,.0f}"
