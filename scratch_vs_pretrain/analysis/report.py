"""``svp report``: one HTML file that needs no network and no scripts.

First the answer with its picture and setting, then a section for each study; what few readers need
is folded.
"""

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.curves import answer_figure
from scratch_vs_pretrain.analysis.figures.panels import figure_bytes, new_figure, styles_of
from scratch_vs_pretrain.analysis.registry import figure, table
from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.runs.numbers import names
from scratch_vs_pretrain.analysis.stats.answer import Part, answer
from scratch_vs_pretrain.analysis.stats.conclusions import conclude, level_notes
from scratch_vs_pretrain.analysis.stats.results import by_setting, by_study
from scratch_vs_pretrain.analysis.tables import Table, render
from scratch_vs_pretrain.analysis.tables.runs import (
    differences_table,
    provenance_table,
    runs_table,
)
from scratch_vs_pretrain.analysis.tables.studies import COSTS, schedules_table
from scratch_vs_pretrain.errors import UserError, writable
from scratch_vs_pretrain.run_folder import RunFolder, is_replaced, write_atomically
from scratch_vs_pretrain.text import counted, printable

FOLDED: dict[str, Callable[[Sequence[RunRecord]], Table]] = {
    "All metrics at the longest schedules": partial(table, kind="metrics"),
    "The gap, paired by seed, with its statistics": partial(table, kind="gaps"),
    "Where scratch catches up, in iterations, images, pixels and hours": partial(
        table, kind="catch-up"
    ),
    "Samples seen, pre-training included": partial(table, kind="samples"),
    "Every run": runs_table,
    "Final configs, key by key": differences_table,
    "Provenance": provenance_table,
}
SIZES = "AP against training images"

T = TypeVar("T")


def report(folder: Path | str, output: Path | str = "report.html") -> Path:
    """Writes one HTML file about all runs below a folder; it needs no network and no scripts.

    Raises:
        UserError: no runs there, a damaged run folder, or an output that is no HTML file or cannot
            be written.
    """
    output = Path(output)
    if output.suffix not in (".html", ".htm") and is_replaced(output):
        raise UserError(f"{output}: a report is written into an .html file; name one")
    page = report_html(Path(folder))
    with writable(output):
        write_atomically(output, page)
    return output


def report_html(folder: Path) -> str:
    """Returns the report; whatever came from users' files is escaped in it."""
    runs = load_runs(folder)
    groups = by_study(runs)
    across: list[tuple[str, Markup]] = []
    if len(groups) > 1:
        # Where they differ in more than their sizes, there is no such figure.
        with contextlib.suppress(UserError):
            across.append((SIZES, _svg(figure(runs, "sizes"), "across-")))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scratch_vs_pretrain", "analysis"),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        studies=[_study(members, f"s{n}-") for n, members in enumerate(groups.values())],
        across=across,
        conclusions=conclude(runs, strict=False),
        level_notes=level_notes(runs),
        folder=folder,
        commands=[_command(members) for members in groups.values()],
        runs=counted(len(runs), "run"),
        finished=sum(run.state == "finished" for run in runs),
    )


def _harmless(value: Any) -> Any:
    """Returns text and paths, which need not be text, as a page can have them."""
    return printable(str(value)) if type(value) is str or isinstance(value, Path) else value


def _command(runs: Sequence[RunRecord]) -> str:
    """Returns how a study's runs are trained again, as far as their folders tell.

    `svp run -o` was given the folder in which that of the study lies.
    """
    study, parents = runs[0].study, runs[0].folder.parents
    output = next((p.parent for p in parents if p.name == study), runs[0].folder.parent)
    weights = {run.arm: run.init.weights for run in runs if run.init.weights}
    given = [part for arm, file in weights.items() for part in ("--weights", f"{arm}={file}")]
    return shlex.join(["svp", "run", f"{study}.yaml", "-o", str(output), *given])


def _study(runs: Sequence[RunRecord], prefix: str) -> dict[str, Any]:
    """Returns what the template says about one study, by the names that it has there."""
    notes: list[str] = []
    found = dict(_made("answer", {"": runs}, answer, notes)).get("answer")
    parts, settings = found.parts if found else (), by_setting(runs)
    tables = [made for part in settings.values() for made in _tables(part, notes)]
    figures = (
        drawn
        for title, of in _figures(runs).items()
        for drawn in _made(
            title, {"": runs} if title == SIZES else settings, partial(figure, **of), notes
        )
    )
    return {
        "name": runs[0].study,
        "answer": found,
        "arms": list(_arms(runs)),
        "sparks": [_spark(part, f"{prefix}s{n}-") for n, part in enumerate(parts)],
        "pictures": [
            _svg(answer_figure(part), f"{prefix}a{n}-")
            for n, part in enumerate(parts)
            if any(len(band.iterations) for band in part.curves.values())
        ],
        "figures": [
            (title, _svg(drawn, f"{prefix}{n}-")) for n, (title, drawn) in enumerate(figures)
        ],
        "tables": [Markup(render(table, "html")) for table in tables],  # it escapes every cell
        "folded": dict(_folded(runs, tables, notes)),
        "notes": list(dict.fromkeys(notes)),
    }


