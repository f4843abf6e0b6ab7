"""AP and training loss versus the length of training (the paper's Figures 1, 3, 4 and 6 to 8)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from scratch_vs_pretrain.analysis.figures.panels import (
    DOTTED,
    ON_LINES,
    PAGE_WIDTH,
    ROW_HEIGHT,
    Line,
    Names,
    Panel,
    choose_metrics,
    draw_line,
    draw_panels,
    lines_of,
    metric_title,
    of_schedule,
    sentences,
    styles_of,
    subject,
    write,
    write_right,
)
from scratch_vs_pretrain.analysis.runs import Records
from scratch_vs_pretrain.analysis.runs.numbers import is_score, names
from scratch_vs_pretrain.analysis.stats.answer import Part
from scratch_vs_pretrain.analysis.stats.contrast import catch_up_text
from scratch_vs_pretrain.analysis.stats.cost import (
    axis_sentences,
    axis_title,
)
from scratch_vs_pretrain.analysis.stats.results import (
    by_study,
)
from scratch_vs_pretrain.errors import UserError

# Inches: a telephone shows it without making its text too small.
ANSWER_WIDTH = 4.4


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
