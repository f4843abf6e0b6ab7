"""What all figures share: colours, labels, captions, files. No pyplot, no global state."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically
from scratch_vs_pretrain.text import printable_lines

# Okabe and Ito's palette, without the yellow that white paper swallows. Scratch is always the
# first; the others take theirs in the study's order. Markers tell them apart without colour.
SCRATCH_COLOR = "#D55E00"
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SCRATCH_MARKER = "o"
MARKERS = ("s", "^", "D", "v", "P", "X")

# Inches: a column and the text of a two-column page, at which text has its size in points.
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


def arm_styles(arms: Iterable[str], scratch: str | None = "scratch") -> dict[str, Style]:
    """Returns each arm's style; `arms` in the study's order, `scratch` the one from scratch."""
    others = itertools.cycle(map(Style, COLORS, MARKERS))
    first = Style(SCRATCH_COLOR, SCRATCH_MARKER)
    return {arm: first if arm == scratch else next(others) for arm in arms}


def new_figure(
    panels: int, *, rows: int = 1, width: float | None = None, height: float = 2.9
) -> tuple[Figure, list[Axes]]:
    """Returns a figure that is to be printed at its own size, and its axes row by row.

    Args:
        panels: axes in a row; where no width is given, more than two in one row are wrapped.
        rows: of axes.
        width: inches; default: a column for one panel, a page for more.
        height: inches of the first row with the caption; wrapped rows come on top.
    """
    columns = panels
    if width is None:
        width = COLUMN_WIDTH if panels == 1 else PAGE_WIDTH
        if rows == 1 and panels > 2:
            columns, rows = 2, -(-panels // 2)
            height += (rows - 1) * ROW_HEIGHT
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[panels if rows > 1 and columns < panels else axes.size :]:
        ax.remove()
    for ax in axes.flat:
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
    text = " ".join(sentences)
    lines = "\n".join(wrapped(text, width, separators=" "))
    figure.supxlabel(
        plain(lines), x=0.01, ha="left", fontsize=SMALL_TEXT_SIZE, color="0.35", ma="left"
    )


def write(
    ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float], **more: Any
) -> Annotation:
    """Writes a text some points `away` from a place; `more` are matplotlib's properties."""
    place: dict[str, Any] = {"xytext": away, "textcoords": "offset points"}
    look = {"fontsize": SMALL_TEXT_SIZE, "linespacing": 1.0, "va": "center", **more}
    return ax.annotate(plain(text), at, **place, **look)


def name_axes(ax: Axes, title: str, over: str) -> None:
    """Says above the panel what it shows, and below over what."""
    ax.set_title(plain(title), loc="left", fontsize=TEXT_SIZE)
    ax.set_xlabel(over, fontsize=TEXT_SIZE)


def label_point(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    """Writes a label inside the axes, right of a point."""
    at, away = (x, y), (LABEL_DISTANCE, 0)
    write(ax, shortened(text), at, away, fontsize=TEXT_SIZE, color=color, **ON_LINES)


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes labels right of the axes, beside their lines' ends, moved apart where they collide.

    Args:
        ax: axes whose limits are final.
        ends: y, text and colour per line.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    texts = [shortened(text) for _, text, _ in ends]
    heights = [LINE_HEIGHT * (text.count("\n") + 1) for text in texts]
    notes = [
        write(
            ax,
            text,
            (ax.get_xlim()[1], y),
            (LABEL_DISTANCE, 0),
            color=color,
            fontsize=TEXT_SIZE,
            annotation_clip=False,
        )
        for text, (y, _, color) in zip(texts, ends, strict=True)
    ]
    # The layout gives the axes their final height, which the spacing needs in points.
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    places = [ax.transData.transform((0, y))[1] * scale for y, _, _ in ends]
    for note, place, moved in zip(notes, places, spread(places, heights), strict=True):
        note.xyann = (LABEL_DISTANCE, moved - place)


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Moves labels apart with the least squared displacement, keeping their order.

    Args:
        places: (n,) wanted centres.
        heights: (n,) heights.

    Returns:
        (n,) centres of labels that do not overlap.
    """
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
    parts = re.split(f"(?<=[{separators}])", text)
    pieces = [part[k : k + width] for part in parts for k in range(0, len(part), width)]
    lines = [""]
    for part in pieces:
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def shortened(text: str, width: int = LABEL_WIDTH) -> str:
    """Breaks a label into lines of at most `width`, and drops what needs too many of them."""
    lines = wrapped(text, width)
    if len(lines) > LABEL_LINES:
        lines = [*lines[:LABEL_LINES], "..."]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Keeps matplotlib from reading a name as TeX, and what no figure can show out of its file."""
    return printable_lines(text).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF by the path's ending; equal figures give equal bytes.

    Raises:
        UserError: another ending, or the folder is missing or cannot be written.
    """
    if path.suffix.lower() not in FILES:
        raise UserError(f"{path}: figures are written as {', '.join(FILES)}; choose one of them")
    try:
        write_atomically(path, figure_bytes(figure, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Returns a figure in the format of an ending of :data:`FILES`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scratch_vs_pretrain", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=ending[1:], **FILES[ending])
    return buffer.getvalue()
