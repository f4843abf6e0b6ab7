"""What pre-training is worth in training images, where a study varies their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.stats.contrast import POINTS, region
from scratch_vs_pretrain.analysis.stats.results import Setting, refuse_studies_of_other_tests
from scratch_vs_pretrain.errors import UserError


@dataclass(frozen=True)
class Worth:
    """What pre-training is worth, in training images, at one size."""

    size: int  # training images of the pretrained arm
    # Of images with which scratch reaches the same AP; infinite beyond the largest size, 0 where
    # fewer than `size` do.
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
        leads = other[:, at, None] - ours
        r = region(grid, leads, 0.0, sd=sd)
        # Below the first point nothing is looked at.
        high = 0.0 if r.high == grid[0] else r.high
        ratio = 0.0 if r.estimate == grid[0] and leads[:, 0].mean() < -1e-9 else r.estimate
        found.append(Worth(int(size), *(x / size for x in (ratio, r.low, high, r.end))))
    return tuple(found)


def worth_of(sized: Sequence[Setting]) -> tuple[Worth, ...]:
    """Returns what one arm is worth at each of its sizes, ascending; () if it is not known."""
    try:
        refuse_studies_of_other_tests((s.results for s in sized), "a worth")
    except UserError:
        return ()
    ends = [s.contrast.ends() for s in sized]
    seeds = sorted(set.intersection(*({*ours} & {*theirs} for ours, theirs in ends)))
    if not seeds:
        return ()
    both = (np.array([[pair[arm][seed] for pair in ends] for seed in seeds]) for arm in (0, 1))
    return worth_in_images([s.size or 0 for s in sized], *both, sd=sized[0].sd)


def one_worth(one: Worth) -> str:
    """Says it of one size."""
    if math.isinf(one.low):
        return f"> {one.most:.1f} times the training images, beyond the largest size,"
    ratio, low, high = (
        f"> {one.most:.1f}" if math.isinf(x) else f"{x:.1f}" if x else "< 1"
        for x in (one.ratio, one.low, one.high)
    )
    if math.isnan(one.low):
        return f"{ratio} times (too few seeds for an interval)"
    interval = f" [{low}, {high}]" * bool(one.high)
    return f"{ratio}{interval} times the training images"
