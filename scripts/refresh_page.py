#!/usr/bin/env python
"""Runs the commands that a page quotes again, and puts what they print in the place of the outputs.

    uv run python scripts/refresh_page.py docs/miniature.md

A quoted command is a fenced block whose first line is `$ svp ...`, run in the repository's root.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

from scratch_vs_pretrain.cli import main

ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"^```text\n\$ svp (.+)\n(?:.*\n)*?```$", re.MULTILINE)


def refreshed(page: str) -> str:
    """Returns a page's text with the outputs that its commands have now."""
    return QUOTED.sub(lambda found: f"```text\n$ svp {found[1]}\n{_output(found[1])}```", page)


def _output(command: str) -> str:
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        status = main(shlex.split(command))
    if status:
        raise SystemExit(f"svp {command}: ended with {status}")
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "200")
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refreshed(path.read_text()))
