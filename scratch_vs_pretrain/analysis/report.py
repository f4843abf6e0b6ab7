"""``svp report``: one HTML file that needs no network and no scripts.

First the answer with its picture and setting, then a section for each study; what few readers need
is folded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from scratch_vs_pretrain.analysis.figures.curves import (
    answer_figure,
    ap_figure,
    iou_figure,
    overlay_figure,
)
from scratch_vs_pretrain.analysis.figures.sizes import by_size, sizes_figure
from scratch_vs_pretrain.analysis.figures.style import arm_styles, figure_bytes
from scratch_vs_pretrain.analysis.runs.numbers import names
from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.answer import Answer, answer
from scratch_vs_pretrain.analysis.stats.comparison import by_study, scratch_arm
from scratch_vs_pretrain.analysis.stats.conclusions import conclude
from scratch_vs_pretrain.analysis.stats.part import Picture
from scratch_vs_pretrain.analysis.stats.samples import samples_table
from scratch_vs_pretrain.analysis.tables.errors import COSTS, errors_table
from scratch_vs_pretrain.analysis.tables.pairs import (
    catch_up_table,
    gap_table,
    metrics_table,
    schedules_table,
)
from scratch_vs_pretrain.analysis.tables.published import published_table
from scratch_vs_pretrain.analysis.tables.runs import (
    differences_table,
    provenance_table,
    runs_table,
)
from scratch_vs_pretrain.analysis.tables.table import Table, render
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically
from scratch_vs_pretrain.text import printable_lines

TableMaker = Callable[[Sequence[RunRecord]], Table]

FOLDED: dict[str, TableMaker] = {
    "All metrics at the longest schedules": metrics_table,
    "The gap, paired by seed, with its statistics": gap_table,
    "Where scratch catches up, in iterations, images, pixels and hours": catch_up_table,
    "Samples seen, pre-training included": samples_table,
    "Every run": runs_table,
    "Final configs, key by key": differences_table,
    "Provenance": provenance_table,
}
# A reader who wants these has the table of gaps.
SCHEDULE_COLUMNS = ("iterations", "images", "epochs")

SPARK_WIDTH, SPARK_HEIGHT = 120, 34


def report(folder: Path | str, output: Path | str = "report.html") -> Path:
    """Writes one HTML file about all runs below a folder; it needs no network and no scripts.

    Raises:
        UserError: no runs there, a damaged run folder, or an output that cannot be written.
    """
    try:
        write_atomically(Path(output), report_html(Path(folder)))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    return Path(output)


def report_html(folder: Path) -> str:
    """Returns the report; whatever came from users' files is escaped in it.

    Raises:
        UserError: no runs below `folder`, or a damaged run folder.
    """
    runs = load_runs(folder)
    groups = by_study(runs)
    template = (importlib.resources.files(__package__) / "report.html").read_text()
    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: printable_lines(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template).render(
        studies=[_study(members, f"s{n}-") for n, members in enumerate(groups.values())],
        across=list(_across(runs)),
        conclusions=conclude(runs),
        folder=folder,
        outputs=dict.fromkeys(_output(run) for run in runs),
        runs=len(runs),
        finished=sum(run.state == "finished" for run in runs),
    )


def _output(run: RunRecord) -> Path:
    """Returns the folder that `svp run -o` was given: its study's folder lies in it."""
    parents = run.folder.parents
    return next((p.parent for p in parents if p.name == run.study), run.folder.parent)


def _across(runs: Sequence[RunRecord]) -> Iterator[tuple[str, Markup]]:
    """Yields the figure of AP against images where several studies differ in nothing else."""
    if len(by_study(runs)) > 1:
        with contextlib.suppress(UserError):
            yield "AP against training images", _svg(sizes_figure(runs), "across-")


