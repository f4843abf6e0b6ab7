"""Panels of lines, from runs: their numbers, how they are drawn, and what the caption says."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis import BANDS
from scratch_vs_pretrain.analysis.figures.style import (
    LABEL_DISTANCE,
    ON_LINES,
    TEXT_SIZE,
    Style,
    add_caption,
    arm_styles,
    label_ends,
    new_figure,
    plain,
    shortened,
    write,
)
from scratch_vs_pretrain.analysis.runs import UNKNOWN, Records, RunRecord
from scratch_vs_pretrain.analysis.runs.numbers import curve, is_score
from scratch_vs_pretrain.analysis.stats.cost import cost
from scratch_vs_pretrain.analysis.stats.results import by_study, no_metric, scratch_arm
from scratch_vs_pretrain.errors import UserError, check_choice

Names = Sequence[str] | None
TASKS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint", "voc": "VOC box"}
BAND_SENTENCES = {
    "range": "band: lowest to highest seed.",
    "std": "band: one standard deviation to either side.",
}

# States whose curves are complete; of a plain Detectron2 folder the state is unknown.
COMPLETE = ("finished", UNKNOWN)

# Points of a logged curve under one median, so that about 60 independent ones are left.
SMOOTH_POINTS = 60
# More points of such a curve than a figure is pixels wide only make its file large.
MOST_POINTS = 600
MOST_MARKERS = 30

# Axes of AP begin at 0 below this, and where that leaves less than half of the panel empty.
LOW_AP = 10.0

DROP_COLOR = "0.75"
# A line that ends in this part of its panel's width has its label in the panel.
ROOM_FOR_LABEL = 0.7


@dataclass(frozen=True)
class Line:
    """One curve of a figure: the mean over complete runs, or one run that is not complete."""

    arm: str  # what the arm is called, see :func:`arm_names`
    style: Style
    schedule: str
    x: np.ndarray  # (n,) on the figure's axis
    mean: np.ndarray  # (n,) over seeds, at iterations that all seeds have
    low: np.ndarray  # (n,) lower edge of the band
    high: np.ndarray  # (n,) upper edge
    seeds: int  # runs behind it
    complete: bool = True  # False for a run that is not finished
    drops: tuple[float, ...] = ()  # where on the axis the learning rate drops
    # The schedule from which a branch has its first points; None elsewhere.
    trunk: str | None = None
    own: int = 0  # the first of its points that is not its trunk's


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: Sequence[Line] = ()
    over: str = ""  # what stands under it
    left: float | None = 0  # where its x axis begins; None leaves that to matplotlib
    score: bool = False  # its y axis is one of AP
    # Draws what is no line, before them.
    beside: Callable[[Axes], object] | None = None


def arm_names(runs: Records) -> dict[tuple[str, str], str]:
    """Returns what each (study, arm) is called: "study arm" where there are several studies."""
    several = len(by_study(runs)) > 1
    called = {}
    for run in runs:
        name = f"{run.study} {run.arm}" if several else run.arm
        called[run.study, run.arm] = run.study if run.arm == UNKNOWN else name
    return called


def styles_of(runs: Records) -> dict[str, Style]:
    """Returns the style of each arm by what it is called."""
    scratch = scratch_arm(runs) if len(by_study(runs)) == 1 else None
    return arm_styles(arm_names(runs).values(), scratch)


def choose_metrics(known: Collection[str], wanted: Names, runs: str = "run") -> tuple[str, ...]:
    """Returns the wanted metrics, by default the main AP of each task; refuses unknown ones."""
    main = ("bbox/AP", "segm/AP", "keypoints/AP")
    chosen = tuple(wanted) if wanted else tuple(metric for metric in main if metric in known)
    unknown = [metric for metric in chosen if metric not in known]
    if unknown or not chosen:
        raise no_metric(unknown, known, runs)
    return chosen


def of_schedule(runs: Records, schedule: str | None) -> list[RunRecord]:
    """Returns the runs of one schedule, which somebody must have trained, or of the longest."""
    if schedule is None:
        longest: dict[tuple[str, str], RunRecord] = {}
        for run in sorted(runs, key=lambda run: run.iterations):
            longest[run.study, run.arm] = run
        return [run for run in runs if run.schedule == longest[run.study, run.arm].schedule]
    found = [run for run in runs if run.schedule == schedule]
    if not found:
        there = ", ".join(dict.fromkeys(run.schedule for run in runs))
        raise UserError(f"no run has the schedule {schedule}; there is {there}")
    return found


def lines_of(runs: Records, metric: str, x: str, band: str) -> list[Line]:
    """Returns the metric's lines: per arm and schedule the mean, then each incomplete run."""
    check_choice("band", band, BANDS)
    called, styles = arm_names(runs), styles_of(runs)
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault((run.study, run.arm, run.schedule), []).append(run)
    whole = [[run for run in members if run.state in COMPLETE] for members in groups.values()]
    parts = [[run] for members in groups.values() for run in members if run.state not in COMPLETE]
    lines = []
    for some in filter(None, (*whole, *parts)):
        name = called[some[0].study, some[0].arm]
        lines.append(_line(name, styles[name], some, metric, x, band))
    return [line for line in lines if line is not None]


