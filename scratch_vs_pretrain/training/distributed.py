"""One run in several processes: starting them, agreement among them, ending together.

Each joins the group that its environment describes. That is torchrun's (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which :func:`train_in_processes` and submitit set, too.
Without RANK there is one process and nothing to join.
"""

import contextlib
import ctypes
import datetime
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port

from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.run_folder import PARENT, SAME_REQUEST, RunFolder
from scratch_vs_pretrain.training import signals_to, start_training

# Detectron2's engine/launch.py: DEFAULT_TIMEOUT.
TIMEOUT = datetime.timedelta(minutes=30)

# How long a process that hangs in a collective may hang after another one has failed.
GRACE_SECONDS = 20
WATCH_SECONDS = 1

POLL_SECONDS = 0.1

# After a process has failed: its own time to hang, and the main one's to record it.
END_SECONDS = GRACE_SECONDS + 10

# torchrun and terminals send the processes of a run the same request twice.
SAME_REQUEST_SECONDS = float(os.environ.get(SAME_REQUEST, "1"))

# Linux's prctl(2): PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


class Interrupted(Exception):
    """Training was asked to stop, and saved a checkpoint first."""


class Ending(NamedTuple):
    """How a run ended other than well: its state, why, and the exit status of the process."""

    state: str
    reason: str
    status: int


def join(device: str) -> None:
    """Joins the group of the environment, if there is one: by NCCL, on the GPU numbered LOCAL_RANK,
    where `device` is "cuda", by gloo where it is "cpu"."""
    if parent := os.environ.get(PARENT):
        # The kernel asks this process to stop when the one that started it has died.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGTERM)
    if "RANK" not in os.environ:
        return
    cuda = device.startswith("cuda")
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU of its own, because "
                f"{torch.cuda.device_count()} can be seen; start fewer processes, or change "
                "CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    # Detectron2's engine/launch.py: against a time-out of the first collective.
    comm.synchronize()


def leave() -> None:
    """Leaves the group after a good end; after a bad one that can hang in NCCL."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agreed(value: Any) -> Any:
    """Returns the main process's value in every process."""
    return comm.all_gather(value)[0]


