"""The run folder: plain files that training writes and analysis reads.

    <output>/<study>/<arm>/<schedule>/seed<k>/
        config.yaml                  the final, merged Detectron2 config
        before_switch.yaml           that of the iterations before a switch, if there is one
        run.json                     spec, state, provenance, samples seen; see run_info.py
        metrics.json                 Detectron2's, one JSON object a line, 0-based iterations
        evaluations/<iteration>.json every number of one evaluation, after <iteration> iterations
        detections.json              what the latest evaluation found in the first test pictures
        predictions/                 detections that `svp predict` made, as COCO results
        log.txt                      Detectron2's log
        checkpoints/                 model, optimizer, schedule, random states

Reading them needs neither torch nor Detectron2.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scratch_vs_pretrain.errors import UserError, regular, skip, unreadable, writable
from scratch_vs_pretrain.run_info import RunInfo

# What `svp run --until answered` writes beside the folders of a study's arms.
ADAPTIVE_FILE = "answer.json"

# What starts training processes sets these in their environment. PARENT: its process id; they stop
# when it is gone. SAME_REQUEST: for so many seconds a second request to stop is the first again.
PARENT = "SVP_PARENT"
SAME_REQUEST = "SVP_SAME_REQUEST_SECONDS"

# The lock file's owner touches it every HEARTBEAT_SECONDS; on another machine a run counts as dead
# when that is longer ago than DEAD_AFTER_SECONDS.
HEARTBEAT_SECONDS = 30
DEAD_AFTER_SECONDS = 180

# is_locked() holds the lock for a moment, so one refusal is no proof of another owner.
LOCK_SECONDS = 0.5

# Folders of a run, in which no other run is.
PARTS = ("evaluations", "predictions", "checkpoints")

# What `replacing` calls the file that it writes.
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def is_replaced(path: Path) -> bool:
    """Tells a file that is replaced from a device or a pipe, which is written into."""
    return path.parent != Path("/dev") and (path.is_file() or not path.exists())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` in one step when all is written."""
    if not is_replaced(path):
        with tempfile.TemporaryFile() as whole:
            yield whole
            whole.seek(0)
            with path.open("wb") as file:
                shutil.copyfileobj(whole, file)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Replaces `path` in one step: a reader, or a kill, sees the old file or the new one."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_for_user(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file that a command was asked for, with the folders that it is in."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON (a NaN is an error, not a bare ``NaN``), atomically."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; what is wrong with it is said by file and line."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_bytes(path: Path) -> bytes:
    """Reads a file, or says why it cannot be read; a pipe would be waited for."""
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Returns a section of a config that may be anybody's, empty where there is none to read."""
    import yaml

    unusable = (UserError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError)
    with contextlib.suppress(*unusable, AttributeError):
        return dict(yaml.safe_load(read_bytes(path))[section])
    return {}


def listed(folder: Path) -> list[Path]:
    """Returns what is in a folder, in path order, nothing where it is not there."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from None


class _Part:
    """The path of one part of a run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of one run."""

    path: Path

    config_file = _Part("config.yaml")
    before_switch_file = _Part("before_switch.yaml")
    run_file = _Part("run.json")
    metrics_file = _Part("metrics.json")
    evaluations = _Part("evaluations")
    detections_file = _Part("detections.json")
    predictions = _Part("predictions")
    log_file = _Part("log.txt")
    checkpoints = _Part("checkpoints")
    lock_file = _Part(".lock")

    def evaluation_file(self, iteration: int) -> Path:
        """Returns the file of the evaluation made after `iteration` completed iterations."""
        return self.evaluations / f"{iteration:07d}.json"

    def evaluation_files(self) -> list[Path]:
        """Returns the files of all evaluations, in their order, or says why there are none."""
        return [file for file in listed(self.evaluations) if file.suffix == ".json"]

    def read(self) -> RunInfo:
        """Returns what run.json says, or says by file and field what is wrong with it."""
        runs = [] if os.path.exists(self.run_file) else find_run_folders(self.path)
        if runs and self not in runs:
            some = ", ".join(str(run.path) for run in runs[:12])
            raise UserError(f"{self.path}: is no run; name one of the {len(runs)} in it: {some}")
        return RunInfo.from_json(read_bytes(self.run_file), self.run_file)

    def write(self, info: RunInfo) -> None:
        """Writes run.json, which makes the folder a run folder."""
        write_atomically(self.run_file, info.to_json())

    def update(self, **changes: Any) -> RunInfo:
        """Changes fields of run.json and returns the whole."""
        info = self.read().with_changes(**changes)
        self.write(info)
        return info

    def state(self) -> str:
        """Returns the run's state as the files alone tell it.

        A run that says "running" while nobody holds its lock is "interrupted". A lock that was
        taken on another machine may be invisible here; there its heartbeat tells.
        """
        return self.state_of(self.read()) if self.run_file.exists() else "planned"

    def state_of(self, info: RunInfo) -> str:
        """Returns the state of the run that `info` was just read of; see :meth:`state`."""
        if info.state != "running":
            return info.state
        beats = False
        if info.host not in (None, socket.gethostname()):
            with contextlib.suppress(OSError):
                # Both ways, so that a clock that jumped makes no dead run look alive for long.
                age = abs(time.time() - self.lock_file.stat().st_mtime)
                beats = age < DEAD_AFTER_SECONDS
        return "running" if beats or self.is_locked() else "interrupted"

    def is_locked(self) -> bool:
        """Tells whether a living process holds this run."""
        try:
            with self.lock_file.open("rb") as file:
                return not _try_lock(file, fcntl.LOCK_SH)
        except OSError:
            return False

    def leftovers(self) -> list[Path]:
        """Returns the files that a kill in the middle of :func:`replacing` left."""
        hidden = sorted(self.path.rglob(".*.tmp"))
        return [file for file in hidden if TEMPORARY.fullmatch(file.name) and file.is_file()]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the kernel frees it when the process ends, however."""
        end = time.monotonic() + LOCK_SECONDS
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.lock_file.open("a")
        with file:
            while not _try_lock(file, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise UserError(
                        f"{self.path}: another process trains this run; wait until it has ended"
                    )
                time.sleep(LOCK_SECONDS / 20)
            with _heartbeat(self.lock_file):
                yield


@contextlib.contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Touches `path` every now and then from a thread that ends with the process."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _try_lock(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find_files(root: Path, name: str, skipped: list[str] | None = None) -> list[Path]:
    """Returns what has a name at or below `root`, in path order.

    Raises:
        UserError: a folder cannot be read, unless `skipped` takes that; it is then left out.
    """

    def leave_out(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            skip(unreadable(error.filename, error), skipped)

    found = []
    for top, inner, files in os.walk(root, onerror=leave_out):
        if name in files or name in inner:
            found.append(Path(top, name))
        if "run.json" in files:
            inner[:] = [part for part in inner if part not in PARTS]
    return sorted(found)


def find_run_folders(root: Path, skipped: list[str] | None = None) -> list[RunFolder]:
    """Returns every run folder at or below `root`; as :func:`find_files`."""
    return [RunFolder(file.parent) for file in find_files(root, "run.json", skipped)]
