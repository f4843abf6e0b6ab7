"""Figures of curves: AP versus iteration (the paper's Figures 1, 3, 4, 6 to 8) and AP gap per IoU.

All take the tidy frame of :func:`scratch_vs_pretrain.analysis.runs.collect`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from scratch_vs_pretrain.analysis.drawing import (
    SMALL_TEXT_SIZE,
    TEXT_SIZE,
    Style,
    add_caption,
    arm_styles,
    label_ends,
    new_figure,
)
from scratch_vs_pretrain.analysis.lines import (
    Line,
    known_metrics,
    line_of,
    lines_of,
    named_arms,
    of_schedule,
    rate_drops,
)
from scratch_vs_pretrain.analysis.metrics_file import is_score
from scratch_vs_pretrain.analysis.runs import UNKNOWN
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically

TITLES = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
BAND_SENTENCES = {
    "range": "band: lowest to highest seed.",
    "std": "band: one standard deviation to either side.",
}
MOST_MARKERS = 30

FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": None}, "dpi": 200},
    ".svg": {"metadata": {"Date": None, "Creator": None}},
    ".pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}


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
        x: "iterations", "images" or "epochs".
        band: "range" (lowest to highest seed) or "std" (one standard deviation).
        schedule: default: the longest of each arm.

    Raises:
        UserError: a metric nobody logged, an unknown x, band or schedule, or x is not known.
    """
    metrics = known_metrics(frame, metrics)
    frame = of_schedule(named_arms(frame), schedule)
    panels = [lines_of(frame, metric, x, band) for metric in metrics]
    drops = rate_drops(frame, x)
    styles = arm_styles(frame.arm.cat.categories)
    figure, axes = new_figure(len(metrics))
    for ax, metric, lines in zip(axes, metrics, panels, strict=True):
        for drop in drops:
            ax.axvline(drop, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
        for line in lines:
            _draw(ax, line, styles[line.arm])
        _name_axes(ax, _title(metric), x)
        ax.set_xlim(left=0)
        if is_score(metric) and ax.get_ylim()[0] < 0.3 * ax.get_ylim()[1]:
            ax.set_ylim(bottom=0)
    add_caption(figure, [_subject(frame, panels), *_caption(panels, band, drops, metrics)])
    for ax, lines in zip(axes, panels, strict=True):
        _label_arms(ax, lines, styles)
    return figure


def loss_figure(frame: pd.DataFrame, **options: str) -> Figure:
    """Draws box AP and training loss side by side (Figures 7 and 8); options of `ap_figure`."""
    return ap_figure(frame, metrics=("bbox/AP", "total_loss"), **options)  # type: ignore[arg-type]


def overlay_figure(
    frame: pd.DataFrame, *, metric: str = "bbox/AP", x: str = "iterations", band: str = "range"
) -> Figure:
    """Draws all schedules of all arms in one panel, leaps at the rate drops included (3, 4).

    Raises:
        UserError: see :func:`ap_figure`.
    """
    known_metrics(frame, [metric])
    frame = named_arms(frame)
    lines = [line for line in lines_of(frame, metric, x, band) if line.complete]
    if not lines:
        raise UserError("no run here is finished; the overlay shows whole schedules")
    styles = arm_styles(frame.arm.cat.categories)
    figure, (ax,) = new_figure(1, width=7.2, height=3.6)
    for line in lines:
        style = styles[line.arm]
        _draw(ax, line, style, marked=False)
        ax.plot(line.x[-1], line.mean[-1], style.marker, markersize=4, color=style.color)
    _name_axes(ax, _title(metric), x)
    ax.set_xlim(left=0)
    add_caption(figure, [_subject(frame, []), *_caption([lines], band, [], [metric])])
    _label_schedules(ax, lines, styles)
    return figure


def iou_figure(frame: pd.DataFrame, *, scratch: str = "scratch") -> Figure:
    """Draws the final AP gap scratch - pretrained at each IoU threshold, paired by seed.

    A gap that rises to the right says that pre-training helps localization least.

    Raises:
        UserError: no finished pair with AP per threshold.
    """
    finals = _final_ap_per_iou(frame)
    pairs = finals[finals.arm != scratch].merge(
        finals[finals.arm == scratch], on=["seed", "task", "iou"], suffixes=("", "_scratch")
    )
    if pairs.empty:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )
    pairs["gap"] = pairs.value_scratch - pairs.value
    tasks = [task for task in TITLES if task in set(pairs.task)]
    styles = arm_styles(frame.arm.cat.categories)
    figure, axes = new_figure(len(tasks))
    panels: list[list[Line]] = []
    for ax, task in zip(axes, tasks, strict=True):
        panels.append([])
        ax.axhline(0, color="0.5", linewidth=0.8)
        for arm, group in pairs[pairs.task == task].groupby("arm", observed=True):
            table = group.pivot(index="iou", columns="seed", values="gap").dropna()
            line = line_of(str(arm), "", table.index.to_numpy(), table, "range", True)
            _draw(ax, line, styles[line.arm])
            panels[-1].append(line)
        _name_axes(ax, f"{TITLES[task]} AP gap", "IoU threshold")
    gap = f"{_subject(frame, [])} AP of {scratch} less that of the arm named, final evaluation."
    add_caption(figure, [gap, *_caption(panels, "range", [], [])])
    for ax, lines in zip(axes, panels, strict=True):
        _label_arms(ax, lines, styles)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF by the path's ending; equal figures give equal bytes.

    Raises:
        UserError: another ending, or the folder is missing or cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: figures are written as {', '.join(FORMATS)}; choose one of them")
    try:
        write_atomically(path, figure_bytes(figure, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Returns a figure in the format of an ending of :data:`FORMATS`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scratch_vs_pretrain", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=ending[1:], **FORMATS[ending])
    return buffer.getvalue()


def _final_ap_per_iou(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows "bbox/AP@0.75" of each arm's longest schedule with task and iou."""
    parts = frame.metric.astype(str).str.extract(r"^([^/]+)/AP@([0-9.]+)$")
    frame = frame.assign(task=parts[0], iou=parts[1].astype(float))
    frame = frame[frame.iou.notna() & (frame.state == "finished")]
    last = frame.groupby("arm", observed=True).iteration.transform("max")
    return frame[frame.iteration == last].dropna(subset=["value"])


def _draw(ax: Axes, line: Line, style: Style, *, marked: bool = True) -> None:
    few = marked and len(line.x) <= MOST_MARKERS
    ax.plot(
        line.x,
        line.mean,
        color=style.color,
        marker=style.marker if few else None,
        markersize=3,
        linewidth=1.4 if line.complete else 0.9,
        linestyle="-" if line.complete else "--",
    )
    if line.seeds > 1:
        ax.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.2, linewidth=0)


def _name_axes(ax: Axes, title: str, x: str) -> None:
    ax.set_title(title, loc="left", fontsize=TEXT_SIZE)
    ax.set_xlabel(x, fontsize=TEXT_SIZE)


def _title(metric: str) -> str:
    task, _, name = metric.partition("/")
    if task in TITLES and is_score(metric):
        return f"{TITLES[task]} {name} (%)"
    return {"total_loss": "Training loss"}.get(metric, metric)


def _label_arms(ax: Axes, lines: Sequence[Line], styles: dict[str, Style]) -> None:
    """Labels each arm once, at its complete line's end where it has one."""
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.arm, line)
    label_ends(ax, [(line.mean[-1], line.arm, styles[line.arm].color) for line in first.values()])


def _label_schedules(ax: Axes, lines: Sequence[Line], styles: dict[str, Style]) -> None:
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


def _subject(frame: pd.DataFrame, panels: Sequence[Sequence[Line]]) -> str:
    """Names the study and, for one schedule an arm, the schedules."""
    studies = ", ".join(frame.study.unique())
    schedules = {line.arm: line.schedule for lines in panels for line in lines}
    names = set(schedules.values()) - {UNKNOWN}
    if len(names) == 1:
        return f"{studies}, {names.pop()}."
    if names:
        return f"{studies}: {', '.join(f'{arm} {name}' for arm, name in schedules.items())}."
    return f"{studies}."


def _caption(
    panels: Sequence[Sequence[Line]], band: str, drops: Iterable[float], metrics: Iterable[str]
) -> Iterator[str]:
    lines = [line for panel in panels for line in panel]
    complete = {line.seeds for line in lines if line.complete}
    if complete and max(complete) > 1:
        counts = " or ".join(map(str, sorted(complete)))
        yield f"Lines: mean of {counts} seeds; {BAND_SENTENCES[band]}"
    elif complete:
        yield "One run per line."
    if not all(line.complete for line in lines):
        yield "Dashed: runs that are not finished, one line each."
    if drops:
        yield "Dotted: the learning rate drops."
    if not all(is_score(metric) for metric in metrics):
        yield "What training logs is smoothed by a running median."
