"""What the commands print and draw, from run folders to text and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.comparison import by_study
from scratch_vs_pretrain.analysis.stats.samples import budget_table, budgets
from scratch_vs_pretrain.analysis.tables import pairing, regimes
from scratch_vs_pretrain.analysis.tables import pairs as tables
from scratch_vs_pretrain.analysis.tables.published import published_table
from scratch_vs_pretrain.analysis.tables.table import Table, render
from scratch_vs_pretrain.errors import UserError

Maker = Callable[..., Table]

TABLES: dict[str, Maker] = {
    "schedules": tables.schedules_table,
    "metrics": tables.metrics_table,
    "gaps": pairing.gap_table,
    "catch-up": pairing.catch_up_table,
    "samples": lambda runs: budget_table(budgets(runs)),
}

# Tables of all studies together.
JOINT: dict[str, Maker] = {
    "large": regimes.large_table,
    "less-data": regimes.less_data_table,
    "voc": regimes.voc_table,
    "summary": regimes.summary_table,
}
KINDS = (*TABLES, *JOINT)
OF_FINAL_NUMBERS = ("schedules", "metrics", "gaps", *JOINT)


def tables_text(
    folders: Path | Sequence[Path],
    kind: str,
    form: str,
    *,
    against: str | None = None,
    best: bool = False,
) -> str:
    """Returns one table per study below `folders`, or of all together, as `formats.render` does.

    Args:
        folders: hold run folders.
        kind: one of :data:`KINDS`.
        form: one of :data:`.formats.FORMATS`.
        against: "paper" or "zoo": our numbers of this kind beside those published.
        best: of each run's best evaluation instead of its final one, and says so.

    Raises:
        UserError: no runs there, runs that do not belong in one table, or a kind that is not about
            final numbers together with `against` or `best`.
    """
    if (against or best) and (kind not in OF_FINAL_NUMBERS or (against and best)):
        option = f"--against {against}" if against else "--best"
        with_what = "--best" if against and best else f"--kind {kind}"
        raise UserError(f"{option} does not go with {with_what}; leave one of them out")
    runs = load_runs(folders)
    options = {"best": True} if best else {}
    if against:
        made = [published_table(part, against, kind) for part in by_study(runs).values()]
    elif kind in JOINT:
        made = [JOINT[kind](runs, **options)]
    else:
        made = [TABLES[kind](part, **options) for part in by_study(runs).values()]
    return "\n".join(render(table, form) for table in made)


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
    from scratch_vs_pretrain.analysis.figures import named as figures
    from scratch_vs_pretrain.analysis.figures.files import save_figure

    roots = (folders,) if isinstance(folders, Path) else tuple(folders)
    drawn = figures.make(roots, figure, {"labels": labels or None, **options})
    for file in files:
        save_figure(drawn, file)
