"""A run's initial weights: its backbone, completely or not at all, or what of a detector fits.

Of detectors, Detectron2's names are known and those of torchvision's ``maskrcnn_resnet50_fpn(_v2)``
(and ``fasterrcnn_``). What does not fit, as the layers of another number of classes, keeps the
values that the other arms have for the same seed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import TimmBackbone, bottom_up_of, pretrained_part
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata
from scratch_vs_pretrain.modeling.checks import norm_layers, some
from scratch_vs_pretrain.modeling.conversion import (
    COUNTER,
    check_weights,
    describe,
    renamed,
    to_detectron2,
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
_STATISTICS = ("running_mean", "running_var", COUNTER)


def match_backbone(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str = "the checkpoint",
    norm_weights: str = "all",
) -> tuple[Loaded, dict[str, Tensor]]:
    """Returns what fills the bottom-up network completely, by its names, and a report on it.

    FPN, RPN and heads keep their initialization, also if the checkpoint is a whole detector; but
    fc6 and fc7 in the box head of a VGG detector are filled as well (:func:`pretrained_part`).

    Args:
        model: a detector, its backbone, or a bottom-up network, which may be on the meta device;
            it is not changed.
        state: any layout that ``to_detectron2`` knows.
        norm_weights: "all"; or "affine_only": BatchNorm's scale and shift may initialize
            GroupNorm's, without running statistics.

    Raises:
        UserError: anything less than 100 % of the bottom-up's parameters and buffers; a checkpoint
            of a deeper network; BatchNorm into GroupNorm unless asked for; non-finite weights.
    """
    bottom_up = pretrained_part(model)
    found, tensors, surplus = to_detectron2(state, source, bottom_up)
    statistics = _unused_statistics(tensors, bottom_up, norm_weights, source)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in statistics}
    own = bottom_up.state_dict()
    mismatched = {
        name: f"{name} {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    }
    loaded = {name: tensors[name] for name in own if name in tensors and name not in mismatched}
    report = Loaded(
        loaded=len(loaded),
        missing=tuple(n for n in own if n not in tensors and not n.endswith(COUNTER)),
        unexpected=(*(n for n in tensors if n not in own), *statistics, *found.unexpected),
        mismatched=tuple(mismatched.values()),
        layout=found.layout,
        prefix=found.prefix,
    )
    more = [name for name in report.unexpected if _changes_network(name, tensors, bottom_up)]
    _check_complete(report, [*surplus, *more], tensors, source)
    check_weights({n: t for n, t in loaded.items() if own[n].is_floating_point()}, source)
    return report, loaded


def _unused_statistics(
    tensors: Mapping[str, Tensor], bottom_up: nn.Module, norm_weights: str, source: str
) -> list[str]:
    """Returns the file's running statistics that GroupNorm has no place for."""
    found = [name for name in tensors if name.endswith(_STATISTICS)]
    if not found or "GN" not in {kind for *_, kind in norm_layers(bottom_up)}:
        return []
    if norm_weights == "all":
        raise UserError(
            f"{source}: trained with BatchNorm, but this backbone has GroupNorm, which normalizes "
            "by other statistics and keeps none, so the features would not be those of the "
            "pre-trained network; take a GroupNorm checkpoint, set SyncBN in both arms, or ask for "
            "scale and shift alone with SVP.NORM_WEIGHTS: affine_only in the overrides"
        )
    return found


def _check_complete(
    report: Loaded, surplus: Sequence[str], tensors: Mapping[str, Tensor], source: str
) -> None:
    found = [
        f"{len(names)} {what} ({some(names)})"
        for what, names in (
            ("missing", report.missing),
            ("of another shape", report.mismatched),
            ("too many", surplus),
        )
        if names
    ]
    if not found:
        return
    needed = report.loaded + len(report.missing) + len(report.mismatched)
    if report.missing and all(name.endswith(_STATISTICS) for name in report.missing):
        remedy = "; the checkpoint has no BatchNorm statistics: set NORM to GN in both arms"
    else:
        remedy = describe(tensors) or "; give a checkpoint of the config's architecture"
    raise UserError(
        f"{source}: fills {report.loaded} of the backbone's {needed} tensors, "
        f"{', '.join(found)}{remedy}"
    )


