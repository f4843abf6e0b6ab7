"""The run folders of a study: written once all that its runs need is there, checked, pruned."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import config_text, differences, load_config
from scratch_vs_pretrain.errors import UserError, say, writable
from scratch_vs_pretrain.run_folder import RunFolder, find_run_folders, write_atomically
from scratch_vs_pretrain.run_info import (
    JUDGED_BY,
    Data,
    Init,
    Noise,
    PretrainingCost,
    RunInfo,
    Switch,
)
from scratch_vs_pretrain.study import resolve
from scratch_vs_pretrain.study.audit import EXPECTED, Audit, audit
from scratch_vs_pretrain.study.data_sets import described_data
from scratch_vs_pretrain.study.plan import training_images
from scratch_vs_pretrain.study.sections import is_multiple, own_start
from scratch_vs_pretrain.study.spec import RUN_SCHEME, Run, Study
from scratch_vs_pretrain.training.checkpoint import ENDED, newest_first, read, trunk_of

# What run.json states of a run before it starts; a folder that differs in these is another run.
IDENTITY = ("study", "arm", "schedule", "seed")
# Of a run that goes on, the second is there should the newest be damaged.
NEWEST = 2


def prepare(study: Study, output: Path) -> list[RunFolder]:
    """Writes the run folders of a study that are not there yet, and checks those that are.

    A run that has begun stays as it is.

    Raises:
        UserError: the arms differ in more than the study allows; as :func:`with_origins` and
            :func:`check_trainable`; a folder holds a run of another config, of other weights or of
            other data; runs that are there would be compared with new ones of another recipe; or a
            folder cannot be written. Nothing was started.
    """
    from scratch_vs_pretrain.modeling.checkpoint_file import forget_checkpoints
    from scratch_vs_pretrain.study.rehearsal import check_trainable

    prepared = []
    for one in study.by_size():
        audited = audit(one)
        started = {seed: resolve.with_origins(one, seed, output) for seed in one.seeds}
        trains = any(run.folder(output).state() not in ENDED for run in one.runs())
        if trains:
            check_trainable(started[one.seeds[0]])
        arms = {(arm.name, seed): arm for seed, its in started.items() for arm in its.arms}
        # Where nothing trains, data need not be there; a study's own were read with it.
        reads = trains or one.data is not None
        runs = [dataclasses.replace(run, arm=arms[run.arm.name, run.seed]) for run in one.runs()]
        planned = [_planned(one, run, audited, output, reads) for run in runs]
        _refuse_unlike(one, planned)
        prepared.append((one, planned))
    for one, planned in prepared:
        for made in planned:
            _write(made)
        _plan_branches(one, output)
    forget_checkpoints()
    return [made.folder for _, planned in prepared for made in planned]


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A run as its folder is to tell it."""

    folder: RunFolder
    files: Mapping[str, CfgNode]  # its configs, by the file's name
    info: RunInfo


def _planned(study: Study, run: Run, audited: Audit, output: Path, reads: bool) -> _Planned:
    folder = run.folder(output)
    files = {folder.config_file.name: resolve.run_config(study, run)}
    if study.switch:
        files[folder.before_switch_file.name] = files[folder.config_file.name]
        files[folder.config_file.name] = resolve.run_config(resolve.switched_study(study), run)
    cfg = files[folder.config_file.name]
    return _Planned(folder, files, _describe(study, run, cfg, audited, reads))


def _write(planned: _Planned) -> None:
    """Writes a run's folder, or brings that of a run up to date that goes on or is to begin."""
    folder, described = planned.folder, planned.info
    if not folder.run_file.exists():
        with writable(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            _write_configs(planned)
            # Last, because run.json makes the folder a run folder.
            folder.write(described)
        return
    there = folder.read()
    # By what a run is judged is no part of its training.
    changes = {name: getattr(described, name) for name in JUDGED_BY}
    if described.data.train.sha256 and not _has_begun(folder, there):
        changes["data"] = described.data
    moved = there.init.weights != described.init.weights and there.state not in ENDED
    if moved:  # the same ones, elsewhere
        changes["init"] = there.init.model_copy(update={"weights": described.init.weights})
    _update_idle(folder, there, planned if moved else None, **changes)


def _write_configs(planned: _Planned) -> None:
    for name, cfg in planned.files.items():
        write_atomically(planned.folder.path / name, config_text(cfg))


def _has_begun(folder: RunFolder, there: RunInfo) -> bool:
    """Tells whether what a run has learnt so far would be part of its end."""
    return folder.state_of(there) in ("running", *ENDED) or bool(newest_first(folder))


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


def _update_idle(
    folder: RunFolder, there: RunInfo, moved: _Planned | None = None, **changes: Any
) -> None:
    """Tells a run what has changed; not one in training, which writes run.json itself."""
    wanted = there.with_changes(**changes)
    if all(getattr(wanted, field) == getattr(there, field) for field in changes):
        return
    try:
        with folder.lock():
            if moved:
                _write_configs(moved)
            folder.update(**changes)
    except UserError:
        if not folder.is_locked():
            raise
        say(f"{folder.path}: is being trained; start the study again later to tell it the changes")


def _describe(study: Study, run: Run, cfg: CfgNode, audited: Audit, reads: bool) -> RunInfo:
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
        data=described_data(cfg) if reads else Data(),
        **judged,
        noise=Noise(sd=study.noise.sd, because=study.noise.because) if study.noise else None,
    )


