"""The models, initial weights and data sets of a study's arms, tried before anything is written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from scratch_vs_pretrain.data.datasets import check_files, ensure
from scratch_vs_pretrain.errors import UserError, located, reason_of, say
from scratch_vs_pretrain.evaluation.others import check_names
from scratch_vs_pretrain.modeling.initial import match_initial, report_text
from scratch_vs_pretrain.study.data_sets import check_own_images, origin
from scratch_vs_pretrain.study.inputs import origin_run
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import RUN_SCHEME, Arm, Study
from scratch_vs_pretrain.training.checkpoint import newest_first
from scratch_vs_pretrain.training.recipe import check_recipe

# What fvcore's Registry says of a name that it does not hold.
_UNKNOWN = re.compile(r"No object named '(.+)' found in '(.+)' registry")


def with_origins(study: Study, seed: int, output: Path) -> Study:
    """Returns a study in which arms that start from another run have that run's checkpoint.

    Arms of ``init: run://STUDY/ARM/SCHEDULE/seed`` start from the run below `output` of the same
    `seed`, those of ``.../seed0`` from that one.
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
    with located(where):
        folder = origin_run(arm, seed, output)
    newest = next(iter(newest_first(folder)), None)
    if newest is None:
        raise UserError(f"{where}: {folder.checkpoints} has no checkpoint left; train it again")
    return str(newest.resolve())


def check_trainable(study: Study) -> None:
    """Tries what every run of a study needs, before any of them is written: that every arm's model
    can be built, that its checkpoint fills its backbone, and that there is what the config names
    beside it.

    What becomes of a whole detector's checkpoint is said.
    """
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1]).clone()
        cfg.defrost()
        with located(place := f"{study.file}: arms.{arm.name}"):
            check_recipe(cfg)
            check_names(cfg)
            model = _build(cfg)
            if arm.weights:
                report, *_ = match_initial(model, cfg)
                if cfg.SVP.LOAD == "detector":
                    say(f"{place}: {report_text(report, arm.weights)}")
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        # The annotations of the study's own sets were read with it.
        others = [name for name in names if not origin(cfg, name).own]
        with located(study.file):
            ensure(others)
            check_files(others)
            check_own_images(cfg)


def _build(cfg: CfgNode) -> nn.Module:
    """Builds a config's model, without numbers unless its parts (a user's, say) need them."""
    from detectron2.modeling import build_model

    try:
        try:
            cfg.MODEL.DEVICE = "meta"
            with torch.device("meta"):
                return build_model(cfg)
        except RuntimeError:
            cfg.MODEL.DEVICE = "cpu"
            return build_model(cfg)
    except UserError:
        raise
    except Exception as error:  # of any kind, from a user's own module
        if unknown := _UNKNOWN.search(str(error)):
            name, registry = unknown.groups()
            raise UserError(
                f"Detectron2 knows no {name} in its {registry} registry; correct the name, or "
                "import the module that registers it"
            ) from None
        raise UserError(
            f"this model cannot be built ({reason_of(error)}); correct MODEL"
        ) from error
