"""What a user reads: the one exception meant for that, lines on stderr, and names made harmless.

Names, reasons and paths from somebody's files may hold what a terminal obeys (escapes), what turns
the reading order (bidirectional marks), what a spreadsheet computes, or what LaTeX and HTML take
for commands.
"""

from __future__ import annotations

import contextlib
import html
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

# What pydantic's kinds of errors expect, as a sentence has it.
EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    **dict.fromkeys(("dict_type", "model_type"), "an object"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
}


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, key or line and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # torch raises one of a loader's worker again, the worker's traceback before its message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n"))


@contextlib.contextmanager
def located(place: object) -> Iterator[None]:
    """Puts a place in front of what a UserError within says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


@contextlib.contextmanager
def writable(path: object) -> Iterator[None]:
    """Makes a UserError of an OSError within, which says that `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def reason_of(error: BaseException) -> str:
    """Returns what somebody else's code raised, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_choice(what: str, name: str, choices: Collection[str]) -> None:
    """Raises UserError where a name is none of several."""
    if name not in choices:
        raise UserError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")


def say(text: str) -> None:
    """Prints a line on stderr, with nothing in it that a terminal would obey."""
    print(f"svp: {printable(text)}", file=sys.stderr)


def from_validation(error: ValidationError, place: object) -> UserError:
    """Returns a sentence on the first thing that a schema finds wrong with a JSON file."""
    first = error.errors(include_url=False)[0]
    kind, key = first["type"], ".".join(map(str, first["loc"]))
    if kind == "json_invalid":
        return UserError(f"{place}: not valid JSON ({first['ctx']['error']})")
    if kind == "missing":
        return UserError(f"{place}: {key!r} is missing")
    if kind == "extra_forbidden":
        return UserError(f"{place}: {key!r} is not known; was it written by a newer version?")
    if not key:
        return UserError(f"{place}: an object is expected, not {_short(first['input'])}")
    said = first["msg"].removeprefix("Value error, ")
    expected = f"{EXPECTED[kind]} is expected" if kind in EXPECTED else said
    return UserError(f"{place}: {key!r} is {_short(first['input'])}: {expected}")


def _short(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer of thousands of digits
        return "too large"


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


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown key: the known one it is most like, if any."""
    import difflib  # takes time, and only errors need it

    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
