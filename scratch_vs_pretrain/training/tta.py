"""Test augmentation: detections merged over several scales and mirror images (``TEST.AUG``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from scratch_vs_pretrain.errors import UserError


def augmentation_problems(cfg: Any) -> list[str]:
    """Finds what a config asks of ``TEST.AUG`` that cannot be done; each says what to change."""
    if not cfg.TEST.AUG.ENABLED:
        return []
    problems = []
    if cfg.MODEL.KEYPOINT_ON:
        problems.append(
            "Detectron2 merges boxes and masks, but no keypoints: set TEST.AUG.ENABLED to False "
            "for a keypoint detector"
        )
    voc = [name for name in cfg.DATASETS.TEST if str(name).startswith("voc_")]
    if voc:
        problems.append(
            "PASCAL VOC's numbers are without test augmentation: set TEST.AUG.ENABLED to False "
            f"for {', '.join(voc)}"
        )
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or min(sizes) < 1 or cfg.TEST.AUG.MAX_SIZE < 1:
        problems.append("TEST.AUG.MIN_SIZES and MAX_SIZE must be sizes in pixels, at least one")
    return problems


@contextlib.contextmanager
def with_augmentation(cfg: Any, model: nn.Module, on: bool = True) -> Iterator[nn.Module]:
    """Yields a detector that merges its detections as ``TEST.AUG`` says, or `model` itself.

    Args:
        cfg: the model's config.
        model: a GeneralizedRCNN with boxes, and masks if the config has them; cascade or not.
        on: False turns it off whatever the config says.

    Raises:
        UserError: see :func:`augmentation_problems`.
    """
    if not on or not cfg.TEST.AUG.ENABLED:
        yield model
        return
    problems = augmentation_problems(cfg)
    if problems:
        raise UserError("; ".join(problems))
    from detectron2.modeling import GeneralizedRCNNWithTTA

    heads: Any = model.roi_heads
    mask_on = getattr(heads, "mask_on", None)
    try:
        yield GeneralizedRCNNWithTTA(cfg, model)
    finally:
        # Detectron2 turns masks off for the boxes, and leaves them so after an error.
        if mask_on is not None:
            heads.mask_on = mask_on
