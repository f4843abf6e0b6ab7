"""All numbers of one run: from ``evaluations/``, and from ``metrics.json`` what is not there."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from scratch_vs_pretrain.analysis.runs.metrics import Curve, Metrics, is_score, logged, state_of
from scratch_vs_pretrain.analysis.runs.records import RunRecord
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


def read_evaluation(file: Path) -> Evaluation:
    """Reads one evaluation; a file that is none is refused with its name and the key."""
    return _read(file, state_of(file))


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


@dataclass(frozen=True)
class Piece:
    """Numbers of one run from one file."""

    metrics: tuple[str, ...]  # a name for each row, or one for all
    iterations: np.ndarray  # (n,) completed iterations
    values: np.ndarray  # (n,)
    source: Path  # the file

    def rows(self, metric: str) -> slice:
        """Returns the rows of one of its metrics."""
        at = self.metrics.index(metric)
        return slice(at, at + 1) if len(self.metrics) > 1 else slice(None)


def pieces(
    run: RunRecord, numbers: Metrics | None = None, evaluated: bool = True
) -> Iterator[Piece]:
    """Yields what the files of one run hold, none of them empty.

    What evaluations measure comes from ``evaluations/``, and from ``metrics.json`` where an
    iteration has no file there; everything else from ``metrics.json``. `numbers` may be only some
    of those in ``metrics.json``; ``evaluations/`` is read if `evaluated`.
    """
    read = evaluations(run.folder) if run.own and evaluated else ()
    for one in read:
        values = np.array(list(one.scores.values()), float)
        if one.scores:
            at = np.full(len(values), one.iteration, np.int64)
            yield Piece(tuple(one.scores), at, values, one.file)
    file = RunFolder(run.folder).metrics_file
    known, measured = [one.iteration for one in read], {name for one in read for name in one.scores}
    for name, curve in (logged(run) if numbers is None else numbers).items():
        new = np.full(len(curve.values), True)
        if name in measured or is_score(name):
            new = ~np.isin(curve.iterations, known)
        if new.any():
            yield Piece((name,), curve.iterations[new], curve.values[new], file)


def names(run: RunRecord) -> set[str]:
    """Returns the metrics of which a run has any value."""
    found: set[str] = set()
    for piece in pieces(run):
        known = np.isfinite(piece.values)
        known = known if len(piece.metrics) > 1 else known.any(keepdims=True)
        found.update(itertools.compress(piece.metrics, known))
    return found


def curve(run: RunRecord, metric: str) -> Curve:
    """Returns the finite values of a metric by completed iterations, ascending."""
    mine = [(piece, piece.rows(metric)) for piece in pieces(run) if metric in piece.metrics]
    found = [(piece.iterations[rows], piece.values[rows]) for piece, rows in mine]
    iterations, values = np.concatenate([np.empty((2, 0)), *found], axis=1)
    order = np.argsort(iterations, kind="stable")
    order = order[np.isfinite(values[order])]
    return Curve(iterations[order].astype(np.int64), values[order])
