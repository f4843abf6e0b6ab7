"""Reader of ``evaluations/``: every number of one evaluation under one flat name."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from scratch_vs_pretrain.errors import from_validation
from scratch_vs_pretrain.run_folder import RunFolder, read_bytes
from scratch_vs_pretrain.run_info import Count, Model, Number

# "bbox/AP@0.75" is AP at one IoU threshold, "bbox/AP-disc" that of one class,
# "bbox/dAP-classification" the cost of one type of error.
NESTED = {"per_iou": "AP@", "per_class": "AP-", "errors": "dAP-"}


# None, as pycocotools' -1, stands for no ground truth.
Numbers = dict[str, Number | None]


class _Task(Model):
    """Numbers of one task."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Numbers = Field(init=False)

    per_iou: Numbers | None = None
    per_class: Numbers | None = None
    errors: Numbers | None = None

    def flat(self) -> Numbers:
        nested = ((prefix, getattr(self, key) or {}) for key, prefix in NESTED.items())
        return self.__pydantic_extra__ | {p + k: v for p, one in nested for k, v in one.items()}


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
    return tuple(map(read_evaluation, sorted(RunFolder(folder).evaluations.glob("*.json"))))


def evaluation_after(folder: Path, iteration: int) -> Evaluation | None:
    """Reads the evaluation after `iteration` completed iterations, None where there is none."""
    file = RunFolder(folder).evaluation_file(iteration)
    return read_evaluation(file) if file.exists() else None


def read_evaluation(file: Path) -> Evaluation:
    """Reads one evaluation; a file that is none is refused with its name and the key."""
    return _read(file, state_of(file))


def state_of(file: Path) -> tuple[int, ...]:
    """Returns what is another as soon as a file is, nothing where there is no file."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


# A report's tables, figures and conclusions all ask for the same evaluations.
@functools.lru_cache(maxsize=4096)
def _read(file: Path, state: tuple[int, ...]) -> Evaluation:
    """Reads a file, once for each `state` that it has been in."""
    try:
        found = _File.model_validate_json(read_bytes(file))
    except ValidationError as error:
        raise from_validation(error, file) from None
    scores = {
        f"{task}/{name}": math.nan if value is None or value < 0 else float(value)
        for task, numbers in found.tasks.items()
        for name, value in numbers.flat().items()
    }
    return Evaluation(file, found.iteration, found.dataset, scores)
