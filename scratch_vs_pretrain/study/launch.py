"""Trains the runs of a study: skips, resumes and refuses them, one process per run.

Runs wait for a slot: a share of the processor, or some of the machine's GPUs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from scratch_vs_pretrain.analysis.registry import tables_text
from scratch_vs_pretrain.analysis.stats.answer import answers_text
from scratch_vs_pretrain.analysis.tables.runs import live_table, status_text
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import RunInfo
from scratch_vs_pretrain.study.audit import missing_weights
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.plan import check_parts
from scratch_vs_pretrain.study.resolve import search_study, with_recipe
from scratch_vs_pretrain.study.slurm import Cluster, submit
from scratch_vs_pretrain.study.spec import SCRATCH, Run, Study
from scratch_vs_pretrain.training import signals_to, start_training
from scratch_vs_pretrain.training.checkpoint import ENDED, is_ready, trunk_of

if TYPE_CHECKING:
    from scratch_vs_pretrain.study.adaptive import Adaptive

POLL_SECONDS = 0.5
# Exit status of `python -m scratch_vs_pretrain.training` when another process has the run.
BUSY = 2
# The devices of a slot as CUDA_VISIBLE_DEVICES names them; none where runs share the processor.
Slot = tuple[str, ...]


def make_slots(jobs: int, gpus: Iterable[str] = (), gpus_per_run: int = 1) -> list[Slot]:
    """Returns the slots of this machine.

    Args:
        jobs: runs at the same time, where no GPUs are named.
        gpus: the GPUs to use, by number or UUID.
        gpus_per_run: how many of them train one run together.
    """
    named = list(gpus)
    if not named:
        return [()] * jobs
    twice = sorted({gpu for gpu in named if named.count(gpu) > 1})
    if twice:
        raise UserError(f"--gpus: {', '.join(twice)} is named twice; name every GPU once")
    if len(named) < gpus_per_run:
        raise UserError(
            f"--gpus: names {len(named)}, fewer than --gpus-per-run {gpus_per_run}; "
            "name more, or use fewer for each run"
        )
    ends = range(gpus_per_run, len(named) + 1, gpus_per_run)
    return [tuple(named[end - gpus_per_run : end]) for end in ends]


@dataclass
class RunQueue:
    """Runs of a study over a number of slots, each of which trains one at a time."""

    waiting: list[RunFolder]  # in the order in which they are to begin
    slots: list[Slot]  # of this machine
    verbose: bool = False  # show Detectron2's log
    # Called about twice a second, in place of the runs' own progress bars.
    show: Callable[[], None] | None = None
    running: dict[int, tuple[RunFolder, subprocess.Popen]] = field(default_factory=dict)
    # Waiting runs of which it was said that another process trains them.
    elsewhere: set[RunFolder] = field(default_factory=set)
    # Runs that cannot begin, and why; known at the end.
    blocked: dict[RunFolder, str] = field(default_factory=dict)
    stopping: bool = False

    def work(self) -> None:
        """Returns when nothing runs and nothing can begin any more."""
        while self.running or (self.waiting and not self.stopping):
            self._collect()
            self._start()
            self._block()
            if self.show:
                self.show()
            time.sleep(POLL_SECONDS)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Asks the runs to save and stop; asked twice, they stop at once."""
        say("stopping at once" if self.stopping else "saving checkpoints; again to stop at once")
        self.stopping = True
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)

    def _collect(self) -> None:
        for slot, (folder, process) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[slot]
                if process.returncode == BUSY:
                    self._wait_for(folder)
                    self.waiting.append(folder)
        # What another process trained to its end.
        done = {one for one in self.elsewhere if not one.is_locked() and one.state() in ENDED}
        self.waiting = [folder for folder in self.waiting if folder not in done]

    def _wait_for(self, folder: RunFolder) -> None:
        if folder not in self.elsewhere:
            say(f"{folder.path}: another process trains this run; waiting for it")
        self.elsewhere.add(folder)

    def _can_begin(self, folder: RunFolder) -> bool:
        if not is_ready(folder):
            return False
        if locked := folder.is_locked():
            self._wait_for(folder)
        return not locked

    def _start(self) -> None:
        free = [number for number in range(len(self.slots)) if number not in self.running]
        for number in () if self.stopping else free:
            ready = next(filter(self._can_begin, self.waiting), None)
            if ready:
                self.waiting.remove(ready)
                slot = self.slots[number]
                options = ["--processes", str(len(slot))] if len(slot) > 1 else []
                told = environment(os.environ, number, slot, len(self.slots))
                if self.show:
                    told["SVP_BARS"] = "0"
                process = start_training(ready, options + ["--verbose"] * self.verbose, told)
                self.running[number] = ready, process

    def _block(self) -> None:
        """Gives up branches whose trunk came to an end before them."""
        active = [*self.waiting, *(folder for folder, _ in self.running.values())]
        for folder in list(self.waiting):
            trunk = trunk_of(folder)
            if trunk is None or trunk in active or trunk.is_locked() or is_ready(folder):
                continue
            self.waiting.remove(folder)
            name = trunk.path.parent.name
            if trunk.state() == "diverged":
                # What it would repeat.
                folder.update(state="diverged", reason=f"as its trunk, {name}, did")
            else:
                self.blocked[folder] = f"its trunk, {name}, is {trunk.state()}"