def _line(arm: str, style: Style, runs: Records, metric: str, x: str, band: str) -> Line | None:
    curves = {run.folder: curve(run, metric) for run in runs}
    runs = [run for run in runs if len(curves[run.folder].iterations)]
    found = [curves[run.folder] for run in runs]
    shared = functools.reduce(np.intersect1d, [one.iterations for one in found] or [np.empty(0)])
    if len(shared) == 0:
        return None
    values = np.stack([one.values[np.isin(one.iterations, shared)] for one in found], axis=1)
    if not is_score(metric):
        import pandas as pd

        window, every = 1 + len(values) // SMOOTH_POINTS, -(-len(shared) // MOST_POINTS)
        values = pd.DataFrame(values).rolling(window, min_periods=1).median().to_numpy()
        kept = slice((len(shared) - 1) % every, None, every)
        shared, values = shared[kept], values[kept]
    places = np.mean([cost(run, x, shared) for run in runs], axis=0)
    run = runs[0]
    if np.isnan(places).any():
        raise UserError(
            f"{run.folder}: does not say how many {x} an iteration has; draw it over iterations"
        )
    # A mean over runs; of one that stopped, those that it came to.
    drops = np.array([i for i in run.steps if i <= shared[-1]])
    at = np.mean([cost(one, x, drops) for one in runs], axis=0)
    copied = run.branch_of is not None and shared[0] <= run.branch_at
    return Line(
        arm,
        style,
        run.schedule,
        places,
        *band_of(values, band),
        complete=run.state in COMPLETE,
        drops=tuple(at[np.isfinite(at)].tolist()),
        trunk=run.branch_of if copied else None,
        own=int(np.searchsorted(shared, run.branch_at, side="right")) if copied else 0,
    )


