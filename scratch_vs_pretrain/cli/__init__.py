"""``svp``: thin commands over the package's parts, a module for each group of them."""

import argparse
import os
import sys
from collections.abc import Sequence

from scratch_vs_pretrain import __version__
from scratch_vs_pretrain._detectron2 import INSTALL_COMMAND
from scratch_vs_pretrain.cli import evidence, study, tools, weights  # noqa: F401
from scratch_vs_pretrain.cli.options import add_commands
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.plugins import import_modules

BAD_INPUT = 2

# What training needs beside reading.
TRAINING = ("torch", "torchvision", "detectron2", "fvcore", "pycocotools", "faster_coco_eval")


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
    try:
        options = build_parser().parse_args(arguments)
        import_modules(options.imports, "--import")
        return options.run(options)
    except UserError as error:
        say(f"error: {error}")
        return BAD_INPUT
    except ModuleNotFoundError as error:
        # Where reading's requirements alone are installed.
        name = (error.name or "").partition(".")[0]
        if name not in TRAINING:
            raise
        say(f"error: {name} is not installed; run: {INSTALL_COMMAND}")
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output is gone (`svp table | head`); nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
