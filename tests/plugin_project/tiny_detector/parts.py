"""A backbone and a ROI head that Detectron2 does not have, with their own config."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone, StandardROIHeads
from torch import nn


def add_config(cfg):
    cfg.MODEL.TINY = CfgNode({"WIDTH": 32, "CLASS_WEIGHT": 1.0})


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """Four convolutions of stride 2: the feature "c4", of stride 16."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.width = cfg.MODEL.TINY.WIDTH
        layers = []
        for channels in (input_shape.channels, self.width, self.width, self.width):
            convolution = nn.Conv2d(channels, self.width, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(8, self.width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, image):
        return {"c4": self.layers(image)}

    def output_shape(self):
        return {"c4": ShapeSpec(channels=self.width, stride=16)}


@ROI_HEADS_REGISTRY.register()
class WeightedROIHeads(StandardROIHeads):
    """Standard heads whose classification counts more."""

    @configurable
    def __init__(self, *, class_weight, **others):
        super().__init__(**others)
        self.class_weight = class_weight

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            **super().from_config(cfg, input_shape),
            "class_weight": cfg.MODEL.TINY.CLASS_WEIGHT,
        }

    def forward(self, *inputs):
        proposals, losses = super().forward(*inputs)
        if self.training:
            losses["loss_cls"] = losses["loss_cls"] * self.class_weight
        return proposals, losses
