"""Statistics of paired runs, as pure functions on arrays; scipy is imported where it is used.

Both arms of a seed see the same images in the same order, so a seed is one pair and the unit of
every interval is the difference within it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    LEAST_SEEDS,
    LEVEL,
    MOST_NULLS,
    bounds,
    spread,
)
from scratch_vs_pretrain.errors import UserError

# The smallest two-sided p of n sign flips is 2 / 2^n: 0.0625 for n = 5, 0.031 for n = 6.
SEEDS_FOR_P = 6
# All of 16 seeds.
FLIPS = 2**16
RESAMPLES = 9999
MOST_SEEDS = 100_000


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the t interval's width for (n,) values, None for fewer than three."""
    if len(values) < LEAST_SEEDS:
        return None
    low, high = t_interval(values)
    return float(high - low) / 2


def t_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns Student's interval of the mean over the last axis of (..., n) values."""
    return bounds(spread(values), (1 - LEVEL) / 2)


def bca_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Returns the BCa bootstrap interval (Efron 1987) of the mean of (n,) values.

    Values that are all equal, whose bootstrap has no width, give the t interval. Too narrow for
    few seeds: see docs/verdicts.md.
    """
    from scipy import stats

    if np.ptp(values) == 0:
        low, high = t_interval(values)
    else:
        low, high = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(low), float(high)


def sign_flip_p(differences: ArrayLike) -> float:
    """Returns the two-sided p value of a zero mean if every sign were as likely as its opposite.

    Exact, over all 2^n flips, up to 16 values; beyond, over 65,536 random ones.
    """
    from scipy import stats

    result = stats.permutation_test(
        (np.asarray(differences, float),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def paired_power(seeds: int, gap: float, noise: float, level: float = LEVEL) -> float:
    """Returns the chance that the two-sided paired t test of two or more `seeds` finds `gap`.

    `noise` is the standard deviation of the difference over seeds. For arms that vary independently
    by s each it is s * sqrt(2); what a seed's runs share makes it smaller.
    """
    from scipy import stats

    shift = abs(gap) / noise * math.sqrt(seeds)
    critical = stats.t.ppf(0.5 + level / 2, seeds - 1)
    wrong_side = stats.nct.cdf(-critical, seeds - 1, shift)  # NaN where it vanishes.
    return float(stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(wrong_side))


def seeds_needed(gap: float, noise: float, *, power: float = 0.8, level: float = LEVEL) -> int:
    """Returns the fewest seeds with which :func:`paired_power` reaches `power`.

    Raises:
        UserError: a gap or noise that is not above 0, a power or level outside (0, 1), or more
            than 100,000 seeds.
    """
    if not (0 < abs(gap) < math.inf and 0 < noise < math.inf):
        raise UserError(f"gap {gap} and noise {noise} must both be numbers other than 0")
    if not (0 < power < 1 and 0 < level < 1):
        raise UserError(f"power {power} and level {level} must lie between 0 and 1")
    seeds = range(2, MOST_SEEDS + 1)
    at = bisect.bisect_left(seeds, power, key=lambda n: paired_power(n, gap, noise, level))
    if at == len(seeds):
        raise UserError(f"a gap of {gap} under noise {noise} needs more than {MOST_SEEDS} seeds")
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
