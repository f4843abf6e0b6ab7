"""How a run begins where another one is: with the trunk's checkpoint, curve and evaluations.

run.json of a branch says ``"branch": {"of": "6x", "at": 100000, "taken": null}``. Its trunk is the
run of that schedule with the same arm and seed, in the folder beside it. ``taken`` says what was
copied when the branch began, so that its cost is counted once.
"""

import os
import shutil
from pathlib import Path

from scratch_vs_pretrain.run_folder import RunFolder, write_atomically
from scratch_vs_pretrain.run_info import Taken
from scratch_vs_pretrain.training.checkpoint import newest_first, path_of
from scratch_vs_pretrain.training.metrics import truncate_metrics

# States from which a run does not go on by itself.
ENDED = ("finished", "diverged")


def trunk_of(folder: RunFolder) -> RunFolder | None:
    """Returns the run that a run branches off from, None if it begins by itself."""
    branch = folder.read().branch
    if branch is None:
        return None
    return RunFolder(folder.path.parents[1] / branch.of / folder.path.name)


def is_ready(folder: RunFolder) -> bool:
    """Tells whether a run can begin: it is no branch, or its trunk has come far enough."""
    return find_origin(folder) is not None


def find_origin(folder: RunFolder) -> tuple[RunFolder, int] | None:
    """Returns the run and the iteration at which a run begins, None while its trunk is not there.

    A trunk that passed the point without keeping it, as one that was trained before the branch was
    planned, lends the newest checkpoint before it; the branch trains what lies between again, or
    everything if there is none.
    """
    trunk = trunk_of(folder)
    branch = folder.read().branch
    if trunk is None or branch is None or _checkpoints(folder):
        return folder, 0
    at = branch.at
    kept = [iteration for iteration in _checkpoints(trunk) if iteration <= at]
    if at in kept:
        return trunk, at
    if not trunk.run_file.exists():
        return None
    run = trunk.read()
    if run.iteration < at or run.state not in ENDED:
        return None
    return (trunk, max(kept)) if kept else (folder, 0)


def take(folder: RunFolder) -> bool:
    """Gives a branch that has not begun what its trunk has; tells whether anything was taken.

    The checkpoint comes last and in one step: a branch that is killed before begins anew.
    """
    found = find_origin(folder)
    if found is None or found[0] == folder or _checkpoints(folder):
        return False
    trunk, iteration = found
    folder.evaluations.mkdir(exist_ok=True)
    for file in trunk.evaluations.glob("[0-9]*.json"):
        if int(file.stem) <= iteration:
            write_atomically(folder.evaluations / file.name, file.read_bytes())
    write_atomically(folder.metrics_file, trunk.metrics_file.read_bytes())
    truncate_metrics(folder.metrics_file, iteration)
    note_taken(folder, iteration)
    folder.checkpoints.mkdir(exist_ok=True)
    _link(path_of(trunk, iteration), path_of(folder, iteration))
    return True


def note_taken(folder: RunFolder, iteration: int, seconds: float | None = None) -> None:
    """Records in run.json what a branch has from its trunk."""
    taken = Taken(iteration=iteration, seconds=seconds)
    branch = folder.read().branch
    folder.update(branch=branch and branch.model_copy(update={"taken": taken}))


def _link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no links."""
    name = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(source, name)
        except OSError:
            shutil.copyfile(source, name)
        os.replace(name, target)
    finally:
        name.unlink(missing_ok=True)


def _checkpoints(folder: RunFolder) -> list[int]:
    return [int(file.stem) for file in newest_first(folder)]
