"""Tables of the runs themselves: how far each is, while it trains too, and with what it trained."""

import contextlib
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from scratch_vs_pretrain.analysis.runs import Records, RunRecord, load_runs
from scratch_vs_pretrain.analysis.runs.numbers import read_evaluation
from scratch_vs_pretrain.analysis.tables import Cell, Table, render
from scratch_vs_pretrain.config import differences
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, read_bytes
from scratch_vs_pretrain.run_info import DataSet, Provenance
from scratch_vs_pretrain.text import counted

REFRESH_SECONDS = 2
STATUS_COLUMNS = ("study", "arm", "schedule", "seed", "state", "iteration", "AP", "left", "reason")
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
    title = f"{counted(len(rows), 'run')} in {folder}"
    return render(Table(title, STATUS_COLUMNS[start:], rows, notes))


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
    files = [f for f in RunFolder(run.folder).evaluation_files() if f.name[0].isdigit()]
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


def differences_table(runs: Records) -> Table:
    """Compares the final configs of one run per arm, at its longest schedule."""
    configs: dict[str, Any] = {}
    for run in sorted(runs, key=lambda run: -run.iterations):
        file = RunFolder(run.folder).config_file
        if run.arm not in configs and file.exists():
            try:
                configs[run.arm] = dict(yaml.safe_load(read_bytes(file)))
            except (ValueError, TypeError, yaml.YAMLError, RecursionError):
                raise UserError(
                    f"{file}: not plain YAML of config keys; is it a run's final config?"
                ) from None
    found = differences(configs) if len(configs) > 1 else {}
    rows = [
        (key, *(json.dumps(values.get(arm)) for arm in configs))
        for key, values in found.items()
        if key != "OUTPUT_DIR"
    ]
    notes = () if len(configs) > 1 else ("Fewer than two arms have a config.yaml here.",)
    title = "Final configs at each arm's longest schedule, key by key"
    return Table(title, ("key", *configs), tuple(rows), notes)


def runs_table(runs: Records) -> Table:
    """Lists every run of a study, and those that only other arms have."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        hours = None if run.seconds is None else run.seconds / 3600
        far = (run.state, run.iteration, run.iterations, hours, run.reason)
        rows.append((run.arm, run.schedule, run.seed, *far))
    known = {row[:3] for row in rows}
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    for arm in runs[0].arm_order or dict.fromkeys(run.arm for run in runs):
        mine = [run.schedule for run in runs if run.arm == arm] or [run.schedule for run in runs]
        for one in itertools.product([arm], dict.fromkeys(mine), seeds):
            if one not in known:
                rows.append((*one, "no folder", None, None, None, None))
    header = ("arm", "schedule", "seed", "state", "iteration", "of", "hours", "reason")
    title = "Every run; those that are not finished enter no mean"
    return Table(title, header, tuple(rows))


def provenance_table(runs: Records) -> Table:
    """Lists every fact with its distinct values; more than one is worth a look."""
    facts: dict[str, dict[str, None]] = {}
    for run in runs:
        origin = run.provenance or Provenance()
        known = {
            "device": origin.device,
            "host": origin.host,
            "git commit": origin.git_commit,
            "training data": _data(run.data.train),
            "evaluation data": _data(run.data.test),
            **origin.versions,
        }
        for name, value in known.items():
            if value:
                facts.setdefault(name, {})[value] = None
    rows = tuple((name, "; ".join(values)) for name, values in facts.items())
    return Table("Where, with what and on what the runs trained", ("", "value"), rows)


def _data(data: DataSet) -> str | None:
    if not data.names:
        return None
    count = "" if data.images is None else f", {data.images:,} images"
    digest = f", sha256 {data.sha256[:12]}" if data.sha256 else ""
    return f"{', '.join(data.names)}{count}{digest}"
