"""Writes the run folders of a study, and checks those that are there."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import config_text, differences, load_config
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.modeling.checkpoint_file import (
    forget_checkpoints,
    read_metadata,
    weights_sha256,
)
from scratch_vs_pretrain.run_folder import RunFolder, write_atomically
from scratch_vs_pretrain.run_info import Init, Noise, PretrainingCost, RunInfo, Switch
from scratch_vs_pretrain.study.audit import Audit, audit, switched_study
from scratch_vs_pretrain.study.inputs import check_trainable, with_origins
from scratch_vs_pretrain.study.plan import training_images
from scratch_vs_pretrain.study.resolve import (
    arm_branches,
    resolved_schedule,
    run_config,
    schedules_of,
)
from scratch_vs_pretrain.study.schedule import own_start
from scratch_vs_pretrain.study.spec import Run, Study
from scratch_vs_pretrain.training.checkpoint import ENDED

# What run.json states of a run before it starts; a folder that differs in these is another run.
IDENTITY = ("study", "arm", "schedule", "seed")
# And by what the study's answer judges it, which may change; all but the first are `answer`'s.
JUDGED_BY = ("noise", "margin", "level", "metric", "converged")


def prepare(study: Study, output: Path) -> list[RunFolder]:
    """Writes the run folders of a study that are not there yet, and checks those that are.

    A run that has begun stays as it is.

    Raises:
        UserError: the arms differ in more than the study allows; as :func:`with_origins` and
            :func:`check_trainable`; a folder holds a run of another config or of other weights; or
            a folder cannot be written. Nothing was started.
    """
    parts = [
        (one, audit(one), {seed: with_origins(one, seed, output) for seed in one.seeds})
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
    files = {folder.config_file: run_config(study, run)}
    if study.switch:
        files = {
            folder.config_file: run_config(switched_study(study), run),
            folder.before_switch_file: files[folder.config_file],
        }
    described = _describe(study, run, files[folder.config_file], audited)
    if folder.run_file.exists():
        there = folder.read()
        _refuse_another_run(folder, there, files, described)
        # By what a run is judged is no part of its training.
        _update_idle(folder, there, **{name: getattr(described, name) for name in JUDGED_BY})
        return folder
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        for file, cfg in files.items():
            write_atomically(file, config_text(cfg))
        # Last, because run.json makes the folder a run folder.
        folder.write(described)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write there ({error.strerror})") from None
    return folder


def _plan_branches(study: Study, output: Path) -> None:
    """Writes into run.json where the runs that have not begun branch off, and from what."""
    for arm, seed in itertools.product(study.arms, study.seeds):
        folders = {spec.name: study.run(arm, spec, seed).folder(output) for spec in arm.schedules}
        runs = {name: folder.read() for name, folder in folders.items()}
        begun = [name for name, run in runs.items() if folders[name].state_of(run) != "planned"]
        branches = arm_branches(study, arm, begun)
        for schedule in schedules_of(study, arm):
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
        say(f"{folder.path}: is being trained; start the study again later to tell it the changes")


def _describe(study: Study, run: Run, cfg: CfgNode, audited: Audit) -> RunInfo:
    weights, schedule = run.arm.weights, resolved_schedule(study, run.arm, run.schedule)
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
        for key, values in differences({"there": load_config(file), "now": cfg}).items()
        # The same weights may lie elsewhere; their sha256 is compared below.
        if key != "MODEL.WEIGHTS"
    ]
    if there.switch != described.switch:
        one, two = (info.switch and {"at": info.switch.at} for info in (there, described))
        changed.append(f"switch ({one} there, {two} now)")
    if changed:
        raise UserError(
            f"{folder.path}: holds a run of another config: {'; '.join(changed)}; "
            "choose another output folder, or change the study back"
        )
    before, now = there.init.sha256, described.init.sha256
    if before != now:
        raise UserError(
            f"{folder.path}: holds a run that started from other weights (sha256 {before} there, "
            f"{now} now); choose another output folder, or restore the weights"
        )
