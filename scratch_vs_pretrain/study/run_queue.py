"""Runs wait for a slot: a share of the processor, or some of the machine's GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.messages import say
from scratch_vs_pretrain.training.branch import ENDED, is_ready, trunk_of

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

    Raises:
        UserError: a GPU is named twice, or there are fewer than one run needs.
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
    """Runs of a study over a number of slots, each of which trains one at a time.

    Attributes:
        waiting: in the order in which they are to begin.
        slots: of this machine.
        verbose: show Detectron2's log.
        show: called about twice a second, in place of the runs' own progress bars.
        starter: starts what trains a run, and is asked as a process is, in place of a process.
        blocked: runs that cannot begin, and why; known at the end.
    """

    waiting: list[RunFolder]
    slots: list[Slot]
    verbose: bool = False
    show: Callable[[], None] | None = None
    starter: Callable[[RunFolder, int], Any] | None = None
    running: dict[int, tuple[RunFolder, subprocess.Popen]] = field(default_factory=dict)
    elsewhere: list[RunFolder] = field(default_factory=list)
    blocked: dict[RunFolder, str] = field(default_factory=dict)
    stopping: bool = False

    def work(self) -> None:
        """Returns when nothing runs and nothing can begin any more."""
        while self.running or ((self.waiting or self.elsewhere) and not self.stopping):
            self._collect()
            self._take_over()
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
                    self.elsewhere.append(folder)

    def _take_over(self) -> None:
        """Runs that another launcher let go of come back into the queue."""
        free = [folder for folder in self.elsewhere if not folder.is_locked()]
        self.elsewhere = [folder for folder in self.elsewhere if folder not in free]
        self.waiting += [folder for folder in free if folder.state() not in ENDED]

    def _start(self) -> None:
        for number in range(len(self.slots)):
            ready = None
            if number not in self.running and not self.stopping:
                ready = next((folder for folder in self.waiting if is_ready(folder)), None)
            if ready is None:
                continue
            self.waiting.remove(ready)
            if ready.is_locked():
                say(f"{ready.path}: being trained by another process; waiting for it")
                self.elsewhere.append(ready)
            else:
                self.running[number] = ready, (self.starter or self._train)(ready, number)

    def _train(self, folder: RunFolder, number: int) -> subprocess.Popen:
        """Starts the process that trains a run in the slot of this number."""
        slot = self.slots[number]
        command = [sys.executable, "-m", "scratch_vs_pretrain.training", str(folder.path)]
        if len(slot) > 1:
            command += ["--processes", str(len(slot))]
        if self.verbose:
            command.append("--verbose")
        told = environment(os.environ, number, slot, len(self.slots))
        if self.show:
            told["SVP_BARS"] = "0"
        return start_process(command, {**os.environ, **told})

    def _block(self) -> None:
        """Gives up branches whose trunk came to an end before them."""
        active = [*self.waiting, *self.elsewhere, *(folder for folder, _ in self.running.values())]
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


def start_process(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen:
    """Starts a process that Ctrl-C does not reach: it reaches this one, which passes it on."""
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)


def environment(present: Mapping[str, str], number: int, slot: Slot, slots: int) -> dict[str, str]:
    """Returns what a run's process is told by its environment: devices, threads, place."""
    threads = max(1, len(os.sched_getaffinity(0)) // (slots * max(1, len(slot))))
    told = {
        "OMP_NUM_THREADS": present.get("OMP_NUM_THREADS", str(threads)),
        "SVP_BAR_POSITION": str(number),
    }
    return {**told, "CUDA_VISIBLE_DEVICES": ",".join(slot)} if slot else told