def _refuse_unlike(study: Study, planned: Sequence[_Planned]) -> None:
    """Compares what is planned with the runs that are there: with each in its own folder, and new
    ones with those beside them, with which tables would compare them."""
    own, new = {made.folder for made in planned}, {}
    for made in planned:
        if made.folder.run_file.exists():
            _refuse_another_run(made, made.folder.read())
        else:
            new[made.info.arm, made.info.schedule] = made  # seeds enter all configs alike
    for file in sorted(planned[0].folder.path.parents[2].glob("*/*/seed*/run.json")):
        folder = RunFolder(file.parent)
        if folder in own or (there := folder.read()).study != study.name:
            continue
        if _has_begun(folder, there):
            for data in {made.info.data for made in planned}:
                there.data.refuse_change(data, folder.path)
        configs = _configs(folder, there) if new else {}
        for made in new.values():
            if changed := _unlike(study, made, there, configs):
                raise UserError(
                    f"{folder.path}: holds a run of another recipe than {made.info.name}, with "
                    f"which tables would compare it: {'; '.join(changed)}; choose another output "
                    "folder, or change the study back"
                )


def _unlike(
    study: Study, made: _Planned, there: RunInfo, configs: Mapping[str, CfgNode]
) -> list[str]:
    """Returns in what a run that is there differs from a new one beside it: another arm's in more
    than the audit admits, the same arm's in more than seed and length."""
    now, free = made.info, {"SEED", "MODEL.WEIGHTS"}
    [init] = [arm.init for arm in study.arms if arm.name == now.arm]
    if now.arm != there.arm:
        free |= {*EXPECTED, *study.allow_differences}
    if now.schedule != there.schedule:
        free |= {"SOLVER.MAX_ITER", "SOLVER.STEPS"}
    if is_multiple(now.schedule) != is_multiple(there.schedule):  # which alone is scaled
        free |= {"SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS"}
    changed = _changed(made, there, configs, free)
    # What starts from another run may have that of its seed.
    if now.arm == there.arm and not init.startswith(RUN_SCHEME):
        changed += _changed_weights(made, there)
    return changed


def _refuse_another_run(made: _Planned, there: RunInfo) -> None:
    folder, described = made.folder, made.info
    for key in IDENTITY:
        before, now = getattr(there, key), getattr(described, key)
        if before != now:
            raise UserError(
                f"{folder.run_file}: belongs to {key} {before!r}, not {now!r}; "
                "choose another output folder"
            )
    # The same weights may lie elsewhere; their sha256 is compared below.
    if changed := _changed(made, there, _configs(folder, there), {"MODEL.WEIGHTS"}):
        raise UserError(
            f"{folder.path}: holds a run of another config: {'; '.join(changed)}; "
            "choose another output folder, or change the study back"
        )
    if weights := _changed_weights(made, there):
        raise UserError(
            f"{folder.path}: holds a run that started from other {weights[0]}; choose another "
            "output folder, or restore the weights"
        )
    if _has_begun(folder, there):
        there.data.refuse_change(described.data, folder.path)


def _configs(folder: RunFolder, there: RunInfo) -> dict[str, CfgNode]:
    """Returns the configs of a run that is there, by the file's name."""
    files = [folder.config_file, *([folder.before_switch_file] if there.switch else [])]
    return {file.name: load_config(file) for file in files}


def _changed(
    made: _Planned, there: RunInfo, configs: Mapping[str, CfgNode], free: Collection[str]
) -> list[str]:
    changed = [
        f"{key} ({values['there']!r} there, {values['now']!r} now)"
        for name in sorted(made.files.keys() & configs.keys(), reverse=True)
        for key, values in differences({"there": configs[name], "now": made.files[name]}).items()
        if key not in free
    ]
    if there.switch != made.info.switch and there.iterations == made.info.iterations:
        one, two = (info.switch and {"at": info.switch.at} for info in (there, made.info))
        changed.append(f"switch ({one} there, {two} now)")
    return list(dict.fromkeys(changed))


def _changed_weights(made: _Planned, there: RunInfo) -> list[str]:
    before, now = there.init.sha256, made.info.init.sha256
    return [f"weights (sha256 {before} there, {now} now)"] if before != now else []


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
