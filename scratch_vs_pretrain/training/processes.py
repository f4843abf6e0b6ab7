"""Starts the processes of one run on this machine, and ends them together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import PARENT, RunFolder
from scratch_vs_pretrain.training.distributed import GRACE_SECONDS, Ending

POLL_SECONDS = 0.1

# After a process has failed: its own time to hang, and the main one's to record it.
END_SECONDS = GRACE_SECONDS + 10


@dataclass
class _Processes:
    """The processes of one run, the main one first."""

    running: list[subprocess.Popen]
    asked_to_stop: bool = False
    ended: list[int] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Passes a request to stop on to each."""
        self.asked_to_stop = True
        for process in self.running:
            process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Waits for all; those that outlive a failed one for too long are killed."""
        deadline = float("inf")
        while len(self.ended) < len(self.running):
            time.sleep(POLL_SECONDS)
            for rank, process in enumerate(self.running):
                if rank not in self.ended and process.poll() is not None:
                    self.ended.append(rank)
                    if process.returncode != 0:
                        deadline = min(deadline, time.monotonic() + END_SECONDS)
            if time.monotonic() > deadline:
                self.kill()

    def kill(self) -> None:
        for rank, process in enumerate(self.running):
            if process.poll() is None:
                self.given_up.add(rank)
                process.kill()

    def ending(self) -> Ending | None:
        """Returns what the main process cannot have recorded, if anything."""
        failed = [rank for rank in self.ended if self.running[rank].returncode != 0]
        if not failed:
            return None
        first, status = failed[0], self.running[failed[0]].returncode
        name = f"process {first} of {len(self.running)}"
        if self.asked_to_stop and status == -signal.SIGTERM:
            return Ending("interrupted", "asked to stop before training began", 130)
        if status < 0:
            why = " (by the system, if memory ran out)" if status == -signal.SIGKILL else ""
            return Ending("failed", f"{name} was killed by {signal.Signals(-status).name}{why}", 1)
        if 0 in self.given_up:
            return Ending("failed", f"{name} ended with status {status} and the others hung", 1)
        return None


def train_in_processes(folder: RunFolder, count: int, verbose: bool) -> int:
    """Trains a run in several processes, on a GPU each or on an equal share of the cores.

    SIGTERM and SIGINT are passed on: all save one checkpoint and stop. If one dies, the run ends
    as failed. If this process dies, they stop as if asked to.

    Args:
        folder: the run.
        count: how many processes.
        verbose: they show Detectron2's log.

    Returns:
        The exit status of the run; see ``python -m scratch_vs_pretrain.training``.
    """
    with contextlib.ExitStack() as held:
        environment = {**os.environ, **_environment(os.environ, count)}
        processes = _Processes([])
        held.enter_context(signals_to(processes.stop))
        for rank in range(count):
            processes.running.append(_start(folder, rank, environment, verbose))
        try:
            processes.wait()
        except BaseException:
            processes.kill()
            raise
    ending = processes.ending()
    if ending is not None and _recorded(folder, ending):
        return ending.status
    return processes.running[0].returncode


def _environment(present: Mapping[str, str], count: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return {
        "OMP_NUM_THREADS": present.get("OMP_NUM_THREADS", str(threads)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        PARENT: str(os.getpid()),
    }


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _start(
    folder: RunFolder, rank: int, environment: dict[str, str], verbose: bool
) -> subprocess.Popen:
    command = [sys.executable, "-m", "scratch_vs_pretrain.training", str(folder.path)]
    return subprocess.Popen(
        [*command, "--verbose"] if verbose else command,
        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C reaches this process alone, which passes it on.
        start_new_session=True,
    )


def _recorded(folder: RunFolder, ending: Ending) -> bool:
    """Records an ending unless the run came to one of its own."""
    try:
        with folder.lock():
            if folder.read().get("state") in ("finished", "diverged"):
                return False
            folder.update(state=ending.state, reason=ending.reason)
    except (UserError, OSError) as error:
        print(f"svp: {folder.run_file}: cannot record it: {error}", file=sys.stderr)
    print(f"svp: {folder.path}: {ending.state}: {ending.reason}", file=sys.stderr)
    return True


@contextlib.contextmanager
def signals_to(handler: Any) -> Iterator[None]:
    """Lets a handler have Ctrl-C and SIGTERM."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
