"""A run's initial weights: its backbone, or whatever of a trained detector fits.

Of detectors, Detectron2's names are known and those of torchvision's ``maskrcnn_resnet50_fpn(_v2)``
(and ``fasterrcnn_``). What does not fit, as the layers of another number of classes, keeps the
values that the other arms have for the same seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import bottom_up_of
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata
from scratch_vs_pretrain.modeling.checks import norm_layers
from scratch_vs_pretrain.modeling.conversion import renamed
from scratch_vs_pretrain.modeling.timm_backbone import TimmBackbone
from scratch_vs_pretrain.modeling.vgg import pretrained_part
from scratch_vs_pretrain.modeling.weights import (
    check_finite,
    check_input,
    input_settings,
    match_backbone,
)
from scratch_vs_pretrain.run_info import Loaded

# A block's convolution is "0" in it, and its norm "1".
_NORMED = r"\.((?:1\.\w|[wb])\w+)"
_BLOCK = rf"(?:\.0|(?=\.1)){_NORMED}"
_TORCHVISION = (
    (rf"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?{_NORMED}", r"backbone.fpn_lateral\1+2.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?{_NORMED}", r"backbone.fpn_output\1+2.\2"),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", r"proposal_generator.rpn_head.conv.conv\1.\2"),
    (r"rpn\.head\.conv\.(\w+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_head\.fc([67])\.(\w+)", r"roi_heads.box_head.fc\1-5.\2"),
    (rf"roi_heads\.box_head\.(\d){_BLOCK}", r"roi_heads.box_head.conv\1+1.\2"),
    (r"roi_heads\.box_head\.\d\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (rf"roi_heads\.mask_head\.(\d){_BLOCK}", r"roi_heads.mask_head.mask_fcn\1+1.\2"),
    (r"(roi_heads\.mask_head\.mask_fcn\d\.\w+)", r"\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
    (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
)
# torchvision's COCO models have an output for each of the 91 ids, of which 80 are in use.
_COCO_IDS = 91


def match_detector(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str = "the checkpoint",
    norm_weights: str = "all",
) -> tuple[Loaded, dict[str, Tensor]]:
    """Returns what loading a detector would do, and the tensors by their names in the model.

    The bottom-up network is filled completely, of the rest what fits.
    """
    report, backbone = match_backbone(model, state, source, norm_weights)
    own = model.state_dict(keep_vars=True)
    part = pretrained_part(model).state_dict(keep_vars=True)
    inside = {id(tensor): name for name, tensor in part.items()}
    tensors = {
        name: backbone[inside[id(tensor)]]
        for name, tensor in own.items()
        if inside.get(id(tensor)) in backbone
    }
    rest = {name: tensor for name, tensor in own.items() if id(tensor) not in inside}
    # Heads of users' own have names that nobody knows.
    found = {name: state[name] for name in rest if name in state} | heads_of(state)
    fitting = {
        name: found[name] for name, tensor in rest.items() if _fits(name, tensor, rest, found)
    }
    if not fitting:
        raise UserError(f"{source}: {_nothing_fits(rest, found)}")
    check_finite(fitting, source)
    used = {key for key, name in _names(state).items() if name in fitting} | fitting.keys()
    changes = {
        "loaded": report.loaded + len(fitting),
        "reinitialized": tuple(n for n in rest if n not in fitting and "num_batches" not in n),
        "unexpected": tuple(key for key in report.unexpected if key not in used),
    }
    return report.model_copy(update=changes), {**tensors, **fitting}


def _fits(
    name: str, tensor: Tensor, own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> bool:
    if name not in found or found[name].shape != tensor.shape:
        return False
    # Scale and shift of a BatchNorm are no GroupNorm's.
    statistics = f"{name.rpartition('.')[0]}.running_mean"
    return (statistics in own) == (statistics in found)


def _nothing_fits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    theirs, ours = ({name.split(".")[0] for name in names} - {"backbone"} for names in (found, own))
    if not theirs:
        return "a backbone without heads, for load: detector; use load: backbone"
    if not theirs & ours:
        return (
            f"a detector of another meta architecture (it has {', '.join(sorted(theirs))}, this "
            f"config {', '.join(sorted(ours))}); use load: backbone"
        )
    return "nothing of its heads fits this config's (other sizes or norms); use load: backbone"


def _names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the name in Detectron2 of each key that is not of the bottom-up network."""
    if any(key.startswith("backbone.body.") for key in state):
        several = "rpn.head.conv.1.0.weight" in state
        named = {key: _from_torchvision(key, several) for key in state}
        return {key: name for key, name in named.items() if name}
    parts = ("backbone.fpn_", "proposal_generator.", "roi_heads.", "head.", "sem_seg_head.")
    return {key: key for key in state if key.startswith(parts)}


def heads_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of :func:`_names`, classes in Detectron2's order."""
    of_torchvision = any(key.startswith("backbone.body.") for key in state)
    return {
        name: _reordered(name, state[key]) if of_torchvision else state[key]
        for key, name in _names(state).items()
    }


def _from_torchvision(key: str, several: bool) -> str | None:
    """Renames a key; `several` convolutions in the RPN are numbered, one alone is not."""
    name = renamed(key, _TORCHVISION)
    if name is None:
        return None
    name = re.sub(r"\.1\.(\w+)$", r".norm.\1", name)
    return name if several else name.replace("rpn_head.conv.conv0", "rpn_head.conv")


def _reordered(name: str, tensor: Tensor) -> Tensor:
    """Puts the background of torchvision's first class last, or leaves it out, as Detectron2."""
    layer = name.split(".")[-2]
    if layer not in ("cls_score", "bbox_pred", "predictor"):
        return tensor
    per_class = 4 if layer == "bbox_pred" else 1
    rows = tensor.unflatten(0, (-1, per_class))
    classes = list(range(1, len(rows)))
    if len(rows) == _COCO_IDS:
        classes = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    order = [*classes, 0] if layer == "cls_score" else classes
    return rows[torch.tensor(order)].flatten(0, 1)


def match_initial(model: nn.Module, cfg: CfgNode) -> tuple[Loaded, nn.Module, dict[str, Tensor]]:
    """Returns what MODEL.WEIGHTS fills, the part of the model that it fills, and with what.

    The model, which may be on the meta device, is not changed.
    """
    weights = cfg.MODEL.WEIGHTS
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


def load_initial(model: nn.Module, cfg: CfgNode) -> Loaded | None:
    """Fills a run's model; returns None if its weights are to be random."""
    if not cfg.MODEL.WEIGHTS:
        return None
    report, part, tensors = match_initial(model, cfg)
    part.load_state_dict(tensors, strict=False)
    return report


def freeze(model: nn.Module, cfg: CfgNode) -> None:
    """Freezes what SVP.FREEZE names: with "backbone" the bottom-up network, statistics included."""
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
