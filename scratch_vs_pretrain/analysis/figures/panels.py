"""What all figures share: colours, lines of runs, axes, labels, captions and files.

No pyplot, no global state.
"""

import io
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scratch_vs_pretrain.analysis import BANDS
from scratch_vs_pretrain.analysis.runs import UNKNOWN, Records, RunRecord, grouped
from scratch_vs_pretrain.analysis.runs.numbers import curve, is_score
from scratch_vs_pretrain.analysis.stats.comparable import scratch_arm
from scratch_vs_pretrain.analysis.stats.cost import cost
from scratch_vs_pretrain.analysis.stats.results import by_study, no_metric
from scratch_vs_pretrain.errors import UserError, check_choice, writable
from scratch_vs_pretrain.run_folder import write_atomically
from scratch_vs_pretrain.text import printable_lines

# Okabe and Ito's palette, without the yellow that white paper swallows. Scratch is always the
# first; the others take theirs in the study's order. Markers tell them apart without colour.
SCRATCH_COLOR = "#D55E00"
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SCRATCH_MARKER = "o"
MARKERS = ("s", "^", "D", "v", "P", "X")

# Inches: a column and the text of a two-column page. Text has its size in points there.
COLUMN_WIDTH = 3.44
PAGE_WIDTH = 6.88
ROW_HEIGHT = 2.0

TEXT_SIZE = 9
SMALL_TEXT_SIZE = 8
LINE_HEIGHT = 1.2 * TEXT_SIZE
LABEL_WIDTH = 18
LABEL_LINES = 3

# Points: a label stands so far right of its line's end.
LABEL_DISTANCE = 6

# Of texts that lines may cross.
ON_LINES = {"path_effects": [withStroke(linewidth=2.5, foreground="white")]}

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
DOTTED = "Dotted: the learning rate drops."
# A line that ends in this part of its panel's width has its label in the panel.
ROOM_FOR_LABEL = 0.7

FILES: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": None}, "dpi": 200},
    ".svg": {"metadata": {"Date": None, "Creator": None}},
    ".pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}


class ShownFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return figure_bytes(self, ".png"), {"width": round(100 * self.get_figwidth())}


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure."""

    color: str
    marker: str


@dataclass(frozen=True)
class Line:
    """One curve of a figure: the mean over complete runs, or one run that is not complete."""

    arm: str  # what the arm is called, see :func:`arm_names`
    style: Style
    x: np.ndarray  # (n,) on the figure's axis
    mean: np.ndarray  # (n,) over seeds, at iterations that all seeds have
    low: np.ndarray  # (n,) lower edge of the band
    high: np.ndarray  # (n,) upper edge
    seeds: int  # runs behind it
    schedule: str = ""
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


def arm_styles(arms: Iterable[str], scratch: str | None = "scratch") -> dict[str, Style]:
    """Returns each arm's style; `arms` in the study's order, `scratch` the one from scratch."""
    others = itertools.cycle(map(Style, COLORS, MARKERS))
    first = Style(SCRATCH_COLOR, SCRATCH_MARKER)
    return {arm: first if arm == scratch else next(others) for arm in arms}


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
        by_length = sorted(runs, key=lambda run: run.iterations)
        longest = {(run.study, run.arm): run.schedule for run in by_length}
        return [run for run in runs if run.schedule == longest[run.study, run.arm]]
    found = [run for run in runs if run.schedule == schedule]
    if not found:
        there = ", ".join(dict.fromkeys(run.schedule for run in runs))
        raise UserError(f"no run has the schedule {schedule}; there is {there}")
    return found


def lines_of(runs: Records, metric: str, x: str, band: str) -> list[Line]:
    """Returns the metric's lines: per arm and schedule the mean, then each incomplete run."""
    check_choice("band", band, BANDS)
    called, styles = arm_names(runs), styles_of(runs)
    whole = [run for run in runs if run.state in COMPLETE]
    groups = grouped(whole, lambda run: (run.study, run.arm, run.schedule)).values()
    lines: list[Line] = []
    for some in (*groups, *([run] for run in runs if run.state not in COMPLETE)):
        name = called[some[0].study, some[0].arm]
        lines += _line(name, styles[name], some, metric, x, band)
    return lines


