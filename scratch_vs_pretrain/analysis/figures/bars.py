"""Final AP of all arms in several settings, as grouped bars (the paper's Figure 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scratch_vs_pretrain.analysis.figures.lines import choose_metrics
from scratch_vs_pretrain.analysis.figures.panels import metric_title, name_axes
from scratch_vs_pretrain.analysis.figures.style import (
    PAGE_WIDTH,
    SMALL_TEXT_SIZE,
    Style,
    add_caption,
    arm_styles,
    new_figure,
    plain,
    shortened,
)
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, by_study, final_results
from scratch_vs_pretrain.errors import UserError

# Scores with test augmentation are "bbox_TTA/AP", Detectron2's name.
TTA = "_TTA/"
TEST_AUG = "+ test aug"

# The share of a group's room that its bars take.
FILLED = 0.84

# More groups than these need the width of a page for one panel.
MOST_GROUPS = 4


@dataclass(frozen=True)
class Group:
    """The bars of one setting.

    Attributes:
        label: what it is called.
        scores: final scores of each seed, by arm.
        study: the study whose they are.
    """

    label: str
    scores: Mapping[str, Sequence[Mapping[str, float]]]
    study: Results

    def values(self, arm: str, metric: str) -> np.ndarray:
        """Returns (n,) one value for each seed that has one."""
        found = [scores.get(metric, math.nan) for scores in self.scores.get(arm, ())]
        return np.array([value for value in found if math.isfinite(value)])


def bars_figure(
    runs: Sequence[RunRecord],
    *,
    labels: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Figure:
    """Draws the final AP of every arm at its longest schedule, a group of bars for each study.

    A study that was evaluated with test augmentation makes two groups, without and with it.

    Args:
        runs: their studies in the order in which they are to stand.
        labels: what a study is called; by default its name.
        metrics: default: box, mask and keypoint AP, as far as they were evaluated.

    Raises:
        UserError: a study without two arms, nothing finished, a metric nobody evaluated, or a
            label of a study that is not there.
    """
    studies = [final_results(members) for members in by_study(runs).values()]
    labels = labels or {}
    for name in labels:
        if name not in {results.study for results in studies}:
            known = ", ".join(results.study for results in studies)
            raise UserError(f"--label {name}=...: no such study here; there is {known}")
    groups = [group for results in studies for group in _groups(results, labels)]
    logged = {name for g in groups for found in g.scores.values() for s in found for name in s}
    metrics = choose_metrics(logged, metrics, "finished run")
    arms = list(dict.fromkeys(arm for group in groups for arm in group.scores))
    styles = arm_styles(arms)
    if len(groups) > MOST_GROUPS:
        height = 2.2 * len(metrics) + 0.7
        figure, axes = new_figure(1, rows=len(metrics), width=PAGE_WIDTH, height=height)
    else:
        figure, axes = new_figure(len(metrics))
    bases = [_draw(ax, groups, styles, metric) for ax, metric in zip(axes, metrics, strict=True)]
    add_caption(figure, _caption(groups, styles, metrics, bases))
    return figure


def _groups(results: Results, labels: Mapping[str, str]) -> Iterator[Group]:
    label = labels.get(results.study, results.study)
    scores = {
        arm: [final.scores for final in results.of(arm, results.longest(arm).schedule).values()]
        for arm in (results.scratch, *results.others)
    }
    yield Group(label, scores, results)
    augmented = {arm: [_augmented(found) for found in each] for arm, each in scores.items()}
    if any(found for each in augmented.values() for found in each):
        # After "+ cascade" settings are added to one another, as in the paper.
        label = TEST_AUG if label.startswith("+") else f"{label} {TEST_AUG}"
        yield Group(label, augmented, results)


def _augmented(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores with test augmentation under the names of those without."""
    return {name.replace(TTA, "/"): value for name, value in scores.items() if TTA in name}


def _draw(ax: Axes, groups: Sequence[Group], styles: Mapping[str, Style], metric: str) -> float:
    """Draws one panel and returns where its bars begin."""
    width = FILLED / len(styles)
    values = {(k, arm): g.values(arm, metric) for k, g in enumerate(groups) for arm in styles}
    base = _base([value for found in values.values() for value in found])
    named = set()
    for (k, arm), found in values.items():
        if len(found) == 0:
            continue
        x = k + (list(styles).index(arm) - (len(styles) - 1) / 2) * width
        mean, top = float(found.mean()), float(found.max())
        ax.bar(x, mean - base, 0.94 * width, bottom=base, color=styles[arm].color)
        if len(found) > 1:
            ax.vlines(x, found.min(), top, color="black", linewidth=1)
        ax.annotate(
            f"{mean:.1f}",
            (x, top),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=SMALL_TEXT_SIZE,
        )
        if arm not in named:
            named.add(arm)
            ax.annotate(
                plain(arm),
                (x, base),
                xytext=(0, 4),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=SMALL_TEXT_SIZE,
                color="white",
            )
    ax.set_ylim(bottom=base)
    ax.set_xticks(range(len(groups)), [plain(shortened(g.label, 14)) for g in groups])
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    name_axes(ax, metric_title(metric), "")
    return base


def _base(values: Sequence[float]) -> float:
    """Returns 0, or a multiple of 5 below bars that are all long beside their differences."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return max(0.0, 5 * math.floor((low - 1.5 * (high - low) - 2) / 5)) if low > 0 else 0.0


def _caption(
    groups: Sequence[Group],
    styles: Mapping[str, Style],
    metrics: Sequence[str],
    bases: Sequence[float],
) -> Iterator[str]:
    schedules = {
        arm: {g.study.longest(arm).schedule for g in groups if arm in g.scores} for arm in styles
    }
    lengths = ", ".join(f"{arm} {' or '.join(sorted(names))}" for arm, names in schedules.items())
    yield f"Final evaluation at each arm's longest schedule ({lengths})."
    counts = {len(g.values(arm, m)) for g in groups for arm in g.scores for m in metrics} - {0}
    if counts and max(counts) > 1:
        seeds = " or ".join(map(str, sorted(counts)))
        yield f"Bars: mean of {seeds} seeds; lines: lowest to highest."
    if any(bases):
        starts = " and ".join(f"{base:g}" for base in dict.fromkeys(bases))
        yield f"Bars begin at {starts}, not at zero."
    missing = [
        f"{arm} of {g.label}" for g in groups for arm, found in g.scores.items() if not found
    ]
    if missing:
        yield f"Not finished: {', '.join(missing)}."
