"""Which normalization really runs, and the silent mistakes of training, found on a built model.

Each mistake trains without complaint and ends with a lower AP: a frozen random layer stays random,
BatchNorm over two images normalizes by noise. What is a mistake with random weights may be the
usual recipe with pre-trained ones, whose backbone may be frozen in part or as a whole.

``torch.nn.SyncBatchNorm`` synchronizes GPU tensors only: with several CPU processes it raises, and
in one process it is a BatchNorm. A run records what it had, not what its config asked for.
"""

import logging
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn, optim

from scratch_vs_pretrain.config import SMALLEST_BATCH
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import bottom_up_of

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5
ONE_PROCESS = "SyncBN (as BatchNorm: one process)"
NAIVE = "SyncBN (as Detectron2's NaiveSyncBatchNorm)"
# What each normalization is called: the first that a layer is an instance of.
_KINDS: tuple[tuple[Any, str], ...] = (
    (FrozenBatchNorm2d, "FrozenBN"),
    ((NaiveSyncBatchNorm, nn.SyncBatchNorm), "SyncBN"),
    (nn.modules.batchnorm._BatchNorm, "BN"),
    (nn.GroupNorm, "GN"),
    (nn.LayerNorm, "LN"),
)


def check_trainable(
    model: nn.Module,
    cfg: CfgNode,
    images_per_process: int,
    optimizer: optim.Optimizer | None = None,
) -> None:
    """Refuses a built model that would train, but not what it should.

    With MODEL.WEIGHTS the bottom-up network may be frozen; SVP.ADMIT names checks not to make. What
    configs alone tell, the study's audit has looked at.

    Args:
        model: as built, before it is wrapped for distributed training.
        images_per_process: in a batch.
        optimizer: if given, it must hold every parameter.
    """
    pretrained = set(bottom_up_of(model).modules()) if cfg.MODEL.WEIGHTS else set()
    found = {
        "frozen-stages-from-scratch": _frozen_parameters(model, pretrained),
        "frozen-norm-from-scratch": frozen_norms(model, pretrained),
        "small-batch-norm": _small_batch_norms(model, images_per_process),
    }
    problems = [text for check, text in found.items() if check not in cfg.SVP.ADMIT]
    if optimizer is not None:
        problems.append(_forgotten_parameters(model, optimizer))
    if any(problems):
        start = "weights that are given" if cfg.MODEL.WEIGHTS else "scratch"
        raise UserError(f"this cannot train from {start}: {'; '.join(filter(None, problems))}")


def _frozen_parameters(model: nn.Module, pretrained: Container[nn.Module]) -> str:
    """Names parameters that get no gradient, outside of modules that are pre-trained, if any."""
    names = [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if module not in pretrained
        for key, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad
    ]
    return _problem(
        names,
        "{} parameters are frozen ({}); set MODEL.BACKBONE.FREEZE_AT to 0, leave freeze out, "
        "or set requires_grad on them",
    )


def _small_batch_norms(model: nn.Module, images_per_process: int) -> str:
    """Names BatchNorm whose statistics come from too few images, if any. SyncBN is allowed."""
    return _problem(
        _norms(model, "BN") if images_per_process < SMALLEST_BATCH else (),
        f"{{}} layers are BatchNorm ({{}}) at {images_per_process} images per process, fewer than "
        f"{SMALLEST_BATCH}; set NORM to GN or SyncBN in MODEL.RESNETS, MODEL.FPN and the heads",
    )


def _forgotten_parameters(model: nn.Module, optimizer: optim.Optimizer) -> str:
    """Names trainable parameters that no parameter group of `optimizer` holds, if any."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [(name, id(p)) for name, p in model.named_parameters() if p.requires_grad]
    return _problem(
        [name for name, parameter in trained if parameter not in held],
        "{} parameters are missing from the optimizer ({}); "
        "build the optimizer after the model is complete",
    )


def frozen_norms(model: nn.Module, pretrained: Container[nn.Module] = ()) -> str:
    """Names FrozenBatchNorm2d, which leaves a random network without normalization, if any."""
    return _problem(
        _norms(model, "FrozenBN", pretrained),
        "{} layers are FrozenBN ({}); set MODEL.RESNETS.NORM to GN or SyncBN, and "
        "MODEL.BACKBONE.FREEZE_AT to 0",
    )


def _problem(names: Sequence[str], text: str) -> str:
    return text.format(len(names), some(names, NAMES_SHOWN)) if names else ""


def _norms(model: nn.Module, kind: str, beside: Container[nn.Module] = ()) -> list[str]:
    return [
        name for name, module, found in norm_layers(model) if found == kind and module not in beside
    ]


def some(names: Sequence[str], shown: int = 20) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def use_runnable_norms(
    model: nn.Module, device: str | torch.device, world_size: int
) -> dict[str, int]:
    """Replaces SyncBatchNorm where it cannot run: on CPU, and in one process.

    The replacement is Detectron2's ``NaiveSyncBatchNorm``, with the same parameters and buffers
    under the same names; it works over gloo too. It weights each process by its number of images
    (or regions), torch's by the number of pixels; in one process it is a BatchNorm2d.

    The model is changed in place, but for itself.

    Returns:
        Number of layers per normalization that really runs; also logged.
    """
    if torch.device(device).type == "cpu" or world_size == 1:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.SyncBatchNorm):
                    setattr(module, name, _naive(child))
    replaced = ONE_PROCESS if world_size == 1 else NAIVE
    counts = Counter(
        replaced if isinstance(module, NaiveSyncBatchNorm) else kind
        for _, module, kind in norm_layers(model)
    )
    census = dict(sorted(counts.items()))
    _log.info("Normalization: %s", ", ".join(f"{n} x {k}" for k, n in census.items()) or "none")
    return census


def _naive(norm: nn.SyncBatchNorm) -> NaiveSyncBatchNorm:
    # "N": processes may hold different numbers of regions in the heads, even none.
    naive = NaiveSyncBatchNorm(
        *(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats),
        stats_mode="N",
    )
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(naive, name, tensor)
    return naive.train(norm.training)


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yields name, module and kind (GN, BN, SyncBN, FrozenBN, LN, ...) of each normalization."""
    for name, module in model.named_modules():
        kinds = [kind for types, kind in _KINDS if isinstance(module, types)]
        if type(module).__name__ == "LayerNorm":  # Detectron2 has one of its own beside torch's
            kinds.append("LN")
        if kinds:
            yield name, module, kinds[0]
