"""Starts, skips, resumes and refuses the runs of a study; one process per run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.config import config_text, differences, load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import FORMAT, RunFolder, write_atomically, write_json
from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.merge import run_config
from scratch_vs_pretrain.study.spec import Run, Study
from scratch_vs_pretrain.study.tune import pick_winner, search_study, with_recipe

if TYPE_CHECKING:
    from detectron2.config import CfgNode

POLL_SECONDS = 0.5

# Exit status of `python -m scratch_vs_pretrain.training` when another process has the run.
BUSY = 2

# What run.json states of a run before it starts; a folder that differs in these is another run.
IDENTITY = ("study", "arm", "schedule", "seed")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its state, why unless it finished, and what it could not read."""

    folder: RunFolder
    state: str
    reason: str | None
    unreadable_images: tuple[str, ...] = ()


def prepare(study: Study, output: Path) -> list[RunFolder]:
    """Writes the run folders of a study that are not there yet, and checks those that are.

    Raises:
        UserError: the arms differ in more than the study allows; a folder holds a run of another
            config or of other weights; or a folder cannot be written. Nothing was started.
    """
    allowed = {key: dict(values) for key, values in audit(study).allowed.items()}
    if study.switch is not None:
        raise UserError(
            f"{study.file}: switch: runs cannot be switched by this command; remove the switch, or "
            "train with switch.config as the base"
        )
    return [_prepare_run(study, run, allowed, output) for run in study.runs()]


def _prepare_run(
    study: Study, run: Run, allowed: dict[str, dict[str, Any]], output: Path
) -> RunFolder:
    folder = run.folder(output)
    cfg = run_config(study, run)
    described = _describe(study, run, cfg, allowed)
    if folder.run_file.exists():
        _refuse_another_run(folder, cfg, described)
        _keep_thresholds(folder, described["thresholds"])
        return folder
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config_file, config_text(cfg))
        # Last, because run.json makes the folder a run folder.
        write_json(folder.run_file, described)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write there ({error.strerror})") from None
    return folder


