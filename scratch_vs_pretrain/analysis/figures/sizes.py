"""Final AP against the number of training images, and what pre-training is worth in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scratch_vs_pretrain.analysis.figures.lines import (
    Line,
    choose_metrics,
    draw_line,
    label_arms,
    line_of,
    metric_title,
    name_axes,
    sentences,
)
from scratch_vs_pretrain.analysis.figures.style import (
    add_caption,
    arm_styles,
    new_figure,
    short_number,
    write,
)
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, by_study, final_results
from scratch_vs_pretrain.analysis.stats.crossing import worth_in_images
from scratch_vs_pretrain.errors import UserError


def sizes_figure(
    runs: Sequence[RunRecord], *, metrics: Sequence[str] | None = None, band: str = "range"
) -> Figure:
    """Draws the final AP of each arm against training images, a panel for each metric.

    An arrow leads from the first other arm's AP to the number of images with which scratch reaches
    it, as far as the sizes show it; nothing is extrapolated.

    Args:
        runs: of one study of several sizes, or of a study for each size.
        metrics: default: box, mask and keypoint AP as far as they were evaluated.
        band: over seeds, "range" or "std".

    Raises:
        UserError: fewer than two sizes with both arms finished, or a metric nobody evaluated.
    """
    studies = [
        final_results(members)
        for study in by_study(runs).values()
        for members in by_size(study).values()
    ]
    finals = _finals(studies)
    sizes = sorted({size for each in finals.values() for size, found in each.items() if found})
    if len(sizes) < 2:
        raise UserError("fewer than two sizes of training data have a finished run; draw ap")
    known = {m for each in finals.values() for s in each.values() for f in s.values() for m in f}
    metrics = choose_metrics(known, metrics, "finished run")
    scratch = studies[0].scratch
    styles = arm_styles(finals, scratch)
    figure, axes = new_figure(len(metrics))
    panels = []
    worth = ""
    for ax, metric in zip(axes, metrics, strict=True):
        lines = [line for arm in finals if (line := _line(arm, finals[arm], metric, band))]
        for line in lines:
            draw_line(ax, line, styles[line.arm])
        panels.append(lines)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        ax.set_ylim(bottom=0)
        worth = _draw_worth(ax, lines, scratch) or worth
        name_axes(ax, metric_title(metric), "training images")
    said = [
        f"{', '.join(by_study(runs))}: final AP at each arm's longest schedule.",
        *sentences(panels, band, []),
        *([worth] if worth else []),
    ]
    add_caption(figure, said)
    for ax, lines in zip(axes, panels, strict=True):
        label_arms(ax, lines, styles)
    return figure


def by_size(runs: Sequence[RunRecord]) -> dict[int, list[RunRecord]]:
    """Groups runs by their number of training images, smallest first."""
    groups: dict[int, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.train_images or 0):
        groups.setdefault(run.train_images or 0, []).append(run)
    return groups


def _finals(studies: Sequence[Results]) -> dict[str, dict[int, dict]]:
    """Returns the final scores of each seed, by arm and number of training images."""
    finals: dict[str, dict[int, dict]] = {}
    for results in sorted(studies, key=lambda results: results.runs[0].train_images or 0):
        size = results.runs[0].train_images
        if size is None:
            continue
        for arm in (results.scratch, *results.others):
            found = results.of(arm, results.longest(arm).schedule)
            scores = {seed: final.scores for seed, final in found.items()}
            finals.setdefault(arm, {}).setdefault(size, {}).update(scores)
    return finals


def _line(arm: str, found: Mapping, metric: str, band: str) -> Line | None:
    columns = {
        size: np.array([s[metric] for s in seeds.values() if math.isfinite(s.get(metric, np.nan))])
        for size, seeds in found.items()
    }
    columns = {size: values for size, values in columns.items() if len(values)}
    if not columns:
        return None
    return line_of(arm, "", np.array(list(columns), float), list(columns.values()), band)


def _draw_worth(ax: Axes, lines: Sequence[Line], scratch: str) -> str:
    """Draws the arrow of one size, the largest whose worth the sizes show, and says it."""
    ours = next((line for line in lines if line.arm == scratch), None)
    other = next((line for line in lines if line.arm != scratch), None)
    if ours is None or other is None or not np.array_equal(ours.x, other.x):
        return ""
    found = worth_in_images(ours.x, ours.mean[None], other.mean[None])
    told = [one for one in found if math.isfinite(one.ratio) and one.ratio > 1]
    chosen = told[-1] if told else next((one for one in found if math.isinf(one.ratio)), None)
    if chosen is None:
        return ""
    y = float(other.mean[list(other.x).index(chosen.size)])
    ratio = chosen.ratio if told else chosen.most
    text = f"{ratio:.1f} times" if told else f"more than {ratio:.3g} times"
    ax.annotate(
        "",
        (chosen.size * ratio, y),
        (chosen.size, y),
        arrowprops={"arrowstyle": "->", "color": "0.25", "linewidth": 1.2},
    )
    middle = (chosen.size * math.sqrt(ratio), y)
    write(ax, text, middle, (0, -3), ha="center", va="top", color="0.25")
    beyond = "" if told else ", more than the largest size"
    return (
        f"Arrow: what {other.arm} reaches with {chosen.size:,} images, {scratch} reaches with "
        f"{text} as many{beyond}."
    )