def environment(present: Mapping[str, str], number: int, slot: Slot, slots: int) -> dict[str, str]:
    """Returns what a run's process is told by its environment: devices, threads, place."""
    threads = max(1, len(os.sched_getaffinity(0)) // (slots * max(1, len(slot))))
    told = {
        "OMP_NUM_THREADS": present.get("OMP_NUM_THREADS", str(threads)),
        "SVP_BAR_POSITION": str(number),
    }
    return {**told, "CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else told


@dataclass(frozen=True)
class Outcome:
    """How a run ended: what it says of itself, its state, and why unless it finished."""

    folder: RunFolder
    info: RunInfo
    state: str
    reason: str | None


def run_study(
    study: Study,
    output: Path,
    slots: Sequence[Slot] = ((),),
    verbose: bool = False,
    cluster: Cluster | None = None,
) -> list[Outcome]:
    """Trains every run of a study that is not finished, and returns how each ended.

    Finished runs are skipped, interrupted and failed ones resumed from their newest checkpoint,
    diverged ones left alone. One run's failure does not stop the others. Ctrl-C and SIGTERM let
    the runs save a checkpoint first.

    A recipe that has to be searched is searched first; unless the search is complete, its
    outcomes are returned and nothing else trains.

    Args:
        study: what to train.
        output: below which the run folders lie.
        slots: where; see :func:`make_slots`.
        verbose: show Detectron2's log.
        cluster: runs are submitted as its jobs, and not started in `slots`.
    """
    if missing := missing_weights(study):
        raise UserError(f"{study.file}: {missing[0]}")
    check_parts(study)
    if study.tune is not None:
        outcomes = run_study(search_study(study), output, slots, verbose, cluster)
        if any(outcome.state not in ENDED for outcome in outcomes):
            return outcomes
        study = with_recipe(study, output)
    folders = prepare(study, output)
    waiting = [folder for folder in in_order(study, folders) if folder.state() not in ENDED]
    if cluster is not None:
        # SIGTERM, too, is an exception then, after which no file is left half written.
        with signals_to(signal.default_int_handler):
            blocked = submit(cluster, output / "jobs", waiting)
    else:
        queue = RunQueue(waiting, list(slots)[: max(1, len(waiting))], verbose)
        with ExitStack() as held:
            held.enter_context(signals_to(queue.stop))
            # Elsewhere the runs' bars are better: lines in a log file, or between lines of one.
            if waiting and not verbose and sys.stderr.isatty():
                table = live_table(lambda: status_text(output / study.name), error_output=True)
                queue.show = held.enter_context(table)
            queue.work()
        blocked = queue.blocked
    runs = [(folder, folder.read()) for folder in folders]
    return [
        Outcome(folder, run, folder.state_of(run), blocked.get(folder) or run.reason)
        for folder, run in runs
    ]


def in_order(study: Study, folders: Sequence[RunFolder]) -> list[RunFolder]:
    """Returns the folders of a study's runs in the order in which they are to begin.

    Pair by pair: all arms of one size, schedule and seed before the next, so that the first
    comparison is there as early as possible; trunks before their branches, and seed by seed.
    """
    runs = study.runs()
    sizes, schedules = [run.size for run in runs], [run.schedule.name for run in runs]

    def place(pair: tuple[Run, RunFolder]) -> tuple[int, int, bool, int]:
        run, folder = pair
        is_branch = trunk_of(folder) is not None
        return run.seed, sizes.index(run.size), is_branch, schedules.index(run.schedule.name)

    # Sorting leaves arms in their order.
    return [folder for _, folder in sorted(zip(runs, folders, strict=True), key=place)]


def report(
    study: Study, output: Path, outcomes: Sequence[Outcome], search: Adaptive | None = None
) -> int:
    """Prints what came of a study: its table, its answer, and what went wrong.

    Returns the exit status: 0, or 1 if a run did not finish.
    """
    unfinished = [outcome for outcome in outcomes if outcome.state != "finished"]
    root = output / study.name
    # A search for the recipe that is not complete has no table of its own.
    own = all(root in outcome.folder.path.parents for outcome in outcomes)
    if own and len(unfinished) < len(outcomes) and len(study.arms) > 1:
        print(tables_text(root, "schedules", "text"))
        if search is not None and search.seen:
            print(search.text())
        elif any(arm.init == SCRATCH for arm in study.arms):
            print(answers_text(root))
    for outcome in outcomes:
        if replaced := outcome.info.unreadable_images:
            say(
                f"{outcome.folder.path}: {len(replaced)} training images were replaced because "
                f"they could not be read, for example {replaced[0]}"
            )
    # The runs of a study share their data, and so what was mended there.
    for repaired in dict.fromkeys(tuple(outcome.info.repaired.items()) for outcome in outcomes):
        if repaired:
            listed = "; ".join(f"{count:,} times {what}" for what, count in repaired)
            say(f"training data, see svp check-data: {listed}")
    for outcome in unfinished:
        why = f": {outcome.reason}" if outcome.reason else ""
        say(f"{outcome.folder.path}: {outcome.state}{why}")
    return 1 if unfinished else 0
