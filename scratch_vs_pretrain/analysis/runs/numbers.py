"""All numbers of one run: from ``evaluations/``, and from ``metrics.json`` what is not there.

What a reader of Detectron2's ``metrics.json``, one JSON object a line, appended to as training
goes, must know (``detectron2/utils/events.py``, ``engine/hooks.py``):

- NaN and infinity are written bare; a kill may leave the last line unfinished.
- ``iteration`` is 0-based. A row written during training at iteration i stands for i + 1
  completed iterations; the evaluation after the last one is written at the count itself.
- A resume repeats iterations, a reused folder appends a second run.
- An evaluation's row may come after training rows of later iterations.
"""

import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import ConfigDict, Field, ValidationError

from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.errors import UserError, from_validation, unreadable
from scratch_vs_pretrain.run_folder import RunFolder, read_bytes
from scratch_vs_pretrain.run_info import LARGEST, MOST_ITERATIONS, Iteration, Model, Number

# "bbox/AP", "segm/AP75", "bbox/AP-person", "box_proposals/AR@100", "coco_2017_val/bbox/AP".
SCORE = re.compile(r"(?:.+/)?[^/]+/A[PR][^/-]*(?:-.*)?")

NUMBERS = {float, int, type(None)}


@dataclass(frozen=True)
class Curve:
    """One scalar over training."""

    iterations: np.ndarray  # (n,) int64, completed iterations, strictly increasing
    values: np.ndarray  # (n,) float64; may hold NaN and infinities


# What one ``metrics.json`` holds, by name: first AP and AR in percent, NaN where there is none
# ("bbox/AP"), then everything else (losses, "lr", "time", "samples/images").
Metrics = dict[str, Curve]


@dataclass(frozen=True)
class Rows:
    """All rows of a file that have the same keys."""

    keys: tuple[str, ...]  # k names, "iteration" among them
    lines: np.ndarray  # (n,) line numbers, from 1, ascending
    table: np.ndarray  # (n, k) float64; NaN for null

    @property
    def iterations(self) -> np.ndarray:
        """(n,) int64, as written: 0-based."""
        return self.table[:, self.keys.index("iteration")].astype(np.int64)

    @property
    def of_training(self) -> bool:
        """They are of training, each row of which has one of these, not of an evaluation alone."""
        return "total_loss" in self.keys or "lr" in self.keys


@dataclass(frozen=True)
class Restart:
    """A line at which training began again at an iteration that it had passed."""

    line: int  # from 1
    iteration: int  # 0-based
    after: int  # the last iteration before it
    anew: bool  # nothing that was before is kept: a resume from iteration 0, or another run


def is_score(key: str) -> bool:
    """Tells a detection score (AP, AR) from what training logs."""
    return SCORE.fullmatch(key) is not None


def state_of(file: Path) -> tuple[int, ...]:
    """Returns what is another as soon as a file is, nothing where there is no file."""
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise unreadable(file, error) from None
    return status.st_ino, status.st_size, status.st_mtime_ns


# A report's figures, tables and conclusions all ask for the same numbers.
@functools.lru_cache(maxsize=128)
def _logged(file: Path, own: bool, state: tuple[int, ...]) -> Metrics:
    """Reads a ``metrics.json``, if there is one, once for each `state` that it has been in."""
    return read_metrics(file, own=own) if state else {}


def read_metrics(path: Path, *, own: bool = False) -> Metrics:
    """Reads a ``metrics.json``.

    In one of its `own` this package's trainer keeps each iteration once, and every row's iteration
    is 0-based, the last evaluation's too. The unfinished last line of a killed run is left out.

    Raises:
        UserError: the file is missing, or a line is no row of metrics, or a second run was
            appended, or iterations of an own file are repeated; names the line.
    """
    rows = read_rows(path)
    refuse_restarts(path, restarts(rows), own=own)
    return curves(rows, own=own)


def refuse_restarts(path: Path, found: Sequence[Restart], *, own: bool) -> None:
    """Refuses what :func:`read_metrics` refuses of the restarts that were found."""
    for one in found:
        if own:
            raise UserError(
                f"{path}, line {one.line}: iteration {one.iteration} comes after {one.after}, but "
                "training writes each once; delete the lines that somebody repeated or moved"
            )
        if one.anew:
            raise UserError(
                f"{path}, line {one.line}: iterations start again at {one.iteration} after "
                f"{one.after}, so a second run was written into this folder; "
                "move the lines of each run to a folder of its own"
            )


