"""The models and initial weights of a study's arms, tried before anything is written."""

from __future__ import annotations

import re

import torch

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.initial import match_initial
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import Study

# What fvcore's Registry says of a name that it does not hold.
_UNKNOWN = re.compile(r"No object named '(.+)' found in '(.+)' registry")


def check_models(study: Study) -> None:
    """Checks that every arm's model can be built, and that its checkpoint fills its backbone.

    Raises:
        UserError: nothing of a name that the config gives; a checkpoint is none, is of another
            network, or was trained with other pixels.
    """
    from detectron2.modeling import build_model

    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        cfg.MODEL.DEVICE = "meta"
        try:
            with torch.device("meta"):
                model = build_model(cfg)
            if arm.weights:
                match_initial(model, cfg)
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
