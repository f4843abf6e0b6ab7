"""Scratch against one other arm: its verdicts, what they still need, and what a picture shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.stats.contrast import (
    Contrast,
    Judged,
    judge_contrast,
    shared_leads,
)
from scratch_vs_pretrain.analysis.stats.crossing import Region
from scratch_vs_pretrain.analysis.stats.evidence import Setting
from scratch_vs_pretrain.analysis.stats.needs import Need, needs_of
from scratch_vs_pretrain.analysis.stats.verdicts import LEVEL, bounds, spread


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
    return Part(name, setting, judged, picture, needs_of(setting, contrast, judged, alpha))


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
        contrast.margin,
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
