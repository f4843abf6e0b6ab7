"""The run folders of a study: written once all that its runs need is there, checked, pruned."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import config_text, differences, load_config
from scratch_vs_pretrain.errors import UserError, say, writable
from scratch_vs_pretrain.run_folder import RunFolder, find_run_folders, write_atomically
from scratch_vs_pretrain.run_info import Init, Noise, PretrainingCost, RunInfo, Switch
from scratch_vs_pretrain.study import resolve
from scratch_vs_pretrain.study.audit import Audit, audit
from scratch_vs_pretrain.study.plan import training_images
from scratch_vs_pretrain.study.sections import own_start
from scratch_vs_pretrain.study.spec import Run, Study
from scratch_vs_pretrain.training.checkpoint import ENDED, newest_first, read, trunk_of

# What run.json states of a run before it starts; a folder that differs in these is another run.
IDENTITY = ("study", "arm", "schedule", "seed")
# And by what the study's answer judges it, which may change; all but the first are `answer`'s.
JUDGED_BY = ("noise", "margin", "level", "metric", "converged")
# Of a run that goes on, the second is there should the newest be damaged.
NEWEST = 2


def prepare(study: Study, output: Path) -> list[RunFolder]:
    """Writes the run folders of a study that are not there yet, and checks those that are.

    A run that has begun stays as it is.

    Raises:
        UserError: the arms differ in more than the study allows; as :func:`with_origins` and
            :func:`check_trainable`; a folder holds a run of another config or of other weights; or
            a folder cannot be written. Nothing was started.
    """
    from scratch_vs_pretrain.modeling.checkpoint_file import forget_checkpoints
    from scratch_vs_pretrain.study.rehearsal import check_trainable

    parts = [
        (one, audit(one), {seed: resolve.with_origins(one, seed, output) for seed in one.seeds})
        for one in study.by_size()
    ]
    for one, _, started in parts:
        if any(run.folder(output).state() not in ENDED for run in one.runs()):
            check_trainable(started[one.seeds[0]])
    folders = []
    for one, audited, started in parts:
        arms = {(arm.name, seed): arm for seed, its in started.items() for arm in its.arms}
        for run in one.runs():
            begun = dataclasses.replace(run, arm=arms[run.arm.name, run.seed])
            folders.append(_prepare_run(one, begun, audited, output))
        _plan_branches(one, output)
    forget_checkpoints()
    return folders


def _prepare_run(study: Study, run: Run, audited: Audit, output: Path) -> RunFolder:
    folder = run.folder(output)
    files = {folder.config_file: resolve.run_config(study, run)}
    if study.switch:
        files[folder.before_switch_file] = files[folder.config_file]
        files[folder.config_file] = resolve.run_config(resolve.switched_study(study), run)
    described = _describe(study, run, files[folder.config_file], audited)
    if folder.run_file.exists():
        there = folder.read()
        _refuse_another_run(folder, there, files, described)
        # By what a run is judged is no part of its training.
        _update_idle(folder, there, **{name: getattr(described, name) for name in JUDGED_BY})
        return folder
    with writable(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        for file, cfg in files.items():
            write_atomically(file, config_text(cfg))
        # Last, because run.json makes the folder a run folder.
        folder.write(described)
    return folder


def _plan_branches(study: Study, output: Path) -> None:
    """Writes into run.json where the runs that have not begun branch off, and from what."""
    for arm, seed in itertools.product(study.arms, study.seeds):
        folders = {spec.name: study.run(arm, spec, seed).folder(output) for spec in arm.schedules}
        runs = {name: folder.read() for name, folder in folders.items()}
        begun = [name for name, run in runs.items() if folders[name].state_of(run) != "planned"]
        branches = resolve.arm_branches(study, arm, begun)
        for schedule in resolve.schedules_of(study, arm):
            name = schedule.name
            run, points = runs[name], {one.at for one in branches.values() if one.of == name}
            # From its first rate drop, a schedule that is longer can begin on another day.
            own = own_start(schedule, study.switch)
            points.update(run.branch_points, [own] if own > 0 else [])
            branch = run.branch if name in begun else branches.get(name)
            _update_idle(folders[name], run, branch=branch, branch_points=sorted(points))


def _update_idle(folder: RunFolder, there: RunInfo, **changes: Any) -> None:
    """Tells a run what has changed; not one in training, which writes run.json itself."""
    wanted = there.with_changes(**changes)
    if all(getattr(wanted, field) == getattr(there, field) for field in changes):
        return
    try:
        with folder.lock():
            folder.update(**changes)
    except UserError:
        if not folder.is_locked():
            raise
        say(f"{folder.path}: is being trained; start the study again later to tell it the changes")


def _describe(study: Study, run: Run, cfg: CfgNode, audited: Audit) -> RunInfo:
    from scratch_vs_pretrain.modeling.checkpoint_file import read_metadata, weights_sha256

    weights, schedule = run.arm.weights, resolve.resolved_schedule(study, run.arm, run.schedule)
    judged: dict[str, Any] = {name: getattr(study.answer, name, None) for name in JUDGED_BY[1:]}
    return RunInfo(
        study=study.name,
        description=study.description,
        arm=run.arm.name,
        schedule=run.schedule.name,
        seed=run.seed,
        state="planned",
        reason=None,
        iterations=cfg.SOLVER.MAX_ITER,
        iteration=0,
        resumes=(),
        steps=tuple(cfg.SOLVER.STEPS),
        switch=Switch(at=study.switch.start(schedule)) if study.switch else None,
        images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        init=Init(
            name="checkpoint" if weights else "scratch",
            weights=weights or None,
            sha256=weights_sha256(weights) if weights else None,
            pretraining=read_metadata(weights) | PretrainingCost.of(weights) if weights else None,
            load=cfg.SVP.LOAD if weights else None,
        ),
        arm_order=tuple(arm.name for arm in study.arms),
        allowed_differences={key: dict(values) for key, values in audited.allowed.items()},
        admitted=tuple(cfg.SVP.ADMIT),
        tuned_on=study.tuned_on,
        size=training_images(cfg) if study.size else None,
        **judged,
        noise=Noise(sd=study.noise.sd, because=study.noise.because) if study.noise else None,
    )


def _refuse_another_run(
    folder: RunFolder, there: RunInfo, files: Mapping[Path, CfgNode], described: RunInfo
) -> None:
    for key in IDENTITY:
        before, now = getattr(there, key), getattr(described, key)
        if before != now:
            raise UserError(
                f"{folder.run_file}: belongs to {key} {before!r}, not {now!r}; "
                "choose another output folder"
            )
    changed = [
        f"{key} ({values['there']!r} there, {values['now']!r} now)"
        for file, cfg in files.items()
        if there.switch or file != folder.before_switch_file
        for key, values in differences({"there": load_config(file), "now": cfg}).items()
        # The same weights may lie elsewhere; their sha256 is compared below.
        if key != "MODEL.WEIGHTS"
    ]
    if there.switch != described.switch:
        one, two = (info.switch and {"at": info.switch.at} for info in (there, described))
        changed.append(f"switch ({one} there, {two} now)")
    if changed:
        raise UserError(
            f"{folder.path}: holds a run of another config: {'; '.join(dict.fromkeys(changed))}; "
            "choose another output folder, or change the study back"
        )
    if (before := there.init.sha256) != (now := described.init.sha256):
        raise UserError(
            f"{folder.path}: holds a run that started from other weights (sha256 {before} there, "
            f"{now} now); choose another output folder, or restore the weights"
        )


def find_waste(root: Path, final: bool = False) -> dict[Path, str]:
    """Returns the files below `root` that may be deleted, and why.

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
    return {
        file: why
        for folder in folders
        if not folder.is_locked() and folder.state() != "running"
        for file, why in _of_run(folder, final)
        if file not in needed
    }


def _origin(folder: RunFolder) -> list[Path]:
    """Returns the checkpoint from which a run that has not begun is to begin, if it is a branch."""
    trunk, branch = trunk_of(folder), folder.read().branch
    if trunk is None or branch is None or folder.state() in ENDED:
        return []
    # Where that one is missing, the newest before it serves.
    return _newest([file for file in newest_first(trunk) if int(file.stem) <= branch.at], 1)


def _of_run(folder: RunFolder, final: bool) -> Iterator[tuple[Path, str]]:
    for file in folder.leftovers():
        yield file, "left by a process that was killed"
    state, files = folder.state(), newest_first(folder)
    useless = state == "diverged" or (final and state == "finished")
    points = () if useless else folder.read().branch_points
    keep = 0 if useless else 1 if state == "finished" else NEWEST
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
        stat = path.stat()
        key = stat.st_dev, stat.st_ino
        links[key] = links.get(key, 0) + 1
        total += stat.st_size if links[key] == stat.st_nlink else 0
    return total


def delete(paths: Iterable[Path]) -> None:
    """Deletes files."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be deleted ({error.strerror})") from None