def band_of(values: Any, band: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns mean, low, high and number of seeds of n places, each with values of some seeds."""
    mean = np.array([np.mean(each) for each in values])
    low, high = np.array([(min(each), max(each)) for each in values]).T
    if band == "std":
        reach = np.array([np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in values])
        low, high = mean - reach, mean + reach
    return mean, low, high, min(map(len, values))


def line_through(arm: str, style: Style, values: Mapping[Any, Sequence[float]], band: str) -> Line:
    """Returns the line through values of some seeds at each place."""
    return Line(arm, style, "", np.array([*values], float), *band_of([*values.values()], band))


def draw_panels(
    panels: Sequence[Panel],
    caption: Iterable[str],
    *,
    draw: Callable[[Axes, Line], None] | None = None,
    label: Callable[[Axes, Sequence[Line]], None] | None = None,
    **layout: Any,
) -> Figure:
    """Draws panels, given row by row, and then a caption.

    Args:
        draw: draws one line; default: :func:`draw_line` and where its rate drops.
        label: names the lines when all else is drawn; default: :func:`label_arms`.
        layout: of :func:`.new_figure`.
    """
    figure, axes = new_figure(len(panels) // layout.get("rows", 1), **layout)
    for ax, panel in zip(axes, panels, strict=True):
        if panel.beside:
            panel.beside(ax)
        if draw is None:
            _draw_drops(ax, panel.lines)
        for line in panel.lines:
            (draw or draw_line)(ax, line)
        ax.set_title(plain(panel.title), loc="left", fontsize=TEXT_SIZE)
        ax.set_xlabel(panel.over, fontsize=TEXT_SIZE)
        if panel.left is not None:
            ax.set_xlim(left=panel.left)
        low, high = ax.get_ylim()
        if panel.score and (low < 0.5 * high or high < LOW_AP):
            ax.set_ylim(bottom=0)
    add_caption(figure, caption)
    for ax, panel in zip(axes, panels, strict=True):
        if panel.lines:
            (label or label_arms)(ax, panel.lines)
    return figure


def draw_line(ax: Axes, line: Line, *, marked: bool = True, start: int = 0) -> None:
    """Draws a line with its band, from its point number `start` on."""
    x, color = line.x[start:], line.style.color
    ax.plot(
        x,
        line.mean[start:],
        color=color,
        marker=line.style.marker if marked and len(line.x) <= MOST_MARKERS else None,
        markersize=3,
        linewidth=1.4 if line.complete else 0.9,
        linestyle="-" if line.complete else "--",
    )
    if line.seeds > 1:
        low, high = line.low[start:], line.high[start:]
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_drops(ax: Axes, lines: Sequence[Line]) -> None:
    """Draws where rates drop: in grey what all arms share, the rest in the arm's colour."""
    first = _first_of_arms(lines)
    shared = len({line.drops for line in first}) == 1
    for line in first[: 1 if shared else None]:
        for place in line.drops:
            color = DROP_COLOR if shared else line.style.color
            ax.axvline(place, color=color, linewidth=0.8, linestyle=":", zorder=0)


def _first_of_arms(lines: Sequence[Line]) -> list[Line]:
    """Returns each arm's first line, which is complete if any is."""
    found: dict[str, Line] = {}
    for line in lines:
        found.setdefault(line.arm, line)
    return list(found.values())


def label_arms(ax: Axes, lines: Sequence[Line]) -> None:
    """Labels each arm once, at its first line's end; the limits of the axes must be final."""
    late = []
    for line in _first_of_arms(lines):
        x, y, color = line.x[-1], line.mean[-1], line.style.color
        if x < ROOM_FOR_LABEL * ax.get_xlim()[1]:
            look = {"fontsize": TEXT_SIZE, "color": color, **ON_LINES}
            write(ax, shortened(line.arm), (x, y), (LABEL_DISTANCE, 0), **look)
        else:
            late.append((y, line.arm, color))
    label_ends(ax, late)


def metric_title(metric: str) -> str:
    """Returns a metric's name for readers: "bbox/AP" is "Box AP (%)"."""
    task, _, name = metric.partition("/")
    if task in TASKS and is_score(metric):
        return f"{TASKS[task]} {name} (%)"
    return {"total_loss": "Training loss"}.get(metric, metric)


def subject(runs: Records, panels: Sequence[Panel]) -> str:
    """Names the studies and, for one schedule an arm, the schedules."""
    studies = ", ".join(by_study(runs))
    drawn = dict.fromkeys((line.arm, line.schedule) for p in panels for line in p.lines)
    found = {schedule for _, schedule in drawn} - {UNKNOWN}
    if not found or len({arm for arm, _ in drawn}) < len(drawn):
        return f"{studies}."
    if len(found) == 1:
        return f"{studies}, {found.pop()}."
    return f"{studies}: {', '.join(' '.join(each) for each in drawn)}."


def sentences(panels: Sequence[Panel], band: str) -> Iterator[str]:
    """Yields what a caption must say about lines."""
    lines = [line for panel in panels for line in panel.lines]
    complete = {line.seeds for line in lines if line.complete}
    if complete and max(complete) > 1:
        counts = " or ".join(map(str, sorted(complete)))
        yield f"Lines: mean of {counts} seeds; {BAND_SENTENCES[band]}"
    elif complete:
        yield "One run per line."
    if not all(line.complete for line in lines):
        yield "Dashed: runs that are not finished, one line each."
    # Medians of fewer points would be of single ones.
    if any(len(line.x) >= SMOOTH_POINTS for p in panels if not p.score for line in p.lines):
        yield "What training logs is smoothed by a running median."
