"""Lines of final numbers: AP against training images, and the gap at each IoU threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

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
    line_of,
    metric_title,
    sentences,
    styles_of,
    subject,
)
from scratch_vs_pretrain.analysis.figures.style import arm_styles, short_number, write
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import (
    Results,
    by_study,
    differences,
    final_results,
    pairs,
)
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
    finals = [
        (arm, size, final.scores)
        for size, results in studies.items()
        if size
        for arm in (results.scratch, *results.others)
        for final in results.of(arm, results.longest(arm).schedule).values()
    ]
    sizes = sorted({size for _, size, _ in finals})
    if len(sizes) < 2:
        raise UserError("fewer than two sizes of training data have a finished run; draw ap")
    scratch = next(iter(studies.values())).scratch
    arms = dict.fromkeys(arm for r in studies.values() for arm in (r.scratch, *r.others))
    arrows: list[str] = []

    def draw_beside(ax: Axes, lines: Sequence[Line]) -> None:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        ax.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.15)
        arrows.extend(_draw_worth(ax, lines, scratch))

    styles = arm_styles(arms, scratch)
    panels = [
        Panel(
            metric_title(metric),
            [line for arm in arms if (line := _line(arm, finals, metric, band))],
            styles,
            "training images",
            left=None,
            score=True,
            beside=draw_beside,
        )
        for metric in choose_metrics({m for *_, s in finals for m in s}, metrics, "finished run")
    ]

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


def _line(
    arm: str, finals: Sequence[tuple[str, int, Mapping[str, float]]], metric: str, band: str
) -> Line | None:
    columns: dict[int, list[float]] = {}
    for one, size, scores in sorted(finals, key=lambda final: final[1]):
        if one == arm and math.isfinite(scores.get(metric, math.nan)):
            columns.setdefault(size, []).append(scores[metric])
    values = [np.array(column) for column in columns.values()]
    return line_of(arm, "", np.array(list(columns), float), values, band) if columns else None


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
    lines: dict[str, list[Line]] = {}
    styles = {}
    for arm in results.others:
        ends = [(one, results.longest(one).schedule) for one in (results.scratch, arm)]
        found = pairs(results, *ends)
        name = f"{results.scratch} - {arm}"
        styles[name] = styles_of(runs)[arm]
        for task in TASKS:
            metrics = sorted({m for a, _ in found for m in a.scores if m.startswith(f"{task}/AP@")})
            gaps = {float(m.partition("@")[2]): differences(found, m) for m in metrics}
            gaps = {at: values for at, values in gaps.items() if len(values) == len(found)}
            if gaps:
                values = [np.array(each) for each in gaps.values()]
                line = line_of(name, "", np.array(list(gaps)), values, band)
                lines.setdefault(task, []).append(line)
    if not lines:
        raise UserError(
            "no seed has both arms finished and evaluated at each IoU threshold; "
            "the figure needs one such pair"
        )

    def draw_zero(ax: Axes, _: object) -> None:
        ax.axhline(0, color="0.5", linewidth=0.8)

    panels = [
        Panel(f"{TASKS[task]} AP gap", some, styles, "IoU threshold", left=None, beside=draw_zero)
        for task, some in lines.items()
    ]
    about = (
        f"{subject(runs, [])} Final AP at each arm's longest schedule, paired by seed; above 0, "
        f"{results.scratch} is better."
    )
    return draw_panels(panels, [about, *sentences(panels, band)])
