"""What the commands print and draw, from run folders to text and figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain.analysis import regimes, tables
from scratch_vs_pretrain.analysis.budget import budget_table, budgets
from scratch_vs_pretrain.analysis.formats import Table, render
from scratch_vs_pretrain.analysis.paper_numbers import paper_study
from scratch_vs_pretrain.analysis.results import by_study
from scratch_vs_pretrain.analysis.runs import RunRecord, collect, load_runs
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def against_published(runs: Sequence[RunRecord], by: str = "paper") -> Table:
    """Returns a study's numbers beside the paper's or the model zoo's, by the study's name.

    Raises:
        UserError: there is no such study there, or its numbers cannot be compared.
    """
    match = paper_study(runs[0].study)
    return tables.paper_table(
        runs, match.experiment, by=by, backbone=match.backbone, norm=match.norm
    )


TABLES: dict[str, Callable[[Sequence[RunRecord]], Table]] = {
    "schedules": tables.schedules_table,
    "metrics": tables.metrics_table,
    "samples": lambda runs: budget_table(budgets(runs)),
    "paper": against_published,
    "zoo": functools.partial(against_published, by="zoo"),
}

# Tables of all studies together.
JOINT: dict[str, Callable[[Sequence[RunRecord]], Table]] = {
    "large": regimes.large_table,
    "less-data": regimes.less_data_table,
    "voc": regimes.voc_table,
    "summary": regimes.summary_table,
}
FIGURES = ("ap", "loss", "overlay", "samples", "iou")


def tables_text(folder: Path, kind: str, form: str) -> str:
    """Returns one table per study below `folder`, or of all its studies, as `formats.render` does.

    Raises:
        UserError: no runs there, or runs that do not belong in one table.
    """
    if kind in JOINT:
        return render(JOINT[kind](load_runs(folder)), form)
    made = [TABLES[kind](runs) for runs in by_study(load_runs(folder)).values()]
    return "\n".join(render(table, form) for table in made)


def status_text(folder: Path) -> str:
    """Returns the state of every run below `folder`.

    Raises:
        UserError: no runs there, or one that cannot be read.
    """
    rows = tuple(_status_row(run) for run in load_runs(folder))
    header = ("study", "arm", "schedule", "seed", "state", "iteration", "of", "reason")
    return render(Table(f"{len(rows)} runs in {folder}", header, rows), "text")


def _status_row(run: RunRecord) -> tuple[str | int | None, ...]:
    return (
        run.study,
        run.arm,
        run.schedule,
        run.seed,
        run.state,
        run.iteration,
        run.iterations,
        run.reason,
    )


def draw(folder: Path, figure: str, x: str, files: Iterable[Path]) -> None:
    """Draws one of :data:`FIGURES` from the runs below `folder` into each of `files`.

    Raises:
        UserError: no runs, runs of several studies, or a file that cannot be written.
    """
    from scratch_vs_pretrain.analysis import curves
    from scratch_vs_pretrain.analysis.budget_figure import samples_figure

    if figure == "samples":
        _save(samples_figure(budgets(load_runs(folder))), files)
        return
    frame = collect(folder)
    studies = sorted(frame.study.unique())
    if len(studies) > 1:
        raise UserError(
            f"{folder}: holds runs of {len(studies)} studies ({', '.join(studies)}); "
            "name the folder of one"
        )
    if figure == "iou":
        drawn = curves.iou_figure(frame)
    else:
        makers: dict[str, Callable[..., Figure]] = {
            "ap": curves.ap_figure,
            "loss": curves.loss_figure,
            "overlay": curves.overlay_figure,
        }
        drawn = makers[figure](frame, x=x)
    _save(drawn, files)


def _save(drawn: Figure, files: Iterable[Path]) -> None:
    from scratch_vs_pretrain.analysis.curves import save_figure

    for file in files:
        save_figure(drawn, file)
