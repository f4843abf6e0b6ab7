"""Lines of final numbers: AP against training images, and the gap at each IoU threshold."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scratch_vs_pretrain.analysis.figures.panels import (
    TASKS,
    Line,
    Panel,
    choose_metrics,
    draw_panels,
    line_through,
    metric_title,
    sentences,
    styles_of,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import arm_styles, short_number, write
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, by_study, final_results
from scratch_vs_pretrain.analysis.stats.crossing import worth_in_images
from scratch_vs_pretrain.errors import UserError


def sizes_figure(
    runs: Sequence[RunRecord], *, metrics: Sequence[str] | None = None, band: str = "range"
) -> Figure:
    """Draws the final AP of each arm against training images, a panel for each metric.

    An arrow leads from the first other arm's AP to the number of images with which scratch reaches
    it, as far as the sizes show it; nothing is extrapolated. `runs` are of one study of several
    sizes, or of a study for each size; other arguments are those of :func:`.ap_figure`.

    Raises:
        UserError: fewer than two sizes with both arms finished, two studies of one size, or a
            metric nobody evaluated.
    """
    studies: dict[int, Results] = {}
    for study in by_study(runs).values():
        for size, members in by_size(study).items():
            results = final_results(members)
            other = studies.setdefault(size, results)
            if size and other is not results:
                raise UserError(
                    f"studies {other.study} and {results.study} both have {size:,} training "
                    "images, so they differ in something else; name the folders of studies that "
                    "differ in their number alone"
                )
    scratch = next(iter(studies.values())).scratch
    styles = arm_styles(dict.fromkeys(arm for r in studies.values() for arm in r.arms), scratch)
    finals = {
        (arm, size): scores
        for size, results in sorted(studies.items())
        for arm in results.arms
        if size and (scores := results.of(arm))
    }
    sizes = sorted({size for _, size in finals})
    if len(sizes) < 2:
        raise UserError("fewer than two sizes of training data have a finished run; draw ap")
    arrows: list[str] = []

    def draw_beside(lines: Sequence[Line], ax: Axes) -> None:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        arrows.extend(_draw_worth(ax, lines, scratch))

    panels = []
    known = {name for scores in finals.values() for one in scores.values() for name in one}
    for metric in choose_metrics(known, metrics, "finished run"):
        lines = []
        for arm, style in styles.items():
            found = {size: s.of(metric) for (one, size), s in finals.items() if one == arm}
            if found := {size: values for size, values in found.items() if values}:
                lines.append(line_through(arm, style, found, band))
        beside = functools.partial(draw_beside, lines)
        title = metric_title(metric)
        panels.append(Panel(title, lines, "training images", left=None, score=True, beside=beside))

    def caption() -> Iterator[str]:
        yield f"{', '.join(by_study(runs))}: final AP at each arm's longest schedule."
        yield from sentences(panels, band)
        yield from arrows[-1:]

    return draw_panels(panels, caption())


def by_size(runs: Sequence[RunRecord]) -> dict[int, list[RunRecord]]:
    """Groups runs by their number of training images, smallest first."""
    groups: dict[int, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.train_images or 0):
        groups.setdefault(run.train_images or 0, []).append(run)
    return groups


def _draw_worth(ax: Axes, lines: Sequence[Line], scratch: str) -> Iterator[str]:
    """Draws the arrow of one size, the largest whose worth the sizes show, and says it."""
    ours = next((line for line in lines if line.arm == scratch), None)
    other = next((line for line in lines if line.arm != scratch), None)
    if ours is None or other is None or not np.array_equal(ours.x, other.x):
        return
    found = worth_in_images(ours.x, ours.mean[None], other.mean[None])
    told = [one for one in found if math.isfinite(one.ratio) and one.ratio > 1]
    beyond = [one for one in found if math.isinf(one.ratio)]
    if not told and not beyond:
        return
    one = told[-1] if told else beyond[0]
    ratio = one.ratio if told else one.most
    text = f"{ratio:.1f} times" if told else f"more than {ratio:.3g} times"
    y = float(other.mean[list(other.x).index(one.size)])
    arrow = {"arrowstyle": "->", "color": "0.25", "linewidth": 1.2}
    ax.annotate("", (one.size * ratio, y), (one.size, y), arrowprops=arrow)
    middle = (one.size * math.sqrt(ratio), y)
    write(ax, text, middle, (0, -3), ha="center", va="top", color="0.25")
    more = "" if told else ", more than the largest size"
    yield (
        f"Arrow: what {other.arm} reaches with {one.size:,} images, {scratch} reaches with "
        f"{text} as many{more}."
    )


def iou_figure(runs: Sequence[RunRecord], *, band: str = "range") -> Figure:
    """Draws the final AP gap at each IoU threshold, scratch less each other arm, paired by seed.

    A gap that rises to the right says that pre-training helps localization least (the paper's
    third observation).

    Raises:
        UserError: no finished pair with AP per threshold.
    """
    results = final_results(runs)
    styles, lines = styles_of(runs), dict[str, list[Line]]()
    for arm in results.others:
        gap, name = results.of(results.scratch) - results.of(arm), f"{results.scratch} - {arm}"
        metrics = sorted({metric for one in gap.values() for metric in one if "/AP@" in metric})
        for task in TASKS:
            at = {
                float(m.partition("@")[2]): gap.of(m) for m in metrics if m.startswith(f"{task}/")
            }
            if at := {x: values for x, values in at.items() if len(values) == len(gap)}:
                lines.setdefault(task, []).append(line_through(name, styles[arm], at, band))
    if not lines:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )

    def draw_zero(ax: Axes) -> None:
        ax.axhline(0, color="0.5", linewidth=0.8)

    panels = [
        Panel(f"{TASKS[task]} AP gap", some, "IoU threshold", left=None, beside=draw_zero)
        for task, some in lines.items()
    ]
    about = (
        f"{subject(runs, [])} Final AP at each arm's longest schedule, paired by seed; above 0, "
        f"{results.scratch} is better."
    )
    return draw_panels(panels, [about, *sentences(panels, band)])
