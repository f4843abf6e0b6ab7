"""Backbones that PyTorch's default initialization fills, to show what it costs.

A module for a study's ``imports``; this folder has to be on PYTHONPATH.
"""

from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from scratch_vs_pretrain.modeling.backbone import (
    build_svp_resnet_fpn_backbone,
    build_svp_vgg16_backbone,
)


@BACKBONE_REGISTRY.register()
def build_default_init_resnet_fpn_backbone(cfg: Any, input_shape: Any) -> Backbone:
    return _by_default(build_svp_resnet_fpn_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_default_init_vgg16_backbone(cfg: Any, input_shape: Any) -> Backbone:
    return _by_default(build_svp_vgg16_backbone(cfg, input_shape))


def _by_default(backbone: Backbone) -> Backbone:
    """Fills every convolution uniformly within 1 / sqrt(fan_in): a sixth of MSRA's variance."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return backbone
