"""What a run goes on from: its own checkpoint, that of a run that it branches off from, or that of
a plain detector that becomes a cascade.

Checkpoints are atomic and hold everything an exact resume needs.

run.json of a branch says ``"branch": {"of": "6x", "at": 100000, "taken": null}``. Its trunk is the
run of that schedule with the same arm and seed, in the folder beside it. ``taken`` says what was
copied when the branch began, so that its cost is counted once.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn, optim

from scratch_vs_pretrain.errors import UserError, reason_of
from scratch_vs_pretrain.reproducibility import random_states
from scratch_vs_pretrain.run_folder import RunFolder, listed, replacing, write_atomically
from scratch_vs_pretrain.run_info import Taken
from scratch_vs_pretrain.training.distributed import agreed

logger = logging.getLogger(__name__)

FORMAT = 1
# States from which a run does not go on by itself.
ENDED = ("finished", "diverged")
BOX_SIZE = 4
_STAGE = re.compile(r"^roi_heads\.(box_head|box_predictor)\.(\d+)\.(.+)$")


def path_of(folder: RunFolder, iteration: int) -> Path:
    """Returns the file of so many completed iterations."""
    return folder.checkpoints / f"{iteration:07d}.pth"


def save(
    folder: RunFolder,
    iteration: int,
    state: dict[str, Any],
    keep: int,
    always: Collection[int] = (),
) -> None:
    """Writes one checkpoint, which appears whole or not at all; every process must call it.

    Of the newest, `keep` stay; those of `always`, however old, as branches begin there.
    """
    states = comm.gather(random_states())
    if not comm.is_main_process():
        return
    content = {"format": FORMAT, "iteration": iteration, "random": states, **state}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(path_of(folder, iteration), buffer.getbuffer())
    for old in newest_first(folder)[keep:]:
        if int(old.stem) not in always:
            old.unlink()


def newest_first(folder: RunFolder) -> list[Path]:
    """Returns a run's checkpoint files; other names are a user's own copies."""
    files = reversed(listed(folder.checkpoints))
    return [f for f in files if f.suffix == ".pth" and f.stem.isdecimal() and f.is_file()]


def load_newest(folder: RunFolder) -> dict[str, Any] | None:
    """Returns the newest readable checkpoint, with a warning for each that is not; or None.

    The main process decides which it is; every process must call it.
    """
    content = None
    if comm.is_main_process():
        content = next(filter(None, map(read, newest_first(folder))), None)
    iteration = agreed(content and content["iteration"])
    if comm.is_main_process() or iteration is None:
        return content
    return torch.load(path_of(folder, iteration), map_location="cpu", weights_only=True)


def load_trained(folder: RunFolder) -> dict[str, Any]:
    """Returns the newest readable checkpoint, or says that there is none."""
    content = load_newest(folder)
    if content is None:
        raise UserError(f"{folder.checkpoints}: no readable checkpoint; train the run first")
    return content


def read(path: Path, numbers: bool = True) -> dict[str, Any] | None:
    """Returns what a checkpoint holds, or None, with a warning, where it cannot be read.

    Without `numbers` those of its tensors stay on the disk: whether it is whole shows all the same.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not numbers)
        if content["format"] != FORMAT:
            reason = f"its format is {content['format']}, not {FORMAT}"
        elif not isinstance(content.get("iteration"), int):
            reason = "it does not say after which iteration it was saved"
        elif not _is_model(content.get("model")):
            reason = "it holds no model"
        else:
            return content
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = reason_of(error)[:200]
    logger.warning("%s is skipped: %s", path, reason)
    return None


def _is_model(state: Any) -> bool:
    return isinstance(state, dict) and all(map(torch.is_tensor, state.values()))


