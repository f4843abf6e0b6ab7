"""What the commands print and draw, from run folders to text and figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis import regimes, tables
from scratch_vs_pretrain.analysis.budget import budget_table, budgets
from scratch_vs_pretrain.analysis.formats import Table, render
from scratch_vs_pretrain.analysis.paper_numbers import paper_study
from scratch_vs_pretrain.analysis.results import by_study
from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs


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
FIGURES = ("ap", "loss", "overlay", "bars", "samples", "iou")


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


def draw(
    folders: Path | Sequence[Path],
    figure: str,
    files: Iterable[Path],
    *,
    labels: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Draws one of :data:`FIGURES` from the runs below `folders` into each of `files`.

    Args:
        folders: bars stand in their order.
        figure: its name.
        files: `.png`, `.svg` or `.pdf`.
        labels: names of studies under bars.
        options: x, metrics, band and schedule of the figure's function, where it has them and
            they are not None.

    Raises:
        UserError: no runs, runs of several studies where a figure is of one, an option that the
            figure does not have, or a file that cannot be written.
    """
    from scratch_vs_pretrain.analysis import figures
    from scratch_vs_pretrain.analysis.figure_files import save_figure

    roots = (folders,) if isinstance(folders, Path) else tuple(folders)
    drawn = figures.make(roots, figure, {"labels": labels or None, **options})
    for file in files:
        save_figure(drawn, file)
