"""The tidy frame: one row per run, metric and iteration; as a file too, for ``svp collect``.

A second collect brings the file up to date. Beside ``runs.csv`` lies ``runs.csv.index``: every
run's input files with their sizes and times, and where its rows are in the output: bytes of a CSV
file, row groups of a Parquet file. The rows of a run whose files did not change are copied from
there. The index may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

from scratch_vs_pretrain.analysis.runs import Records, RunRecord, load_runs, numbers
from scratch_vs_pretrain.errors import UserError, skip, writable
from scratch_vs_pretrain.run_folder import RunFolder, is_replaced, replacing, write_json
from scratch_vs_pretrain.text import csv_cell

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    *("study", "arm", "schedule", "seed", "iteration", "images", "epochs", "trunk"),
    *("metric", "value", "state", "source"),
)
FORMAT = 5
ENDINGS = (".csv", ".parquet")


def tidy(runs: Records) -> pd.DataFrame:
    """Reads the runs' numbers.

    Returns:
        the columns of :data:`COLUMNS`, runs in the given order: study, arm, schedule, trunk,
        metric, state and source (the file) are categorical, in order of appearance; seed and images
        nullable integers; iteration counts completed iterations; value is NaN where there is none.
        Rows that a branch has copied from its trunk name the trunk's schedule; elsewhere trunk is
        missing. Without them every iteration of every training is there once.

    Raises:
        UserError: a damaged file; names it and the key or line.
    """
    return frame_of(runs, [list(numbers.pieces(run)) for run in runs])


def frame_of(runs: Records, read: Sequence[Sequence[numbers.Piece]]) -> pd.DataFrame:
    """Returns the frame of :func:`tidy` of runs and the pieces that were read of each."""
    of = [run for run, some in zip(runs, read, strict=True) for _ in some]
    joined = [piece for some in read for piece in some]
    lengths = np.array([len(piece.values) for piece in joined], np.int64)
    iterations = np.concatenate([np.empty(0, np.int64), *(piece.iterations for piece in joined)])
    images = _numbers([r.images_per_batch for r in of], lengths) * iterations
    epochs = images / _numbers([r.train_images for r in of], lengths)
    trunks = _categories([run.branch_of for run in of], lengths)
    own = iterations > np.repeat(np.array([run.branch_at for run in of], np.int64), lengths)
    # A name for each row of a piece, or one for all.
    names = [name for piece in joined for name in piece.metrics]
    named = [len(p.values) // len(p.metrics) for p in joined for _ in p.metrics]
    return pd.DataFrame(
        {
            "study": _categories([r.setting for r in of], lengths),
            "arm": _categories([r.arm for r in of], lengths),
            "schedule": _categories([r.schedule for r in of], lengths),
            "seed": _numbers([r.seed for r in of], lengths),
            "iteration": iterations,
            "images": images,
            "epochs": epochs.to_numpy(float, na_value=np.nan),
            "trunk": pd.Categorical.from_codes(np.where(own, -1, trunks.codes), dtype=trunks.dtype),
            "metric": _categories(names, named),
            "value": np.concatenate([np.empty(0), *(piece.values for piece in joined)]),
            "state": _categories([r.state for r in of], lengths),
            "source": _categories([str(piece.source) for piece in joined], lengths),
        },
        copy=False,
    )


def _categories(
    values: Sequence[str | None], lengths: Sequence[int] | np.ndarray
) -> pd.Categorical:
    """Returns each value as often as `lengths` says; categories in order of appearance."""
    shown = dict.fromkeys(v for v, n in zip(values, lengths, strict=True) if n and v is not None)
    categories = pd.Index(list(shown), dtype=object)
    codes = categories.get_indexer(pd.Index(values, dtype=object))
    return pd.Categorical.from_codes(codes, categories).repeat(lengths)


def _numbers(values: Sequence[int | None], lengths: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.array(values, "Int64").repeat(lengths)


@dataclass(frozen=True)
class Collected:
    """What a collect did."""

    output: Path  # the file
    runs: int  # how many it holds
    read: int  # how many of them had changed; 0 when the file was up to date already
    skipped: tuple[str, ...] = ()  # why others are not in it, a sentence each
    # Where logs of the runs that were read begin again, a sentence each.
    restarted: tuple[str, ...] = ()


def collect_into(
    roots: Path | Iterable[Path],
    output: Path,
    *,
    strict: bool = False,
    restarts: str = "last",
) -> Collected:
    """Writes the tidy frame of all runs below `roots` to a ``.csv`` or ``.parquet`` file.

    Args:
        roots: folders.
        output: the file; a device or a pipe is written to.
        strict: refuse all for one run that cannot be read, instead of leaving it out.
        restarts: what to make of a log in which training begins again: "last", what the last start
            went on from and wrote; "split", each start as a run of its own; or "refuse".

    Raises:
        UserError: no runs, or none that can be read; with `strict` a damaged file or a run found
            twice; another ending, or an output that cannot be written.
    """
    if output.suffix not in ENDINGS and is_replaced(output):
        raise UserError(f"{output}: runs are collected into {' or '.join(ENDINGS)} files")
    skipped: list[str] = []
    left_out = None if strict else skipped
    runs = load_runs(roots, left_out, plain=True)
    index = output.with_name(f"{output.name}.index")
    keys = [_key(run, restarts) for run in runs]
    old = _old_parts(index, output)
    if runs and list(old) == keys:
        return Collected(output, len(runs), 0, tuple(skipped))
    parts: list[tuple[str, int, int]] = []  # of each run: key, begin and end in the output
    restarted: list[str] = []
    with writable(output):
        with contextlib.ExitStack() as stack:
            before = stack.enter_context(output.open("rb")) if old else None
            file = stack.enter_context(replacing(output))
            target: _Csv | _Parquet
            if output.suffix == ".parquet":
                target = _Parquet(file, before)
                stack.callback(target.writer.close)
            else:
                target = _Csv(file, before)
            for run, key in zip(runs, keys, strict=True):
                begin = target.position
                if key in old:
                    target.copy(*old[key])
                elif (tables := _tables(run, restarts, restarted, left_out)) is None:
                    continue
                else:
                    for table in tables:
                        target.write(table)
                parts.append((key, begin, target.position))
            if not parts:
                raise UserError(f"{output}: not written, as no run can be read: {skipped[0]}")
        if is_replaced(output):
            status = output.stat()
            state = [status.st_size, status.st_mtime_ns]
            content = {"output": state, "parts": parts, "digest": _digest(state, parts)}
            with writable(index):
                write_json(index, {"format": FORMAT, **content})
    read = sum(key not in old for key, *_ in parts)
    return Collected(output, len(parts), read, tuple(skipped), tuple(restarted))


def _key(run: RunRecord, restarts: str) -> str:
    """Returns a text that is another as soon as the run's rows may be."""
    folder = RunFolder(run.folder)
    files = [folder.run_file, folder.metrics_file, folder.config_file]
    with contextlib.suppress(OSError):
        files += sorted(map(Path, os.scandir(folder.evaluations)))
    known: list[Any] = [str(run.folder), run.study, run.state, restarts]
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            known.append([file.name, status.st_size, status.st_mtime_ns])
    return json.dumps(known)


