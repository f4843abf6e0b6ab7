"""The silent mistakes of training, found on a built model and made errors.

Each of them trains without complaint and ends with a lower AP: a frozen random layer stays random,
BatchNorm over two images normalizes by noise. What is a mistake with random weights may be the
usual recipe with pre-trained ones, whose backbone may be frozen in part or as a whole.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from scratch_vs_pretrain.config import SMALLEST_BATCH, missing_warmup
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import bottom_up_of
from scratch_vs_pretrain.modeling.norms import norm_layers

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn, optim

NAMES_SHOWN = 5


def check_trainable(
    model: nn.Module,
    cfg: CfgNode,
    images_per_process: int,
    optimizer: optim.Optimizer | None = None,
) -> None:
    """Refuses a model or recipe that would train, but not what it should.

    Args:
        model: the built model, before it is wrapped for distributed training.
        cfg: its config. With MODEL.WEIGHTS the bottom-up network may be frozen; SVP.ADMIT names
            the checks that are not made.
        images_per_process: images per batch and process.
        optimizer: if given, it must hold every parameter.

    Raises:
        UserError: lists everything found, each with what to change.
    """
    pretrained = set(bottom_up_of(model).modules()) if cfg.MODEL.WEIGHTS else set()
    found = {
        "frozen-stages-from-scratch": frozen_parameters(model, cfg, pretrained),
        "frozen-norm-from-scratch": frozen_norms(model, pretrained),
        "small-batch-norm": small_batch_norms(model, images_per_process),
        "no-warm-up": missing_warmup(cfg),
    }
    problems = [p for check, each in found.items() if check not in cfg.SVP.ADMIT for p in each]
    if optimizer is not None:
        problems += forgotten_parameters(model, optimizer)
    if problems:
        start = "weights that are given" if cfg.MODEL.WEIGHTS else "scratch"
        raise UserError(f"this cannot train from {start}: " + "; ".join(problems))


def frozen_parameters(
    model: nn.Module, cfg: CfgNode, pretrained: Container[nn.Module] = ()
) -> list[str]:
    """Finds parameters that get no gradient, outside of modules that are pre-trained."""
    names = [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if module not in pretrained
        for key, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad
    ]
    found = f" ({_some(names)})" if names else ""
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at > 0 and not cfg.MODEL.WEIGHTS:
        return [f"MODEL.BACKBONE.FREEZE_AT is {freeze_at} and freezes stages{found}; set it to 0"]
    if cfg.SVP.FREEZE and not cfg.MODEL.WEIGHTS:
        return [f"SVP.FREEZE is {cfg.SVP.FREEZE} and keeps it random{found}; leave it out"]
    if names:
        return [f"{len(names)} parameters are frozen{found}; set requires_grad on them"]
    return []


def frozen_norms(model: nn.Module, pretrained: Container[nn.Module] = ()) -> list[str]:
    """Finds FrozenBatchNorm2d, which leaves a random network without normalization."""
    names = _norms(model, "FrozenBN", pretrained)
    if not names:
        return []
    return [
        f"{len(names)} layers are FrozenBN ({_some(names)}); set MODEL.RESNETS.NORM to GN or "
        "SyncBN, and MODEL.BACKBONE.FREEZE_AT to 0"
    ]


def small_batch_norms(model: nn.Module, images_per_process: int) -> list[str]:
    """Finds BatchNorm whose statistics come from too few images. SyncBN is allowed."""
    names = _norms(model, "BN")
    if not names or images_per_process >= SMALLEST_BATCH:
        return []
    return [
        f"{len(names)} layers are BatchNorm ({_some(names)}) at {images_per_process} images per "
        f"process, fewer than {SMALLEST_BATCH}; set NORM to GN or SyncBN in MODEL.RESNETS, "
        "MODEL.FPN and the heads"
    ]


def forgotten_parameters(model: nn.Module, optimizer: optim.Optimizer) -> list[str]:
    """Finds trainable parameters that no parameter group of `optimizer` holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
    if not names:
        return []
    return [
        f"{len(names)} parameters are missing from the optimizer ({_some(names)}); "
        "build the optimizer after the model is complete"
    ]


def _norms(model: nn.Module, kind: str, beside: Container[nn.Module] = ()) -> list[str]:
    return [
        name for name, module, found in norm_layers(model) if found == kind and module not in beside
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
