"""What all figures share: colours, labels, captions, files. No pyplot, no global state."""

import io
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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


def write(
    ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float], **more: Any
) -> Annotation:
    """Writes a text some points `away` from a place; `more` are matplotlib's properties."""
    look = {"fontsize": SMALL_TEXT_SIZE, "linespacing": 1.0, "va": "center", **more}
    return ax.annotate(plain(text), at, xytext=away, textcoords="offset points", **look)


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes labels right of the axes, beside their lines' ends, moved apart where they collide.

    The limits of the axes must be final; `ends` are y, text and colour of each line.
    """
    right, away, look = ax.get_xlim()[1], (LABEL_DISTANCE, 0), {"annotation_clip": False}
    notes = [
        write(ax, shortened(text), (right, y), away, color=color, fontsize=TEXT_SIZE, **look)
        for y, text, color in ends
    ]
    heights = [LINE_HEIGHT * (note.get_text().count("\n") + 1) for note in notes]
    # The layout gives the axes their final height, which the spacing needs in points.
    figure = cast(Figure, ax.get_figure(root=True))
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    places = [ax.transData.transform((0, y))[1] * 72 / figure.dpi for y, _, _ in ends]
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


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF by the path's ending; equal figures give equal bytes."""
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
