"""``svp``: thin commands over the package's parts, a module for each group of them."""

import errno
import os
import sys
from collections.abc import Sequence

from scratch_vs_pretrain._detectron2 import INSTALL_COMMAND
from scratch_vs_pretrain.cli import evidence, setup, study  # noqa: F401
from scratch_vs_pretrain.cli.options import build_parser
from scratch_vs_pretrain.config import import_modules
from scratch_vs_pretrain.errors import REMEDIES, UserError, say, unreadable

# What training needs beside reading.
TRAINING = ("torch", "torchvision", "detectron2", "fvcore", "pycocotools", "faster_coco_eval")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (it ran, and something in it failed) or 2 (bad input)."""
    try:
        options = build_parser().parse_args(arguments)
        import_modules(options.imports, "--import")
        status = options.run(options) or 0
        sys.stdout.flush()  # here, where a reader that is gone can still be told from a fault
        return status
    except UserError as error:
        say(f"error: {error}")
        return 2
    except ModuleNotFoundError as error:
        # Where reading's requirements alone are installed.
        name = (error.name or "").partition(".")[0]
        if name not in TRAINING:
            raise
        say(f"error: {name} is not installed; run: {INSTALL_COMMAND}")
        return 2
    except OSError as error:
        # Any question about such a path raises, whether it is there too.
        if error.errno in REMEDIES:
            say(f"error: {unreadable(error.filename, error)}")
            return 2
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        # The reader of our output is gone (`svp table | head`), or the disk behind it is full;
        # nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 1
        say(f"error: standard output cannot be written ({error.strerror})")
        return 2
    except KeyboardInterrupt:
        return 130
