"""Final numbers: AP as bars, by the number of images, by IoU threshold; and samples seen."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scratch_vs_pretrain.analysis.figures.panels import (
    PAGE_WIDTH,
    TASKS,
    TEXT_SIZE,
    Line,
    Names,
    Panel,
    Style,
    arm_styles,
    choose_metrics,
    draw_panels,
    line_through,
    metric_title,
    plain,
    sentences,
    short_number,
    shortened,
    styles_of,
    subject,
    write,
)
from scratch_vs_pretrain.analysis.runs import Records, grouped
from scratch_vs_pretrain.analysis.stats.cost import (
    COUNTED,
    Budgets,
    budgets,
)
from scratch_vs_pretrain.analysis.stats.results import (
    Results,
    Scores,
    by_study,
    final_results,
    metric_name,
    refuse_studies_of_other_tests,
)
from scratch_vs_pretrain.analysis.stats.worth import worth_in_images
from scratch_vs_pretrain.errors import UserError

# What a setting is called, the final scores by arm, and what stands for the "/" of their metrics:
# "_TTA/" with test augmentation, Detectron2's name.
Group = tuple[str, Mapping[str, Scores], str]
TTA = "_TTA/"
TEST_AUG = "+ test aug"

# The share of a group's room that its bars take, and the most groups of a panel of half a page.
FILLED = 0.84
MOST_GROUPS = 4

BAR_HEIGHT = 0.7
# Room at the right of the longest bar for its number.
ROOM = 1.22
LIGHTER = 0.55
ABOVE = {"ha": "center", "va": "bottom"}


def bars_figure(
    runs: Records, *, labels: Mapping[str, str] | None = None, metrics: Names = None
) -> Figure:
    """Draws the final AP of every arm at its longest schedule, bars for each study (Figure 5).

    A study that was evaluated with test augmentation makes two groups, without and with it.
    Groups stand in the order of `runs`; `labels` say what a study is called instead of its name.
    """
    studies = [final_results(members) for members in by_study(runs).values()]
    known = ", ".join(results.study for results in studies)
    for name in (labels or {}).keys() - {results.study for results in studies}:
        raise UserError(f"--label {name}=...: no such study here; there is {known}")
    groups = [group for results in studies for group in _groups(results, labels or {})]
    numbers = [one for _, finals, _ in groups for some in finals.values() for one in some.values()]
    scored = {name for one in numbers for name, value in one.items() if math.isfinite(value)}
    metrics = choose_metrics(scored, metrics, "finished run")
    arms = dict.fromkeys(arm for _, finals, _ in groups for arm in finals)
    styles = arm_styles(arms, studies[0].scratch if len(studies) == 1 else "scratch")
    panels = [
        Panel(metric_title(m), left=None, beside=partial(_draw_bars, groups, m, styles))
        for m in metrics
    ]
    seeds = {
        len(scores.of(metric.replace("/", mark)))
        for _, finals, mark in groups
        for scores in finals.values()
        for metric in metrics
    } - {0}
    layout: dict[str, Any] = {}
    if len(groups) > MOST_GROUPS:
        layout = {"rows": len(panels), "width": PAGE_WIDTH, "height": 2.2 * len(panels) + 0.7}
    return draw_panels(panels, _about_bars(studies, groups, sorted(seeds)), **layout)


def _groups(results: Results, labels: Mapping[str, str]) -> Iterator[Group]:
    label = labels.get(results.study, results.study)
    finals = {arm: results.of(arm) for arm in results.arms}
    yield label, finals, "/"
    if any(TTA in name for some in finals.values() for one in some.values() for name in one):
        # After "+ cascade" settings are added to one another, as in the paper.
        yield TEST_AUG if label.startswith("+") else f"{label} {TEST_AUG}", finals, TTA


def _draw_bars(groups: Sequence[Group], metric: str, styles: Mapping[str, Style], ax: Axes) -> None:
    """Draws a panel of bars that begin at zero."""
    width = FILLED / len(styles)
    named = set()
    for group, (_, finals, mark) in enumerate(groups):
        for arm, scores in finals.items():
            if not (some := scores.of(metric.replace("/", mark))):
                continue
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
    ax.set_xticks(range(len(groups)), [plain(shortened(label, 14)) for label, *_ in groups])
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _about_bars(
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
    missing = [
        f"{arm} of {label}" for label, finals, _ in groups for arm in finals if not finals[arm]
    ]
    if missing:
        yield f"Not finished: {', '.join(missing)}."


def sizes_figure(runs: Records, *, metrics: Names = None, band: str = "range") -> Figure:
    """Draws the final AP of each arm against training images, a panel for each metric.

    An arrow leads from another arm's AP, the first that has scratch's sizes, to the number of
    images with which scratch reaches it, as far as the sizes show it; nothing is extrapolated.
    `runs` are of one study of several sizes, or of a study for each size.
    """
    studies = _by_size(runs)
    scratch = next(iter(studies.values())).scratch
    styles = arm_styles(dict.fromkeys(arm for r in studies.values() for arm in r.arms), scratch)
    finals = {
        (arm, size): scores
        for size, results in sorted(studies.items())
        for arm in results.arms
        if size and (scores := results.of(arm))
    }
    sizes = sorted({size for _, size in finals})
    if len(sizes) < 2:
        raise UserError("fewer than two sizes of training data have a finished run; draw ap")
    arrows: list[str] = []

    def draw_beside(metric: str, lines: Sequence[Line], ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_xticks(sizes, [short_number(size) for size in sizes])
        ax.set_xticks([], minor=True)
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        arrows.extend(f"{said}, {metric_name(metric)}." for said in _draw_worth(ax, lines, scratch))

    panels = []
    known = {name for scores in finals.values() for one in scores.values() for name in one}
    for metric in choose_metrics(known, metrics, "finished run"):
        lines = []
        for arm, style in styles.items():
            found = {size: s.of(metric) for (one, size), s in finals.items() if one == arm}
            if found := {size: values for size, values in found.items() if values}:
                table = pd.DataFrame.from_dict(found, orient="index")
                lines.append(line_through(arm, style, table, band))
        beside = partial(draw_beside, metric, lines)
        title = metric_title(metric)
        panels.append(Panel(title, lines, "training images", left=None, score=True, beside=beside))
    about = f"{', '.join(by_study(runs))}: final AP at each arm's longest schedule."
    # Arrows are there when all panels are drawn.
    return draw_panels(panels, itertools.chain([about], sentences(panels, band), arrows))


def _by_size(runs: Records) -> dict[int, Results]:
    """Returns the results at each number of training images, 0 where it is unknown."""
    found: dict[int, Results] = {}
    groups = grouped(runs, lambda run: (run.study, run.train_images or 0))
    for (_, size), members in groups.items():
        results = final_results(members)
        if found.setdefault(size, results) is not results and size:
            raise UserError(
                f"studies {found[size].study} and {results.study} both have {size:,} training "
                "images, so they differ in something else; name the folders of studies that "
                "differ in their number alone"
            )
    refuse_studies_of_other_tests(found.values(), "a figure")
    return found


def _draw_worth(ax: Axes, lines: Sequence[Line], scratch: str) -> Iterator[str]:
    """Draws the arrow of one size, the largest whose worth the sizes show, and says it."""
    ours = next((line for line in lines if line.arm == scratch), None)
    if ours is None:
        return
    others = (line for line in lines if line.arm != scratch)
    other = next((line for line in others if np.array_equal(line.x, ours.x)), None)
    if other is None:
        return
    worth = worth_in_images(ours.x, ours.mean[None], other.mean[None])
    found = [one for one in worth if one.ratio > 1]
    told = [one for one in found if math.isfinite(one.ratio)]
    if not found:
        return
    one = told[-1] if told else found[0]
    ratio = one.ratio if told else one.most
    text = f"{ratio:.1f} times" if told else f"more than {ratio:.3g} times"
    y = float(other.mean[list(other.x).index(one.size)])
    arrow = {"arrowstyle": "->", "color": "0.25", "linewidth": 1.2}
    ax.annotate("", (one.size * ratio, y), (one.size, y), arrowprops=arrow)
    ha = "left" if told else "right"  # under scratch's line there is room
    write(ax, text, (one.size * ratio, y), (4, -4), ha=ha, va="top", color="0.25")
    yield (
        f"Arrow: what {other.arm} reaches with {one.size:,} images, {scratch} reaches with "
        f"{text} as many{'' if told else ', more than the largest size'}"
    )


def iou_figure(runs: Records, *, band: str = "range") -> Figure:
    """Draws the final AP gap at each IoU threshold, scratch less each other arm, paired by seed.

    A gap that rises to the right says that pre-training helps localization least (the paper's
    third observation).
    """
    results = final_results(runs)
    styles, lines = styles_of(runs), dict[str, list[Line]]()
    for arm in results.others:
        gaps = pd.DataFrame(results.of(results.scratch) - results.of(arm)).dropna().sort_index()
        for task in TASKS:
            at = gaps[[str(metric).startswith(f"{task}/AP@") for metric in gaps.index]]
            if len(at):
                at.index = [float(metric.partition("@")[2]) for metric in at.index]
                name = f"{results.scratch} - {arm}"
                lines.setdefault(task, []).append(line_through(name, styles[arm], at, band))
    if not lines:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )
    zero = partial(Axes.axhline, color="0.5", linewidth=0.8)
    panels = [
        Panel(f"{TASKS[task]} AP gap", some, "IoU threshold", left=None, beside=zero)
        for task, some in lines.items()
    ]
    about = (
        f"{subject(runs, [])} Final AP at each arm's longest schedule, paired by seed; above 0, "
        f"{results.scratch} is better."
    )
    return draw_panels(panels, [about, *sentences(panels, band)])


def samples_figure(runs: Records) -> Figure:
    """Draws what the finished runs of one study have seen, see :func:`.cost.budgets`."""
    return budget_figure(budgets(runs))


def budget_figure(found: Budgets) -> Figure:
    """Draws a bar for every arm and schedule, pre-training first (Figure 2).

    A panel each for images, instances and pixels.
    """
    styles = arm_styles(dict.fromkeys(row.arm for row in found.rows))
    words = [plain(" ".join(filter(None, (row.arm, row.schedule, row.size)))) for row in found.rows]

    def draw(count: str, ax: Axes) -> None:
        for place, row in enumerate(found.rows):
            before, training = (getattr(part, count) for part in (row.pretraining, row.training))
            if training is None:
                write(ax, "unknown", (0, place), (0, 0), color="0.35")
                continue
            start, color = before or 0, styles[row.arm].color
            lighter = tuple(1 - LIGHTER * (1 - part) for part in to_rgb(color))
            light: dict[str, Any] = {"color": lighter, "edgecolor": "white", "linewidth": 0}
            ax.barh(place, start, BAR_HEIGHT, hatch="////", **light)
            ax.barh(place, training, BAR_HEIGHT, left=start, color=color)
            write(ax, short_count(start + training), (start + training, place), (3, 0))
        longest = max((getattr(row.total, count) or 0 for row in found.rows), default=0)
        ax.set_xlim(0, (longest or 1) * ROOM)
        ax.set_ylim(len(found.rows) - 0.5, -0.5)
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        shown = words if count == COUNTED[0] else []
        ax.set_yticks(range(len(shown)), shown)
        ax.tick_params(axis="y", length=0, labelsize=TEXT_SIZE)

    how = "Counted during training." if found.counted else "Expected before training."
    pretrained = any(row.pretraining.images for row in found.rows)
    parts = "Hatched: pre-training; plain: detection training. " if pretrained else ""
    panels = [Panel(count, left=None, beside=partial(draw, count)) for count in COUNTED]
    height = 1.5 + 0.3 * len(found.rows) + 0.16 * len(found.notes)
    caption = [f"{parts}{how}", *found.notes]
    return draw_panels(panels, caption, width=PAGE_WIDTH, height=height)


def short_count(value: int) -> str:
    """Returns a count for a label: exact below 10,000, with three digits above."""
    return f"{value:,}" if value < 10_000 else short_number(float(f"{value:.3g}"))
