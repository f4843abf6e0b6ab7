"""All schedules in one panel, with the leaps where their rates drop (the paper's Figures 3, 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from scratch_vs_pretrain.analysis.figures.lines import Line, known_metrics, lines_of, named_arms
from scratch_vs_pretrain.analysis.figures.panels import (
    draw_line,
    metric_title,
    name_axes,
    sentences,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import (
    PAGE_WIDTH,
    SMALL_TEXT_SIZE,
    Style,
    add_caption,
    arm_styles,
    label_ends,
    new_figure,
)
from scratch_vs_pretrain.analysis.stats.cost import axis_sentences, axis_title
from scratch_vs_pretrain.errors import UserError


def overlay_figure(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    x: str = "iterations",
    band: str = "range",
) -> Figure:
    """Draws all finished schedules of all arms, a panel for each metric.

    What a branch has from its trunk is drawn once, as the trunk's, where that is finished.

    Args:
        frame: the tidy frame.
        metrics: default: the AP of boxes, of keypoints where there is one.
        x: as for :func:`.curves.ap_figure`.
        band: likewise.

    Raises:
        UserError: see :func:`.curves.ap_figure`; or no run is finished.
    """
    logged = set(frame[frame.value.notna()].metric)
    main = "keypoints/AP" if "keypoints/AP" in logged else "bbox/AP"
    metrics = known_metrics(frame, metrics or [main])
    frame = named_arms(frame)
    panels = [
        [line for line in lines_of(frame, metric, x, band) if line.complete] for metric in metrics
    ]
    if not any(panels):
        raise UserError("no run here is finished; the overlay shows whole schedules")
    styles = arm_styles(frame.arm.cat.categories)
    figure, axes = new_figure(len(metrics), width=PAGE_WIDTH, height=3.6)
    for ax, metric, lines in zip(axes, metrics, panels, strict=True):
        whole = {(line.arm, line.schedule) for line in lines}
        for line in lines:
            _draw(ax, line, styles[line.arm], shared=(line.arm, line.trunk) in whole)
        name_axes(ax, metric_title(metric), axis_title(x, frame))
        ax.set_xlim(left=0)
        ax.margins(y=0.08)
    add_caption(
        figure,
        [
            subject(frame, panels),
            *sentences(panels, band, metrics),
            *_on_branches([line for lines in panels for line in lines]),
            *axis_sentences(x, frame),
        ],
    )
    for ax, lines in zip(axes, panels, strict=True):
        _label_schedules(ax, lines, styles)
    return figure


def _draw(ax: Axes, line: Line, style: Style, *, shared: bool) -> None:
    leaves = max(0, line.own - 1)  # The trunk's last point.
    draw_line(ax, line, style, marked=False, start=leaves if shared else 0)
    if line.own:
        ax.plot(line.x[leaves], line.mean[leaves], ".", markersize=5, color=style.color)
    ax.plot(line.x[-1], line.mean[-1], style.marker, markersize=4, color=style.color)


def _on_branches(lines: Sequence[Line]) -> Iterator[str]:
    if any(line.own for line in lines):
        yield "Dots: where a schedule leaves the constant-rate trunk that all longer ones share."


def _label_schedules(ax: Axes, lines: Sequence[Line], styles: Mapping[str, Style]) -> None:
    """Names the longest schedules right of the axes, the others at their ends inside."""
    longest = {line.arm: line for line in sorted(lines, key=lambda line: line.x[-1])}
    for line in lines:
        if line is not longest[line.arm]:
            rivals = [o.mean[-1] for o in lines if o.schedule == line.schedule and o is not line]
            above = not rivals or line.mean[-1] >= max(rivals)
            ax.annotate(
                line.schedule,
                (line.x[-1], line.mean[-1]),
                xytext=(0, 5 if above else -5),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=SMALL_TEXT_SIZE,
                color=styles[line.arm].color,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
    label_ends(
        ax,
        [
            (line.mean[-1], f"{line.arm} {line.schedule}", styles[line.arm].color)
            for line in longest.values()
        ],
    )
