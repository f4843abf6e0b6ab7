"""``svp prune``: what no unfinished or future run needs, listed, and deleted on demand."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder, find_run_folders
from scratch_vs_pretrain.training.checkpoint import ENDED, newest_first, read, trunk_of

# Of a run that goes on, the second is there should the newest be damaged.
NEWEST = 2


def find_waste(root: Path, final: bool = False) -> dict[Path, str]:
    """Returns the files and folders below `root` that may be deleted, and why.

    Of a run in training there are none. Of others these stay: the newest checkpoints of one that
    goes on, the final model, the checkpoint of the first rate drop, from which a longer schedule
    can begin, and any from which a run is to begin that is planned.

    Args:
        root: holds run folders.
        final: finished runs give up their final models and branch points, too, unless a planned
            run begins there; they can then be neither exported nor made longer.
    """
    folders = find_run_folders(root)
    if not folders:
        raise UserError(f"{root}: holds no runs; name the folder that svp run wrote into")
    needed = {file for folder in folders for file in _origin(folder)}
    found = {
        file: why
        for folder in folders
        if not folder.is_locked() and folder.state() != "running"
        for file, why in _of_run(folder, final)
        if file not in needed
    }
    caches = (index.parent for index in sorted(root.rglob("*.cache/index.json")))
    return found | dict.fromkeys(caches, "cache of svp collect")


def _origin(folder: RunFolder) -> list[Path]:
    """Returns the checkpoint from which a run that has not begun is to begin, if it is a branch."""
    trunk, branch = trunk_of(folder), folder.read().branch
    if trunk is None or branch is None or folder.state() in ENDED:
        return []
    # Where that one is missing, the newest before it serves.
    return _newest([file for file in newest_first(trunk) if int(file.stem) <= branch.at], 1)


def _of_run(folder: RunFolder, final: bool) -> Iterator[tuple[Path, str]]:
    for file in sorted(folder.path.rglob(".*.tmp")):
        yield file, "left by a process that was killed"
    state, files = folder.state(), newest_first(folder)
    points = set(folder.read().branch_points)
    keep = {"finished": 1, "diverged": 0}.get(state, NEWEST)
    if state == "diverged" or (final and state == "finished"):
        keep, points = 0, set()
    for file in reversed(files[len(_newest(files, keep)) :]):
        if int(file.stem) not in points:
            yield file, f"checkpoint of a run that is {state}"


def _newest(files: list[Path], count: int) -> list[Path]:
    """Returns the first of `files` among which so many can be read, or all where fewer can."""
    if len(files) <= count:
        return files
    readable = 0
    for number, file in enumerate(files):
        if readable == count:
            return files[:number]
        readable += read(file, numbers=False) is not None
    return files


def freed_bytes(paths: Iterable[Path]) -> int:
    """Returns what deleting these frees; of a file with several names, only with the last one."""
    links: dict[tuple[int, int], int] = {}
    total = 0
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            stat = file.stat()
            key = stat.st_dev, stat.st_ino
            links[key] = links.get(key, 0) + 1
            total += stat.st_size if links[key] == stat.st_nlink and file.is_file() else 0
    return total


def delete(paths: Iterable[Path]) -> None:
    """Deletes files and folders."""
    for path in paths:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be deleted ({error.strerror})") from None
