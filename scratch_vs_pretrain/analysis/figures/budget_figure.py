"""Images, instances and pixels seen, as three panels of stacked bars (the paper's Figure 2)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.style import (
    PAGE_WIDTH,
    SMALL_TEXT_SIZE,
    TEXT_SIZE,
    add_caption,
    arm_styles,
    new_figure,
    short_number,
)
from scratch_vs_pretrain.analysis.stats.samples import Budget, Budgets, Counts

PANELS = ("images", "instances", "pixels")
BAR_HEIGHT = 0.7
# Room at the right of the longest bar for its number.
ROOM = 1.22
LIGHTER = 0.55


def samples_figure(found: Budgets) -> Figure:
    """Returns a bar for every arm and schedule in each panel, pre-training first."""
    height = 1.5 + 0.3 * len(found.rows) + 0.16 * len(found.notes)
    figure, axes = new_figure(len(PANELS), width=PAGE_WIDTH, height=height)
    styles = arm_styles(dict.fromkeys(row.arm for row in found.rows))
    for ax, panel in zip(axes, PANELS, strict=True):
        for place, row in enumerate(found.rows):
            _draw_bar(ax, place, row, panel, styles[row.arm].color)
        ax.set_title(panel, fontsize=TEXT_SIZE, loc="left")
        ax.set_xlim(0, _longest(found, panel) * ROOM)
        ax.set_ylim(len(found.rows) - 0.5, -0.5)
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0].set_yticks(
        range(len(found.rows)),
        [f"{row.arm} {row.schedule}".replace("$", r"\$") for row in found.rows],
        fontsize=TEXT_SIZE,
    )
    axes[0].tick_params(axis="y", length=0)
    how = "Counted during training." if found.counted else "Expected before training."
    parts = "Hatched: pre-training; plain: detection training. " if _pretrained(found) else ""
    add_caption(figure, [f"{parts}{how}", *found.notes])
    return figure


def _draw_bar(ax: Axes, place: int, row: Budget, panel: str, color: str) -> None:
    before, training = (_of(counts, panel) for counts in (row.pretraining.counts, row.training))
    if training is None:
        ax.annotate("unknown", (0, place), fontsize=SMALL_TEXT_SIZE, va="center", color="0.35")
        return
    start = before or 0
    light = tuple(1 - LIGHTER * (1 - part) for part in to_rgb(color))
    ax.barh(place, start, BAR_HEIGHT, color=light, hatch="////", edgecolor="white", linewidth=0)
    ax.barh(place, training, BAR_HEIGHT, left=start, color=color)
    ax.annotate(
        short_number(_rounded(start + training)),
        (start + training, place),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=SMALL_TEXT_SIZE,
        va="center",
    )


def _of(counts: Counts, panel: str) -> int | None:
    return getattr(counts, panel)


def _rounded(value: int) -> float:
    """Returns a count with three digits, for a label."""
    return float(f"{value:.3g}")


def _longest(found: Budgets, panel: str) -> int:
    return max((_of(row.total, panel) or 0 for row in found.rows), default=0) or 1


def _pretrained(found: Budgets) -> bool:
    return any(row.pretraining.counts.images for row in found.rows)
