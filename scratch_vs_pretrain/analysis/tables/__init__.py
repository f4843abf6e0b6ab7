"""Tables in any format. A table keeps its notes wherever it goes."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scratch_vs_pretrain.errors import check_choice
from scratch_vs_pretrain.text import clean, csv_cell

FORMATS = ("text", "markdown", "csv", "latex", "html", "json")

# Of tabulate.
LAYOUTS = {"text": "simple", "markdown": "pipe", "latex": "latex_raw", "html": "unsafehtml"}
NO_ROWS = "No run here has finished with what this table needs; svp status shows how far all are."
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    value: float  # NaN where nothing was measured
    half_width: float | None = None  # of its interval; None without one
    signed: bool = False  # a difference, shown with its sign

    def __str__(self) -> str:
        if math.isnan(self.value):
            return MISSING
        # "z": what is rounded to nothing has no sign of its own.
        value = f"{self.value:{'+' if self.signed else ''}z.1f}"
        return value if self.half_width is None else f"{value} ± {self.half_width:.1f}"


Raw = str | int | float | None
Cell = Raw | Estimate


@dataclass(frozen=True)
class Table:
    """Cells with what a reader must know about them."""

    title: str  # one line
    header: tuple[str, ...]  # column names
    rows: tuple[tuple[Cell, ...], ...]  # cells; None is a missing value
    notes: tuple[str, ...] = ()  # sentences printed under the table

    def __str__(self) -> str:
        return render(self)

    def _repr_html_(self) -> str:
        """Shows the table in a notebook."""
        return render(self, "html")


def render(table: Table, form: str = "text") -> str:
    """Returns one table as :func:`render_all` does."""
    return render_all({"": table}, form)


def render_all(tables: Mapping[str, Table], form: str) -> str:
    """Returns tables, by their studies' names, as text of one of :data:`FORMATS`, with a line end.

    Whatever came from users' files is escaped. LaTeX says which packages it needs. In CSV numbers
    have six decimals, half-width columns of their own, and notes the last one; several tables are
    one with a first column "study", and a table without rows is a row of notes. In JSON a mean is
    its value and its half-width, and several tables are a list.

    Raises:
        UserError: unknown format.
    """
    check_choice("table format", form, FORMATS)
    told = {
        name: table if table.rows else replace(table, notes=(NO_ROWS, *table.notes))
        for name, table in tables.items()
    }
    if form == "csv":
        return _csv(told)
    if form == "json":
        named = [{"study": name, **_json(table)} for name, table in told.items()]
        content = named if len(named) > 1 else _json(*told.values())
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
    return "\n".join(_written(table, form) for table in told.values())


def _written(table: Table, form: str) -> str:
    title, *notes = (clean(text, form) for text in (table.title, *table.notes))
    body = _body(table, form)
    if form == "latex":
        return _latex(title, body, notes)
    if form == "html":
        items = "".join(f"<li>{note}</li>\n" for note in notes)
        body = body.replace("<table>", f"<table>\n<caption>{title}</caption>", 1)
        return f"{body}\n<ul>\n{items}</ul>\n" if notes else f"{body}\n"
    if form == "markdown":
        return f"**{title}**\n\n{body}\n\n" + "".join(f"- {note}\n" for note in notes)
    return f"{title}\n\n{body}\n\n" + "".join(f"{note}\n" for note in notes)


def _latex(title: str, body: str, notes: Sequence[str]) -> str:
    below = "".join(f"\\par\\footnotesize {note}\n" for note in notes)
    text = (
        f"\\begin{{table}}\n\\centering\n\\caption{{{title}}}\n"
        "\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\begin{{adjustbox}}{{max width=\\textwidth}}\n{body}\n"
        f"\\end{{adjustbox}}\n{below}\\end{{table}}\n"
    )
    letters = "" if text.isascii() else " and \\usepackage[T1]{fontenc}"
    return f"% Needs \\usepackage{{booktabs,adjustbox}}{letters}.\n{text}"


def _body(table: Table, form: str) -> str:
    from tabulate import tabulate  # type: ignore[import-untyped]

    left = [all(isinstance(row[k], str) for row in table.rows) for k in range(len(table.header))]
    body = tabulate(
        [[_cell(cell, form) for cell in row] for row in table.rows],
        [_heading(name, form, is_text) for name, is_text in zip(table.header, left, strict=True)],
        tablefmt=LAYOUTS[form],
        disable_numparse=True,
        colalign=["left" if is_text else "right" for is_text in left] if table.rows else None,
    )
    if form == "latex":
        # Without rows tabulate knows no columns.
        body = body.replace("{tabular}{}", f"{{tabular}}{{{'l' * len(left)}}}", 1)
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            body = body.replace(r"\hline", rule, 1)
    return body


def _heading(column: str, form: str, left: bool) -> str:
    """Returns a column's name, in two lines where that makes the column narrower."""
    words = [clean(part, form) for part in column.rsplit(" ", 1)]
    if form == "text":
        return "\n".join(words)
    if form == "latex" and len(words) > 1:
        return f"\\shortstack[{'l' if left else 'r'}]{{{words[0]}\\\\{words[1]}}}"
    return clean(column, form)


def _cell(cell: Cell, form: str) -> str:
    text = shown(cell)
    if form == "latex" and text.startswith("-") and not isinstance(cell, str):
        return f"$-${clean(text[1:], form)}"
    return clean(text, form)


def shown(cell: Cell) -> str:
    """Returns a cell as people read it."""
    if isinstance(cell, float):
        return str(Estimate(cell))
    if isinstance(cell, int):
        return f"{cell:,}"
    return MISSING if cell is None else str(cell)


def _csv(tables: Mapping[str, Table]) -> str:
    rows: list[dict[str, Cell]] = [
        {
            "study": study,
            **dict(zip(table.header, row, strict=False)),
            "notes": " ".join(table.notes),
        }
        for study, table in tables.items()
        for row in table.rows or ((),)
    ]
    first = ("study",) if len(tables) > 1 else ()
    header = dict.fromkeys(name for table in tables.values() for name in table.header)
    columns: list[list[Cell]] = []
    for name in (*first, *header, "notes"):
        cells = [row.get(name) for row in rows]
        columns.append([name, *cells])
        widths = [getattr(cell, "half_width", None) for cell in cells]
        if any(width is not None for width in widths):
            columns.append([f"{name} half-width", *widths])
    out = io.StringIO()
    lines = zip(*columns, strict=True)
    csv.writer(out, lineterminator="\n").writerows(map(_raw, line) for line in lines)
    return out.getvalue()


def _json(table: Table) -> dict[str, Any]:
    def plain(cell: Cell) -> Any:
        if isinstance(cell, Estimate):
            return {"value": plain(cell.value), "half_width": cell.half_width}
        return None if isinstance(cell, float) and math.isnan(cell) else cell

    return {
        "title": table.title,
        "columns": table.header,
        "rows": [[plain(cell) for cell in row] for row in table.rows],
        "notes": table.notes,
    }


def _raw(cell: Cell) -> Raw:
    value = cell.value if isinstance(cell, Estimate) else cell
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return csv_cell(value)
