"""The rules of every verdict, as pure functions on arrays; docs/verdicts.md tells them in words.

A claim is about a mean *lead*: box AP of the pretrained arm less that of scratch, paired by seed.
Two null hypotheses belong to it. "It helps" needs the rejection of lead <= 0 (superiority), "it
does not" that of lead >= margin (non-inferiority of scratch). The nulls of all claims of an answer
are tested together by a closed test (Marcus, Peritz and Gabriel 1976, Biometrika 63) with
Bonferroni's test of every intersection, as Holm's method is, over those sets of nulls that can be
true at once (Shaffer 1986, JASA 81): no claim has lead <= 0 and lead >= margin. So the chance that
an answer holds any wrong verdict is at most 1 - level, however the lead changes with training: a
lead may well appear only after a time at which neither arm had learned.

Arrays may have leading axes, one entry for each simulated study.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.errors import UserError

LEVEL = 0.95
LEAST_SEEDS = 3
MOST_PLANNED = 100_000
CERTAIN = 1e8  # a gap in standard errors that every test finds; scipy has no numbers far beyond

# Of the error that is allowed; the rest is for noise that is not quite normal.
USED = 0.95

# Differences never vary less than rounding makes them: the standard deviation of the difference
# between two values that are each rounded to 0.1 AP. So no interval has width 0.
LEAST_SD = 0.1 / math.sqrt(6)

YES, NO, UNDECIDED = "yes", "no", "undecided"


@dataclass(frozen=True)
class Spread:
    """Mean of values over seeds with its error."""

    mean: np.ndarray  # (...)
    error: np.ndarray  # (...) standard error; NaN from too few seeds without an assumed noise
    df: float  # degrees of freedom, infinite where the noise is assumed
    n: int  # seeds

    def p_above(self, bound: float) -> np.ndarray:
        """Returns the p value of "the true mean is at most `bound`"; 1 where nothing is known."""
        from scipy import special

        with np.errstate(invalid="ignore"):
            t = (self.mean - bound) / self.error
        return np.where(np.isfinite(t), special.stdtr(self.df, -t), 1.0)

    def p_below(self, bound: float) -> np.ndarray:
        """Returns the p value of "the true mean is at least `bound`"; 1 where nothing is known."""
        mirrored = Spread(-self.mean, self.error, self.df, self.n)
        return mirrored.p_above(-bound)


def bounds(found: Spread, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two (...) one-sided bounds of the mean, each wrong with probability `alpha`."""
    reach = quantile(1 - alpha, found.df) * found.error
    return found.mean - reach, found.mean + reach


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the t interval's width for (n,) values, None for fewer than three."""
    if len(values) < LEAST_SEEDS:
        return None
    low, high = t_interval(values)
    return float(high - low) / 2


def t_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns Student's interval of the mean over the last axis of (..., n) values."""
    return bounds(spread(values), (1 - LEVEL) / 2)


def quantile(p: float, df: float) -> float:
    """Returns that of Student's distribution, of the normal one for infinite `df`."""
    from scipy import special

    return float(special.stdtrit(df, p))


