"""Options and steps that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.analysis.tables import FORMATS
from scratch_vs_pretrain.errors import UserError

# Commands import what they need when they run: `svp table` must not wait for torch.
if TYPE_CHECKING:
    from scratch_vs_pretrain.study.spec import Study

OUTPUT = Path("output")

# Adds an option, or a group of them, to a parser.
Option = Callable[[Any], Any]
Handler = Callable[[argparse.Namespace], int]

COMMANDS: list[tuple[str, str, str, tuple[Option, ...], Handler]] = []


def command(name: str, summary: str, examples: str, *options: Option) -> Callable[[Handler], Any]:
    """Makes a command of a function, whose help ends in `examples`, one a line."""

    def register(handler: Handler) -> Handler:
        COMMANDS.append((name, summary, examples, options, handler))
        return handler

    return register


def add_commands(commands: Any) -> None:
    """Adds every command to what ``ArgumentParser.add_subparsers`` returned."""
    for name, summary, examples, options, handler in sorted(COMMANDS):
        parser = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for add in options:
            add(parser)
        parser.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="MODULE",
            help="a module of your own to import first, as a study's `imports`",
        )
        parser.set_defaults(run=handler)


def option(*names: str, **settings: Any) -> Option:
    """Returns what adds an argument to a parser."""
    return lambda parser: parser.add_argument(*names, **settings)


def flag(*names: str, help: str) -> Option:
    """Returns an option that is True where it is given."""
    return option(*names, action="store_true", help=help)


def count(*names: str, help: str, default: int | None = None, metavar: str = "N") -> Option:
    """Returns an option of a whole number above 0."""
    return option(*names, type=positive, default=default, metavar=metavar, help=help)


def group(title: str, *options: Option) -> Option:
    """Returns options under a title of their own."""

    def add(parser: argparse.ArgumentParser) -> None:
        titled = parser.add_argument_group(title)
        for add_to in options:
            add_to(titled)

    return add


def written(default: str | None, help: str, metavar: str = "FILE") -> Option:
    """Returns ``--output`` of a command that writes a file."""
    path = default and Path(default)
    return option("-o", "--output", type=Path, default=path, metavar=metavar, help=help)


VERBOSE = flag("-v", "--verbose", help="show Detectron2's log")
JSON = flag("--json", help="as JSON")
STUDY = option("study", type=Path, metavar="STUDY", help="a study file (YAML)")
FORMAT = option("--format", choices=FORMATS, default="text")
FOLDER = option("folder", type=Path, metavar="DIR", help="holds run folders")
FOLDERS = option("folders", type=Path, nargs="+", metavar="DIR", help="holds run folders")


class _Pairs(argparse.Action):
    """An option ``KEY=VALUE`` that may be repeated, each time with another key."""

    def __call__(self, parser: Any, given: Any, value: Any, name: str | None = None) -> None:
        key, equals, text = value.partition("=")
        found = dict(getattr(given, self.dest))
        if not (key and equals and text):
            raise UserError(f"{name} {value}: write {name} {self.metavar}")
        if key in found:
            raise UserError(f"{name} {value}: {key} is given twice")
        setattr(given, self.dest, {**found, key: text})


def pairs(name: str, metavar: str, help: str) -> Option:
    """Returns an option whose value is a dictionary of texts."""
    return option(name, action=_Pairs, default={}, metavar=metavar, help=help)


WEIGHTS = pairs("--weights", "ARM=PATH", "the checkpoint of an arm, in place of the study file's")


def output(default: Path = OUTPUT) -> Option:
    """Returns ``--output``."""
    return option(
        "-o",
        "--output",
        type=Path,
        default=default,
        metavar="DIR",
        help="where the run folders lie (default: %(default)s)",
    )


def read_study(options: argparse.Namespace) -> Study:
    """Reads the study that :data:`STUDY` and :data:`WEIGHTS` name."""
    from scratch_vs_pretrain.study.spec import load_study

    for path in (options.study, getattr(options, "output", None) or options.study):
        try:
            os.path.realpath(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: is not UTF-8, which run folders are; rename it") from None
    study = load_study(options.study, options.weights)
    imports = tuple(dict.fromkeys((*study.imports, *options.imports)))
    return replace(study, imports=imports, sharing=getattr(options, "sharing", True))


def positive(text: str) -> int:
    """Reads an option's whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number