def share_buffers(model: nn.Module) -> None:
    """Gives every process the main one's buffers.

    A BatchNorm that is not synchronized has other running statistics in each, and an evaluation
    would depend on which process sees which image.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class Endings:
    """Agreement of all processes on what ended the run first.

    One process's failure makes the others fail in their next collective, or, with NCCL, hang there.
    What counts is the first failure, kept in a store of the main process.
    """

    def __init__(self) -> None:
        self._store = _connect() if comm.get_world_size() > 1 else None

    def first(self, ending: Ending) -> Ending:
        """Returns the ending of whichever process calls this first."""
        if self._store is None:
            return ending
        if comm.get_rank() > 0:
            name = f"process {comm.get_rank()} of {comm.get_world_size()}"
            ending = ending._replace(reason=f"{name}: {ending.reason}")
        try:
            answer = self._store.compare_set("ending", "", json.dumps(ending))
        except RuntimeError:  # the main process is gone, and the store with it
            return ending
        return Ending(*json.loads(answer))

    @contextlib.contextmanager
    def watched(self, hung: Callable[[Ending], None]) -> Iterator[None]:
        """Calls `hung` from a thread if the block outlives another process's failure for long."""
        if self._store is None:
            yield
            return
        store, over = _connect(), threading.Event()

        def wait() -> None:
            while not over.wait(WATCH_SECONDS):
                if store.check(["ending"]):
                    if not over.wait(GRACE_SECONDS):
                        hung(Ending(*json.loads(store.get("ending"))))
                    return

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _connect() -> dist.Store:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(f"svp-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class Vote:
    """Asks all processes a yes-or-no question in every iteration, without waiting for an answer.

    The answers of one iteration are combined in the background and read after the next, by which
    time they are there: agreement costs no time and comes one iteration late.
    """

    def __init__(self) -> None:
        """Every process must make one."""
        several = comm.get_world_size() > 1
        # Of its own, so that it does not wait behind the gradients.
        self._group = dist.new_group(backend="gloo") if several else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def any(self, mine: bool) -> bool:
        """Returns whether some process said yes one iteration ago; alone, what it says now."""
        if self._group is None:
            return mine
        agreed = False
        if self._pending is not None:
            work, answers = self._pending
            work.wait()
            agreed = bool(answers.item())
        answers = torch.tensor([mine], dtype=torch.int32)
        work = dist.all_reduce(answers, group=self._group, async_op=True)
        self._pending = work, answers
        return agreed


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Takes SIGTERM and SIGINT as a wish to stop; a second one raises KeyboardInterrupt.

    Yields what tells, in every iteration and every process, whether some process was asked to.
    """
    vote, asked = Vote(), list[float]()

    def take(number: int, frame: FrameType | None) -> None:
        if asked and time.monotonic() - asked[0] > SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    with signals_to(take):
        yield lambda: vote.any(bool(asked))


def train_in_processes(folder: RunFolder, count: int, verbose: bool) -> int:
    """Trains a run in several processes, on a GPU each or on an equal share of the cores.

    SIGTERM and SIGINT are passed on: all save one checkpoint and stop. If one dies, the run ends
    as failed. If this process dies, they stop as if asked to.

    Returns:
        The exit status of the run; see ``python -m scratch_vs_pretrain.training``.
    """
    running: list[subprocess.Popen] = []  # the main one first
    asked_to_stop: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)
        for process in running:
            process.send_signal(signal.SIGTERM)

    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    told = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        PARENT: str(os.getpid()),
    }
    with signals_to(stop):
        for rank in map(str, range(count)):
            told |= {"RANK": rank, "LOCAL_RANK": rank}
            running.append(start_training(folder, ["--verbose"] * verbose, told))
        try:
            failed, hung = _wait(running)
        except BaseException:
            for process in running:
                process.kill()
            raise
    ending = _ending(running, failed, hung, bool(asked_to_stop))
    if ending is not None and _recorded(folder, ending):
        return ending.status
    return running[0].returncode


def _wait(running: list[subprocess.Popen]) -> tuple[list[int], set[int]]:
    """Waits for all, and returns which failed, in this order, and which of them were killed because
    they outlived a failed one for too long."""
    left, deadline = set(range(len(running))), float("inf")
    failed, hung = list[int](), set[int]()
    while left:
        time.sleep(POLL_SECONDS)
        ended = {rank for rank in left if running[rank].poll() is not None}
        failed += sorted(rank for rank in ended if running[rank].returncode)
        left -= ended
        if failed:
            deadline = min(deadline, time.monotonic() + END_SECONDS)
        if time.monotonic() > deadline:
            hung |= left
            for rank in left:
                running[rank].kill()
    return failed, hung


def _ending(
    running: list[subprocess.Popen], failed: list[int], hung: set[int], asked_to_stop: bool
) -> Ending | None:
    """Returns what the main process cannot have recorded, if anything."""
    if not failed:
        return None
    first, status = failed[0], running[failed[0]].returncode
    name = f"process {first} of {len(running)}"
    if asked_to_stop and status == -signal.SIGTERM:
        return Ending("interrupted", "asked to stop before training began", 130)
    if status < 0:
        why = " (by the system, if memory ran out)" if status == -signal.SIGKILL else ""
        return Ending("failed", f"{name} was killed by {signal.Signals(-status).name}{why}", 1)
    if 0 in hung:
        return Ending("failed", f"{name} ended with status {status} and the others hung", 1)
    return None


def _recorded(folder: RunFolder, ending: Ending) -> bool:
    """Records an ending unless the run came to one of its own."""
    try:
        with folder.lock():
            if folder.read().state in ("finished", "diverged"):
                return False
            folder.update(state=ending.state, reason=ending.reason)
    except (UserError, OSError) as error:
        say(f"{folder.run_file}: cannot record it: {error}")
    say(f"{folder.path}: {ending.state}: {ending.reason}")
    return True