def _made(
    title: str,
    parts: Mapping[str, Sequence[RunRecord]],
    make: Callable[[Sequence[RunRecord]], T],
    notes: list[str],
) -> Iterator[tuple[str, T]]:
    """Yields what can be made of each part, by its title; why the rest cannot goes to `notes`."""
    for name, part in parts.items():
        try:
            yield title if len(parts) == 1 else f"{title}: {name}", make(part)
        except UserError as error:
            notes.append(str(error))


def _arms(runs: Sequence[RunRecord]) -> Iterator[dict[str, str]]:
    """Yields what the arms differ in, and how many of their runs are finished."""
    for arm, style in styles_of(runs).items():
        mine = [run for run in runs if run.arm == arm]
        init = mine[0].init
        start = "random weights" if mine[0].from_scratch else str(init.weights or "a checkpoint")
        if not mine[0].from_scratch and init.sha256:
            start = f"{Path(start).name}, sha256 {init.sha256[:12]}"
        finished = sum(run.state == "finished" for run in mine)
        differs = [f"{k} {v[arm]}" for k, v in mine[0].allowed_differences.items() if arm in v]
        yield {
            "name": arm,
            "color": style.color,
            "start": start,
            "runs": f"{finished} of {len(mine)}",
            "differs": ", ".join(differs),
        }


def _tables(runs: Sequence[RunRecord], notes: list[str]) -> Iterator[Table]:
    # Without the lengths, which are in the folded tables.
    for _, schedules in _made("", {"": runs}, partial(schedules_table, lengths=False), notes):
        yield schedules
        if any(not names(run).isdisjoint(COSTS) for run in runs):
            yield table(runs, "errors")
        # Most studies are not the paper's.
        with contextlib.suppress(UserError):
            yield table(runs, against="paper")


def _folded(
    runs: Sequence[RunRecord], shown: Sequence[Table], notes: list[str]
) -> Iterator[tuple[str, Markup]]:
    """Yields the other tables, without what the notes of an earlier one say already."""
    said = {note for one in shown for note in one.notes}
    for name, make in FOLDED.items():
        for title, made in _made(name, by_setting(runs), make, notes):
            new = tuple(note for note in made.notes if note not in said)
            said.update(new)
            yield title, Markup(render(dataclasses.replace(made, notes=new), "html"))


def _figures(runs: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Returns the figures to draw: their titles, and the arguments of :func:`.registry.figure`."""
    known = {name for run in runs for name in names(run)}
    # The picture of the answer shows the main one.
    others = [m for m in ("bbox/AP", "segm/AP", "keypoints/AP", "total_loss") if m in known][1:]
    found: dict[str, dict[str, Any]] = {}
    if others:
        found["More over the length of training"] = {"name": "ap", "metrics": others}
    if len({(run.arm, run.schedule) for run in runs}) > len({run.arm for run in runs}):
        found["All schedules"] = {"name": "overlay"}
    if len({run.train_images for run in runs}) > 1:
        found[SIZES] = {"name": "sizes"}
    found["Where the gap lies: AP at each IoU threshold"] = {"name": "iou"}
    if any(RunFolder(run.folder).detections_file.is_file() for run in runs):
        found["The same test pictures"] = {"name": "detections", "images": 3}
    return found


def _svg(figure: Figure, prefix: str) -> Markup:
    """Returns a figure as an SVG element with ids that no other figure of the page has."""
    for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
        patch.set_alpha(0)
    svg = figure_bytes(figure, ".svg").decode()
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", element))


def _spark(part: Part, prefix: str) -> Markup:
    """Returns both arms' curves as an SVG of the size of a word."""
    drawn, (ax,) = new_figure(1, width=1.2, height=0.4)
    styles = styles_of(part.setting.results.runs)
    for arm, band in part.curves.items():
        ax.plot(band.iterations, band.mean, color=styles[arm].color, linewidth=1.5)
    ax.set_ylim(bottom=0)
    ax.set_axis_off()
    return _svg(drawn, prefix)
