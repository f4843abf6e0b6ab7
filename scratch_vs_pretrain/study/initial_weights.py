"""The initial weights of a study's arms, tried before anything is written."""

from __future__ import annotations

import torch

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata
from scratch_vs_pretrain.modeling.weights import check_input, match_backbone
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import Study


def check_initial_weights(study: Study) -> None:
    """Checks that the checkpoint of every arm fills its backbone, before the other arms train.

    Raises:
        UserError: a checkpoint is none, is of another network, or was trained with other pixels.
    """
    from detectron2.modeling import build_model

    for arm in study.arms:
        if not arm.weights:
            continue
        cfg = arm_config(study, arm, arm.schedules[-1])
        cfg.MODEL.DEVICE = "meta"
        try:
            check_input(cfg, read_metadata(arm.weights), arm.weights)
            with torch.device("meta"):
                model = build_model(cfg)
            state = read_checkpoint(arm.weights)
            match_backbone(model, state, arm.weights, cfg.SVP.NORM_WEIGHTS)
        except UserError as error:
            raise UserError(f"{study.file}: arms.{arm.name}: {error}") from None
