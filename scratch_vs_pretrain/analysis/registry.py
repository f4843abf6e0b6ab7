"""Every table and figure by its name, from run folders to text and files.

A new one is a function of runs and a line here; commands, report and API take it from here.
Functions are named as texts: a list of choices must not wait for pandas and matplotlib.
"""

from __future__ import annotations

import inspect
import itertools
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.analysis.tables import Table, render_all
from scratch_vs_pretrain.errors import UserError, check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scratch_vs_pretrain.analysis.runs import Records, RunRecord

TABLES = {
    "schedules": "tables.studies:schedules_table",
    "metrics": "tables.studies:metrics_table",
    "gaps": "tables.studies:gap_table",
    "catch-up": "tables.studies:catch_up_table",
    "samples": "stats.cost:samples_table",
    "errors": "tables.studies:errors_table",
}
# Of all studies together.
JOINT = {
    "large": "tables.studies:large_table",
    "less-data": "tables.studies:less_data_table",
    "voc": "tables.studies:voc_table",
    "summary": "tables.studies:summary_table",
}
KINDS = (*TABLES, *JOINT)
OF_FINAL_NUMBERS = ("schedules", "metrics", "gaps", *JOINT)
PUBLISHED = ("paper", "zoo")

FIGURES = {
    "ap": ("figures.curves:ap_figure", "every AP of both arms"),
    "loss": ("figures.curves:loss_figure", "AP and training loss, a row for each study"),
    "overlay": ("figures.curves:overlay_figure", "all schedules"),
    "bars": ("figures.finals:bars_figure", "final AP, a group for each study"),
    "samples": ("figures.finals:samples_figure", "what each arm has seen"),
    "sizes": (
        "figures.finals:sizes_figure",
        "final AP against training images, with what pre-training is worth in them",
    ),
    "iou": ("figures.finals:iou_figure", "the final gap at each IoU threshold"),
    "detections": (
        "figures.detections:detections_figure",
        "what each arm detects in the same test pictures",
    ),
}
OF_SEVERAL = ("loss", "bars", "sizes")
# They need what this package writes into a run folder.
OF_OWN_RUNS = ("bars", "samples", "sizes", "iou", "detections")


def tables(
    runs: Records, kind: str, *, against: str | None = None, best: bool = False
) -> dict[str, Table]:
    """Returns a :func:`table` by name of each study of `runs` and size of its data, or of all."""
    from scratch_vs_pretrain.analysis.stats.results import by_setting

    check_choice("kind of table", kind, KINDS)
    if (against or best) and (kind not in OF_FINAL_NUMBERS or (against and best)):
        option = f"--against {against}" if against else "--best"
        with_what = "--best" if against and best else f"--kind {kind}"
        raise UserError(f"{option} does not go with {with_what}; leave one of them out")
    settings = by_setting(runs)
    if against:
        from scratch_vs_pretrain.analysis.tables.published import published_table

        check_choice("publication", against, PUBLISHED)
        return {name: published_table(part, against, kind) for name, part in settings.items()}
    make = _function({**TABLES, **JOINT}[kind])
    parts = {"": tuple(itertools.chain(*settings.values()))} if kind in JOINT else settings
    return {name: make(part, **({"best": best} if best else {})) for name, part in parts.items()}


def table(
    runs: Records, kind: str = "schedules", *, against: str | None = None, best: bool = False
) -> Table:
    """Returns a table of one study, or of several where its kind, of :data:`KINDS`, is of several.

    Args:
        against: "paper" or "zoo": our numbers of this kind beside those published.
        best: of each run's best evaluation instead of its final one, and says so.

    Raises:
        UserError: an unknown kind, runs that do not belong in one table, or a kind that is not
            about final numbers together with `against` or `best`.
    """
    found = tables(runs, kind, against=against, best=best)
    if len(found) != 1:
        raise UserError(
            f"these are runs of {len(found)} studies, and a table of kind {kind} is of one; take "
            "each of runs.studies()"
        )
    return next(iter(found.values()))


def tables_text(folders: Path | Sequence[Path], kind: str, form: str, **options: Any) -> str:
    """Returns :func:`tables` of the runs below `folders`, as `tables.render_all` writes them."""
    from scratch_vs_pretrain.analysis.runs import load_runs

    return render_all(tables(load_runs(folders), kind, **options), form)


def figure(runs: Records, name: str = "ap", **options: Any) -> Figure:
    """Draws one of :data:`FIGURES`, of which bars stand in the order of `runs`.

    `options` are its function's; None, or nothing in it, stands for its default.

    Raises:
        UserError: an unknown name, runs of several studies where the figure is of one, an option
            that the figure does not have, or what its function raises.
    """
    from scratch_vs_pretrain.analysis.stats.results import by_setting

    check_choice("figure", name, FIGURES)
    function = _function(FIGURES[name][0])
    given = {key: value for key, value in options.items() if value not in (None, {})}
    for key in given.keys() - inspect.signature(function).parameters.keys():
        option = {"metrics": "metric", "labels": "label"}.get(key, key)
        raise UserError(f"--{option}: figure {name} has no such option; leave it out")
    if not isinstance(given.get("labels", {}), Mapping):
        raise UserError("labels: give a text for each study, such as {'demo': 'our demo'}")
    settings = by_setting(runs)
    if not settings:
        raise UserError("no runs to draw; name the folder of a study")
    if len(settings) > 1 and name not in OF_SEVERAL:
        raise UserError(
            f"these are runs of {len(settings)} studies ({', '.join(settings)}), and figure {name} "
            "is of one; name the folder of one"
        )
    return function(runs if name == "sizes" else list(itertools.chain(*settings.values())), **given)


def draw(folders: Path | Sequence[Path], name: str, files: Iterable[Path], **options: Any) -> None:
    """Draws a :func:`figure` of the runs below `folders` into each of `files`."""
    from scratch_vs_pretrain.analysis.figures.panels import save_figure
    from scratch_vs_pretrain.analysis.runs import load_runs

    roots = (folders,) if isinstance(folders, Path) else tuple(folders)
    found = in_order(roots, load_runs(roots, plain=name not in OF_OWN_RUNS))
    drawn = figure(found, name, **options)
    for file in files:
        save_figure(drawn, file)


def in_order(roots: Sequence[Path], runs: Records) -> tuple[RunRecord, ...]:
    """Returns runs in the order of the folders that they lie below.

    A shell's pattern gives less-100, less-1000, less-300: that order is nobody's wish.
    """
    if list(roots) == sorted(roots):
        return tuple(runs)
    places = [root.resolve() for root in roots]
    return tuple(
        sorted(runs, key=lambda run: [not run.folder.resolve().is_relative_to(p) for p in places])
    )


def _function(name: str) -> Any:
    return pkgutil.resolve_name(f"scratch_vs_pretrain.analysis.{name}")
