"""The one exception meant for users, what says it in one sentence, and lines on stderr."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from scratch_vs_pretrain.text import printable

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import ValidationError

REMEDIES = {errno.ENAMETOOLONG: "choose a shorter name", errno.EACCES: "change its permissions"}

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


def unreadable(path: object, error: OSError) -> UserError:
    """Returns a sentence on why the system does not give `path`."""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return UserError(f"{path}: {str(error.strerror).lower()}{remedy}")


def skip(error: UserError, skipped: list[str] | None) -> None:
    """Keeps the message about what is left out; without a place to keep it, raises it."""
    if skipped is None:
        raise error
    skipped.append(str(error))


def regular(path: Path) -> Path:
    """Returns a path that may be read, or raises an OSError: pipes and devices have no end."""
    if not path.is_file() and not path.is_dir() and path.exists():
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    return path


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


def from_validation(error: ValidationError, place: object, remedy: str) -> UserError:
    """Returns a sentence on the first thing that a schema finds wrong with a JSON file."""
    first = error.errors(include_url=False)[0]
    kind, key = first["type"], ".".join(map(str, first["loc"]))
    if kind == "json_invalid":
        wrong = f"not valid JSON ({first['ctx']['error']})"
    elif kind == "missing":
        wrong = f"{key!r} is missing"
    elif kind == "extra_forbidden":
        wrong, remedy = f"{key!r} is not known", "was it written by a newer version?"
    elif not key:
        wrong = f"an object is expected, not {_short(first['input'])}"
    else:
        said = first["msg"].removeprefix("Value error, ")
        expected = f"{EXPECTED[kind]} is expected" if kind in EXPECTED else said
        wrong = f"{key!r} is {_short(first['input'])}: {expected}"
    return UserError(f"{place}: {wrong}; {remedy}")


def _short(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an integer of thousands of digits
        return "too large"
