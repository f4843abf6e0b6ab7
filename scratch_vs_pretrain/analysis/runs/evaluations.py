"""Reader of ``evaluations/``: every number of one evaluation under one flat name."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis.runs.fields import field
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, read_json

# "bbox/AP@0.75" is AP at one IoU threshold, "bbox/AP-disc" that of one class,
# "bbox/dAP-classification" the cost of one type of error.
NESTED = {"per_iou": "AP@", "per_class": "AP-", "errors": "dAP-"}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run.

    Attributes:
        file: where it is written.
        iteration: completed iterations.
        dataset: registered name of the data set.
        scores: percent by metric ("bbox/AP"); NaN where there is no ground truth.
    """

    file: Path
    iteration: int
    dataset: str
    scores: dict[str, float]


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
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(
            f"{file}: not an evaluation; delete it and resume the run to evaluate again"
        )
    tasks = field(content, "tasks", dict, file)
    return Evaluation(
        file,
        field(content, "iteration", int, file),
        field(content, "dataset", str, file, "unknown"),
        {
            f"{task}/{name}": value
            for task in tasks
            for name, value in _task_scores(field(tasks, task, dict, file), file)
        },
    )


def _task_scores(numbers: Mapping[str, Any], file: Path) -> Iterator[tuple[str, float]]:
    for key in numbers:
        if key in NESTED:
            nested = field(numbers, key, dict, file, {})
            for name in nested:
                yield f"{NESTED[key]}{name}", _percent(nested, name, file)
        else:
            yield key, _percent(numbers, key, file)


def _percent(numbers: Mapping[str, Any], key: str, file: Path) -> float:
    value = float(field(numbers, key, float, file, math.nan))
    return value if value >= 0 else math.nan  # pycocotools says -1 for no ground truth.
