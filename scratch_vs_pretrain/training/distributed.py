"""One run in several processes: each joins the group that its environment describes.

The environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which
:mod:`~scratch_vs_pretrain.training.processes` and submitit set, too. Without RANK there is one
process and nothing to join.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import PARENT

# Detectron2's engine/launch.py: DEFAULT_TIMEOUT.
TIMEOUT = datetime.timedelta(minutes=30)

# How long a process that hangs in a collective may hang after another one has failed.
GRACE_SECONDS = 20
WATCH_SECONDS = 1

# Linux's prctl(2): PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class Ending:
    """How a run ended other than well: its state, why, and the exit status of the process."""

    state: str
    reason: str
    status: int


def join(device: str) -> None:
    """Joins the group of the environment, if there is one.

    Args:
        device: "cuda" for NCCL, on the GPU numbered LOCAL_RANK; "cpu" for gloo.

    Raises:
        UserError: fewer GPUs than processes on this machine.
    """
    _end_with_parent()
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
    if comm.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share_buffers(model: nn.Module) -> None:
    """Gives every process the main one's buffers.

    A BatchNorm that is not synchronized has other running statistics in each, and an evaluation
    would depend on which process sees which image.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _end_with_parent() -> None:
    """Lets the kernel ask this process to stop when the process that started it has died."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


class Endings:
    """Agreement of all processes on what ended the run first.

    One process's failure makes the others fail in their next collective, or, with NCCL, hang there.
    What counts is the first failure, kept in a store of the main process.
    """

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        if comm.get_world_size() > 1:
            self._store = _connect()

    def first(self, ending: Ending) -> Ending:
        """Returns the ending of whichever process calls this first."""
        if self._store is None:
            return ending
        if comm.get_rank() > 0:
            reason = f"process {comm.get_rank()} of {comm.get_world_size()}: {ending.reason}"
            mine = Ending(ending.state, reason, ending.status)
        else:
            mine = ending
        try:
            answer = self._store.compare_set("ending", "", json.dumps(asdict(mine)))
        except RuntimeError:  # the main process is gone, and the store with it
            return mine
        return Ending(**json.loads(answer))

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
                        hung(Ending(**json.loads(store.get("ending"))))
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
