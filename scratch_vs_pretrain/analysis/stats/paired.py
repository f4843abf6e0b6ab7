"""Statistics of paired runs, as pure functions on arrays; scipy is imported where it is used.

Both arms of a seed see the same images in the same order, so a seed is one pair and the unit of
every interval is the difference within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SEEDS,
    LEVEL,
    MOST_NULLS,
    alpha_of,
    bounds,
    spread,
)
from scratch_vs_pretrain.errors import UserError

# The smallest two-sided p of n sign flips is 2 / 2^n: 0.0625 for n = 5, 0.031 for n = 6.
SEEDS_FOR_P = 6
LARGEST_EXACT = 16

RESAMPLES = 9999


@dataclass(frozen=True)
class Gap:
    """The difference scratch - pretrained over paired seeds.

    Attributes:
        differences: (n,) per seed.
        mean: their mean.
        t_interval: Student's interval of the mean; None below three seeds.
        bca_interval: bias-corrected and accelerated bootstrap interval; None below three seeds.
            Too narrow for few seeds: see docs/answer.md.
        p: two-sided sign-flip p value; None below six seeds, where it cannot fall under 0.05.
    """

    differences: tuple[float, ...]
    mean: float
    t_interval: tuple[float, float] | None
    bca_interval: tuple[float, float] | None
    p: float | None


def paired_gap(
    scratch: ArrayLike, pretrained: ArrayLike, *, level: float = LEVEL, seed: int = 0
) -> Gap:
    """Compares the arms seed by seed.

    Args:
        scratch: (n,) one value per seed.
        pretrained: (n,) of the same seeds in the same order.
        level: of both intervals.
        seed: of the bootstrap.

    Raises:
        UserError: no pair, or arms of unequal length.
    """
    pairs = np.asarray(scratch, float), np.asarray(pretrained, float)
    if pairs[0].shape != pairs[1].shape or pairs[0].ndim != 1 or pairs[0].size == 0:
        raise UserError(f"pairs are needed, got {pairs[0].size} and {pairs[1].size} values")
    differences = pairs[0] - pairs[1]
    enough = len(differences) >= LEAST_SEEDS
    return Gap(
        differences=tuple(differences.tolist()),
        mean=float(differences.mean()),
        t_interval=_pair(t_interval(differences, level)) if enough else None,
        bca_interval=_pair(bca_interval(differences, level, seed=seed)) if enough else None,
        p=sign_flip_p(differences, seed=seed) if len(differences) >= SEEDS_FOR_P else None,
    )


def _pair(ends: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])


def half_width(values: ArrayLike, level: float = LEVEL) -> float | None:
    """Returns half the t interval's width for (n,) values, None for fewer than three."""
    values = np.asarray(values, float)
    if len(values) < LEAST_SEEDS:
        return None
    low, high = t_interval(values, level)
    return float(high - low) / 2


def t_interval(values: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Returns Student's interval of the mean over the last axis of (..., n) values."""
    return bounds(spread(values), (1 - level) / 2)


def bca_interval(
    values: ArrayLike, level: float = LEVEL, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the BCa bootstrap interval (Efron 1987) of the mean over the last axis.

    Values that are all equal, whose bootstrap has no width, give the t interval.
    """
    from scipy import stats

    values = np.asarray(values, float)
    equal = np.ptp(values, axis=-1) == 0
    # scipy's own answer for equal values is NaN.
    varied = np.where(equal[..., None], np.arange(values.shape[-1]), values)
    interval = stats.bootstrap(
        (varied,),
        np.mean,
        axis=-1,
        confidence_level=level,
        n_resamples=resamples,
        batch=max(1, 2**24 // varied.size),
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    low, high = t_interval(values, level)
    return np.where(equal, low, interval.low), np.where(equal, high, interval.high)


def sign_flip_p(differences: ArrayLike, *, seed: int = 0) -> float:
    """Returns the two-sided p value of a zero mean if every sign were as likely as its opposite.

    Exact, over all 2^n flips, up to 16 values; beyond, over 65,536 random ones.
    """
    from scipy import stats

    result = stats.permutation_test(
        (np.asarray(differences, float),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**LARGEST_EXACT,
        random_state=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def paired_power(seeds: int, gap: float, noise: float, level: float = LEVEL) -> float:
    """Returns the chance that the two-sided paired t test of `seeds` pairs finds `gap`.

    Args:
        seeds: pairs, at least 2.
        gap: true mean difference.
        noise: standard deviation of the difference over seeds. For arms that vary independently
            by s each it is s * sqrt(2); what a seed's runs share makes it smaller.
        level: 1 - the test's significance level.
    """
    from scipy import stats

    shift = abs(gap) / noise * math.sqrt(seeds)
    critical = stats.t.ppf(0.5 + level / 2, seeds - 1)
    wrong_side = stats.nct.cdf(-critical, seeds - 1, shift)  # NaN where it vanishes.
    return float(stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(wrong_side))


def seeds_needed(
    gap: float, noise: float, *, power: float = 0.8, level: float = LEVEL, limit: int = 100_000
) -> int:
    """Returns the fewest seeds with which :func:`paired_power` reaches `power`.

    Raises:
        UserError: a gap or noise that is not above 0, a power or level outside (0, 1), or more
            than `limit` seeds.
    """
    if not (0 < abs(gap) < math.inf and 0 < noise < math.inf):
        raise UserError(f"gap {gap} and noise {noise} must both be numbers other than 0")
    if not (0 < power < 1 and 0 < level < 1):
        raise UserError(f"power {power} and level {level} must lie between 0 and 1")
    low, high = 1, 2
    while paired_power(high, gap, noise, level) < power:
        low, high = high, 2 * high
        if low > limit:
            raise UserError(f"a gap of {gap} under noise {noise} needs more than {limit} seeds")
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(middle, gap, noise, level) < power:
            low = middle
        else:
            high = middle
    return high


def power_text(gap: float, noise: float, power: float) -> str:
    """Says how many seeds a gap needs, for a test of it alone and as one claim of an answer.

    Raises:
        UserError: see :func:`seeds_needed`.
    """
    seeds = seeds_needed(gap, noise, power=power)
    chance = 100 * paired_power(seeds, gap, noise)
    together = 1 - 2 * alpha_of() / MOST_NULLS
    answer = max(LEAST_SEEDS, seeds_needed(gap, noise, power=power, level=together))
    return (
        f"{seeds} seeds per arm: a paired t test at level {1 - LEVEL:.2g} then finds a gap of "
        f"{gap:g} AP under noise {noise:g} with a chance of {chance:.1f} %; svp answer, which "
        f"judges several claims together, with {answer} seeds"
    )