def spread(values: ArrayLike, sd: float | None = None) -> Spread:
    """Summarizes (..., n) values, one a seed.

    Of a single study NaN is left out. Below three seeds, which cannot tell it, `sd` is the
    standard deviation of a value.
    """
    given = np.asarray(values, float)
    if given.ndim == 1:
        given = given[np.isfinite(given)]
    n = given.shape[-1]
    mean = np.asarray(given.mean(axis=-1)) if n else np.full(given.shape[:-1], math.nan)
    if n >= LEAST_SEEDS:
        known = np.maximum(given.std(axis=-1, ddof=1), LEAST_SD)
        return Spread(mean, known / math.sqrt(n), n - 1, n)
    if sd is None or n == 0:
        return Spread(mean, np.full(mean.shape, math.nan), math.nan, n)
    return Spread(mean, np.full(mean.shape, max(sd, LEAST_SD) / math.sqrt(n)), math.inf, n)


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its pointwise 95 % interval."""

    iterations: np.ndarray  # (k,)
    mean: np.ndarray  # (k,)
    low: np.ndarray  # (k,), NaN below three seeds
    high: np.ndarray  # (k,)
    seeds: int


def band_of(iterations: np.ndarray, values: np.ndarray) -> Band:
    """Summarizes (n, k) values of n seeds at (k,) iterations."""
    columns = [spread(column) for column in values.T]
    low, high = np.array([bounds(c, (1 - LEVEL) / 2) for c in columns], float).reshape(-1, 2).T
    return Band(iterations, np.array([float(c.mean) for c in columns]), low, high, len(values))


def alpha_of(level: float = LEVEL, look: int = 1, looks: int = 1) -> float:
    """Returns the error that one look may spend: an equal part of most of 1 - `level`.

    The sum over looks bounds the chance of ever being wrong, however the looks hang together.
    """
    if not 1 <= look <= looks:
        raise ValueError(f"look {look} is not one of {looks}")
    return USED * (1 - level) / looks


ALPHA = alpha_of()


# Of an answer's three claims, so many nulls can be true at once.
MOST_NULLS = 4


@functools.cache
def possible_nulls(claims: int, last_free: bool = True) -> np.ndarray:
    """Returns (c, 2 * claims) sets of nulls that can be true at once.

    Columns are lead <= 0 of each claim, then lead >= margin of each.

    Args:
        claims: their number.
        last_free: the last one may be false for another reason too, training that was too short:
            both its nulls can then be true.
    """
    free = 1 if last_free and claims else 0
    sets = set()
    # 0: not ahead, 1: between, 2: ahead by the margin.
    for states in itertools.product((0, 1, 2), repeat=claims - free):
        for ends in itertools.product((False, True), repeat=2 * free):
            at_most = [state == 0 for state in states] + list(ends[:free])
            at_least = [state == 2 for state in states] + list(ends[free:])
            if any(at_most) or any(at_least):
                sets.add((*at_most, *at_least))
    return np.array(sorted(sets), bool).reshape(-1, 2 * claims)


def adjust(p: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Returns (..., h) p values of the closed test from (..., h) single ones.

    A null is rejected when every set that holds it is: with Bonferroni's test, when the smallest p
    value in the set times the set's size is small.
    """
    sizes = sets.sum(axis=1)
    worst = np.zeros_like(p)
    for members, size in zip(sets, sizes, strict=True):
        local = np.minimum(size * p[..., members].min(axis=-1), 1.0)
        worst[..., members] = np.maximum(worst[..., members], local[..., None])
    return worst


def holm(p: ArrayLike) -> np.ndarray:
    """Returns (..., k) p values adjusted by Holm's method (1979, Scand. J. Statist. 6)."""
    single = np.asarray(p, float)
    order = np.argsort(single, axis=-1)
    steps = np.take_along_axis(single, order, -1) * np.arange(single.shape[-1], 0, -1)
    adjusted = np.empty_like(single)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1.0), -1)
    return adjusted


def holm_errors(p: ArrayLike, alpha: float) -> np.ndarray:
    """Returns the errors at which Holm's method tests (k,) p values; it rejects those up to them.

    Beyond the first that is not rejected, all are tested as that one.
    """
    single = np.asarray(p, float)
    order = np.argsort(single)
    steps = alpha / np.arange(len(single), 0, -1)
    kept = np.flatnonzero(single[order] > steps)
    tested = np.empty_like(single)
    tested[order] = np.minimum(steps, steps[kept[0]]) if len(kept) else steps
    return tested


