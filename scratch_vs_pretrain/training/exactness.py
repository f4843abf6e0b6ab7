"""What makes a resumed run equal to an uninterrupted one bit for bit, and whether one was."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.utils import comm

from scratch_vs_pretrain.run_info import Provenance


def is_deterministic(cfg: Any) -> bool:
    """Tells whether a config's run repeats itself: on CPU always, on a GPU if it is asked to."""
    return bool(cfg.MODEL.DEVICE == "cpu" or cfg.SVP.DETERMINISTIC)


@contextlib.contextmanager
def deterministic_kernels(cfg: Any) -> Iterator[None]:
    """Lets torch choose the same sums in the same order each time, where a config asks for it.

    On a GPU an operation that cannot be repeated raises RuntimeError and is named. On the CPU that
    would be too strict: the few kernels of which torch says so differ on GPUs only.
    """
    if not is_deterministic(cfg):
        yield
        return
    memory: Any = torch.utils.deterministic
    # CUDA's matrix products need it before they are first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=cfg.MODEL.DEVICE == "cpu")
    # It would fill every new tensor, to find reads of what nobody has written.
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]


def numerics(cfg: Any) -> dict[str, Any]:
    """Returns what the last bits of a run depend on, as a part of run.json's ``provenance``."""
    cuda = cfg.MODEL.DEVICE != "cpu"
    return {
        "processes": comm.get_world_size(),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if cuda else _processor(),
        "deterministic": is_deterministic(cfg),
    }


def inexact_because(before: Provenance | None, now: Mapping[str, Any]) -> list[str]:
    """Returns why a resume is not exact, by run.json's ``provenance`` of both starts."""
    reasons = []
    if not now["deterministic"]:
        reasons.append("the GPU's kernels do not repeat themselves (SVP.DETERMINISTIC is off)")
    elif now["device"] != "cpu" and now["processes"] > 1:
        reasons.append("the sums of several GPUs are not known to repeat themselves")
    if before is None or before.processor is None:
        return [*reasons, "it is not known what trained before"]
    names = ("processes", "threads", "processor", "deterministic")
    changed = _changed(dict(before), {name: now[name] for name in names})
    return [*reasons, *changed, *_changed(before.versions, now["versions"])]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)} before and is {value} now"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _processor() -> str:
    """Returns the processor's name: kernels are chosen by its instructions."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return torch.backends.cpu.get_cpu_capability()
