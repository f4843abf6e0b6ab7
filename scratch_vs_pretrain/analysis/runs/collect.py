"""``svp collect``: the tidy frame as a file that a second collect brings up to date.

Beside ``runs.csv`` lies ``runs.csv.index``: every run's input files with their sizes and times, and
where its rows are in the output: bytes of a CSV file, row groups of a Parquet file. The rows of a
run whose files did not change are copied from there. The index may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from scratch_vs_pretrain.analysis.runs import metrics
from scratch_vs_pretrain.analysis.runs.frame import COLUMNS, Piece, frame_of, pieces
from scratch_vs_pretrain.analysis.runs.records import RunRecord, find_runs
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, is_replaced, replacing, write_json
from scratch_vs_pretrain.text import csv_cell

FORMAT = 3
ENDINGS = (".csv", ".parquet")


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
        UserError: no runs; with `strict` a damaged file or a run found twice; another ending, or
            an output that cannot be written.
    """
    if output.suffix not in ENDINGS and is_replaced(output):
        raise UserError(f"{output}: runs are collected into {' or '.join(ENDINGS)} files")
    skipped: list[str] = []
    runs = find_runs(roots, None if strict else skipped)
    index = output.with_name(f"{output.name}.index")
    keys = [_key(run, restarts) for run in runs]
    old = _old_parts(index, output)
    if list(old) == keys:
        return Collected(output, len(runs), 0, tuple(skipped))
    writer = _Writer(output, old, strict, restarts, skipped)
    try:
        with replacing(output) as file:
            writer.write(file, runs, keys)
        if is_replaced(output):
            status = output.stat()
            content = {"output": [status.st_size, status.st_mtime_ns], "parts": writer.parts}
            write_json(index, {"format": FORMAT, **content})
    except OSError as error:
        name = error.filename or output
        raise UserError(f"{name}: cannot be written ({error.strerror})") from None
    restarted = tuple(writer.restarted)
    return Collected(output, len(writer.parts), writer.read, tuple(skipped), restarted)


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
        if content["format"] == FORMAT and same and is_replaced(output):
            return {str(key): (int(begin), int(end)) for key, begin, end in content["parts"]}
    return {}


