"""Every figure by its name, from run folders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.bars import bars_figure
from scratch_vs_pretrain.analysis.figures.budget_figure import samples_figure
from scratch_vs_pretrain.analysis.figures.curves import ap_figure, loss_figure
from scratch_vs_pretrain.analysis.figures.iou_gap import iou_figure
from scratch_vs_pretrain.analysis.figures.overlay import overlay_figure
from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.analysis.runs.records import RunRecord, find_runs, load_runs
from scratch_vs_pretrain.analysis.stats.comparison import by_study, scratch_arm
from scratch_vs_pretrain.analysis.stats.cost import with_costs
from scratch_vs_pretrain.analysis.stats.samples import budgets
from scratch_vs_pretrain.errors import UserError

FROM_FRAME: dict[str, Callable[..., Figure]] = {
    "ap": ap_figure,
    "loss": loss_figure,
    "overlay": overlay_figure,
    "iou": iou_figure,
}


def _samples(runs: Sequence[RunRecord]) -> Figure:
    return samples_figure(budgets(runs))


FROM_RUNS: dict[str, Callable[..., Figure]] = {"bars": bars_figure, "samples": _samples}
OF_SEVERAL = ("loss", "bars")


def make(roots: Sequence[Path], name: str, options: Mapping[str, Any]) -> Figure:
    """Draws a figure of the runs below `roots`.

    Args:
        roots: folders; studies stand in their order where that matters.
        name: a key of :data:`FROM_FRAME` or :data:`FROM_RUNS`.
        options: of its function; None stands for its default.

    Raises:
        UserError: as the function; or runs of several studies where the figure is of one, or an
            option that the figure does not have.
    """
    function = {**FROM_FRAME, **FROM_RUNS}[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - inspect.signature(function).parameters.keys():
        option = {"metrics": "metric", "labels": "label"}.get(key, key)
        raise UserError(f"--{option}: figure {name} has no such option; leave it out")
    runs = in_order(roots, load_runs(roots)) if name in FROM_RUNS else find_runs(roots)
    studies = list(by_study(runs))
    if len(studies) > 1 and name not in OF_SEVERAL:
        raise UserError(
            f"{', '.join(map(str, roots))}: holds runs of {len(studies)} studies "
            f"({', '.join(studies)}); name the folder of one"
        )
    if name in FROM_RUNS:
        return function(runs, **given)
    frame = with_costs(tidy(runs), runs)
    if name == "iou":
        return function(frame, scratch_arm(runs) or "scratch", **given)
    return function(frame, **given)


def in_order(roots: Sequence[Path], runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """Returns runs in the order of the folders that they lie below, else as they are."""
    places = [root.resolve() for root in roots]

    def place(run: RunRecord) -> int:
        path = run.folder.resolve()
        return next(k for k, root in enumerate(places) if path == root or root in path.parents)

    return tuple(sorted(runs, key=place))