def _changes_network(name: str, tensors: Mapping[str, Tensor], bottom_up: nn.Module) -> bool:
    """Tells whether a surplus tensor says that the file is of another, deeper network.

    Whole stages that this network leaves out, counters, and zero biases (Caffe2) do not.
    """
    if name not in tensors or name.endswith(COUNTER):
        return False
    stage = name.split(".")[0].split("_")[0]
    if not any(child.startswith(stage) for child, _ in bottom_up.named_children()):
        return False
    return not (name.endswith(".bias") and not tensors[name].any())


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
    heads = heads_of(state)
    # Heads of users' own have names that nobody knows.
    found = {name: state[name] for name in rest if name in state}
    found |= {name: tensor for name, (_, tensor) in heads.items()}
    fitting = {}
    for name, tensor in rest.items():
        # Scale and shift of a BatchNorm are no GroupNorm's.
        statistics = f"{name.rpartition('.')[0]}.running_mean"
        same_norm = (statistics in rest) == (statistics in found)
        if name in found and found[name].shape == tensor.shape and same_norm:
            fitting[name] = found[name]
    if not fitting:
        raise UserError(f"{source}: {_nothing_fits(rest, found)}")
    check_weights({n: t for n, t in fitting.items() if rest[n].is_floating_point()}, source)
    used = {key for name, (key, _) in heads.items() if name in fitting} | fitting.keys()
    changes = {
        "loaded": report.loaded + len(fitting),
        "reinitialized": tuple(n for n in rest if n not in fitting and not n.endswith(COUNTER)),
        "unexpected": tuple(key for key in report.unexpected if key not in used),
    }
    return report.model_copy(update=changes), {**tensors, **fitting}


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


def heads_of(state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Returns by its name in Detectron2 what is not of the bottom-up network: its key, and the
    tensor with classes in Detectron2's order."""
    if not any(key.startswith("backbone.body.") for key in state):
        parts = ("backbone.fpn_", "proposal_generator.", "roi_heads.", "head.", "sem_seg_head.")
        return {key: (key, tensor) for key, tensor in state.items() if key.startswith(parts)}
    heads = {}
    for key, tensor in state.items():
        if name := renamed(key, _TORCHVISION):
            name = re.sub(r"\.1\.(\w+)$", r".norm.\1", name)
            if "rpn.head.conv.1.0.weight" not in state:  # one convolution alone has no number
                name = name.replace("rpn_head.conv.conv0", "rpn_head.conv")
            heads[name] = key, _reordered(name, tensor)
    return heads


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
    config = Path(weights).parent.parent / "config.yaml"
    if Path(weights).parent.name == "checkpoints" and config.is_file():  # a run's
        check_input(cfg, {"input": input_settings(load_config(config))}, weights)
    else:
        check_input(cfg, read_metadata(weights), weights)
    of_detector = cfg.SVP.LOAD == "detector"
    match = match_detector if of_detector else match_backbone
    report, tensors = match(model, read_checkpoint(weights), weights, cfg.SVP.NORM_WEIGHTS)
    return report, model if of_detector else pretrained_part(model), tensors


def input_settings(cfg: CfgNode) -> dict[str, Any]:
    """Returns what pre-training and detection must share beside the network itself."""
    return {
        "INPUT.FORMAT": cfg.INPUT.FORMAT,
        "MODEL.PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "MODEL.RESNETS.STRIDE_IN_1X1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }


def check_input(cfg: CfgNode, metadata: Mapping[str, Any], source: str) -> None:
    """Compares a config with the one that a backbone of ours was pre-trained with."""
    trained = metadata.get("input", {})
    for key, value in input_settings(cfg).items():
        if trained.get(key, value) != value:
            raise UserError(
                f"{source}: pre-trained with {key} {trained[key]}, but the config has {value}; "
                "set both arms to the former, or pre-train again"
            )


def report_text(report: Loaded, source: str) -> str:
    """Returns a sentence on what a detector's checkpoint was used for."""
    said = [f"{report.loaded} tensors are from {source}"]
    if report.reinitialized:
        said.append(f"{', '.join(report.reinitialized)} start at random, as in arms from scratch")
    if report.unexpected:
        more = some(report.unexpected)
        said.append(f"{len(report.unexpected)} are left over ({more})")
    return "; ".join(said)


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