def _describe(
    study: Study, run: Run, cfg: CfgNode, allowed: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    from scratch_vs_pretrain.modeling.weights import read_metadata, weights_sha256

    weights = run.arm.weights
    return {
        "format": FORMAT,
        "study": study.name,
        "description": study.description,
        "arm": run.arm.name,
        "schedule": run.schedule.name,
        "seed": run.seed,
        "state": "planned",
        "reason": None,
        "iterations": cfg.SOLVER.MAX_ITER,
        "iteration": 0,
        "resumes": [],
        "steps": list(cfg.SOLVER.STEPS),
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "init": {
            "name": "checkpoint" if weights else "scratch",
            "weights": weights or None,
            "sha256": weights_sha256(weights) if weights else None,
            "pretraining": read_metadata(weights) if weights else None,
        },
        "arm_order": [arm.name for arm in study.arms],
        "allowed_differences": allowed,
        "tuned_on": study.tuned_on,
        "thresholds": dict(study.conclusions),
    }


def _refuse_another_run(folder: RunFolder, cfg: CfgNode, described: dict[str, Any]) -> None:
    there = folder.read()
    for key in IDENTITY:
        if there.get(key) != described[key]:
            raise UserError(
                f"{folder.run_file}: belongs to {key} {there.get(key)!r}, not {described[key]!r}; "
                "choose another output folder"
            )
    found = differences({"there": load_config(folder.config_file), "now": cfg})
    changed = [
        f"{key} ({values['there']!r} there, {values['now']!r} now)"
        for key, values in found.items()
        # The same weights may lie elsewhere; their sha256 is compared below.
        if key != "MODEL.WEIGHTS"
    ]
    if changed:
        raise UserError(
            f"{folder.path}: holds a run of another config: {'; '.join(changed)}; "
            "choose another output folder, or change the study back"
        )
    before, now = (content["init"]["sha256"] for content in (there, described))
    if before != now:
        raise UserError(
            f"{folder.path}: holds a run that started from other weights (sha256 {before} there, "
            f"{now} now); choose another output folder, or restore the weights"
        )


def _keep_thresholds(folder: RunFolder, thresholds: dict[str, float]) -> None:
    """Tells a run by which thresholds it is judged now; they are no part of its training."""
    if folder.read().get("thresholds", {}) == thresholds:
        return
    try:
        with folder.lock():
            folder.update(thresholds=thresholds)
    except UserError:
        # In training, which writes run.json itself: the next start of the study tells it.
        _say(f"{folder.path}: is being trained; start the study again to change its conclusions")


@dataclass
class _Queue:
    """The runs of a study over a number of slots, each of which trains one at a time."""

    waiting: list[RunFolder]
    slots: int
    verbose: bool
    running: dict[int, tuple[RunFolder, subprocess.Popen]] = field(default_factory=dict)
    elsewhere: list[RunFolder] = field(default_factory=list)
    stopping: bool = False

    def work(self) -> None:
        while self.running or ((self.waiting or self.elsewhere) and not self.stopping):
            self._collect()
            self._take_over()
            self._start()
            time.sleep(POLL_SECONDS)

    def _collect(self) -> None:
        for slot, (folder, process) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[slot]
                if process.returncode == BUSY and folder.is_locked():
                    self.elsewhere.append(folder)

    def _take_over(self) -> None:
        """Runs that another launcher let go of come back into the queue."""
        free = [folder for folder in self.elsewhere if not folder.is_locked()]
        self.elsewhere = [folder for folder in self.elsewhere if folder not in free]
        self.waiting += [folder for folder in free if folder.state() != "finished"]

    def _start(self) -> None:
        for slot in range(self.slots):
            if self.waiting and slot not in self.running and not self.stopping:
                folder = self.waiting.pop(0)
                if folder.is_locked():
                    _say(f"{folder.path}: being trained by another process; waiting for it")
                    self.elsewhere.append(folder)
                else:
                    self.running[slot] = folder, _start(folder, slot, self.slots, self.verbose)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Asks the runs to save and stop; asked twice, they stop at once."""
        _say("stopping at once" if self.stopping else "saving checkpoints; again to stop at once")
        self.stopping = True
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)


def run_study(study: Study, output: Path, jobs: int = 1, verbose: bool = False) -> list[Outcome]:
    """Trains every run of a study that is not finished, and returns how each ended.

    Finished runs are skipped, interrupted and failed ones resumed from their newest checkpoint,
    diverged ones left alone. One run's failure does not stop the others. Ctrl-C and SIGTERM let
    the runs save a checkpoint first.

    A recipe that has to be searched is searched first; unless the search is complete, its
    outcomes are returned and nothing else trains.

    Args:
        study: what to train.
        output: below which the run folders lie.
        jobs: runs that train at the same time, on an equal share of the processor's cores each.
        verbose: show Detectron2's log.

    Raises:
        UserError: as :func:`prepare`.
    """
    if study.tune is not None:
        outcomes = run_study(search_study(study), output, jobs, verbose)
        if any(outcome.state not in ("finished", "diverged") for outcome in outcomes):
            return outcomes
        winner = pick_winner(study, [outcome.folder for outcome in outcomes], output)
        study = with_recipe(study, winner)
    folders = prepare(study, output)
    # Seed by seed, so that the first pair is complete as early as possible.
    runs = sorted(zip(study.runs(), folders, strict=True), key=lambda pair: pair[0].seed)
    waiting = [folder for _, folder in runs if folder.state() not in ("finished", "diverged")]
    queue = _Queue(waiting, max(1, min(jobs, len(waiting))), verbose)
    with _signals_to(queue.stop):
        queue.work()
    return [_outcome(folder) for folder in folders]


def _outcome(folder: RunFolder) -> Outcome:
    run = folder.read()
    unreadable = tuple(run.get("unreadable_images", ()))
    return Outcome(folder, folder.state(), run.get("reason"), unreadable)


def _start(folder: RunFolder, slot: int, slots: int, verbose: bool) -> subprocess.Popen:
    command = [sys.executable, "-m", "scratch_vs_pretrain.training", str(folder.path)]
    return subprocess.Popen(
        [*command, "--verbose"] if verbose else command,
        env={**os.environ, **_environment(os.environ, slot, slots)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C reaches this process alone, which passes it on.
        start_new_session=True,
    )


def _environment(present: Mapping[str, str], slot: int, slots: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // slots)
    return {
        "OMP_NUM_THREADS": present.get("OMP_NUM_THREADS", str(threads)),
        "SVP_BAR_POSITION": str(slot),
    }


@contextmanager
def _signals_to(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _say(text: str) -> None:
    print(f"svp: {text}", file=sys.stderr)
