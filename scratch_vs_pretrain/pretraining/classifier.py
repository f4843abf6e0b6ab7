"""A config's own bottom-up network as an image classifier, with fc6 and fc7 if it is VGG-16."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_box_head
from torch import Tensor, nn
from torch.nn import functional as F

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import frozen_norms
from scratch_vs_pretrain.modeling.vgg import BOX_HEAD, VGGFC67Head, joined


class Classifier(nn.Module):
    """A bottom-up network with average pooling and one linear layer.

    VGG-16 has its own fully connected layers between the two: the detector takes them over.

    Pixels are normalized, and channels ordered, as the detector of the same config does it; stages
    that it would freeze are trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: CfgNode, classes: int) -> None:
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        self.bottom_up = build_bottom_up(cfg)
        frozen = frozen_norms(self.bottom_up)
        if frozen:
            raise UserError(f"this backbone cannot be pre-trained: {frozen[0]}")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT}; pre-training knows BGR and RGB")
        self._reverse = cfg.INPUT.FORMAT == "BGR"
        for name, values in (("mean", cfg.MODEL.PIXEL_MEAN), ("std", cfg.MODEL.PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self._feature, shape = list(self.bottom_up.output_shape().items())[-1]
        self.box_head: VGGFC67Head | None = None
        if cfg.MODEL.ROI_BOX_HEAD.NAME == BOX_HEAD:
            size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            shape = ShapeSpec(channels=shape.channels, height=size, width=size)
            self.box_head = build_box_head(cfg, shape)
            self._size, shape = size, self.box_head.output_shape
        self.linear = nn.Linear(shape.channels, classes)
        # Goyal et al., "Accurate, Large Minibatch SGD", Section 5.1, as in Detectron2's ResNet.
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores (batch x classes) for RGB pictures (batch x 3 x h x w, 0 to 255)."""
        images = images.flip(1) if self._reverse else images
        features = self.bottom_up((images - self.mean) / self.std)
        return self.linear(self._pooled(features[self._feature]))

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights under the names that Detectron2's ResNet classifier has."""
        linear = {f"linear.{name}": value for name, value in self.linear.state_dict().items()}
        part = joined(self.bottom_up, self.box_head) if self.box_head else self.bottom_up
        return {**part.state_dict(), **linear}

    def _pooled(self, features: Tensor) -> Tensor:
        if self.box_head is None:
            return features.mean((2, 3))
        # VGG's own last pooling; at 224 pixels it leaves 7 x 7, which fc6 expects.
        features = F.max_pool2d(features, kernel_size=2, stride=2, ceil_mode=True)
        return self.box_head(F.adaptive_avg_pool2d(features, self._size))
