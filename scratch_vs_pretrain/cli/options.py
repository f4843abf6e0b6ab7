"""How commands and their options are written down, and what several commands share.

Commands import what they need when they run: `svp table` must not wait for torch.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from scratch_vs_pretrain import __version__
from scratch_vs_pretrain.analysis.tables import FORMATS
from scratch_vs_pretrain.errors import UserError

# Adds an option to a parser.
Option = Callable[[Any], Any]
# Runs a command; returns its exit status, nothing for 0.
Handler = Callable[[argparse.Namespace], int | None]

COMMANDS: list[tuple[str, str, str, tuple[Option | str, ...], Handler]] = []


def command(summary: str, examples: str, *options: Option | str) -> Callable[[Handler], Any]:
    """Makes the command ``do-it`` of a function ``_do_it``.

    Args:
        examples: with which its help ends, one a line.
        options: of :func:`option`; a text is the title of those behind it.
    """

    def register(handler: Handler) -> Handler:
        name = handler.__name__.removeprefix("_").replace("_", "-")
        COMMANDS.append((name, summary, examples, options, handler))
        return handler

    return register


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="svp",
        description="Does pre-training help my detector on my data? Paired scratch/pretrained "
        "experiments over Detectron2.",
        epilog="Begin with: svp demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"svp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary, examples, options, handler in sorted(COMMANDS):
        one = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(run=handler)
        place: Any = one
        for add in options:
            if isinstance(add, str):
                place = one.add_argument_group(add)
            else:
                add(place)
        IMPORTS(one)
    return parser


def option(row: str, kind: Any = None, default: Any = None, **settings: Any) -> Option:
    """Returns what adds an argument to a parser.

    Args:
        row: as in the help, but that a default which it does not tell is added there: names, what
            stands for a value (a flag has none) and, behind two blanks, what it means:
            "-j --jobs N  runs at a time".
        kind: the values to choose from, or what reads one; without it a value is text.
        settings: others of ``ArgumentParser.add_argument``.
    """
    names, _, help = row.partition("  ")
    words = names.split()
    flags = [word for word in words if word.startswith("-")]
    if kind is Path or not flags:
        kind = functools.partial(_filled, kind or str)
    flags = flags or words[:1]
    if isinstance(kind, Collection):
        settings |= {"choices": kind, "default": default}
    elif len(words) > len(flags):
        settings |= {"metavar": words[-1], "type": kind, "default": default}
    else:
        settings = {"action": "store_true", **settings}
    if default and help and "(default: " not in help:
        help += " (default: %(default)s)"
    return lambda parser: parser.add_argument(*flags, help=help or None, **settings)


def _filled(kind: Callable[[str], Any], text: str) -> Any:
    """Reads what must not be empty: an empty path would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; was a shell variable not set?")
    return kind(text)


def positive(text: str) -> int:
    """Reads an option's whole number above 0."""
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


class Pairs(argparse.Action):
    """An option ``KEY=VALUE`` that may be repeated, each time with another key."""

    def __call__(self, parser: Any, given: Any, value: Any, name: str | None = None) -> None:
        key, equals, text = value.partition("=")
        found = dict(getattr(given, self.dest))
        if not (key and equals and text):
            raise UserError(f"{name} {value}: write {name} {self.metavar}")
        if key in found:
            raise UserError(f"{name} {value}: {key} is given twice")
        setattr(given, self.dest, {**found, key: text})


def pairs(row: str, **settings: Any) -> Option:
    """Returns an option whose value is a dictionary of texts."""
    return option(row, action=Pairs, default={}, **settings)


IMPORTS = option(
    "--import MODULE  a module of your own to import first, as a study's `imports`",
    default=[],
    dest="imports",
    action="append",
)
FORMAT = option("--format", FORMATS, "text")
TEXT_OR_JSON = option("--format", ("text", "json"), "text")
FOLDER = option("folder DIR  holds run folders", Path)
FOLDERS = option("folders DIR  holds run folders", Path, nargs="+")
RUN = option("folder RUN  a run folder with a checkpoint", Path)
CHECKPOINT = option("-o --output FILE.pth", Path, required=True)
