"""A run's initial weights: MODEL.WEIGHTS, as SVP.LOAD and SVP.FREEZE say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import bottom_up_of
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata
from scratch_vs_pretrain.modeling.detector import match_detector
from scratch_vs_pretrain.modeling.norms import norm_layers
from scratch_vs_pretrain.modeling.timm_backbone import TimmBackbone
from scratch_vs_pretrain.modeling.vgg import pretrained_part
from scratch_vs_pretrain.modeling.weights import (
    LoadReport,
    check_input,
    input_settings,
    match_backbone,
)

if TYPE_CHECKING:
    from detectron2.config import CfgNode

LOADS = ("backbone", "detector")
FREEZES = ("", "backbone")


def match_initial(
    model: nn.Module, cfg: CfgNode
) -> tuple[LoadReport, nn.Module, dict[str, Tensor]]:
    """Returns what a run's weights would fill, the part of the model that they fill, and with what.

    Args:
        model: built from `cfg`, also on the meta device; it is not changed.
        cfg: with MODEL.WEIGHTS.

    Raises:
        UserError: the file cannot be read, was trained with other pixels, or does not fit.
    """
    weights = cfg.MODEL.WEIGHTS
    if cfg.SVP.LOAD not in LOADS:
        raise UserError(f"SVP.LOAD: {cfg.SVP.LOAD!r}; use {' or '.join(LOADS)}")
    check_input(cfg, _origin(weights), weights)
    of_detector = cfg.SVP.LOAD == "detector"
    match = match_detector if of_detector else match_backbone
    report, tensors = match(model, read_checkpoint(weights), weights, cfg.SVP.NORM_WEIGHTS)
    return report, model if of_detector else pretrained_part(model), tensors


def _origin(weights: str) -> dict[str, Any]:
    """Returns what is noted of a checkpoint's training; of a run's, that is its config."""
    config = Path(weights).parent.parent / "config.yaml"
    if Path(weights).parent.name == "checkpoints" and config.is_file():
        return {"input": input_settings(load_config(config))}
    return read_metadata(weights)


def load_initial(model: nn.Module, cfg: CfgNode) -> LoadReport | None:
    """Fills a run's model; returns None if its weights are to be random.

    Raises:
        UserError: as :func:`match_initial`; the model is not changed then.
    """
    if not cfg.MODEL.WEIGHTS:
        return None
    report, part, tensors = match_initial(model, cfg)
    part.load_state_dict(tensors, strict=False)
    return report


def freeze(model: nn.Module, cfg: CfgNode) -> None:
    """Freezes what SVP.FREEZE names: with "backbone" the bottom-up network, statistics included.

    Raises:
        UserError: another name, or a BatchNorm of timm, which is more than a norm.
    """
    if cfg.SVP.FREEZE not in FREEZES:
        raise UserError(f'SVP.FREEZE: {cfg.SVP.FREEZE!r}; use backbone, or "" for nothing')
    if not cfg.SVP.FREEZE:
        return
    bottom_up = bottom_up_of(model)
    if isinstance(bottom_up, TimmBackbone) and "BN" in {
        kind for *_, kind in norm_layers(bottom_up)
    }:
        raise UserError(
            f"SVP.FREEZE: the BatchNorm of timm's {bottom_up.family} cannot be frozen here; use a "
            "network without, such as resnet50_gn"
        )
    bottom_up.requires_grad_(False)
    FrozenBatchNorm2d.convert_frozen_batchnorm(bottom_up)