def _line(arm: str, style: Style, runs: Records, metric: str, x: str, band: str) -> Iterator[Line]:
    """Yields the line through runs of one schedule, unless they have no iteration in common."""
    curves = {run.folder: curve(run, metric) for run in runs}
    runs = [run for run in runs if len(curves[run.folder].values)]
    found = [pd.Series(one.values, one.iterations) for one in curves.values() if len(one.values)]
    values = pd.DataFrame(dict(enumerate(found))).dropna()
    if values.empty:
        return
    if not is_score(metric):
        window, every = 1 + len(values) // SMOOTH_POINTS, -(-len(values) // MOST_POINTS)
        smooth = values.rolling(window, min_periods=1).median()
        values = smooth.iloc[(len(values) - 1) % every :: every]
    shared = values.index.to_numpy()
    values.index = np.mean([cost(run, x, shared) for run in runs], axis=0)
    run = runs[0]
    if values.index.hasnans:
        raise UserError(
            f"{run.folder}: does not say how many {x} an iteration has; draw it over iterations"
        )
    # A mean over runs; of one that stopped, those that it came to.
    drops = np.array([i for i in run.steps if i <= shared[-1]])
    at = np.mean([cost(one, x, drops) for one in runs], axis=0)
    copied = run.branch_of is not None and shared[0] <= run.branch_at
    yield line_through(
        arm,
        style,
        values,
        band,
        schedule=run.schedule,
        complete=run.state in COMPLETE,
        drops=tuple(at[np.isfinite(at)].tolist()),
        trunk=run.branch_of if copied else None,
        own=int(np.searchsorted(shared, run.branch_at, side="right")) if copied else 0,
    )


def line_through(arm: str, style: Style, values: pd.DataFrame, band: str, **more: Any) -> Line:
    """Returns the line through values of some seeds, a column for each, by place on the x axis."""
    mean, low, high = (values.agg(how, axis=1).to_numpy() for how in ("mean", "min", "max"))
    if band == "std":
        reach = values.std(axis=1).fillna(0.0).to_numpy()  # of one seed: unknown
        low, high = mean - reach, mean + reach
    seeds = int(values.count(axis=1).min())
    return Line(arm, style, values.index.to_numpy(float), mean, low, high, seeds, **more)


