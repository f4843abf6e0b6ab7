"""Figures of numbers: curves over training, final AP as bars or by images or IoU, samples seen."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from scratch_vs_pretrain.analysis.figures.panels import (
    DOTTED,
    ON_LINES,
    PAGE_WIDTH,
    ROW_HEIGHT,
    TASKS,
    TEXT_SIZE,
    Line,
    Names,
    Panel,
    Style,
    arm_styles,
    choose_metrics,
    draw_line,
    draw_panels,
    line_through,
    lines_of,
    metric_title,
    of_schedule,
    plain,
    sentences,
    short_number,
    shortened,
    styles_of,
    subject,
    write,
    write_right,
)
from scratch_vs_pretrain.analysis.runs import Records, grouped
from scratch_vs_pretrain.analysis.runs.numbers import is_score, names
from scratch_vs_pretrain.analysis.stats.answer import Part
from scratch_vs_pretrain.analysis.stats.contrast import catch_up_text, worth_in_images
from scratch_vs_pretrain.analysis.stats.cost import (
    COUNTED,
    Budgets,
    axis_sentences,
    axis_title,
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
from scratch_vs_pretrain.errors import UserError

# Inches: a telephone shows it without making its text too small.
ANSWER_WIDTH = 4.4

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


def ap_figure(
    runs: Records,
    *,
    metrics: Names = None,
    x: str = "iterations",
    band: str = "range",
    schedule: str | None = None,
) -> Figure:
    """Draws metrics versus the length of training, a panel each and a line per arm (Figure 1).

    Args:
        runs: any.
        metrics: default: box, mask and keypoint AP as far as they were evaluated.
        x: one of :data:`.analysis.AXES`.
        band: "range" (lowest to highest seed) or "std" (one standard deviation).
        schedule: default: the longest of each arm.
    """
    chosen = of_schedule(runs, schedule)
    panels = _panels({"": chosen}, _known(chosen, metrics), x, band)
    return draw_panels(panels, _caption(chosen, panels, x, band))


def loss_figure(
    runs: Records,
    *,
    metrics: Names = None,
    x: str = "iterations",
    band: str = "range",
    schedule: str | None = None,
) -> Figure:
    """Draws AP and training loss side by side, a row for each study (Figures 7 and 8).

    Studies with fewer training images stand higher; by default the AP is that of boxes, of
    keypoints where there is one.
    """
    metrics = _known(runs, [*(metrics or [_main(runs)]), "total_loss"])
    studies = sorted(by_study(runs).values(), key=lambda members: members[0].train_images or 0)
    sizes = [members[0].train_images for members in studies]
    told_apart = len(set(sizes)) == len(sizes) and None not in sizes
    rows = {}
    for size, members in zip(sizes, studies, strict=True):
        about = f", {size:,} training images" if told_apart else f", {members[0].study}"
        rows[about if len(studies) > 1 else ""] = of_schedule(members, schedule)
    panels = _panels(rows, metrics, x, band)
    caption = _caption([*itertools.chain(*rows.values())], panels, x, band)
    return draw_panels(panels, caption, rows=len(rows), height=2.9 + ROW_HEIGHT * (len(rows) - 1))


def _known(runs: Records, metrics: Names) -> tuple[str, ...]:
    return choose_metrics({name for run in runs for name in names(run)}, metrics)


def _main(runs: Records) -> str:
    return "keypoints/AP" if any("keypoints/AP" in names(run) for run in runs) else "bbox/AP"


def _panels(rows: Mapping[str, Records], metrics: Sequence[str], x: str, band: str) -> list[Panel]:
    """Returns a row of panels for some runs each; `rows` has the end of its panels' titles."""
    everything = [*itertools.chain(*rows.values())]
    *_, last = rows
    return [
        Panel(
            metric_title(metric) + title,
            lines_of(runs, metric, x, band),
            axis_title(x, everything) if title == last else "",
            score=is_score(metric),
        )
        for title, runs in rows.items()
        for metric in metrics
    ]


def _caption(
    runs: Records, panels: Sequence[Panel], x: str, band: str, *more: str
) -> tuple[str, ...]:
    about = (subject(runs, panels), *sentences(panels, band))
    return (*about, *more, *axis_sentences(x, runs))