@dataclass
class _Writer:
    """Writes the rows of runs, those known from the old output and others."""

    output: Path
    old: dict[str, tuple[int, int]]
    strict: bool
    restarts: str
    skipped: list[str]
    # Key, begin and end of each run.
    parts: list[tuple[str, int, int]] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    read: int = 0  # how many are not from the old output

    def write(self, file: BinaryIO, runs: Sequence[RunRecord], keys: Sequence[str]) -> None:
        write = self._parquet if self.output.suffix == ".parquet" else self._csv
        with contextlib.ExitStack() as stack:
            before = stack.enter_context(self.output.open("rb")) if self.old else None
            write(file, before, zip(runs, keys, strict=True))

    def _csv(self, file: BinaryIO, before: BinaryIO | None, runs: Iterable[Any]) -> None:
        end = file.write((",".join(COLUMNS) + "\n").encode())
        for run, key in runs:
            begin = end
            if before and key in self.old:
                at, until = self.old[key]
                before.seek(at)
                _copy(before, file, until - at)
                end += until - at
            else:
                found = self._pieces(run)
                if found is None:
                    continue
                for one, some in found:
                    for text in _run_rows(one, some):
                        end += file.write(text.encode())
            self.parts.append((key, begin, end))

    def _parquet(self, file: BinaryIO, before: BinaryIO | None, runs: Iterable[Any]) -> None:
        """Writes a run at a time, so that one run's rows have to be in memory."""
        import pyarrow as pa
        from pyarrow import parquet

        kinds = dict.fromkeys(COLUMNS, pa.dictionary(pa.int32(), pa.string()))
        kinds |= dict.fromkeys(("seed", "iteration", "images"), pa.int64())
        kinds |= dict.fromkeys(("epochs", "value"), pa.float64())
        # With what pandas notes of its own types, so that it reads the same ones back.
        notes = pa.Schema.from_pandas(frame_of([], []), preserve_index=False).metadata
        schema = pa.schema(list(kinds.items()), metadata=notes)
        repeated = [name for name in COLUMNS if name != "value"]
        known = parquet.ParquetFile(before) if before else None
        groups = 0
        with parquet.ParquetWriter(file, schema, use_dictionary=repeated) as writer:
            for run, key in runs:
                begin = groups
                if known and key in self.old:
                    tables = [known.read_row_group(group) for group in range(*self.old[key])]
                else:
                    found = self._pieces(run)
                    if found is None:
                        continue
                    frames = [frame_of([one], [some]) for one, some in found]
                    tables = [
                        pa.Table.from_pandas(frame, schema, preserve_index=False)
                        for frame in frames
                        if len(frame)
                    ]
                for table in tables:
                    writer.write_table(table, row_group_size=max(1, len(table)))
                groups += len(tables)
                self.parts.append((key, begin, groups))

    def _pieces(self, run: RunRecord) -> list[tuple[RunRecord, list[Piece]]] | None:
        """Reads a run, of which each start may count as one; None if it cannot be read."""
        try:
            read = list(self._starts(run))
        except UserError as error:
            if self.strict:
                raise
            self.skipped.append(str(error))
            return None
        self.read += 1
        return read

    def _starts(self, run: RunRecord) -> Iterator[tuple[RunRecord, list[Piece]]]:
        file = RunFolder(run.folder).metrics_file
        if not file.exists():
            yield run, list(pieces(run, None))
            return
        rows = metrics.read_rows(file)
        found = metrics.restarts(rows)
        if found and self.restarts == "refuse":
            metrics.refuse_restarts(file, found, own=run.own)
        for one in found:
            self.restarted.append(
                f"{file}, line {one.line}: training began again at iteration {one.iteration} "
                f"after {one.after}"
            )
        if found and self.restarts == "split":
            for number, part in enumerate(metrics.each_start(rows, found), 1):
                start = run.model_copy(update={"study": f"{run.study}, start {number}"})
                # Evaluations of their own are of the last start.
                last = number == len(found) + 1
                yield start, list(pieces(start, metrics.curves(part, own=run.own), last))
            return
        rows = tuple(metrics.kept_by_the_last(rows, found))
        yield run, list(pieces(run, metrics.curves(rows, own=run.own)))


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        part = source.read(min(length, 2**20))
        if not part:
            raise OSError(0, "ended too early")
        target.write(part)
        length -= len(part)


def _run_rows(run: RunRecord, read: Iterable[Piece]) -> Iterator[str]:
    """Yields the rows of one run as `frame_of` has them, a text per file and metric."""
    head = _cells(run.study, run.arm, run.schedule, run.seed)
    iterations, lengths = np.empty(0, np.int64), [""] * 0
    for piece in read:
        tail = _cells(run.state, str(piece.source))
        if not np.array_equal(iterations, piece.iterations):
            iterations = piece.iterations
            lengths = [_length(run, iteration) for iteration in iterations.tolist()]
        count = len(lengths)
        cells = [f",{tail}\n{head},"] * (4 * count)  # what is between two rows
        cells[0::4] = lengths
        if isinstance(piece.metrics, str):
            cells[1::4] = [f",{_cells(piece.metrics)},"] * count
        else:
            cells[1::4] = [f",{_cells(name)}," for name in piece.metrics]
        cells[2::4] = _texts(piece.values)
        cells[-1] = f",{tail}\n"
        yield f"{head}," + "".join(cells)


def _texts(values: np.ndarray) -> list[str]:
    """Returns the shortest text of each number that reads as the same, "" for NaN."""
    if not np.isfinite(values).all():  # no JSON
        return ["" if value != value else repr(value) for value in values.tolist()]
    text = orjson.dumps(np.ascontiguousarray(values, float), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[1:-1].decode().split(",")


def _length(run: RunRecord, iteration: int) -> str:
    trunk = _cells(run.branch_of) if run.branch_of and iteration <= run.branch_at else ""
    if run.images_per_batch is None:
        return f"{iteration},,,{trunk}"
    images = iteration * run.images_per_batch
    epochs = images / run.train_images if run.train_images else ""
    return f"{iteration},{images},{epochs},{trunk}"


def _cells(*values: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([csv_cell(value) for value in values])
    return out.getvalue()
