"""AP and training loss versus the length of training (the paper's Figures 1, 3, 4 and 6 to 8),
and the final gap at each IoU threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.lines import (
    TASKS,
    Line,
    begin_at_zero,
    draw_line,
    known_metrics,
    label_arms,
    line_of,
    lines_of,
    metric_title,
    name_axes,
    of_schedule,
    sentences,
    styles_of,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import (
    ON_LINES,
    PAGE_WIDTH,
    ROW_HEIGHT,
    Style,
    add_caption,
    arm_styles,
    label_ends,
    new_figure,
    write,
)
from scratch_vs_pretrain.analysis.runs.metrics import is_score
from scratch_vs_pretrain.analysis.runs.numbers import names
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import by_study, final_results, pairs
from scratch_vs_pretrain.analysis.stats.cost import axis_sentences, axis_title
from scratch_vs_pretrain.analysis.stats.lines import catch_up_text
from scratch_vs_pretrain.analysis.stats.part import Picture
from scratch_vs_pretrain.errors import UserError

HEIGHT = 2.9
# Inches: a telephone shows it without making its text too small.
ANSWER_WIDTH = 4.4
DROP_COLOR = "0.75"


def ap_figure(
    runs: Sequence[RunRecord],
    *,
    metrics: Sequence[str] | None = None,
    x: str = "iterations",
    band: str = "range",
    schedule: str | None = None,
) -> Figure:
    """Draws metrics versus the length of training, a panel each and a line per arm.

    Args:
        runs: any.
        metrics: default: box, mask and keypoint AP as far as they were evaluated.
        x: one of :data:`.analysis.AXES`.
        band: "range" (lowest to highest seed) or "std" (one standard deviation).
        schedule: default: the longest of each arm.

    Raises:
        UserError: a metric nobody logged, an unknown x, band or schedule, or x is not known.
    """
    chosen = of_schedule(runs, schedule)
    return _figure({"": chosen}, known_metrics(chosen, metrics), x, band)


def answer_figure(picture: Picture) -> Figure:
    """Draws an answer: both arms' curves with 95 % bands, and where scratch catches up."""
    figure, (ax,) = new_figure(1, width=ANSWER_WIDTH, height=3.0)
    scratch = next(iter(picture.curves), None)
    styles = arm_styles(picture.curves, scratch)
    lines = [
        Line(arm, "", band.iterations, band.mean, band.low, band.high, band.seeds)
        for arm, band in picture.curves.items()
        if len(band.iterations)
    ]
    for line in lines:
        draw_line(ax, line, styles[line.arm])
    for drop in picture.drops:
        ax.axvline(drop, color=DROP_COLOR, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    region, said = picture.catch_up, catch_up_text(picture.catch_up)
    # Where nothing is excluded, grey from end to end would say no more.
    first = min((float(line.x[0]) for line in lines), default=0.0)
    if region is not None and (first < region.low < np.inf or np.isfinite(region.high)):
        right = min(region.high, region.end)
        ax.axvspan(region.low, right, color="0.5", alpha=0.18, linewidth=0, zorder=0)
        said = f"{said} (grey)"
    name_axes(ax, metric_title(picture.metric), "iterations")
    seeds = sorted({line.seeds for line in lines})
    add_caption(
        figure,
        [
            f"{picture.title}, {_mean_of(seeds)}.",
            *([f"{scratch} {said}."] if said else []),
            *(["Dotted: the learning rate drops."] if picture.drops else []),
        ],
    )
    label_arms(ax, lines, styles)
    return figure


def _mean_of(seeds: Sequence[int]) -> str:
    if max(seeds, default=0) < 2:
        return "one seed" if seeds else "nothing finished"
    interval = " with its 95 % interval" if max(seeds) > 2 else ""
    return f"mean of {' or '.join(map(str, seeds))} seeds{interval}"


def loss_figure(
    runs: Sequence[RunRecord],
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
    metrics = known_metrics(runs, [*(metrics or [_main(runs)]), "total_loss"])
    studies = list(by_study(runs).values())
    if len(studies) == 1:
        return _figure({"": of_schedule(runs, schedule)}, metrics, x, band)
    studies.sort(key=lambda members: members[0].train_images or 0)
    sizes = [members[0].train_images for members in studies]
    told_apart = len(set(sizes)) == len(sizes) and None not in sizes
    rows = {
        f", {size:,} training images" if told_apart else f", {members[0].study}": of_schedule(
            members, schedule
        )
        for size, members in zip(sizes, studies, strict=True)
    }
    return _figure(rows, metrics, x, band)


def _main(runs: Sequence[RunRecord]) -> str:
    return "keypoints/AP" if any("keypoints/AP" in names(run) for run in runs) else "bbox/AP"


def _figure(
    rows: Mapping[str, Sequence[RunRecord]], metrics: Sequence[str], x: str, band: str
) -> Figure:
    """Draws a row of panels for some runs each; `rows` has the end of its panels' titles."""
    panels = [
        (styles_of(runs), title, metric, lines_of(runs, metric, x, band))
        for title, runs in rows.items()
        for metric in metrics
    ]
    everything = [run for runs in rows.values() for run in runs]
    height = HEIGHT + ROW_HEIGHT * (len(rows) - 1)
    figure, axes = new_figure(len(metrics), rows=len(rows), height=height)
    for ax, (styles, title, metric, lines) in zip(axes, panels, strict=True):
        _draw_drops(ax, lines, styles)
        for line in lines:
            draw_line(ax, line, styles[line.arm])
        last_row = ax in axes[-len(metrics) :]
        name_axes(ax, metric_title(metric) + title, axis_title(x, everything) if last_row else "")
        ax.set_xlim(left=0)
        if is_score(metric):
            begin_at_zero(ax)
    drawn = [lines for *_, lines in panels]
    dropped = any(line.drops for lines in drawn for line in lines)
    add_caption(
        figure,
        [
            subject(everything, drawn),
            *sentences(drawn, band, metrics),
            *(["Dotted: the learning rate drops."] if dropped else []),
            *axis_sentences(x, everything),
        ],
    )
    for ax, (styles, _, _, lines) in zip(axes, panels, strict=True):
        label_arms(ax, lines, styles)
    return figure


def _draw_drops(ax: Axes, lines: Sequence[Line], styles: Mapping[str, Style]) -> None:
    """Draws where rates drop: in grey what all arms share, the rest in the arm's colour."""
    mine: dict[str, tuple[float, ...]] = {}
    for line in lines:
        mine.setdefault(line.arm, line.drops)
    shared = len(set(mine.values())) == 1
    for arm, places in mine.items():
        for place in places:
            color = DROP_COLOR if shared else styles[arm].color
            ax.axvline(place, color=color, linewidth=0.8, linestyle=":", zorder=0)
        if shared:
            break


def overlay_figure(
    runs: Sequence[RunRecord],
    *,
    metrics: Sequence[str] | None = None,
    x: str = "iterations",
    band: str = "range",
) -> Figure:
    """Draws all finished schedules of all arms, with the leaps where their rates drop.

    A panel for each metric, by default the main one. What a branch has from its trunk is drawn
    once, as the trunk's, where that is finished.

    Raises:
        UserError: see :func:`ap_figure`; or no run is finished.
    """
    metrics = known_metrics(runs, metrics or [_main(runs)])
    panels = [
        [line for line in lines_of(runs, metric, x, band) if line.complete] for metric in metrics
    ]
    if not any(panels):
        raise UserError("no run here is finished; the overlay shows whole schedules")
    styles = styles_of(runs)
    figure, axes = new_figure(len(metrics), width=PAGE_WIDTH, height=3.6)
    for ax, metric, lines in zip(axes, metrics, panels, strict=True):
        whole = {(line.arm, line.schedule) for line in lines}
        for line in lines:
            _draw_whole(ax, line, styles[line.arm], shared=(line.arm, line.trunk) in whole)
        name_axes(ax, metric_title(metric), axis_title(x, runs))
        ax.set_xlim(left=0)
        ax.margins(y=0.08)
        if is_score(metric):
            begin_at_zero(ax)
    branches = any(line.own for lines in panels for line in lines)
    dots = "Dots: where a schedule leaves the constant-rate trunk that all longer ones share."
    add_caption(
        figure,
        [
            subject(runs, panels),
            *sentences(panels, band, metrics),
            *([dots] if branches else []),
            *axis_sentences(x, runs),
        ],
    )
    for ax, lines in zip(axes, panels, strict=True):
        _label_schedules(ax, lines, styles)
    return figure


def _draw_whole(ax: Axes, line: Line, style: Style, *, shared: bool) -> None:
    leaves = max(0, line.own - 1)  # The trunk's last point.
    draw_line(ax, line, style, marked=False, start=leaves if shared else 0)
    if line.own:
        ax.plot(line.x[leaves], line.mean[leaves], ".", markersize=5, color=style.color)
    ax.plot(line.x[-1], line.mean[-1], style.marker, markersize=4, color=style.color)


def _label_schedules(ax: Axes, lines: Sequence[Line], styles: Mapping[str, Style]) -> None:
    """Names the longest schedules right of the axes, the others at their ends inside."""
    longest = {line.arm: line for line in sorted(lines, key=lambda line: line.x[-1])}
    for line in lines:
        if line is not longest[line.arm]:
            rivals = [o.mean[-1] for o in lines if o.schedule == line.schedule and o is not line]
            above = not rivals or line.mean[-1] >= max(rivals)
            away, va = ((0, 5), "bottom") if above else ((0, -5), "top")
            look = {"ha": "center", "va": va, "color": styles[line.arm].color, **ON_LINES}
            write(ax, line.schedule, (line.x[-1], line.mean[-1]), away, **look)
    label_ends(
        ax,
        [
            (line.mean[-1], f"{line.arm} {line.schedule}", styles[line.arm].color)
            for line in longest.values()
        ],
    )


def iou_figure(runs: Sequence[RunRecord], *, band: str = "range") -> Figure:
    """Draws the final AP gap at each IoU threshold, scratch less each other arm, paired by seed.

    A gap that rises to the right says that pre-training helps localization least (the paper's
    third observation).

    Args:
        runs: of one study.
        band: over seeds.

    Raises:
        UserError: no finished pair with AP per threshold.
    """
    results = final_results(runs)
    scratch = results.scratch
    panels: dict[str, list[Line]] = {}
    styles = {}
    for arm in results.others:
        ends = [(one, results.longest(one).schedule) for one in (scratch, arm)]
        found = pairs(results, *ends)
        name = f"{scratch} - {arm}"
        styles[name] = styles_of(runs)[arm]
        for task in TASKS:
            metrics = sorted(m for a, _ in found for m in a.scores if m.startswith(f"{task}/AP@"))
            gaps = {
                metric: [
                    a.scores.get(metric, np.nan) - b.scores.get(metric, np.nan) for a, b in found
                ]
                for metric in metrics
            }
            gaps = {metric: values for metric, values in gaps.items() if np.isfinite(values).all()}
            if gaps:
                x = np.array([float(metric.partition("@")[2]) for metric in gaps])
                line = line_of(name, "", x, [np.array(each) for each in gaps.values()], band)
                panels.setdefault(task, []).append(line)
    if not panels:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )
    figure, axes = new_figure(len(panels))
    for ax, (task, lines) in zip(axes, panels.items(), strict=True):
        ax.axhline(0, color="0.5", linewidth=0.8)
        for line in lines:
            draw_line(ax, line, styles[line.arm])
        name_axes(ax, f"{TASKS[task]} AP gap", "IoU threshold")
    add_caption(
        figure,
        [
            f"{subject(runs, [])} Final AP at each arm's longest schedule, paired by seed; above "
            f"0, {scratch} is better.",
            *sentences(panels.values(), band, []),
        ],
    )
    for ax, lines in zip(axes, panels.values(), strict=True):
        label_arms(ax, lines, styles)
    return figure