def truncate_metrics(path: Path, completed: int) -> None:
    """Drops the lines of metrics.json that a run resumed after `completed` iterations repeats.

    So are lines that a kill cut short or somebody damaged; of iterations that somebody repeated or
    turned round, those that a line further down goes back behind.
    """
    kept: list[tuple[int, bytes]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            iteration = json.loads(line)["iteration"]
            if type(iteration) is int and iteration < completed:
                while kept and kept[-1][0] >= iteration:
                    logger.warning("%s: iteration %d is repeated", path, kept.pop()[0])
                kept.append((iteration, line))
    if path.exists():
        write_atomically(path, b"".join(line + b"\n" for _, line in kept))


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
    trunk, branch = trunk_of(folder), folder.read().branch
    if trunk is None or branch is None or _checkpoints(folder):
        return folder, 0
    kept = max((at for at in _checkpoints(trunk) if at <= branch.at), default=None)
    if kept != branch.at:
        run = trunk.read() if trunk.run_file.exists() else None
        if run is None or run.iteration < branch.at or run.state not in ENDED:
            return None
    return (folder, 0) if kept is None else (trunk, kept)


def take(folder: RunFolder) -> bool:
    """Gives a branch that has not begun what its trunk has; tells whether anything was taken.

    The checkpoint comes last and in one step: a branch that is killed before begins anew.
    """
    found = find_origin(folder)
    if found is None or found[0] == folder or _checkpoints(folder):
        return False
    trunk, iteration = found
    folder.evaluations.mkdir(exist_ok=True)
    for file in trunk.evaluation_files():
        if file.stem.isdecimal() and int(file.stem) <= iteration:
            write_atomically(folder.evaluations / file.name, file.read_bytes())
    write_atomically(folder.metrics_file, trunk.metrics_file.read_bytes())
    truncate_metrics(folder.metrics_file, iteration)
    note_taken(folder, iteration)
    folder.update(init_report=trunk.read().init_report)
    folder.checkpoints.mkdir(exist_ok=True)
    source, target = path_of(trunk, iteration), path_of(folder, iteration)
    try:
        os.link(source, target)
    except OSError:  # the file system has no links
        with source.open("rb") as whole, replacing(target) as copy:
            shutil.copyfileobj(whole, copy)
    return True


def _checkpoints(folder: RunFolder) -> list[int]:
    return [int(file.stem) for file in newest_first(folder)]


def note_taken(folder: RunFolder, iteration: int, seconds: float | None = None) -> None:
    """Records in run.json what a branch has from its trunk."""
    taken = Taken(iteration=iteration, seconds=seconds)
    branch = folder.read().branch
    folder.update(branch=branch and branch.model_copy(update={"taken": taken}))


def switched_state(
    plain: Mapping[str, Any], cascade_model: nn.Module, cascade_optimizer: optim.Optimizer
) -> dict[str, Any]:
    """Returns the checkpoint with which Cascade R-CNN goes on where a plain detector stopped.

    The paper saved time so. The study's audit has seen to it that the two configs differ in the
    cascade alone.

    The cascade refines boxes in three stages, each with a box head and a box predictor of its own.
    What becomes of the plain checkpoint:

    - Backbone, FPN, RPN and mask head are the same network: copied.
    - The first stage has the IoU threshold and box weights that the plain detector was trained
      with. It takes the trained box head and classifier: copied.
    - The cascade's box regression is the same for all classes. If the plain detector has one
      regressor for each class, the first stage takes their mean; else it is copied.
    - The second and third stage see better boxes than anything was trained for. They keep the
      random initialization of the cascade model.

    The momentum of a copied parameter goes with it. Averaged and new parameters start without, as
    at the beginning of a training. Learning rate, iteration, random states and counters go on.

    Args:
        plain: a plain model's checkpoint; not changed.
        cascade_model: newly built; its own weights are those of the later stages.
        cascade_optimizer: newly built for it, by the same recipe as the plain one.
    """
    model: dict[str, Tensor] = {}
    copied, averaged = set(), set()
    for name, own in cascade_model.state_dict().items():
        origin = plain_name(name)
        model[name] = own if origin is None else plain["model"][origin]
        if model[name].shape != own.shape:  # one box regressor for each class
            model[name] = model[name].unflatten(0, (-1, BOX_SIZE)).mean(0)
            averaged.add(name)
        elif origin is not None:
            copied.add(name)
    logger.info(
        "Switched to cascade: %d tensors copied, %d averaged over classes, %d start anew",
        *(len(copied), len(averaged), len(model) - len(copied) - len(averaged)),
    )
    names = {id(parameter): name for name, parameter in cascade_model.named_parameters()}
    ordered = [names[id(p)] for group in cascade_optimizer.param_groups for p in group["params"]]
    before, own_groups = plain["optimizer"], cascade_optimizer.state_dict()["param_groups"]
    # An optimizer numbers its parameters by group; both models register theirs in the same order,
    # the later stages aside.
    origins = iter([number for group in before["param_groups"] for number in group["params"]])
    momentum = {}
    for number, name in enumerate(ordered):
        origin = None if plain_name(name) is None else next(origins)
        if name in copied and origin in before["state"]:
            momentum[number] = before["state"][origin]
    groups = [
        {**group, "params": own["params"]}
        for group, own in zip(before["param_groups"], own_groups, strict=True)
    ]
    optimizer = {**before, "state": momentum, "param_groups": groups}
    return {**plain, "model": model, "optimizer": optimizer}


def plain_name(name: str) -> str | None:
    """Returns what a cascade model's tensor is called in the plain model, None in later stages."""
    stage = _STAGE.match(name)
    if stage is None:
        return name
    return f"roi_heads.{stage[1]}.{stage[3]}" if stage[2] == "0" else None
