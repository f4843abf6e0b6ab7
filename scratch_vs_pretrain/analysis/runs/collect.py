"""``svp collect``: the tidy frame as a file that a second collect brings up to date.

Beside ``runs.csv`` lies ``runs.csv.cache``: an index of every input file with its size and time,
where each run's rows are in the output, and the rows of each ``metrics.json``. A run whose files
did not change is copied from the old output; of a ``metrics.json`` that grew only the new lines
are read. The cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from scratch_vs_pretrain.analysis.runs.frame import COLUMNS, pieces, tidy
from scratch_vs_pretrain.analysis.runs.records import RunRecord, find_runs
from scratch_vs_pretrain.analysis.runs.row_cache import RowCache
from scratch_vs_pretrain.analysis.tables.table import harmless
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, replacing, write_json

FORMAT = 2
ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Collected:
    """What a collect did.

    Attributes:
        output: the file.
        runs: how many it holds.
        read: how many of them had changed; 0 when the file was up to date already.
    """

    output: Path
    runs: int
    read: int


def collect_into(roots: Path | Iterable[Path], output: Path) -> Collected:
    """Writes the tidy frame of all runs below `roots` to a ``.csv`` or ``.parquet`` file.

    Raises:
        UserError: no runs or a damaged file (see :func:`.runs.collect`), another ending, Parquet
            without pyarrow, or an output that cannot be written.
    """
    _check(output)
    runs = find_runs(roots)
    cache = output.with_name(f"{output.name}.cache")
    old = _old_parts(cache / "index.json", output)
    keys = [_key(run) for run in runs]
    changed = [key not in old for key in keys]
    if not any(changed) and list(old) == keys:
        return Collected(output, len(runs), 0)
    rows = RowCache(cache)
    try:
        cache.mkdir(exist_ok=True)
        with replacing(output) as file:
            if output.suffix == ".csv":
                ends = _write_csv(file, runs, keys, old, output, rows)
            else:
                _write_parquet(file, runs, rows)
                ends = [0] * len(runs)
        status = output.stat()
    except OSError as error:
        name = error.filename or output
        raise UserError(f"{name}: cannot be written ({error.strerror})") from None
    index = {
        "format": FORMAT,
        "output": [status.st_size, status.st_mtime_ns],
        "runs": [[key, end] for key, end in zip(keys, ends, strict=True)],
    }
    write_json(cache / "index.json", index)
    return Collected(output, len(runs), sum(changed))


def _check(output: Path) -> None:
    if output.suffix not in ENDINGS:
        raise UserError(f"{output}: runs are collected into {' or '.join(ENDINGS)} files")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{output}: needs pyarrow; pip install pyarrow, or write a .csv file")


def _key(run: RunRecord) -> str:
    """Returns a text that is another as soon as the run's rows may be."""
    folder = RunFolder(run.folder)
    files = [folder.run_file, folder.metrics_file, folder.path / "config.yaml"]
    with contextlib.suppress(OSError):
        files += sorted(map(Path, os.scandir(folder.evaluations)))
    known: list[Any] = [str(run.folder), run.study, run.state]
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            known.append([file.name, status.st_size, status.st_mtime_ns])
    return json.dumps(known)


def _old_parts(index: Path, output: Path) -> dict[str, tuple[int, int]]:
    """Returns where each known run's rows lie in the output: its first byte and its end."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(index.read_text())
        status = output.stat()
        same = content["output"] == [status.st_size, status.st_mtime_ns]
        if content["format"] == FORMAT and same:
            ends = [int(end) for _, end in content["runs"]]
            starts = [len(_header()), *ends[:-1]]
            names = [str(key) for key, _ in content["runs"]]
            return dict(zip(names, zip(starts, ends, strict=True), strict=True))
    return {}


def _write_csv(
    file: BinaryIO,
    runs: Sequence[RunRecord],
    keys: Sequence[str],
    old: dict[str, tuple[int, int]],
    output: Path,
    cache: RowCache,
) -> list[int]:
    """Writes all rows; returns the end of each run's in bytes."""
    file.write(_header())
    ends = []
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(output.open("rb")) if old else None
        for run, key in zip(runs, keys, strict=True):
            if before and key in old:
                start, end = old[key]
                before.seek(start)
                _copy(before, file, end - start)
            else:
                for text in _run_rows(run, cache):
                    file.write(text.encode())
            ends.append(file.tell())
    return ends


def _write_parquet(file: BinaryIO, runs: Sequence[RunRecord], cache: RowCache) -> None:
    """Writes all rows, a run at a time, so that one run's have to be in memory."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = dict.fromkeys(COLUMNS, pa.dictionary(pa.int32(), pa.string()))
    kinds |= dict.fromkeys(("seed", "iteration", "images"), pa.int64())
    kinds |= dict.fromkeys(("epochs", "value"), pa.float64())
    # With what pandas notes of its own types, so that it reads the same ones back.
    notes = pa.Schema.from_pandas(tidy([]), preserve_index=False).metadata
    schema = pa.schema(list(kinds.items()), metadata=notes)
    repeated = [name for name in COLUMNS if name != "value"]
    with parquet.ParquetWriter(file, schema, use_dictionary=repeated) as writer:
        for run in runs:
            rows = tidy([run], cache.read)
            writer.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False))


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        part = source.read(min(length, 2**20))
        if not part:
            raise OSError(0, "ended too early")
        target.write(part)
        length -= len(part)


def _header() -> bytes:
    return (",".join(COLUMNS) + "\n").encode()


def _run_rows(run: RunRecord, cache: RowCache) -> Iterator[str]:
    """Yields the rows of one run as `tidy` has them, a text per file and metric."""
    head = _cells(run.study, run.arm, run.schedule, run.seed)
    iterations, lengths = np.empty(0, np.int64), [""] * 0
    for piece in pieces(0, run, cache.read):
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
        if count:
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
    csv.writer(out, lineterminator="").writerow([harmless(value) for value in values])
    return out.getvalue()
