"""How a run trains: its learning rates, its optimizer, its mapper; the last two may be a user's.

A module that a study imports registers its own under a name that the config then gives:
``SVP.OPTIMIZER``, ``SVP.MAPPER``.
"""

import bisect
import re
from collections.abc import Callable
from typing import Any

import torch
from detectron2.data import DatasetMapper
from detectron2.solver.build import build_optimizer as build_sgd
from detectron2.solver.build import (
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.registry import Registry
from torch import nn

from scratch_vs_pretrain.config import registered
from scratch_vs_pretrain.evaluation.others import semantic_truth

OPTIMIZERS = Registry("OPTIMIZERS")
OPTIMIZERS.__doc__ = """Builders, called with the config and the model; they return an optimizer of
torch that holds every parameter. Rates are multiplied by the schedule's factor."""

MAPPERS = Registry("MAPPERS")
MAPPERS.__doc__ = """Builders, called with the config; they return what makes a training sample
("image", "instances") of a record, as Detectron2's DatasetMapper does. Whatever it draws from
Python's, NumPy's or torch's global generators depends on the seed and the sample alone."""

# The part of a backbone that a parameter is in: a transformer's blocks, or a ResNet's stages.
_DEPTH = re.compile(
    r"^backbone\..*?(?:\bblocks\.(\d+)\.|\bres(\d)\.|\b(stem|patch_embed|pos_embed)\b)"
)


def rate_factor(cfg: Any, iteration: int) -> float:
    """Returns the learning rate of an iteration as a multiple of SOLVER.BASE_LR.

    The value of Detectron2's WarmupMultiStepLR (solver/build.py), computed from the iteration
    alone: Detectron2 computes with iteration / MAX_ITER, whose rounding differs between schedules,
    so that runs of different length would not share their trunk exactly.
    """
    solver = cfg.SOLVER
    factor = solver.GAMMA ** bisect.bisect_right(solver.STEPS, iteration)
    if iteration < solver.WARMUP_ITERS:
        done = iteration / solver.WARMUP_ITERS
        factor *= solver.WARMUP_FACTOR * (1 - done) + done
    return factor


def check_recipe(cfg: Any) -> None:
    """Raises UserError where nothing is registered under ``SVP.OPTIMIZER`` or ``SVP.MAPPER``."""
    registered(OPTIMIZERS, cfg.SVP.OPTIMIZER, "SVP.OPTIMIZER")
    registered(MAPPERS, cfg.SVP.MAPPER, "SVP.MAPPER")


def build_optimizer(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer that ``SVP.OPTIMIZER`` names."""
    return registered(OPTIMIZERS, cfg.SVP.OPTIMIZER, "SVP.OPTIMIZER")(cfg, model)


def build_mapper(cfg: Any) -> Callable[[dict[str, Any]], Any]:
    """Returns the mapper of training that ``SVP.MAPPER`` names."""
    mapper = registered(MAPPERS, cfg.SVP.MAPPER, "SVP.MAPPER")(cfg)

    def with_background(record: dict[str, Any]) -> Any:
        sample = mapper(record)
        height, width = sample["image"].shape[-2:]
        masks = sample["instances"].gt_masks  # records without instances are not trained on
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, height, width)
        return {**sample, "sem_seg": semantic_truth(masks.tensor, height, width)}

    # A Panoptic FPN learns from the semantic truth, too.
    return with_background if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" else mapper


def depth_of(name: str) -> int | None:
    """Returns how far from the image a backbone's parameter is, 0 for what comes first.

    None for what is not in a transformer's blocks or a ResNet's stages: necks and heads.
    """
    found = _DEPTH.search(name)
    if found is None:
        return None
    block, stage, first = found.groups()
    return 0 if first else int(block) + 1 if block else int(stage) - 1


@OPTIMIZERS.register()
def SGD(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    return build_sgd(cfg, model)


@OPTIMIZERS.register()
def AdamW(cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with ViTDet's decay of rates (``SVP.LAYER_DECAY``): a layer's is as many times smaller
    as layers come after it, of the backbone and then the rest (projects/ViTDet of upstream main).

    SOLVER's weight decay, clipping and factors for norms and biases apply as to SGD.
    """
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    depths = {value: depth_of(name) for name, value in model.named_parameters()}
    last = max((depth for depth in depths.values() if depth is not None), default=0) + 1
    behind = {value: 0 if depth is None else last - depth for value, depth in depths.items()}
    single = [
        {**group, "params": [value], "lr": group["lr"] * cfg.SVP.LAYER_DECAY ** behind[value]}
        for group in groups
        for value in group["params"]
    ]
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(reduce_param_groups(single), lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)


MAPPERS.register(DatasetMapper)
