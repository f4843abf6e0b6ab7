"""Text from other people's files, made harmless where it is shown.

Names, reasons and paths may hold what a terminal obeys (escapes), what turns the reading order
(bidirectional marks), what a spreadsheet computes, or what LaTeX and HTML take for commands.
"""

import html
import re
from collections.abc import Iterable
from typing import Any

FORMS = ("text", "markdown", "csv", "latex", "html")

# A spreadsheet computes a cell that begins so; the last four are their full-width twins.
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001

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
# What pdflatex has no sign for; XeLaTeX and LuaLaTeX have, and \Umathchar tells them.
BEYOND_PDFLATEX = re.compile("(?:[ĦħĸĿŀŉŦŧſ]|[^\0-\u017f–—‘’‚“”„†‡•…‰€™])+")  # noqa: RUF001
MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*_`[]"})


def printable(text: str) -> str:
    r"""Returns text in which all that is no plain sign is written out, as ``\x1b`` is.

    That is control characters, line ends, invisible marks, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Returns text of several lines, each :func:`printable`."""
    return "\n".join(map(printable, text.split("\n")))


def clean(text: str, form: str = "text") -> str:
    """Returns text on one line, as one of :data:`FORMS` needs it to show the text itself."""
    text = printable(" ".join(text.split()))
    if form == "csv":
        return f"'{text}" if text.startswith(FORMULA) else text
    if form == "html":
        return html.escape(text)
    if form == "latex":
        return BEYOND_PDFLATEX.sub(_by_engine, text.translate(LATEX))
    if form == "markdown":
        return html.escape(text.translate(MARKDOWN), quote=False)
    return text


def _by_engine(signs: re.Match) -> str:
    codes = " ".join(f"U+{ord(sign):04X}" for sign in signs[0])
    return rf"\ifx\Umathchar\undefined {codes}\else {signs[0]}\fi{{}}"


def csv_cell(value: Any) -> Any:
    """Returns a cell that a spreadsheet does not compute; numbers stay what they are."""
    return clean(value, "csv") if isinstance(value, str) else value


def cut(text: str, most: int) -> str:
    """Returns the beginning of a text that is longer than `most` signs, marked as one."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(count: int, what: str) -> str:
    """Returns "1 run" or "3,000 runs"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown key: the known one it is most like, if any."""
    import difflib  # takes time, and only errors need it

    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
