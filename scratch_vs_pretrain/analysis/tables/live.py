"""The state of runs while they train: a table that can be shown again and again."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scratch_vs_pretrain.analysis.runs.numbers import read_evaluation
from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.tables.table import Cell, Table, render
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder

REFRESH_SECONDS = 2
HEADER = ("study", "arm", "schedule", "seed", "state", "iteration", "AP", "left", "reason")
# The numbers that stand for a detector, the first that is there.
MAIN_METRICS = ("keypoints/AP", "bbox/AP")


def status_text(folder: Path) -> str:
    """Returns the state of every run below `folder`, and what cannot be read."""
    damaged: list[str] = []
    runs = load_runs(folder, damaged)
    # Where there is one study, its name is that of the folder.
    start = 0 if len({run.setting for run in runs}) > 1 else 1
    rows = tuple(_row(run, damaged)[start:] for run in runs)
    notes = tuple(f"Cannot be read: {problem}" for problem in damaged)
    return render(Table(f"{len(rows)} runs in {folder}", HEADER[start:], rows, notes), "text")


def _row(run: RunRecord, damaged: list[str]) -> tuple[Cell, ...]:
    far, seconds = f"{run.iteration:,} / {run.iterations:,}", seconds_left(run)
    score = left = waits = None
    try:
        score = score_so_far(run)
    except UserError as error:
        damaged.append(str(error))
    if seconds is not None:
        try:
            left = str(datetime.timedelta(seconds=round(seconds)))
        except OverflowError:
            left = "for ever"
    if run.state == "planned" and run.branch_of is not None:
        waits = f"begins at iteration {run.branch_at} of {run.branch_of}"
    more = (run.state, far, score, left, run.reason or waits)
    return (run.setting, run.arm, run.schedule, run.seed, *more)


def score_so_far(run: RunRecord) -> float | None:
    """Returns the latest evaluation's box AP, or keypoint AP; None where there is none."""
    files = sorted(RunFolder(run.folder).evaluations.glob("[0-9]*.json"))
    if not files:
        return None
    scores = read_evaluation(files[-1]).scores
    return next((scores[metric] for metric in MAIN_METRICS if metric in scores), None)


def seconds_left(run: RunRecord) -> float | None:
    """Returns how long a run goes on at the rate so far, what it has from its trunk left out.

    None for a run that is not training, or has no iteration of its own yet.
    """
    if run.state != "running" or run.seconds is None:
        return None
    own = run.iteration - (run.branch_at if run.trunk_seconds else 0)
    if own <= 0:
        return None
    return (run.iterations - run.iteration) * (run.seconds - run.trunk_seconds) / own


def watch(folder: Path, seconds: float = REFRESH_SECONDS) -> None:
    """Shows the runs below `folder` until none goes on; where the output is no terminal, once."""
    text = status_text(folder)
    if not sys.stdout.isatty():
        print(text)
        return
    with live_table(lambda: status_text(folder)) as show:
        while True:
            show()
            if not any(run.state in ("running", "planned") for run in load_runs(folder, [])):
                return
            time.sleep(seconds)


@contextlib.contextmanager
def live_table(text: Callable[[], str], error_output: bool = False) -> Iterator[Callable[[], None]]:
    """Yields a function that shows `text` in place of what it showed before.

    It may be called as often as one likes; the table is made anew every `REFRESH_SECONDS`. A file
    that is being replaced may make `text` fail; then the old one stays.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown = 0.0
    with Live(console=Console(stderr=error_output), auto_refresh=False) as live:

        def show() -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_SECONDS:
                with contextlib.suppress(UserError):
                    live.update(Text(text().rstrip(), no_wrap=True), refresh=True)
                shown = time.monotonic()

        yield show
        shown = 0.0
        show()
