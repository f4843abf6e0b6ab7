"""Atomic checkpoints that hold everything an exact resume needs."""

import io
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.reproducibility import random_states
from scratch_vs_pretrain.run_folder import RunFolder, write_atomically
from scratch_vs_pretrain.training.distributed import agreed

logger = logging.getLogger(__name__)

FORMAT = 1


def path_of(folder: RunFolder, iteration: int) -> Path:
    """Returns the file of so many completed iterations."""
    return folder.checkpoints / f"{iteration:07d}.pth"


def save(
    folder: RunFolder,
    iteration: int,
    state: dict[str, Any],
    keep: int,
    always: Collection[int] = (),
) -> None:
    """Writes one checkpoint, which appears whole or not at all; every process must call it.

    Of the newest, `keep` stay; those of `always`, however old, as branches begin there.
    """
    states = comm.gather(random_states())
    if not comm.is_main_process():
        return
    content = {"format": FORMAT, "iteration": iteration, "random": states, **state}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(path_of(folder, iteration), buffer.getbuffer())
    for old in newest_first(folder)[keep:]:
        if int(old.stem) not in always:
            old.unlink()


def newest_first(folder: RunFolder) -> list[Path]:
    """Returns a run's checkpoint files; other names are a user's own copies."""
    files = sorted(folder.checkpoints.glob("[0-9]*.pth"), reverse=True)
    return [file for file in files if file.stem.isdecimal()]


def load_newest(folder: RunFolder) -> dict[str, Any] | None:
    """Returns the newest readable checkpoint, with a warning for each that is not; or None.

    The main process decides which it is; every process must call it.
    """
    content = None
    if comm.is_main_process():
        content = next(filter(None, map(read, newest_first(folder))), None)
    iteration = agreed(content and content["iteration"])
    if comm.is_main_process() or iteration is None:
        return content
    return torch.load(path_of(folder, iteration), map_location="cpu", weights_only=True)


def load_trained(folder: RunFolder) -> dict[str, Any]:
    """Returns the newest readable checkpoint, or says that there is none."""
    content = load_newest(folder)
    if content is None:
        raise UserError(f"{folder.checkpoints}: no readable checkpoint; train the run first")
    return content


def read(path: Path, numbers: bool = True) -> dict[str, Any] | None:
    """Returns what a checkpoint holds, or None, with a warning, where it cannot be read.

    Without `numbers` those of its tensors stay on the disk: whether it is whole shows all the same.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not numbers)
        if content["format"] != FORMAT:
            reason = f"its format is {content['format']}, not {FORMAT}"
        elif not isinstance(content.get("iteration"), int):
            reason = "it does not say after which iteration it was saved"
        elif not _is_model(content.get("model")):
            reason = "it holds no model"
        else:
            return content
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
    logger.warning("%s is skipped: %s", path, reason)
    return None


def _is_model(state: Any) -> bool:
    return isinstance(state, dict) and all(torch.is_tensor(value) for value in state.values())