def _old_parts(index: Path, output: Path) -> dict[str, tuple[int, int]]:
    """Returns where each known run's rows lie in the output: begin and end."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(index.read_text())
        status = output.stat()
        same = content["output"] == [status.st_size, status.st_mtime_ns]
        parts = content["parts"]
        whole = content["digest"] == _digest(content["output"], parts)
        if content["format"] == FORMAT and same and whole and is_replaced(output):
            return {key: (begin, end) for key, begin, end in parts}
    return {}


def _digest(output: Sequence[int], parts: Sequence[Sequence[Any]]) -> str:
    """Returns what a damaged index shows itself by."""
    return hashlib.sha256(json.dumps([output, parts]).encode()).hexdigest()


class _Csv:
    """A CSV file; positions are bytes."""

    def __init__(self, file: BinaryIO, before: BinaryIO | None) -> None:
        self.file, self.before = file, before
        self.position = file.write((",".join(COLUMNS) + "\n").encode())

    def write(self, table: pa.Table) -> None:
        import pyarrow as pa
        from pyarrow import csv

        columns = [column.combine_chunks() for column in table.columns]
        for at, column in enumerate(columns):
            if pa.types.is_dictionary(column.type):
                names = pa.array([csv_cell(name) for name in column.dictionary.to_pylist()])
                columns[at] = names.take(column.indices)
        plain = pa.table(columns, list(COLUMNS))
        # Its 1,024 rows a batch take twice as long.
        csv.write_csv(plain, self.file, csv.WriteOptions(include_header=False, batch_size=16_384))
        self.position = self.file.tell() if self.file.seekable() else 0  # a pipe has no index

    def copy(self, begin: int, end: int) -> None:
        assert self.before is not None
        self.before.seek(begin)
        part = self.before.read(end - begin)
        if len(part) < end - begin:
            raise OSError(0, "ended too early")
        self.position += self.file.write(part)


class _Parquet:
    """A Parquet file; positions are row groups."""

    def __init__(self, file: BinaryIO, before: BinaryIO | None) -> None:
        from pyarrow import parquet

        self.before = parquet.ParquetFile(before) if before else None
        repeated = [name for name in COLUMNS if name != "value"]
        self.writer = parquet.ParquetWriter(file, _schema(), use_dictionary=repeated)
        self.position = 0

    def write(self, table: pa.Table) -> None:
        self.writer.write_table(table, row_group_size=len(table))
        self.position += 1

    def copy(self, begin: int, end: int) -> None:
        assert self.before is not None
        for group in range(begin, end):
            self.write(self.before.read_row_group(group))


@functools.cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = dict.fromkeys(COLUMNS, pa.dictionary(pa.int32(), pa.string()))
    kinds |= dict.fromkeys(("seed", "iteration", "images"), pa.int64())
    kinds |= dict.fromkeys(("epochs", "value"), pa.float64())
    # With what pandas notes of its own types, so that it reads the same ones back.
    notes = pa.Schema.from_pandas(frame_of([], []), preserve_index=False).metadata
    return pa.schema(list(kinds.items()), metadata=notes)


def _tables(
    run: RunRecord, restarts: str, restarted: list[str], left_out: list[str] | None
) -> list[pa.Table] | None:
    """Reads a run, a table for each of its starts that has rows; None if it cannot be read."""
    import pyarrow as pa

    schema = _schema()
    try:
        frames = [frame_of([one], [list(some)]) for one, some in _starts(run, restarts, restarted)]
        return [pa.Table.from_pandas(f, schema, preserve_index=False) for f in frames if len(f)]
    except UserError as error:
        problem = error
    except UnicodeEncodeError:
        problem = UserError(f"{run.folder}: its path is no UTF-8 text; rename the folder")
    skip(problem, left_out)
    return None


def _starts(
    run: RunRecord, restarts: str, restarted: list[str]
) -> Iterator[tuple[RunRecord, Iterable[numbers.Piece]]]:
    """Yields a run with what it logged; with "split", each start of its training as one."""
    file = RunFolder(run.folder).metrics_file
    if run.own and not numbers.state_of(file):
        yield run, numbers.pieces(run)
        return
    rows = numbers.read_rows(file)
    found = numbers.restarts(rows)
    if found and restarts == "refuse":
        numbers.refuse_restarts(file, found, own=run.own)
    restarted += [
        f"{file}, line {one.line}: training began again at iteration {one.iteration} "
        f"after {one.after}"
        for one in found
    ]
    if not found or restarts != "split":
        kept = tuple(numbers.kept_by_the_last(rows, found))
        yield run, numbers.pieces(run, numbers.curves(kept, own=run.own))
        return
    for number, part in enumerate(numbers.each_start(rows, found), 1):
        start = run.model_copy(update={"study": f"{run.study}, start {number}"})
        # Evaluations of their own are of the last start.
        yield start, numbers.pieces(start, numbers.curves(part, own=run.own), number > len(found))
