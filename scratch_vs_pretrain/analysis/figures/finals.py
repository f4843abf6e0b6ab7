"""Figures of final numbers: bars, AP by training images or IoU threshold, and samples seen.

The paper's Figures 5 (bars) and 2 (samples).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from scratch_vs_pretrain.analysis.figures.panels import (
    TASKS,
    Line,
    Names,
    Panel,
    choose_metrics,
    draw_panels,
    line_through,
    metric_title,
    sentences,
    styles_of,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import (
    PAGE_WIDTH,
    TEXT_SIZE,
    Style,
    arm_styles,
    plain,
    short_number,
    shortened,
    write,
)
from scratch_vs_pretrain.analysis.runs import Records, RunRecord
from scratch_vs_pretrain.analysis.stats.contrast import worth_in_images
from scratch_vs_pretrain.analysis.stats.cost import NAMES, Budget, Budgets, budgets
from scratch_vs_pretrain.analysis.stats.results import (
    Results,
    Scores,
    by_study,
    final_results,
    metric_name,
)
from scratch_vs_pretrain.errors import UserError

# What a setting is called, and the final scores by arm.
Group = tuple[str, Mapping[str, Scores]]

# Scores with test augmentation are "bbox_TTA/AP", Detectron2's name.
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
    """Draws the final AP of every arm at its longest schedule, a group of bars for each study.

    A study that was evaluated with test augmentation makes two groups, without and with it.
    Groups stand in the order of `runs`; `labels` say what a study is called instead of its name.
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
    panels = [
        Panel(metric_title(m), left=None, beside=partial(_draw_bars, groups, m, styles))
        for m in metrics
    ]
    seeds = {len(s.of(m)) for m in metrics for _, finals in groups for s in finals.values()} - {0}
    layout: dict[str, Any] = {}
    if len(groups) > MOST_GROUPS:
        layout = {"rows": len(panels), "width": PAGE_WIDTH, "height": 2.2 * len(panels) + 0.7}
    return draw_panels(panels, _caption(studies, groups, sorted(seeds)), **layout)


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


def _draw_bars(groups: Sequence[Group], metric: str, styles: Mapping[str, Style], ax: Axes) -> None:
    """Draws a panel of bars that begin at zero."""
    width = FILLED / len(styles)
    named = set()
    for group, (_, finals) in enumerate(groups):
        for arm, scores in finals.items():
            if not (some := scores.of(metric)):
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
    ax.set_xticks(range(len(groups)), [plain(shortened(label, 14)) for label, _ in groups])
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


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


def sizes_figure(runs: Records, *, metrics: Names = None, band: str = "range") -> Figure:
    """Draws the final AP of each arm against training images, a panel for each metric.

    An arrow leads from the first other arm's AP to the number of images with which scratch reaches
    it, as far as the sizes show it; nothing is extrapolated. `runs` are of one study of several
    sizes, or of a study for each size.
    """
    studies: dict[int, Results] = {}
    for study in by_study(runs).values():
        for size, members in by_size(study).items():
            results = final_results(members)
            other = studies.setdefault(size, results)
            if size and other is not results:
                raise UserError(
                    f"studies {other.study} and {results.study} both have {size:,} training "
                    "images, so they differ in something else; name the folders of studies that "
                    "differ in their number alone"
                )
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
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        arrows.extend(f"{said}, {metric_name(metric)}." for said in _draw_worth(ax, lines, scratch))

    panels = []
    known = {name for scores in finals.values() for one in scores.values() for name in one}
    for metric in choose_metrics(known, metrics, "finished run"):
        lines = []
        for arm, style in styles.items():
            found = {size: s.of(metric) for (one, size), s in finals.items() if one == arm}
            if found := {size: values for size, values in found.items() if values}:
                lines.append(line_through(arm, style, found, band))
        beside = partial(draw_beside, metric, lines)
        title = metric_title(metric)
        panels.append(Panel(title, lines, "training images", left=None, score=True, beside=beside))

    def caption() -> Iterator[str]:
        yield f"{', '.join(by_study(runs))}: final AP at each arm's longest schedule."
        yield from sentences(panels, band)
        yield from arrows

    return draw_panels(panels, caption())


def by_size(runs: Records) -> dict[int, list[RunRecord]]:
    """Groups runs by their number of training images, smallest first."""
    groups: dict[int, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.train_images or 0):
        groups.setdefault(run.train_images or 0, []).append(run)
    return groups


def _draw_worth(ax: Axes, lines: Sequence[Line], scratch: str) -> Iterator[str]:
    """Draws the arrow of one size, the largest whose worth the sizes show, and says it."""
    ours = next((line for line in lines if line.arm == scratch), None)
    other = next((line for line in lines if line.arm != scratch), None)
    if ours is None or other is None or not np.array_equal(ours.x, other.x):
        return
    found = worth_in_images(ours.x, ours.mean[None], other.mean[None])
    told = [one for one in found if math.isfinite(one.ratio) and one.ratio > 1]
    beyond = [one for one in found if math.isinf(one.ratio)]
    if not told and not beyond:
        return
    one = told[-1] if told else beyond[0]
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
        gap, name = results.of(results.scratch) - results.of(arm), f"{results.scratch} - {arm}"
        metrics = sorted({metric for one in gap.values() for metric in one if "/AP@" in metric})
        for task in TASKS:
            at = {
                float(m.partition("@")[2]): gap.of(m) for m in metrics if m.startswith(f"{task}/")
            }
            if at := {x: values for x, values in at.items() if len(values) == len(gap)}:
                lines.setdefault(task, []).append(line_through(name, styles[arm], at, band))
    if not lines:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )

    def draw_zero(ax: Axes) -> None:
        ax.axhline(0, color="0.5", linewidth=0.8)

    panels = [
        Panel(f"{TASKS[task]} AP gap", some, "IoU threshold", left=None, beside=draw_zero)
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
    """Draws a bar for every arm and schedule: images, instances and pixels, pre-training first."""
    styles = arm_styles(dict.fromkeys(row.arm for row in found.rows))
    names = [plain(" ".join(filter(None, (row.arm, row.schedule, row.size)))) for row in found.rows]

    def draw(count: str, ax: Axes) -> None:
        for place, row in enumerate(found.rows):
            _draw_bar(ax, place, row, count, styles[row.arm].color)
        longest = max((getattr(row.total, count) or 0 for row in found.rows), default=0)
        ax.set_xlim(0, (longest or 1) * ROOM)
        ax.set_ylim(len(found.rows) - 0.5, -0.5)
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        shown = names if count == NAMES[0] else []
        ax.set_yticks(range(len(shown)), shown)
        ax.tick_params(axis="y", length=0, labelsize=TEXT_SIZE)

    how = "Counted during training." if found.counted else "Expected before training."
    pretrained = any(row.pretraining.images for row in found.rows)
    parts = "Hatched: pre-training; plain: detection training. " if pretrained else ""
    panels = [Panel(count, left=None, beside=partial(draw, count)) for count in NAMES]
    height = 1.5 + 0.3 * len(found.rows) + 0.16 * len(found.notes)
    caption = [f"{parts}{how}", *found.notes]
    return draw_panels(panels, caption, width=PAGE_WIDTH, height=height)


def _draw_bar(ax: Axes, place: int, row: Budget, count: str, color: str) -> None:
    before, training = (getattr(part, count) for part in (row.pretraining, row.training))
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
