"""One table in any format. A table keeps its notes wherever it goes."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from dataclasses import dataclass
from typing import Any

from scratch_vs_pretrain.errors import UserError

FORMATS = ("text", "markdown", "csv", "latex", "html", "json")

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "\N{EN DASH}": "--",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
MISSING = "\N{EN DASH}"

# A spreadsheet would execute a cell that begins so.
FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        value: NaN where nothing was measured.
        half_width: of its interval; None without one.
        signed: a difference, shown with its sign.
    """

    value: float
    half_width: float | None = None
    signed: bool = False


Raw = str | int | float | None
Cell = Raw | Estimate


@dataclass(frozen=True)
class Table:
    """Cells with what a reader must know about them.

    Attributes:
        title: one line.
        header: column names.
        rows: cells; None is a missing value.
        notes: sentences printed under the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def render(table: Table, form: str = "text") -> str:
    """Returns the table as text of one of :data:`FORMATS`, ending in a line end.

    Whatever came from users' files is escaped. LaTeX needs the package booktabs. In CSV numbers
    have six decimals, half-widths columns of their own, and every row repeats the notes in its
    last column. In JSON a mean over seeds is an object with its value and its half-width.

    Raises:
        UserError: unknown format.
    """
    if form not in FORMATS:
        raise UserError(f"unknown table format {form!r}; choose one of {', '.join(FORMATS)}")
    if form == "csv":
        return _csv(table)
    if form == "json":
        return _json(table)
    title, *notes = (_escape(text, form) for text in (table.title, *table.notes))
    body = _body(table, form)
    if form == "html":
        items = "".join(f"<li>{note}</li>\n" for note in notes)
        body = body.replace("<table>", f"<table>\n<caption>{title}</caption>", 1)
        return f"{body}\n<ul>\n{items}</ul>\n" if notes else f"{body}\n"
    if form == "latex":
        below = "".join(f"\\par\\footnotesize {note}\n" for note in notes)
        head = f"\\begin{{table}}\n\\centering\n\\caption{{{title}}}\n"
        return f"{head}{body}\n{below}\\end{{table}}\n"
    if form == "markdown":
        return f"**{title}**\n\n{body}\n\n" + "".join(f"- {note}\n" for note in notes)
    return f"{title}\n\n{body}\n\n" + "".join(f"{note}\n" for note in notes)


def _body(table: Table, form: str) -> str:
    from tabulate import tabulate  # type: ignore[import-untyped]

    name = {
        "text": "simple",
        "markdown": "pipe",
        "latex": "latex_raw",
        "html": "unsafehtml",
    }[form]
    header = [_escape(column, form) for column in table.header]
    if form == "text":
        header = ["\n".join(column.rsplit(" ", 1)) for column in header]
    rows = [[_shown(cell, form) for cell in row] for row in table.rows]
    left = [all(isinstance(row[k], str) for row in table.rows) for k in range(len(header))]
    align = ["left" if is_text else "right" for is_text in left]
    body = tabulate(
        rows, header, tablefmt=name, disable_numparse=True, colalign=align if rows else None
    )
    if form == "latex":
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            body = body.replace(r"\hline", rule, 1)
    return body


def _shown(cell: Cell, form: str) -> str:
    text = _text(cell)
    if form == "latex" and text.startswith("-") and not isinstance(cell, str):
        return f"$-${_escape(text[1:], form)}"
    return _escape(text, form)


def _text(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        sign = "+" if cell.signed else ""
        reach = "" if cell.half_width is None else f" ± {cell.half_width:.1f}"
        return MISSING if math.isnan(cell.value) else f"{cell.value:{sign}.1f}{reach}"
    if isinstance(cell, float):
        return MISSING if math.isnan(cell) else f"{cell:.1f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return MISSING if cell is None else cell


def _escape(text: str, form: str) -> str:
    text = " ".join(text.split())
    if form == "html":
        return html.escape(text)
    if form == "latex":
        return text.translate(LATEX)
    if form == "markdown":
        for character in "\\|*_`[]":
            text = text.replace(character, f"\\{character}")
        return html.escape(text, quote=False)
    return text


def _csv(table: Table) -> str:
    wide = [
        any(getattr(row[k], "half_width", None) is not None for row in table.rows)
        for k in range(len(table.header))
    ]
    header: list[Raw] = []
    for column, is_wide in zip(table.header, wide, strict=True):
        header += [column, f"{column} half-width"] if is_wide else [column]
    notes = " ".join(" ".join(note.split()) for note in table.notes)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, "notes"])
    for row in table.rows:
        cells: list[Raw] = []
        for cell, is_wide in zip(row, wide, strict=True):
            value, reach = (
                (cell.value, cell.half_width) if isinstance(cell, Estimate) else (cell, None)
            )
            cells += [_raw(value), _raw(reach)] if is_wide else [_raw(value)]
        writer.writerow([*cells, notes])
    return out.getvalue()


def _json(table: Table) -> str:
    def plain(cell: Cell) -> Any:
        if isinstance(cell, Estimate):
            return {"value": plain(cell.value), "half_width": cell.half_width}
        return None if isinstance(cell, float) and math.isnan(cell) else cell

    content = {
        "title": table.title,
        "columns": table.header,
        "rows": [[plain(cell) for cell in row] for row in table.rows],
        "notes": table.notes,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _raw(value: Raw) -> Raw:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return harmless(value)


def harmless(value: Raw) -> Raw:
    """Returns a CSV cell that a spreadsheet does not execute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
