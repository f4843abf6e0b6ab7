"""AP and training loss versus the length of training (the paper's Figures 1 and 6 to 8).

Takes the tidy frame of :func:`.runs.collect`; with the columns of :func:`.costs.with_costs` the
axis can also be a cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.lines import (
    Line,
    known_metrics,
    lines_of,
    named_arms,
    of_schedule,
    rate_drops,
)
from scratch_vs_pretrain.analysis.figures.panels import (
    draw_line,
    label_arms,
    metric_title,
    name_axes,
    sentences,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import (
    ROW_HEIGHT,
    Style,
    add_caption,
    arm_styles,
    new_figure,
)
from scratch_vs_pretrain.analysis.runs.metrics import is_score
from scratch_vs_pretrain.analysis.stats.cost import axis_sentences, axis_title

HEIGHT = 2.9
DROP_COLOR = "0.75"


def ap_figure(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    x: str = "iterations",
    band: str = "range",
    schedule: str | None = None,
) -> Figure:
    """Draws metrics versus the length of training, a panel each and a line per arm.

    Args:
        frame: the tidy frame.
        metrics: default: box, mask and keypoint AP as far as they were evaluated.
        x: one of :data:`.costs.X_AXES`.
        band: "range" (lowest to highest seed) or "std" (one standard deviation).
        schedule: default: the longest of each arm.

    Raises:
        UserError: a metric nobody logged, an unknown x, band or schedule, or x is not known.
    """
    metrics = known_metrics(frame, metrics)
    return _figure({"": of_schedule(named_arms(frame), schedule)}, metrics, x, band)


def loss_figure(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    x: str = "iterations",
    band: str = "range",
    schedule: str | None = None,
) -> Figure:
    """Draws AP and training loss side by side, a row for each study (Figures 7 and 8).

    Studies with fewer training images stand higher. Arguments are those of :func:`ap_figure`; by
    default the AP is that of boxes, of keypoints where there is one.

    Raises:
        UserError: see :func:`ap_figure`.
    """
    logged = set(frame[frame.value.notna()].metric)
    main = "keypoints/AP" if "keypoints/AP" in logged else "bbox/AP"
    metrics = known_metrics(frame, [*(metrics or [main]), "total_loss"])
    if frame.study.nunique() == 1:
        return _figure({"": of_schedule(named_arms(frame), schedule)}, metrics, x, band)
    studies = [
        (part.images.div(part.epochs).max(), str(name), part)
        for name, part in frame.groupby("study", observed=True, sort=False)
    ]
    sizes = {size for size, *_ in studies}
    told_apart = len(sizes) == len(studies) and not any(map(pd.isna, sizes))
    rows = {
        f", {size:,.0f} training images" if told_apart else f", {name}": of_schedule(
            named_arms(part), schedule
        )
        for size, name, part in sorted(studies, key=lambda study: study[:2])
    }
    return _figure(rows, metrics, x, band)


def _figure(rows: dict[str, pd.DataFrame], metrics: Sequence[str], x: str, band: str) -> Figure:
    """Draws a row of panels for each frame; `rows` has the end of its panels' titles."""
    panels = [
        (frame, title, metric, lines_of(frame, metric, x, band))
        for title, frame in rows.items()
        for metric in metrics
    ]
    everything = pd.concat(rows.values())
    styles = arm_styles(dict.fromkeys(a for f in rows.values() for a in f.arm.cat.categories))
    height = HEIGHT + ROW_HEIGHT * (len(rows) - 1)
    figure, axes = new_figure(len(metrics), rows=len(rows), height=height)
    dropped = False
    for ax, (frame, title, metric, lines) in zip(axes, panels, strict=True):
        dropped |= _draw_drops(ax, lines, rate_drops(frame, x), styles)
        for line in lines:
            draw_line(ax, line, styles[line.arm])
        last_row = ax in axes[-len(metrics) :]
        name_axes(ax, metric_title(metric) + title, axis_title(x, everything) if last_row else "")
        ax.set_xlim(left=0)
        if is_score(metric) and ax.get_ylim()[0] < 0.3 * ax.get_ylim()[1]:
            ax.set_ylim(bottom=0)
    drawn = [lines for *_, lines in panels]
    add_caption(
        figure,
        [
            subject(everything, drawn),
            *sentences(drawn, band, metrics),
            *(["Dotted: the learning rate drops."] if dropped else []),
            *axis_sentences(x, everything),
        ],
    )
    for ax, lines in zip(axes, drawn, strict=True):
        label_arms(ax, lines, styles)
    return figure


def _draw_drops(
    ax: Axes,
    lines: Sequence[Line],
    drops: dict[str, tuple[float, ...]],
    styles: dict[str, Style],
) -> bool:
    """Draws where rates drop: in grey what all arms share, the rest in the arm's colour."""
    mine = {line.arm: drops.get(line.arm, ()) for line in lines}
    shared = len(set(mine.values())) == 1
    for arm, places in mine.items():
        for place in places:
            color = DROP_COLOR if shared else styles[arm].color
            ax.axvline(place, color=color, linewidth=0.8, linestyle=":", zorder=0)
        if shared:
            break
    return any(mine.values())