def restarts(rows: Sequence[Rows]) -> list[Restart]:
    """Returns where training rows go back, in the order of the file."""
    training = [one for one in rows if one.of_training]
    if not training:
        return []
    lines = np.concatenate([one.lines for one in training])
    order = np.argsort(lines)
    lines, at = lines[order], np.concatenate([one.iterations for one in training])[order]
    back = np.flatnonzero(at[1:] <= at[:-1]) + 1
    found, lowest = [], at[0]
    for row in back.tolist():
        found.append(Restart(int(lines[row]), int(at[row]), int(at[row - 1]), at[row] <= lowest))
        lowest = min(lowest, at[row])
    return found


def kept_by_the_last(rows: Sequence[Rows], found: Sequence[Restart]) -> list[Rows]:
    """Returns the rows that training went on from, each time it began again, and its own."""
    left = list(rows)
    for one in found:
        left = _only(left, [(r.lines >= one.line) | (r.iterations < one.iteration) for r in left])
    return left


def each_start(rows: Sequence[Rows], found: Sequence[Restart]) -> list[list[Rows]]:
    """Returns the rows that each start of the training wrote."""
    ends = [restart.line for restart in found]
    return [
        _only(rows, [(begin <= one.lines) & (one.lines < end) for one in rows])
        for begin, end in zip([0, *ends], [*ends, LARGEST], strict=True)
    ]


def _only(rows: Sequence[Rows], kept: Sequence[np.ndarray]) -> list[Rows]:
    pairs = zip(rows, kept, strict=True)
    return [Rows(one.keys, one.lines[k], one.table[k]) for one, k in pairs if k.any()]


def curves(rows: Sequence[Rows], *, own: bool) -> Metrics:
    """Returns the curves of a file's rows; of what is written twice, the last value counts."""
    last = max((int(one.iterations.max()) for one in rows if one.of_training), default=LARGEST)
    # An evaluation after the last iteration, which has a row of its own, is one past the end.
    completed = [
        one.iterations + (own or one.of_training or one.iterations != last + 1) for one in rows
    ]
    columns: dict[str, dict[int, np.ndarray]] = {}
    for index, one in enumerate(rows):
        for key, values in zip(one.keys, np.ascontiguousarray(one.table.T), strict=True):
            columns.setdefault(key, {})[index] = values
    columns.pop("iteration", None)
    chosen: dict[tuple[int, ...], tuple[np.ndarray, Any]] = {}
    found = {}
    for key in sorted(columns, key=is_score, reverse=True):
        where = tuple(columns[key])
        if where not in chosen:
            at = np.concatenate([completed[i] for i in where])
            order: Any = slice(None)
            if not np.all(at[1:] > at[:-1]):
                order = np.lexsort((np.concatenate([rows[i].lines for i in where]), at))
                order = order[np.append(np.diff(at[order]) != 0, True)]
            chosen[where] = at[order], order
        iterations, kept = chosen[where]
        values = np.concatenate([*columns[key].values()])[kept]
        # pycocotools says -1 where there is no ground truth.
        lacks = (values < 0) & is_score(key)
        found[key] = Curve(iterations, np.where(lacks, np.nan, values))
    return found


def read_rows(path: Path) -> tuple[Rows, ...]:
    """Reads the rows of a ``metrics.json``; errors of :func:`read_metrics`."""
    lines = read_bytes(path).split(b"\n")
    if not lines[-1] or _value(lines[-1]) is None:
        lines.pop()  # A kill left it unfinished.
    kinds: dict[tuple[str, ...], tuple[list[int], list[list[Any]]]] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        row = _value(line)
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: not a JSON object, the line is damaged; "
                "delete this line, its iteration is lost"
            )
        values = [*row.values()]
        if not NUMBERS.issuperset(map(type, values)) or "iteration" not in row:
            wrong = next((k for k, value in row.items() if type(value) not in NUMBERS), "iteration")
            at = row.get("iteration")
            raise _no_number(path, number, wrong if type(at) is int else "iteration")
        where, rows = kinds.setdefault(tuple(row), ([], []))
        where.append(number)
        rows.append(values)
    found = []
    for keys, (where, rows) in kinds.items():
        table = np.array(rows, float)
        at = table[:, keys.index("iteration")]
        wrong_at = ~((at >= 0) & (at < MOST_ITERATIONS) & (at == np.floor(at)))
        if wrong_at.any():
            raise _no_number(path, where[int(np.argmax(wrong_at))], "iteration")
        found.append(Rows(keys, np.array(where, np.int64), table))
    return tuple(sorted(found, key=lambda one: int(one.lines[0])))