def overlay_figure(
    runs: Records, *, metrics: Names = None, x: str = "iterations", band: str = "range"
) -> Figure:
    """Draws all finished schedules of all arms, with the leaps where their rates drop (Figure 3).

    A panel for each metric, by default the main one. What a branch has from its trunk is drawn
    once, as the trunk's, where that is finished.
    """
    panels = [
        replace(
            panel,
            lines=[replace(line, drops=()) for line in panel.lines if line.complete],
            beside=lambda ax: ax.margins(y=0.08),
        )
        for panel in _panels({"": runs}, _known(runs, metrics or [_main(runs)]), x, band)
    ]
    lines = [line for panel in panels for line in panel.lines]
    if not lines:
        raise UserError("no run here is finished; the overlay shows whole schedules")
    whole = {(line.arm, line.schedule) for line in lines}

    def draw(ax: Axes, line: Line) -> None:
        leaves = max(0, line.own - 1)  # The trunk's last point.
        shared = (line.arm, line.trunk) in whole
        draw_line(ax, line, marked=False, start=leaves if shared else 0)
        marks = [(leaves, ".", 5)] if line.own else []
        for at, marker, size in (*marks, (-1, line.style.marker, 4)):
            color = line.style.color
            ax.plot(line.x[at], line.mean[at], marker, markersize=size, color=color)

    dots = "Dots: where a schedule leaves the constant-rate trunk that all longer ones share."
    caption = _caption(runs, panels, x, band, *([dots] if any(e.own for e in lines) else []))
    look = {"width": PAGE_WIDTH, "height": 3.6}
    return draw_panels(panels, caption, draw=draw, label=_label_schedules, **look)


def _label_schedules(ax: Axes, lines: Sequence[Line]) -> list[Annotation]:
    """Names the longest schedules right of the axes, the others at their ends inside."""
    longest = {line.arm: line for line in sorted(lines, key=lambda line: line.x[-1])}
    for line in lines:
        if line is not longest[line.arm]:
            alike = [other.mean[-1] for other in lines if other.schedule == line.schedule]
            above = line.mean[-1] >= max(alike)
            away, va = ((0, 5), "bottom") if above else ((0, -5), "top")
            look = {"ha": "center", "va": va, "color": line.style.color, **ON_LINES}
            write(ax, line.schedule, (line.x[-1], line.mean[-1]), away, **look)
    return [
        write_right(ax, f"{end.arm} {end.schedule}", end.mean[-1], end.style.color)
        for end in longest.values()
    ]


def answer_figure(part: Part) -> Figure:
    """Draws an answer: both arms' curves with 95 % bands, and where scratch catches up.

    One of the arms has a curve, or there is nothing to draw.
    """
    scratch, *_ = part.curves
    styles = styles_of(part.setting.results.runs)
    lines = [
        Line(arm, styles[arm], b.iterations, b.mean, b.low, b.high, b.seeds, drops=part.drops)
        for arm, b in part.curves.items()
        if len(b.iterations)
    ]
    region, said = part.judged.catch_up, catch_up_text(part.judged.catch_up)
    grey = None
    # Where nothing is excluded, grey from end to end would say no more.
    first = min(float(line.x[0]) for line in lines)
    if region and (first < region.low < np.inf or np.isfinite(region.high)):
        look: dict[str, Any] = {"color": "0.5", "alpha": 0.18, "linewidth": 0, "zorder": 0}
        grey = partial(Axes.axvspan, xmin=region.low, xmax=min(region.high, region.end), **look)
    panel = Panel(metric_title(part.setting.metric), lines, "iterations", score=True, beside=grey)
    seeds = sorted({line.seeds for line in lines})
    mean = f"mean of {' or '.join(map(str, seeds))} seeds" if seeds[-1] > 1 else "one seed"
    caption = [
        f"{part.title}, {mean}{' with its 95 % interval' if seeds[-1] > 2 else ''}.",
        *([f"{scratch} {said}{' (grey)' if grey else ''}."] if said else []),
        *([DOTTED] if part.drops else []),
    ]
    return draw_panels([panel], caption, width=ANSWER_WIDTH, height=3.0)


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