def _study(runs: Sequence[RunRecord], prefix: str) -> dict[str, Any]:
    """Returns what the template says about one study, by the names that it has there."""
    notes: list[str] = []
    found: Answer | None = None
    try:
        found = answer(runs)
    except UserError as error:
        notes.append(str(error))
    pictures = [part.picture for part in found.parts] if found else []
    made = list(_tables(runs, notes))
    folded = dict(_folded(runs, made, notes))
    return {
        "name": runs[0].study,
        "answer": found,
        "arms": list(_arms(runs)),
        "spark": _spark(pictures[0]) if pictures else "",
        "pictures": [
            _svg(answer_figure(picture), f"{prefix}a{n}-")
            for n, picture in enumerate(pictures)
            if any(len(band.iterations) for band in picture.curves.values())
        ],
        "figures": list(_figures(runs, prefix, notes)),
        "tables": list(map(_html, made)),
        "folded": folded,
        "notes": list(dict.fromkeys(notes)),
    }


def _arms(runs: Sequence[RunRecord]) -> Iterator[dict[str, str]]:
    """Yields what the arms differ in, and how many of their runs are finished."""
    styles = arm_styles(dict.fromkeys(run.arm for run in runs), scratch_arm(runs))
    for arm, style in styles.items():
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
    try:
        yield schedules_table(runs).without(SCHEDULE_COLUMNS)
    except UserError as error:
        notes.append(str(error))
        return
    if any(cost in names(run) for run in runs for cost in COSTS):
        yield errors_table(runs)
    # Most studies are not the paper's.
    with contextlib.suppress(UserError):
        yield published_table(runs)


def _folded(
    runs: Sequence[RunRecord], shown: Sequence[Table], notes: list[str]
) -> Iterator[tuple[str, Markup]]:
    """Yields the other tables, without what the notes of an earlier one say already."""
    said = {note for table in shown for note in table.notes}
    for title, make in FOLDED.items():
        try:
            table = make(runs)
        except UserError as error:
            if make in (runs_table, differences_table, provenance_table):
                raise
            notes.append(str(error))
            continue
        new = tuple(note for note in table.notes if note not in said)
        said.update(new)
        yield title, _html(dataclasses.replace(table, notes=new))


def _figures(
    runs: Sequence[RunRecord], prefix: str, notes: list[str]
) -> Iterator[tuple[str, Markup]]:
    known = {name for run in runs for name in names(run)}
    # The picture of the answer shows the main one.
    others = [m for m in ("bbox/AP", "segm/AP", "keypoints/AP", "total_loss") if m in known][1:]
    makers: dict[str, Callable[[Sequence[RunRecord]], Figure]] = {}
    if others:
        makers["More over the length of training"] = lambda runs: ap_figure(runs, metrics=others)
    if len({(run.arm, run.schedule) for run in runs}) > len({run.arm for run in runs}):
        makers["All schedules"] = overlay_figure
    if len(by_size(runs)) > 1:
        makers["AP against training images"] = sizes_figure
    makers["Where the gap lies: AP at each IoU threshold"] = iou_figure
    for number, (title, make) in enumerate(makers.items()):
        try:
            yield title, _svg(make(runs), f"{prefix}{number}-")
        except UserError as error:
            notes.append(f"{title}: {error}.")


def _svg(figure: Figure, prefix: str) -> Markup:
    """Returns a figure as an SVG element with ids that no other figure of the page has."""
    for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
        patch.set_alpha(0)
    svg = figure_bytes(figure, ".svg").decode()
    element = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", element))


def _spark(picture: Picture) -> Markup:
    """Returns both arms' curves as an SVG of the size of a word."""
    styles = arm_styles(picture.curves, next(iter(picture.curves), None))
    bands = {arm: band for arm, band in picture.curves.items() if len(band.iterations)}
    right = max((float(band.iterations[-1]) for band in bands.values()), default=1)
    top = max((float(band.mean.max()) for band in bands.values()), default=1) or 1
    lines = []
    for arm, band in bands.items():
        points = " ".join(
            f"{2 + (SPARK_WIDTH - 4) * x / right:.1f},"
            f"{SPARK_HEIGHT - 2 - (SPARK_HEIGHT - 4) * y / top:.1f}"
            for x, y in zip(band.iterations.tolist(), band.mean.tolist(), strict=True)
            if math.isfinite(y)
        )
        color = styles[arm].color
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    size = f'width="{SPARK_WIDTH}" height="{SPARK_HEIGHT}"'
    return Markup(f'<svg class="spark" role="img" {size}>{"".join(lines)}</svg>')


def _html(table: Table) -> Markup:
    # `render` escapes every cell.
    return Markup(render(table, "html"))