def _value(line: bytes) -> Any:
    """Returns what a line holds, None if it is broken."""
    try:
        return orjson.loads(line)
    except ValueError:
        try:
            # NaN and infinity are no JSON, and Detectron2 writes them; what is long is no count.
            value = json.loads(line, parse_int=lambda n: int(n) if len(n) < 19 else float(n))
            "".join(value).encode()  # Keys with half a surrogate pair are no text.
        except (ValueError, TypeError, RecursionError):
            return None
    return value


def _no_number(path: Path, line: int, key: str) -> UserError:
    what = f"the value of {key!r:.60} is not a number"
    what = "'iteration' is not a count" if key == "iteration" else what
    return UserError(f"{path}, line {line}: {what}; is this the metrics.json of Detectron2?")


# "bbox/AP@0.75" is AP at one IoU threshold, "bbox/AP-disc" that of one class,
# "bbox/dAP-classification" the cost of one type of error.
NESTED = {"per_iou": "AP@", "per_class": "AP-", "errors": "dAP-"}

# None, as pycocotools' -1, stands for no ground truth.
Numbers = dict[str, Number | None]
Threshold = Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]


class _Task(Model):
    """Numbers of one task."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Numbers = Field(init=False)

    per_iou: dict[Threshold, Number | None] | None = None
    per_class: Numbers | None = None
    errors: Numbers | None = None


class _File(Model):
    """What is read of ``evaluations/<iteration>.json``."""

    model_config = ConfigDict(extra="ignore")

    iteration: Iteration
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
    return tuple(map(read_evaluation, RunFolder(folder).evaluation_files()))


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
        remedy = "restore it, or delete it and do without this evaluation"
        raise from_validation(error, file, remedy) from None
    if file.stem.isdecimal() and int(file.stem) != found.iteration:
        raise UserError(
            f"{file}: holds the evaluation after {found.iteration:,} iterations, which its name "
            "does not say; restore the file, or delete it"
        )
    scores = {}
    for task, numbers in found.tasks.items():
        nested = [(prefix, getattr(numbers, key) or {}) for key, prefix in NESTED.items()]
        for prefix, part in (("", numbers.__pydantic_extra__), *nested):
            for name, value in part.items():
                known = math.nan if value is None or value < 0 else float(value)
                scores[f"{task}/{prefix}{name}"] = known
    return Evaluation(file, found.iteration, found.dataset, scores)


@dataclass(frozen=True)
class Piece:
    """Numbers of one run from one file."""

    metrics: tuple[str, ...]  # a name for each row, or one for all
    iterations: np.ndarray  # (n,) completed iterations
    values: np.ndarray  # (n,)
    source: Path  # the file


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
    found = _logged(file, run.own, state_of(file)) if numbers is None else numbers
    for name, curve in found.items():
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
    """Returns the finite values of a metric by completed iterations, strictly increasing.

    Of two evaluations of one iteration, which only a copied file can make, the last one counts.
    """
    found = []
    for piece in pieces(run):
        if metric in piece.metrics:
            at = piece.metrics.index(metric)
            rows = slice(at, at + 1) if len(piece.metrics) > 1 else slice(None)
            found.append((piece.iterations[rows], piece.values[rows]))
    iterations, values = np.concatenate([np.empty((2, 0)), *found], axis=1)
    order = np.argsort(iterations, kind="stable")
    order = order[np.isfinite(values[order])]
    order = order[np.diff(iterations[order], append=math.inf) != 0]
    return Curve(iterations[order].astype(np.int64), values[order])


def refuse_other_test_sets(told: Iterable[tuple[str, str, str]], of: str, shared: str) -> None:
    """Refuses evaluations on data that differ: `told` are their kind, value and owner.

    Data of a kind ("name" or "content") must have one value. `of` begins the sentence, before the
    two owners, and `shared` is what they cannot share.
    """
    seen: dict[str, tuple[str, str]] = {}
    for kind, value, who in told:
        first, other = seen.setdefault(kind, (value, who))
        if first != value:
            raise UserError(
                f"{of} {other} and {who} are evaluated on data of different {kind} "
                f"({first:.40} and {value:.40}); they cannot share {shared}"
            )