def new_figure(
    columns: int, *, rows: int = 1, width: float | None = None, height: float = 2.9
) -> tuple[Figure, list[Axes]]:
    """Returns a figure that is to be printed at its own size, and its axes row by row.

    Without a width, in inches, a column of the page is for one panel and the page for more, of
    which no more than two stand in a row. The height is of the first row with the caption.
    """
    panels = rows * columns
    if width is None:
        width = COLUMN_WIDTH if columns == 1 else PAGE_WIDTH
        if rows == 1 and columns > 2:
            columns, rows = 2, -(-columns // 2)
            height += (rows - 1) * ROW_HEIGHT
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    for ax in figure.subplots(rows, columns, squeeze=False).flat[panels:]:
        ax.remove()
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.margins(x=0.02)
        ax.tick_params(labelsize=SMALL_TEXT_SIZE, color="0.6")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    return figure, figure.axes


def short_number(value: float) -> str:
    """Formats a count for an axis: 540000 as "540k", 2.88e6 as "2.88M", 1200 as it is."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def add_caption(figure: Figure, sentences: Iterable[str]) -> None:
    """Prints a caption under the axes, wrapped to the figure's width."""
    width = int(figure.get_figwidth() * 72 / (0.58 * SMALL_TEXT_SIZE))
    lines = "\n".join(wrapped(" ".join(sentences), width, separators=" "))
    look = {"fontsize": SMALL_TEXT_SIZE, "color": "0.35", "ha": "left", "ma": "left"}
    figure.supxlabel(plain(lines), x=0.01, **look)


def draw_panels(
    panels: Sequence[Panel],
    caption: Iterable[str],
    *,
    draw: Callable[[Axes, Line], None] | None = None,
    label: Callable[[Axes, Sequence[Line]], Sequence[Annotation]] | None = None,
    **layout: Any,
) -> Figure:
    """Draws panels, given row by row, and then a caption.

    Args:
        draw: draws one line; default: :func:`draw_line`.
        label: names lines when all else is drawn, and returns the names right of the axes;
            default: :func:`label_arms`.
        layout: of :func:`.new_figure`.
    """
    figure, axes = new_figure(len(panels) // layout.get("rows", 1), **layout)
    for ax, panel in zip(axes, panels, strict=True):
        if panel.beside:
            panel.beside(ax)
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
    label = label or label_arms
    move_apart(figure, [label(ax, p.lines) for ax, p in zip(axes, panels, strict=True)])
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
    arms = [line.arm for line in lines]
    return [line for k, line in enumerate(lines) if line.arm not in arms[:k]]


def label_arms(ax: Axes, lines: Sequence[Line]) -> list[Annotation]:
    """Labels each arm once, at its first line's end; returns the labels right of the axes."""
    late = []
    for line in _first_of_arms(lines):
        x, y, color = line.x[-1], line.mean[-1], line.style.color
        if x < ROOM_FOR_LABEL * ax.get_xlim()[1]:
            look = {"fontsize": TEXT_SIZE, "color": color, **ON_LINES}
            write(ax, shortened(line.arm), (x, y), (LABEL_DISTANCE, 0), **look)
        else:
            late.append(write_right(ax, line.arm, y, color))
    return late


def write(
    ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float], **more: Any
) -> Annotation:
    """Writes a text some points `away` from a place; `more` are matplotlib's properties."""
    look = {"fontsize": SMALL_TEXT_SIZE, "linespacing": 1.0, "va": "center", **more}
    return ax.annotate(plain(text), at, xytext=away, textcoords="offset points", **look)


def write_right(ax: Axes, text: str, y: float, color: str) -> Annotation:
    """Writes a label right of axes, whose limits must be final, beside a line's end at `y`."""
    look = {"color": color, "fontsize": TEXT_SIZE, "annotation_clip": False}
    return write(ax, shortened(text), (ax.get_xlim()[1], y), (LABEL_DISTANCE, 0), **look)


def move_apart(figure: Figure, labels: Sequence[Sequence[Annotation]]) -> None:
    """Moves labels right of the axes, given by panel, up and down until none collide."""
    layout = figure.get_layout_engine()
    if layout and any(labels):
        # It gives the axes their final height, which the spacing needs in points.
        layout.execute(figure)
    for ax, notes in zip(figure.axes, labels, strict=True):
        heights = [LINE_HEIGHT * (note.get_text().count("\n") + 1) for note in notes]
        places = [ax.transData.transform(note.xy)[1] * 72 / figure.dpi for note in notes]
        for note, place, moved in zip(notes, places, spread(places, heights), strict=True):
            note.xyann = (LABEL_DISTANCE, moved - place)


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Moves labels of some heights apart with the least squared displacement, in their order."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    # A centre less the room of those below it must not fall.
    tall = np.asarray(heights, float)[order]
    room = np.cumsum(tall) - tall / 2
    moved = np.empty(len(order))
    if len(order):
        moved[order] = isotonic_regression(np.asarray(places)[order] - room).x + room
    return moved.tolist()


def wrapped(text: str, width: int, separators: str = r"_.\-/ ") -> list[str]:
    """Breaks a text into lines of at most `width`, after separators where that is possible."""
    lines = [""]
    for part in re.split(f"(?<=[{separators}])", text):
        for piece in (part[k : k + width] for k in range(0, len(part), width)):
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def shortened(text: str, width: int = LABEL_WIDTH) -> str:
    """Breaks a label into lines of at most `width`, and drops what needs too many of them."""
    lines = wrapped(text, width)
    return "\n".join(lines if len(lines) <= LABEL_LINES else [*lines[:LABEL_LINES], "..."])


def plain(text: str) -> str:
    """Keeps matplotlib from reading a name as TeX, and what no figure can show out of its file."""
    return printable_lines(text).replace("$", r"\$")


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
    if any(line.drops for line in lines):
        yield DOTTED


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF by the path's ending; equal figures give equal bytes."""
    if path.suffix.lower() not in FILES:
        raise UserError(f"{path}: figures are written as {', '.join(FILES)}; choose one of them")
    with writable(path):
        write_atomically(path, figure_bytes(figure, path.suffix.lower()))


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Returns a figure in the format of an ending of :data:`FILES`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scratch_vs_pretrain", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=ending[1:], **FILES[ending])
    return buffer.getvalue()
