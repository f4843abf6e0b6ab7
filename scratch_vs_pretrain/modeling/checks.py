"""The silent mistakes of training from scratch, found on a built model and made errors.

Each of them trains without complaint and ends with a lower AP: a frozen random layer stays random,
BatchNorm over two images normalizes by noise. Fine-tuning runs of the same pair are checked alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.norms import norm_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detectron2.config import CfgNode
    from torch import nn, optim

# Below this many images per process BatchNorm's error grows quickly (Wu & He, "Group
# Normalization", Figure 1).
SMALLEST_BATCH = 16
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
        cfg: its config.
        images_per_process: images per batch and process.
        optimizer: if given, it must hold every parameter.

    Raises:
        UserError: lists everything found, each with what to change.
    """
    problems = [
        *frozen_parameters(model, cfg.MODEL.BACKBONE.FREEZE_AT),
        *frozen_norms(model),
        *small_batch_norms(model, images_per_process),
        *missing_warmup(cfg),
    ]
    if optimizer is not None:
        problems += forgotten_parameters(model, optimizer)
    if problems:
        raise UserError("this cannot train from scratch: " + "; ".join(problems))


def frozen_parameters(model: nn.Module, freeze_at: int = 0) -> list[str]:
    """Finds parameters that get no gradient."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if freeze_at > 0:
        found = f" ({_some(names)})" if names else ""
        return [f"MODEL.BACKBONE.FREEZE_AT is {freeze_at} and freezes stages{found}; set it to 0"]
    if names:
        return [f"{len(names)} parameters are frozen ({_some(names)}); set requires_grad on them"]
    return []


def frozen_norms(model: nn.Module) -> list[str]:
    """Finds FrozenBatchNorm2d, which leaves a random network without normalization."""
    names = _norms(model, "FrozenBN")
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


def missing_warmup(cfg: CfgNode) -> list[str]:
    """Finds a schedule that starts at the full learning rate."""
    solver = cfg.SOLVER
    if solver.WARMUP_ITERS <= 0:
        return [f"no warm-up: SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; set it above 0"]
    if solver.WARMUP_FACTOR >= 1:
        return [
            f"no warm-up: SOLVER.WARMUP_FACTOR is {solver.WARMUP_FACTOR}; set it below 1, "
            "for example 0.001"
        ]
    return []


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


def _norms(model: nn.Module, kind: str) -> list[str]:
    return [name for name, _, found in norm_layers(model) if found == kind]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
