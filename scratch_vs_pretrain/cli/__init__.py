"""``svp``: thin commands over the package's parts, a module for each group of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from scratch_vs_pretrain import __version__
from scratch_vs_pretrain.cli import evidence, setup, study, tools, weights  # noqa: F401
from scratch_vs_pretrain.cli.options import add_commands
from scratch_vs_pretrain.errors import UserError, say

BAD_INPUT = 2


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
    add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (it ran, and something in it failed) or 2 (bad input)."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output is gone (`svp table | head`); nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
