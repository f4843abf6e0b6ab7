"""Atomic checkpoints that hold everything an exact resume needs."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.reproducibility import random_states
from scratch_vs_pretrain.run_folder import write_atomically
from scratch_vs_pretrain.training.distributed import agreed

logger = logging.getLogger(__name__)

FORMAT = 1


class Checkpointer:
    """Writes and reads the checkpoints of one run folder.

    Files are named ``<iteration>.pth``, `iteration` being the number of completed iterations, and
    appear whole or not at all.
    """

    def __init__(self, folder: Path, keep: int, always: Collection[int] = ()) -> None:
        """Of the newest, `keep` stay; those of `always`, however old, as branches begin there."""
        self.folder, self.keep, self.always = folder, keep, always

    def file(self, iteration: int) -> Path:
        return self.folder / f"{iteration:07d}.pth"

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Writes one checkpoint and removes the oldest; every process must call it."""
        states = comm.gather(random_states())
        if not comm.is_main_process():
            return
        content = {"format": FORMAT, "iteration": iteration, "random": states, **state}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file(iteration), buffer.getbuffer())
        for old in list(self.newest_first())[self.keep :]:
            if int(old.stem) not in self.always:
                old.unlink()

    def newest_first(self) -> Iterator[Path]:
        """Yields the checkpoint files, the newest first; other names are a user's own copies."""
        files = sorted(self.folder.glob("[0-9]*.pth"), reverse=True)
        yield from (file for file in files if file.stem.isdecimal())

    def load_newest(self) -> dict[str, Any] | None:
        """Returns the newest readable checkpoint, with a warning for each that is not; or None.

        The main process decides which it is; every process must call it.
        """
        content = None
        if comm.is_main_process():
            content = next(filter(None, map(read, self.newest_first())), None)
        iteration = agreed(content and content["iteration"])
        if comm.is_main_process() or iteration is None:
            return content
        return torch.load(self.file(iteration), map_location="cpu", weights_only=True)

    def load_model(self) -> dict[str, Any]:
        """Returns the newest readable checkpoint, or says that there is none."""
        content = self.load_newest()
        if content is None:
            raise UserError(f"{self.folder}: no readable checkpoint; train the run first")
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
