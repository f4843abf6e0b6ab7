"""A panel of lines: drawn, named, labelled, and what the caption says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from scratch_vs_pretrain.analysis.figures.lines import Line
from scratch_vs_pretrain.analysis.figures.style import TEXT_SIZE, Style, label_ends, label_point
from scratch_vs_pretrain.analysis.runs.metrics import is_score
from scratch_vs_pretrain.analysis.runs.records import UNKNOWN

TASKS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint", "voc": "VOC box"}
BAND_SENTENCES = {
    "range": "band: lowest to highest seed.",
    "std": "band: one standard deviation to either side.",
}
MOST_MARKERS = 30

# A line that ends in this part of its panel's width has its label in the panel.
ROOM_FOR_LABEL = 0.7


def draw_line(ax: Axes, line: Line, style: Style, *, marked: bool = True, start: int = 0) -> None:
    """Draws a line with its band, from its point number `start` on."""
    few = marked and len(line.x) <= MOST_MARKERS
    x = line.x[start:]
    ax.plot(
        x,
        line.mean[start:],
        color=style.color,
        marker=style.marker if few else None,
        markersize=3,
        linewidth=1.4 if line.complete else 0.9,
        linestyle="-" if line.complete else "--",
    )
    if line.seeds > 1:
        low, high = line.low[start:], line.high[start:]
        ax.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)


def name_axes(ax: Axes, title: str, x: str) -> None:
    """Says above the panel what it shows, and below over what."""
    ax.set_title(title, loc="left", fontsize=TEXT_SIZE)
    ax.set_xlabel(x, fontsize=TEXT_SIZE)


def metric_title(metric: str) -> str:
    """Returns a metric's name for readers: "bbox/AP" is "Box AP (%)"."""
    task, _, name = metric.partition("/")
    if task in TASKS and is_score(metric):
        return f"{TASKS[task]} {name} (%)"
    return {"total_loss": "Training loss"}.get(metric, metric)


def label_arms(ax: Axes, lines: Sequence[Line], styles: Mapping[str, Style]) -> None:
    """Labels each arm once, at its complete line's end where it has one.

    Args:
        ax: axes whose limits are final.
        lines: drawn in it.
        styles: of the arms.
    """
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.arm, line)
    _, right = ax.get_xlim()
    early = [line for line in first.values() if line.x[-1] < ROOM_FOR_LABEL * right]
    for line in early:
        label_point(ax, line.x[-1], line.mean[-1], line.arm, styles[line.arm].color)
    label_ends(
        ax,
        [
            (line.mean[-1], line.arm, styles[line.arm].color)
            for line in first.values()
            if line not in early
        ],
    )


def subject(frame: pd.DataFrame, panels: Iterable[Sequence[Line]]) -> str:
    """Names the studies and, for one schedule an arm, the schedules."""
    studies = ", ".join(frame.study.unique())
    schedules: dict[str, str] = {}
    for line in (line for lines in panels for line in lines):
        if schedules.setdefault(line.arm, line.schedule) != line.schedule:
            return f"{studies}."
    names = set(schedules.values()) - {UNKNOWN}
    if len(names) == 1:
        return f"{studies}, {names.pop()}."
    if names:
        return f"{studies}: {', '.join(f'{arm} {name}' for arm, name in schedules.items())}."
    return f"{studies}."


def sentences(panels: Iterable[Sequence[Line]], band: str, metrics: Iterable[str]) -> Iterator[str]:
    """Yields what a caption must say about lines."""
    lines = [line for panel in panels for line in panel]
    complete = {line.seeds for line in lines if line.complete}
    if complete and max(complete) > 1:
        counts = " or ".join(map(str, sorted(complete)))
        yield f"Lines: mean of {counts} seeds; {BAND_SENTENCES[band]}"
    elif complete:
        yield "One run per line."
    if not all(line.complete for line in lines):
        yield "Dashed: runs that are not finished, one line each."
    if not all(is_score(metric) for metric in metrics):
        yield "What training logs is smoothed by a running median."
