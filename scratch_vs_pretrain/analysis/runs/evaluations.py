"""Reader of ``evaluations/``: every number of one evaluation under one flat name."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from scratch_vs_pretrain.errors import from_validation
from scratch_vs_pretrain.run_folder import RunFolder, read_bytes
from scratch_vs_pretrain.run_info import Count, Model, Number

# "bbox/AP@0.75" is AP at one IoU threshold, "bbox/AP-disc" that of one class,
# "bbox/dAP-classification" the cost of one type of error.
NESTED = {"per_iou": "AP@", "per_class": "AP-", "errors": "dAP-"}


class _Task(Model):
    """Numbers of one task; None, as pycocotools' -1, stands for no ground truth."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | None] = Field(init=False)

    per_iou: dict[str, Number | None] | None = None
    per_class: dict[str, Number | None] | None = None
    errors: dict[str, Number | None] | None = None

    def flat(self) -> Iterator[tuple[str, float | None]]:
        yield from self.__pydantic_extra__.items()
        for key, prefix in NESTED.items():
            for name, value in (getattr(self, key) or {}).items():
                yield f"{prefix}{name}", value


class _File(Model):
    """What is read of ``evaluations/<iteration>.json``."""

    model_config = ConfigDict(extra="ignore")

    iteration: Count
    dataset: str = "unknown"
    tasks: dict[str, _Task]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    file: Path  # where it is written
    iteration: int  # completed iterations
    dataset: str  # registered name of the data set
    scores: dict[str, float]  # percent by metric ("bbox/AP"); NaN where there is no ground truth


def evaluations(folder: Path) -> tuple[Evaluation, ...]:
    """Reads every evaluation of a run folder, in the order of their iterations."""
    return tuple(
        read_evaluation(file) for file in sorted(RunFolder(folder).evaluations.glob("*.json"))
    )


def evaluation_after(folder: Path, iteration: int) -> Evaluation | None:
    """Reads the evaluation after `iteration` completed iterations, None where there is none."""
    file = RunFolder(folder).evaluation_file(iteration)
    return read_evaluation(file) if file.exists() else None


def read_evaluation(file: Path) -> Evaluation:
    """Reads one evaluation.

    Raises:
        UserError: the file is no evaluation; the message names it and the key.
    """
    try:
        status = file.stat()
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        state = (0, 0, 0)
    return _read(file, state)


# A report's tables, figures and conclusions all ask for the same evaluations.
@functools.lru_cache(maxsize=4096)
def _read(file: Path, state: tuple[int, int, int]) -> Evaluation:
    """Reads a file, once for each `state` that it has been in."""
    try:
        found = _File.model_validate_json(read_bytes(file))
    except ValidationError as error:
        raise from_validation(error, file) from None
    scores = {
        f"{task}/{name}": math.nan if value is None or value < 0 else float(value)
        for task, numbers in found.tasks.items()
        for name, value in numbers.flat()
    }
    return Evaluation(file, found.iteration, found.dataset, scores)
