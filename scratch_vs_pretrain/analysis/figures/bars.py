"""Bars: final AP of all arms in several settings, and samples seen (the paper's Figures 5, 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

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
from scratch_vs_pretrain.analysis.stats.comparison import Results, Scores, by_study, final_results
from scratch_vs_pretrain.analysis.stats.samples import Budget, Budgets, budgets
from scratch_vs_pretrain.errors import UserError

# What a setting is called, and the final scores by arm.
Group = tuple[str, Mapping[str, Scores]]

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
    known = ", ".join(results.study for results in studies)
    for name in (labels or {}).keys() - {results.study for results in studies}:
        raise UserError(f"--label {name}=...: no such study here; there is {known}")
    groups = [group for results in studies for group in _groups(results, labels or {})]
    numbers = [one for _, finals in groups for some in finals.values() for one in some.values()]
    scored = {name for one in numbers for name, value in one.items() if math.isfinite(value)}
    metrics = choose_metrics(scored, metrics, "finished run")
    arms = dict.fromkeys(arm for _, finals in groups for arm in finals)
    styles = arm_styles(arms, studies[0].scratch if len(studies) == 1 else "scratch")
    if len(groups) > MOST_GROUPS:
        height = 2.2 * len(metrics) + 0.7
        figure, axes = new_figure(1, rows=len(metrics), width=PAGE_WIDTH, height=height)
    else:
        figure, axes = new_figure(len(metrics))
    seeds: set[int] = set()
    for ax, metric in zip(axes, metrics, strict=True):
        seeds |= _draw(ax, groups, metric, styles)
        ax.set_xticks(range(len(groups)), [plain(shortened(label, 14)) for label, _ in groups])
        name_axes(ax, metric_title(metric), "")
    add_caption(figure, _caption(studies, groups, sorted(seeds)))
    return figure


def _groups(results: Results, labels: Mapping[str, str]) -> Iterator[Group]:
    label = labels.get(results.study, results.study)
    finals = {arm: results.of(arm) for arm in results.arms}
    yield label, finals
    # The scores with test augmentation under the names of those without.
    augmented = {arm: Scores() for arm in finals}
    for arm, scores in finals.items():
        for seed, one in scores.items():
            augmented[arm][seed] = {k.replace(TTA, "/"): v for k, v in one.items() if TTA in k}
    if any(one for scores in augmented.values() for one in scores.values()):
        # After "+ cascade" settings are added to one another, as in the paper.
        yield TEST_AUG if label.startswith("+") else f"{label} {TEST_AUG}", augmented


def _draw(ax: Axes, groups: Sequence[Group], metric: str, styles: Mapping[str, Style]) -> set[int]:
    """Draws one panel, whose bars begin at zero, so that their lengths compare.

    Returns:
        how many seeds they are of.
    """
    width = FILLED / len(styles)
    drawn = [
        (at, arm, some)
        for at, (_, finals) in enumerate(groups)
        for arm, scores in finals.items()
        if (some := scores.of(metric))
    ]
    named = set()
    for group, arm, some in drawn:
        x = group + (list(styles).index(arm) - (len(styles) - 1) / 2) * width
        mean, low, high = np.mean(some), min(some), max(some)
        ax.bar(x, mean, 0.94 * width, color=styles[arm].color)
        if len(some) > 1:
            ax.vlines(x, low, high, color="black", linewidth=1)
        write(ax, f"{mean:.1f}", (x, high), (0, 2), **ABOVE)
        if arm not in named:
            named.add(arm)
            write(ax, arm, (x, 0), (0, 4), rotation=90, color="white", **ABOVE)
    ax.set_ylim(bottom=0)
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return {len(some) for *_, some in drawn}


def _caption(
    studies: Sequence[Results], groups: Sequence[Group], seeds: Sequence[int]
) -> Iterator[str]:
    schedules: dict[str, set[str]] = {}
    for results in studies:
        for arm in results.arms:
            schedules.setdefault(arm, set()).add(results.longest(arm).schedule)
    lengths = ", ".join(f"{arm} {' or '.join(sorted(names))}" for arm, names in schedules.items())
    yield f"Final evaluation at each arm's longest schedule ({lengths})."
    if seeds[-1] > 1:
        yield f"Bars: mean of {' or '.join(map(str, seeds))} seeds; lines: lowest to highest."
    missing = [f"{arm} of {label}" for label, finals in groups for arm in finals if not finals[arm]]
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
        [plain(" ".join(filter(None, (row.arm, row.schedule, row.size)))) for row in found.rows],
        fontsize=TEXT_SIZE,
    )
    axes[0].tick_params(axis="y", length=0)
    how = "Counted during training." if found.counted else "Expected before training."
    pretrained = any(row.pretraining.images for row in found.rows)
    parts = "Hatched: pre-training; plain: detection training. " if pretrained else ""
    add_caption(figure, [f"{parts}{how}", *found.notes])
    return figure


def _draw_bar(ax: Axes, place: int, row: Budget, panel: str, color: str) -> None:
    before, training = (getattr(part, panel) for part in (row.pretraining, row.training))
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
