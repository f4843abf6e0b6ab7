"""Which normalization really runs.

``torch.nn.SyncBatchNorm`` synchronizes GPU tensors only: with several CPU processes it raises, and
in one process it is a BatchNorm. A run records what it had, not what its config asked for.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

ONE_PROCESS = "SyncBN (as BatchNorm: one process)"
NAIVE = "SyncBN (as Detectron2's NaiveSyncBatchNorm)"


def use_runnable_norms(
    model: nn.Module, device: str | torch.device, world_size: int
) -> dict[str, int]:
    """Replaces SyncBatchNorm where it cannot run: on CPU, and in one process.

    The replacement is Detectron2's ``NaiveSyncBatchNorm``, with the same parameters and buffers
    under the same names; it works over gloo too. It weights each process by its number of images
    (or regions), torch's by the number of pixels; in one process it is a BatchNorm2d.

    Args:
        model: changed in place; only its submodules are replaced, not itself.
        device: where it will train.
        world_size: processes that train together.

    Returns:
        Number of layers per normalization that really runs; also logged.
    """
    if torch.device(device).type == "cpu" or world_size == 1:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.SyncBatchNorm):
                    setattr(module, name, _naive(child))
    census = norm_census(model, world_size)
    _log.info("Normalization: %s", ", ".join(f"{n} x {k}" for k, n in census.items()) or "none")
    return census


def norm_census(model: nn.Module, world_size: int) -> dict[str, int]:
    """Returns the number of layers per normalization, as it runs in so many processes."""
    counts = Counter(
        (ONE_PROCESS if world_size == 1 else NAIVE)
        if isinstance(module, NaiveSyncBatchNorm)
        else kind
        for _, module, kind in norm_layers(model)
    )
    return dict(sorted(counts.items()))


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields name, module and kind (GN, BN, SyncBN, FrozenBN, LN, ...) of each normalization."""
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind:
            yield name, module, kind


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, FrozenBatchNorm2d):
        return "FrozenBN"
    if isinstance(module, NaiveSyncBatchNorm | nn.SyncBatchNorm):
        return "SyncBN"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "BN"
    if isinstance(module, nn.GroupNorm):
        return "GN"
    # Detectron2 has a LayerNorm of its own beside torch's.
    is_layer_norm = isinstance(module, nn.LayerNorm) or type(module).__name__ == "LayerNorm"
    return "LN" if is_layer_norm else None


def _naive(norm: nn.SyncBatchNorm) -> NaiveSyncBatchNorm:
    # "N": processes may hold different numbers of regions in the heads, even none.
    naive = NaiveSyncBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        stats_mode="N",
    )
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(naive, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(naive, name, buffer)
    naive.train(norm.training)
    return naive
