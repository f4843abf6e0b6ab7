"""What the commands print and draw of the recorded studies, to the letter.

`pytest tests/analysis/test_golden.py` compares; where a change is wanted, `python
tests/analysis/test_golden.py` writes the files anew, and the commit says why.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from matplotlib.figure import Figure

from scratch_vs_pretrain.cli import main

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "tests" / "golden"
FILES = sorted(FOLDER.glob("*.txt"))


def sections(text: str) -> dict[str, str]:
    """Splits a file into commands and what they say."""
    parts = re.split(r"^\$ svp (.*)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def numbers(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def described(figure: Figure) -> str:
    """Returns what a figure shows: names, captions, and the numbers behind lines and bars."""
    lines = []
    for ax in figure.axes:
        lines.append(f"panel {ax.get_title(loc='left')!r} over {ax.get_xlabel()!r}")
        for line in ax.lines:
            x, y = line.get_data()
            lines.append(f"  line {line.get_linestyle()} x {numbers(x)} y {numbers(y)}")
        boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in ax.patches]
        lines += [f"  bar {numbers(box)}" for box in boxes]
        lines += [f"  text {text.get_text()!r}" for text in ax.texts]
        lines += [f"  tick {t.get_text()!r}" for t in ax.get_xticklabels() if ax.patches]
    caption = figure._supxlabel.get_text() if figure._supxlabel else ""
    return "\n".join([*lines, " ".join(caption.split()), ""])


def said(command: str) -> str:
    """Returns what a command prints, and its figure in words."""
    drawn: list[str] = []
    out = io.StringIO()

    def save(figure: Figure, *_: object, **__: object) -> None:
        drawn.append(described(figure))

    words = command.split()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "a.svg"
        if words[0] == "plot":
            words += ["-o", str(output)]
        with (
            mock.patch.object(Figure, "savefig", save),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            contextlib.chdir(REPOSITORY),
        ):
            main(words)
        text = out.getvalue().replace(f"{output}\n", "")
    return text + "".join(drawn)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_commands_say_what_they_said(file):
    for command, expected in sections(file.read_text()).items():
        assert said(command) == expected, command


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "Agg"
    for file in FILES:
        file.write_text("".join(f"$ svp {c}\n{said(c)}" for c in sections(file.read_text())))
