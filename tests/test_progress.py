"""Bars on a terminal, lines in a file."""

import io
import time

import pytest

from scratch_vs_pretrain import progress
from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.2)
    file = io.StringIO()
    started = time.monotonic()
    for _ in Bar(range(300), desc="making", unit="image", file=file):
        time.sleep(0.003)
    most = (time.monotonic() - started) / 0.2 + 1
    lines = file.getvalue().splitlines()
    assert 2 <= len(lines) <= most
    assert "\r" not in file.getvalue()
    assert all(line.startswith("making: ") for line in lines)
    assert lines[-1].startswith("making: 300/300 image [")


def test_a_bar_that_is_taken_away_leaves_no_line():
    file = io.StringIO()
    assert sum(1 for _ in Bar(range(9), desc="evaluating", leave=False, file=file)) == 9
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    for _ in Bar(range(3), desc="making", file=terminal):
        pass
    shown = terminal.getvalue()
    assert shown.startswith("\rmaking:   0%|")
    assert "\rmaking: 100%|" in shown


@pytest.mark.parametrize("shown", [True, False])
def test_making_a_data_set_into_a_log_is_one_line(tmp_path, capfd, shown):
    make_shapes(tmp_path / "shapes", ShapesSpec(train=20, test=5, image_size=96), progress=shown)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == ["shapes: 25/25 image"] * shown
