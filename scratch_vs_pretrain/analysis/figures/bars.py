"""Bars: final AP of all arms in several settings, and samples seen (the paper's Figures 5, 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scratch_vs_pretrain.analysis.figures.panels import choose_metrics, metric_title
from scratch_vs_pretrain.analysis.figures.style import (
    PAGE_WIDTH,
    TEXT_SIZE,
    Style,
    add_caption,
    arm_styles,
    name_axes,
    new_figure,
    plain,
    short_number,
    shortened,
    write,
)
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, by_study, final_results
from scratch_vs_pretrain.analysis.stats.samples import Budget, Budgets, budgets
from scratch_vs_pretrain.errors import UserError

# Scores with test augmentation are "bbox_TTA/AP", Detectron2's name.
TTA = "_TTA/"
TEST_AUG = "+ test aug"

# The share of a group's room that its bars take.
FILLED = 0.84

# More groups than these need the width of a page for one panel.
MOST_GROUPS = 4

PANELS = ("images", "instances", "pixels")
BAR_HEIGHT = 0.7
# Room at the right of the longest bar for its number.
ROOM = 1.22
LIGHTER = 0.55
ABOVE = {"ha": "center", "va": "bottom"}


@dataclass(frozen=True)
class Group:
    """The bars of one setting."""

    label: str  # what it is called
    scores: Mapping[str, Sequence[Mapping[str, float]]]  # final scores of each seed, by arm
    study: Results  # the study whose they are

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
    (scratch,) = {results.scratch for results in studies} if len(studies) == 1 else {"scratch"}
    styles = arm_styles(arms, scratch)
    if len(groups) > MOST_GROUPS:
        height = 2.2 * len(metrics) + 0.7
        figure, axes = new_figure(1, rows=len(metrics), width=PAGE_WIDTH, height=height)
    else:
        figure, axes = new_figure(len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        _draw(ax, groups, styles, metric)
    add_caption(figure, _caption(groups, styles, metrics))
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


def _draw(ax: Axes, groups: Sequence[Group], styles: Mapping[str, Style], metric: str) -> None:
    """Draws one panel; its bars begin at zero, so that their lengths compare."""
    width = FILLED / len(styles)
    named = set()
    for k, group in enumerate(groups):
        for place, (arm, style) in enumerate(styles.items()):
            found = group.values(arm, metric)
            if len(found) == 0:
                continue
            x = k + (place - (len(styles) - 1) / 2) * width
            mean, top = float(found.mean()), float(found.max())
            ax.bar(x, mean, 0.94 * width, color=style.color)
            if len(found) > 1:
                ax.vlines(x, found.min(), top, color="black", linewidth=1)
            write(ax, f"{mean:.1f}", (x, top), (0, 2), **ABOVE)
            if arm not in named:
                named.add(arm)
                write(ax, arm, (x, 0), (0, 4), rotation=90, color="white", **ABOVE)
    ax.set_ylim(bottom=0)
    ax.set_xticks(range(len(groups)), [plain(shortened(g.label, 14)) for g in groups])
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    name_axes(ax, metric_title(metric), "")


def _caption(
    groups: Sequence[Group],
    styles: Mapping[str, Style],
    metrics: Sequence[str],
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
    missing = [
        f"{arm} of {g.label}" for g in groups for arm, found in g.scores.items() if not found
    ]
    if missing:
        yield f"Not finished: {', '.join(missing)}."


def samples_figure(runs: Sequence[RunRecord]) -> Figure:
    """Draws what the finished runs of one study have seen, see :func:`.samples.budgets`."""
    return budget_figure(budgets(runs))


def budget_figure(found: Budgets) -> Figure:
    """Draws a bar for every arm and schedule: images, instances and pixels, pre-training first."""
    height = 1.5 + 0.3 * len(found.rows) + 0.16 * len(found.notes)
    figure, axes = new_figure(len(PANELS), width=PAGE_WIDTH, height=height)
    styles = arm_styles(dict.fromkeys(row.arm for row in found.rows))
    for ax, panel in zip(axes, PANELS, strict=True):
        for place, row in enumerate(found.rows):
            _draw_bar(ax, place, row, panel, styles[row.arm].color)
        name_axes(ax, panel, "")
        longest = max((getattr(row.total, panel) or 0 for row in found.rows), default=0)
        ax.set_xlim(0, (longest or 1) * ROOM)
        ax.set_ylim(len(found.rows) - 0.5, -0.5)
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0].set_yticks(
        range(len(found.rows)),
        [plain(f"{row.arm} {row.schedule}") for row in found.rows],
        fontsize=TEXT_SIZE,
    )
    axes[0].tick_params(axis="y", length=0)
    how = "Counted during training." if found.counted else "Expected before training."
    pretrained = any(row.pretraining.counts.images for row in found.rows)
    parts = "Hatched: pre-training; plain: detection training. " if pretrained else ""
    add_caption(figure, [f"{parts}{how}", *found.notes])
    return figure


def _draw_bar(ax: Axes, place: int, row: Budget, panel: str, color: str) -> None:
    before, training = (getattr(part, panel) for part in (row.pretraining.counts, row.training))
    if training is None:
        write(ax, "unknown", (0, place), (0, 0), color="0.35")
        return
    start = before or 0
    light = tuple(1 - LIGHTER * (1 - part) for part in to_rgb(color))
    ax.barh(place, start, BAR_HEIGHT, color=light, hatch="////", edgecolor="white", linewidth=0)
    ax.barh(place, training, BAR_HEIGHT, left=start, color=color)
    write(ax, short_count(start + training), (start + training, place), (3, 0))


def short_count(value: int) -> str:
    """Returns a count for a label: exact below 10,000, with three digits above."""
    return f"{value:,}" if value < 10_000 else short_number(float(f"{value:.3g}"))
