"""The options of ``SVP.FAST``: faster iterations, the same for every arm.

Each function does nothing for an option that is off, so that a trainer calls them all.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from scratch_vs_pretrain.training.exactness import is_deterministic
from scratch_vs_pretrain.training.overlap import overlap

logger = logging.getLogger(__name__)


def options_in_force(cfg: Any) -> tuple[str, ...]:
    """Returns the names of the options that are on and possible here, in alphabetical order.

    An option that this machine cannot do is left out with a warning, but for those that mean
    something on a GPU alone.
    """
    if not cfg.SVP.FAST.ENABLED:
        return ()
    asked = {name for name, on in cfg.SVP.FAST.items() if on and name != "ENABLED"}
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type != "cuda":
        asked -= {"PREFETCH", "OVERLAP", "CUDNN_BENCHMARK"}
    if is_deterministic(cfg):
        asked.discard("CUDNN_BENCHMARK")
    if "BF16" in asked and not has_bf16(device):
        logger.warning("SVP.FAST.BF16 is left out: this machine would only emulate bfloat16")
        asked.remove("BF16")
    return tuple(sorted(asked))


def inexact_because(cfg: Any) -> list[str]:
    """Returns which options keep a resume from being exact."""
    if "COMPILE_BACKBONE" in options_in_force(cfg):
        return ["the compiled backbone depends on the image sizes that it met first"]
    return []


def has_bf16(device: torch.device) -> bool:
    """Tells whether a device has instructions for bfloat16.

    oneDNN computes in bfloat16 on older processors too, more slowly than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def prepare_model(model: nn.Module, options: tuple[str, ...]) -> None:
    """Changes a model in place for the options that concern it; call it before the optimizer."""
    torch.backends.cudnn.benchmark = "CUDNN_BENCHMARK" in options
    if "BF16" in options and next(model.parameters()).is_cuda:
        keep_norms_narrow(model)
    if "CHANNELS_LAST" in options:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if "COMPILE_BACKBONE" in options:
        # A graph for the first image size, then one for all others.
        model.backbone.compile()  # type: ignore[operator, union-attr]
    if "OVERLAP" in options:
        overlap(model)


def keep_norms_narrow(model: nn.Module) -> None:
    """Lets the GroupNorms of a model take and return what they are given, bfloat16 as it is.

    Autocast on GPUs, unlike on processors, would widen every feature map to float32 for them. The
    sums inside of the kernel are in float32 either way.
    """
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _NarrowGroupNorm


class _NarrowGroupNorm(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # What F.group_norm calls; autocast knows only that one by name.
        output, _, _ = torch.ops.aten.native_group_norm(
            input.contiguous(),
            self.weight.to(input.dtype),
            self.bias.to(input.dtype),
            *input.shape[:2],
            math.prod(input.shape[2:]),
            self.num_groups,
            self.eps,
        )
        return output


def prepare_optimizer(optimizer: torch.optim.Optimizer, options: tuple[str, ...]) -> None:
    """Switches an optimizer of torch to its fused form."""
    if "FUSED_OPTIMIZER" in options:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False


def in_precision(model: nn.Module, device: str, options: tuple[str, ...]) -> nn.Module:
    """Returns a model that calls `model` in the precision that the options ask for."""
    return _Autocast(model, torch.device(device).type) if "BF16" in options else model


class _Autocast(nn.Module):
    """Calls a model under autocast; the backward pass, outside of it, follows by itself."""

    def __init__(self, model: nn.Module, device_type: str) -> None:
        super().__init__()
        self._model = model
        self._device_type = device_type

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with torch.autocast(self._device_type, torch.bfloat16):
            return self._model(batch)