def two_sided(value: Spread, bound: float) -> tuple[float, float]:
    """Returns p values for "above" and "below" a bound at which both would be wrong."""
    return tuple(min(1.0, 2 * float(p)) for p in (value.p_above(bound), value.p_below(bound)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Gate:
    """Whether training was long enough for a claim about its end."""

    yes: np.ndarray  # (...) p value against "longer training would help scratch by the margin"
    no: np.ndarray  # (...) p value against "longer training would let scratch fall behind"
    assuming: bool = False  # rests on a noise that the study states


OPEN = Gate(np.zeros(()), np.zeros(()))
SHUT = Gate(np.ones(()), np.ones(()))


def gate(
    gains: Spread | None, other_gains: Spread | None, change: Spread | None, margin: float
) -> Gate:
    """Judges convergence by what each arm gains from its next shorter schedule.

    "Helps at the end" needs that scratch, which is behind, gains less than the margin. "No worse
    at the end" needs that the other arm gains less than the margin, or that its lead has become
    smaller with length: then it is not the one that more training would bring ahead. Two ways to
    pass are tested at half the error each.

    The gains of scratch and of the pretrained arm, and the `change` of the lead, are from a
    schedule at most half as long; None where there is none.
    """
    yes = np.ones(()) if gains is None else gains.p_below(margin)
    ways = [] if other_gains is None else [other_gains.p_below(margin)]
    ways += [] if change is None else [change.p_below(0.0)]
    no = np.minimum(len(ways) * functools.reduce(np.minimum, ways), 1.0) if ways else np.ones(())
    known = [one for one in (gains, other_gains, change) if one is not None]
    return Gate(yes, no, any(math.isinf(one.df) for one in known))


@dataclass(frozen=True)
class Verdict:
    """What can be said of one claim."""

    claim: str  # "early", "at" or "end"
    verdict: str  # "yes" (pre-training helps), "no" (by less than the margin) or "undecided"
    mean: float  # lead in AP; NaN without a pair
    # Its bounds at the level at which the claim was tested; None where too few seeds and no stated
    # noise allow none.
    low: float | None
    high: float | None  # likewise
    seeds: int  # pairs
    assuming: bool = False  # rests on a noise, or a convergence, that the study states
    # Why it is undecided: "seeds" (too few for any verdict), "noise" (more would do), "short"
    # (training), "nothing" (no pair is finished), "unmeasured" (an arm has no number), "unasked"
    # (the study has nothing to judge it by: no schedule that both arms have, no early evaluation).
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim about a mean lead."""

    name: str  # "early", "at" or "end"
    lead: Spread  # over seeds
    gate: Gate = OPEN  # of convergence


def decide(
    claims: Sequence[Claim], margin: float, alpha: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tests claims together, in the order of training; the last may be gated.

    Returns:
        (..., m) whether each helps, whether each does not (by less than the margin; both together
        say that the lead lies between 0 and the margin), and the error at which each was tested.
    """
    yes = [np.maximum(c.lead.p_above(0.0), c.gate.yes) for c in claims]
    no = [np.maximum(c.lead.p_below(margin), c.gate.no) for c in claims]
    p = np.stack(np.broadcast_arrays(*yes, *no), axis=-1)
    m = len(claims)
    sets = possible_nulls(m, claims[-1].gate is not OPEN)
    adjusted = adjust(p, sets)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(p > 0, adjusted / p, 1.0).clip(1.0, m + 1)
    decided = adjusted <= alpha
    tested = np.where(decided, alpha / factor, np.inf)
    tested = np.minimum(tested[..., :m], tested[..., m:])
    tested = np.where(np.isinf(tested), alpha / sets.sum(axis=1).max(), tested)
    return decided[..., :m], decided[..., m:], tested


def judge(claims: Sequence[Claim], margin: float, alpha: float) -> list[Verdict]:
    """Returns the verdicts of one answer, of which any is wrong with at most `alpha`.

    What cannot be judged by design, whatever the numbers are, takes no part of the error.
    """
    testable = [c for c in claims if np.isfinite(c.lead.error) and c.gate is not SHUT]
    found = {claim.name: (False, False, alpha) for claim in claims}
    if testable:
        yes, no, tested = (values.tolist() for values in decide(testable, margin, alpha))
        names = [claim.name for claim in testable]
        found |= zip(names, zip(yes, no, tested, strict=True), strict=True)
    return [_verdict(claim, *found[claim.name], margin) for claim in claims]


def _verdict(claim: Claim, yes: bool, no: bool, alpha: float, margin: float) -> Verdict:
    lead = claim.lead
    known = math.isfinite(lead.error)
    low, high = map(float, bounds(lead, alpha)) if known else (None, None)
    verdict = NO if no else YES if yes else UNDECIDED
    reason = ""
    if verdict == UNDECIDED:
        if lead.n == 0:
            reason = "nothing"
        elif claim.gate is SHUT:  # with more seeds, too
            reason = "short"
        elif low is None or high is None:
            reason = "seeds"
        elif (low > 0 and claim.gate.yes > alpha) or (high < margin and claim.gate.no > alpha):
            reason = "short"
        else:
            reason = "noise"
    assuming = math.isinf(lead.df)
    return Verdict(claim.name, verdict, float(lead.mean), low, high, lead.n, assuming, reason)


def interval_text(verdict: Verdict, unit: str = "") -> str:
    """Returns "+5.8 box AP [+3.1, +8.5]"; without the interval where there is none."""
    if not math.isfinite(verdict.mean):
        return ""
    unit = f" {unit}" if unit else ""
    if verdict.low is None or verdict.high is None:
        return f"{signed(verdict.mean)}{unit}"
    return f"{signed(verdict.mean)}{unit} [{signed(verdict.low)}, {signed(verdict.high)}]"


def signed(value: float | np.ndarray) -> str:
    """Returns a number with its sign and one decimal; nothing is "-0.0"."""
    return f"{round(float(value), 1) + 0.0:+.1f}"


def paired_power(seeds: int, gap: float, noise: float, level: float = LEVEL) -> float:
    """Returns the chance that the two-sided paired t test of two or more `seeds` finds `gap`.

    `noise` is the standard deviation of the difference over seeds. For arms that vary independently
    by s each it is s * sqrt(2); what a seed's runs share makes it smaller.
    """
    from scipy import stats

    shift = min(abs(gap) / noise * math.sqrt(seeds), CERTAIN)
    critical = stats.t.ppf(0.5 + level / 2, seeds - 1)
    wrong_side = stats.nct.cdf(-critical, seeds - 1, shift)  # NaN where it vanishes.
    return float(stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(wrong_side))


def seeds_needed(gap: float, noise: float, *, power: float = 0.8, level: float = LEVEL) -> int:
    """Returns the fewest seeds with which :func:`paired_power` reaches `power`.

    Raises:
        UserError: a gap or noise that is not above 0, a power or level outside (0, 1), or more
            than 100,000 seeds.
    """
    if not 0 < abs(gap) < math.inf:
        raise UserError(f"--gap {gap:g}: must be a finite number other than 0")
    if not 0 < noise < math.inf:
        raise UserError(f"--noise {noise:g}: must be a finite number above 0")
    if not (0 < power < 1 and 0 < level < 1):
        raise UserError(f"--power {power:g} and level {level:g} must lie between 0 and 1")
    seeds = range(2, MOST_PLANNED + 1)
    at = bisect.bisect_left(seeds, power, key=lambda n: paired_power(n, gap, noise, level))
    if at == len(seeds):
        raise UserError(f"a gap of {gap} under noise {noise} needs more than {MOST_PLANNED} seeds")
    return seeds[at]


def power_text(gap: float, noise: float, power: float) -> str:
    """Says how many seeds a gap needs, for a test of it alone and as one claim of an answer.

    Raises:
        UserError: see :func:`seeds_needed`.
    """
    seeds = seeds_needed(gap, noise, power=power)
    chance = 100 * paired_power(seeds, gap, noise)
    together = 1 - 2 * ALPHA / MOST_NULLS
    answer = max(LEAST_SEEDS, seeds_needed(gap, noise, power=power, level=together))
    return (
        f"{seeds} seeds per arm: a paired t test at level {1 - LEVEL:.2g} then finds a gap of "
        f"{gap:g} AP under noise {noise:g} with a chance of {chance:.1f} %; svp answer, which "
        f"judges several claims together, with {answer} seeds"
    )
