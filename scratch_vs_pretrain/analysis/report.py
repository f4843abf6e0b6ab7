"""``svp report``: one HTML file that needs no network and no scripts."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.curves import (
    ap_figure,
    iou_figure,
    loss_figure,
    overlay_figure,
)
from scratch_vs_pretrain.analysis.figures.style import figure_bytes
from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.comparison import (
    by_study,
    final_results,
    gaps,
    means,
    pairs,
)
from scratch_vs_pretrain.analysis.stats.conclusions import NOT_ENOUGH, conclude
from scratch_vs_pretrain.analysis.tables import pairs as tables
from scratch_vs_pretrain.analysis.tables.errors import errors_table
from scratch_vs_pretrain.analysis.tables.published import published_table
from scratch_vs_pretrain.analysis.tables.runs import (
    differences_table,
    provenance_table,
    runs_table,
)
from scratch_vs_pretrain.analysis.tables.table import Table, render
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically

FIGURES: dict[str, Callable[..., Figure]] = {
    "AP versus the length of training": ap_figure,
    "Box AP and training loss": loss_figure,
    "All schedules": overlay_figure,
    "AP gap at each IoU threshold": iou_figure,
}

TableMaker = Callable[[Sequence[RunRecord]], Table]


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class StudyPart:
    """What the report says about one study."""

    name: str
    description: str
    summary: str
    tables: tuple[Markup, ...]
    figures: tuple[Drawn, ...]
    notes: tuple[str, ...]
    differences: Markup
    runs: Markup
    provenance: Markup


def write_report(folder: Path, output: Path) -> None:
    """Writes the report of all runs below `folder`.

    Raises:
        UserError: no runs there, a damaged run folder, or an output that cannot be written.
    """
    try:
        write_atomically(output, report_html(folder))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None


def report_html(folder: Path) -> str:
    """Returns the report; whatever came from users' files is escaped in it.

    Raises:
        UserError: no runs below `folder`, or a damaged run folder.
    """
    runs = load_runs(folder)
    groups = by_study(runs)
    template = (importlib.resources.files(__package__) / "report.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title="Scratch against pre-training: " + ", ".join(groups),
        folder=folder,
        runs=len(runs),
        finished=sum(run.state == "finished" for run in runs),
        studies=[_study(members, number) for number, members in enumerate(groups.values())],
        conclusions=conclude(runs),
        not_enough=NOT_ENOUGH,
    )


def _study(runs: Sequence[RunRecord], number: int) -> StudyPart:
    notes: list[str] = []
    made: list[Table] = []
    make: TableMaker
    makers = (
        tables.schedules_table,
        tables.metrics_table,
        tables.gap_table,
        tables.catch_up_table,
    )
    for make in makers:
        try:
            made.append(make(runs))
        except UserError as error:
            notes.append(str(error))
    # Most studies are not the paper's; evaluations of old have no error types.
    for make in (published_table, errors_table):
        with contextlib.suppress(UserError):
            made.append(make(runs))
    return StudyPart(
        name=runs[0].study,
        description=runs[0].description or "",
        summary=_summary(runs),
        tables=tuple(map(_html, _each_note_once(made))),
        figures=tuple(_figures(runs, number, notes)),
        notes=tuple(dict.fromkeys(notes)),
        differences=_html(differences_table(runs)),
        runs=_html(runs_table(runs)),
        provenance=_html(provenance_table(runs)),
    )


def _each_note_once(made: Sequence[Table]) -> Iterator[Table]:
    """Leaves out what the notes of an earlier table say already."""
    said: set[str] = set()
    for table in made:
        new = tuple(note for note in table.notes if note not in said)
        said.update(new)
        yield dataclasses.replace(table, notes=new)


def _summary(runs: Sequence[RunRecord]) -> str:
    try:
        results = final_results(runs)
    except UserError as error:
        return str(error)
    scratch = (results.scratch, results.longest(results.scratch).schedule)
    known = {metric for final in results.finals.values() for metric in final.scores}
    metric = "keypoints/AP" if "keypoints/AP" in known else "bbox/AP"
    sentences = []
    for arm in results.others:
        other = (arm, results.longest(arm).schedule)
        paired = pairs(results, scratch, other)
        if not paired:
            sentences.append(f"no seed has {results.scratch} and {arm} finished yet.")
            continue
        (ours,) = means({seed: a for seed, (a, _) in enumerate(paired)}, [metric])
        (theirs,) = means({seed: b for seed, (_, b) in enumerate(paired)}, [metric])
        (gap,) = gaps(paired, [metric])
        reach = f" ± {gap.half_width:.1f}" if gap.half_width is not None else ""
        seeds = f"{len(paired)} seed{'s' * (len(paired) > 1)}"
        sentences.append(
            f"{results.scratch} ({scratch[1]}) ends at {ours.value:.1f} {metric}, {arm} "
            f"({other[1]}) at {theirs.value:.1f}: a gap of {gap.value:+.1f}{reach} over {seeds}."
        )
    return " ".join(sentences)


def _figures(runs: Sequence[RunRecord], number: int, notes: list[str]) -> Iterator[Drawn]:
    one_schedule = len({(run.arm, run.schedule) for run in runs}) == len({r.arm for r in runs})
    for index, (title, make) in enumerate(FIGURES.items()):
        if make is overlay_figure and one_schedule:
            continue
        try:
            svg = figure_bytes(make(runs), ".svg").decode()
        except UserError as error:
            notes.append(f"{title}: {error}.")
            continue
        yield Drawn(title, Markup(_inline(svg, f"f{number}-{index}-")))


def _inline(svg: str, prefix: str) -> str:
    """Returns an SVG file's element with ids that no other figure of the page has."""
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", element)


def _html(table: Table) -> Markup:
    # `render` escapes every cell.
    return Markup(render(table, "html"))
