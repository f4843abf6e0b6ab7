"""Where a falling mean lead reaches the margin, with a region that says how well that is known.

Used for catch-up (a lead over iterations) and for the worth in images (a lead over data sizes).

The region is Fieller's (1954, J. R. Stat. Soc. B 16): all points at which a two-sided t test over
seeds does not reject "the mean lead here is the bound". Each seed's curve is smoothed alone by
local quadratic regression (Cleveland 1979, JASA 74), which is linear in the evaluations, so that
the t test stays exact for normal noise, whether evaluations of a run are independent or not, and
however often a run is evaluated. No crossing of single noisy curves is ever taken: those come late
by construction. ``benchmarks/verdicts.py`` measures how often the region holds the true point.

Arrays may have leading axes, one entry for each simulated study.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.verdicts import LEVEL, bounds, spread

# Differences of log iterations. 0.5: from 0.6 to 1.6 times the iteration.
WINDOW = 0.5  # of the smoother, to either side
STAY = 0.15  # over so much a lead is to stay inside the bound, or it has not come there
POINTS = 300


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


def smoothed(
    iterations: ArrayLike, values: np.ndarray, drops: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Smooths curves over the logarithm of iterations; never across a drop of the rate.

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
    grid: np.ndarray,
    values: np.ndarray,
    bound: float,
    *,
    sd: float | None = None,
    alpha: float = 1 - LEVEL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (...) low, high and estimate, as :class:`Region` has them.

    (..., n, g) leads of n seeds over (g,) grid, ascending and above 0, reach the bound from above.
    Below three seeds, `sd` is the assumed standard deviation of a lead.
    """
    found = spread(np.swapaxes(values, -1, -2), sd)
    low, high = bounds(found, alpha / 2)
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


def region(grid: np.ndarray, values: np.ndarray, bound: float, **options: float | None) -> Region:
    """Returns the region of one study; see :func:`regions`."""
    low, high, estimate = regions(grid, values, bound, **options)  # type: ignore[arg-type]
    return Region(float(low), float(high), float(estimate), float(grid[-1]))


@dataclass(frozen=True)
class Worth:
    """What pre-training is worth, in training images, at one size."""

    size: int  # training images of the pretrained arm
    # Of images with which scratch reaches the same AP; infinite beyond the largest size.
    ratio: float
    # Its bounds; NaN where too few seeds allow none, `low` infinite where scratch needs more than
    # the largest size.
    low: float
    high: float  # likewise; infinite where that is not excluded
    most: float  # the largest ratio that the sizes can show


def worth_in_images(
    sizes: ArrayLike, scratch: np.ndarray, other: np.ndarray, *, sd: float | None = None
) -> tuple[Worth, ...]:
    """Says for each size with how many times the images scratch reaches the other arm's AP.

    Straight lines in log images join scratch's sizes, and are not continued beyond them
    ("effective data transferred", Hernandez et al. 2021, arXiv 2102.01293).

    (n, k) AP of both arms is that of the same seeds with (k,) sizes, ascending; `sd` as above.
    """
    images = np.asarray(sizes, float)
    found = []
    for at, size in enumerate(images[:-1]):
        grid = np.geomspace(size, images[-1], POINTS)
        ours = np.array([np.interp(np.log(grid), np.log(images), row) for row in scratch])
        r = region(grid, other[:, at, None] - ours, 0.0, sd=sd)
        found.append(Worth(int(size), *(x / size for x in (r.estimate, r.low, r.high, r.end))))
    return tuple(found)
