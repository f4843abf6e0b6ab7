"""The models, initial weights and data sets of a study's arms, tried before anything is written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch

from scratch_vs_pretrain.data.datasets import check_files, ensure
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.modeling.initial import match_initial
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.data_sets import check_own_images, origin
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import RUN_SCHEME, SCRATCH, Arm, Study
from scratch_vs_pretrain.training.checkpoint import Checkpointer

# What fvcore's Registry says of a name that it does not hold.
_UNKNOWN = re.compile(r"No object named '(.+)' found in '(.+)' registry")


def with_origins(study: Study, seed: int, output: Path) -> Study:
    """Returns a study in which arms that start from another run have that run's checkpoint.

    Args:
        study: arms of ``init: run://STUDY/ARM/SCHEDULE/seed`` start from the run of the same seed,
            those of ``.../seed0`` from that one.
        seed: of the runs that are to start.
        output: below which the run folders lie.

    Raises:
        UserError: an origin is not there or not finished, its checkpoint is gone, or an arm would
            start from itself.
    """
    arms = tuple(
        dataclasses.replace(arm, init=_origin(study, arm, seed, output))
        if arm.init.startswith(RUN_SCHEME)
        else arm
        for arm in study.arms
    )
    return dataclasses.replace(study, arms=arms)


def _origin(study: Study, arm: Arm, seed: int, output: Path) -> str:
    where = f"{study.file}: arms.{arm.name}.init: {arm.init}"
    inits, seen = {f"{study.name}/{one.name}": one.init for one in study.arms}, [arm.name]
    init = arm.init
    while init.startswith(RUN_SCHEME):
        source = init.removeprefix(RUN_SCHEME).rsplit("/", 2)[0]
        name = source.partition("/")[2]
        init = inits.get(source, SCRATCH)
        if source in inits and name in seen:
            raise UserError(
                f"{where}: goes in a circle ({' from '.join([*seen, name])}); "
                "let one of them start from a checkpoint or from scratch"
            )
        seen.append(name)
    path = arm.init.removeprefix(RUN_SCHEME)
    folder = RunFolder(output / (path if path[-1].isdigit() else f"{path}{seed}"))
    state = folder.state() if folder.run_file.exists() else "not there"
    if state != "finished":
        raise UserError(f"{where}: the run in {folder.path} is {state}; train it to its end first")
    newest = next(Checkpointer(folder.checkpoints, keep=1).newest_first(), None)
    if newest is None:
        raise UserError(f"{where}: {folder.checkpoints} has no checkpoint left; train it again")
    return str(newest.resolve())


def check_trainable(study: Study) -> None:
    """Tries what every run of a study needs, before any of them is written."""
    check_models(study)
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        # The annotations of the study's own sets were read with it.
        others = [name for name in names if not origin(cfg, name).own]
        try:
            ensure(others)
            check_files(others)
            check_own_images(cfg)
        except UserError as error:
            raise UserError(f"{study.file}: {error}") from None


def check_models(study: Study) -> None:
    """Checks that every arm's model can be built, and that its checkpoint fills its backbone.

    What a whole detector's checkpoint leaves at random is said.
    """
    from detectron2.modeling import build_model

    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1]).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        try:
            with torch.device("meta"):
                model = build_model(cfg)
            if arm.weights:
                report, *_ = match_initial(model, cfg)
                if report.reinitialized:
                    say(f"{study.file}: arms.{arm.name}: {report.text(arm.weights)}")
        except UserError as error:
            raise UserError(f"{study.file}: arms.{arm.name}: {error}") from None
        except KeyError as error:
            if unknown := _UNKNOWN.search(str(error)):
                name, registry = unknown.groups()
                raise UserError(
                    f"{study.file}: arms.{arm.name}: Detectron2 knows no {name} in its "
                    f"{registry} registry; correct the name, or import the module that registers it"
                ) from None
            raise
        except (AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{study.file}: arms.{arm.name}: Detectron2 cannot build this model ({reason}); "
                "correct MODEL"
            ) from None
