"""Options and steps that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.analysis.tables.table import FORMATS
from scratch_vs_pretrain.errors import UserError

# Commands import what they need when they run: `svp table` must not wait for torch.
if TYPE_CHECKING:
    from scratch_vs_pretrain.study.spec import Study

# What `ArgumentParser.add_subparsers` returns.
Commands = Any

OUTPUT = Path("output")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Adds a command whose help ends in `examples`, one a line, and returns its parser."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_study(parser: argparse.ArgumentParser) -> None:
    """Adds the study file and ``--weights``."""
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ARM=PATH",
        help="the checkpoint of an arm, in place of the study file's",
    )


def add_output(parser: argparse.ArgumentParser, default: Path = OUTPUT) -> None:
    """Adds ``--output``."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=default,
        metavar="DIR",
        help="where the run folders lie (default: %(default)s)",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Adds ``--format``, of a table."""
    parser.add_argument("--format", choices=FORMATS, default="text")


def read_study(options: argparse.Namespace, need_weights: bool = True) -> Study:
    """Reads the study that :func:`add_study`'s options name."""
    from scratch_vs_pretrain.study.parse import check_weights, load_study, parse_weights

    weights = parse_weights(options.weights)
    study = load_study(options.study, weights, need_weights=need_weights)
    if need_weights:
        check_weights(study)
    return study


def read_labels(texts: Sequence[str]) -> dict[str, str]:
    """Reads the options ``--label STUDY=TEXT``.

    Raises:
        UserError: one of another form.
    """
    labels = {}
    for text in texts:
        study, equals, label = text.partition("=")
        if not (study and equals and label):
            raise UserError(f"--label {text}: write --label STUDY=TEXT")
        labels[study] = label
    return labels


def positive(text: str) -> int:
    """Reads an option's whole number above 0."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number
