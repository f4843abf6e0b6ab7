"""A config's own bottom-up network as an image classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import frozen_norms

if TYPE_CHECKING:
    from detectron2.config import CfgNode


class Classifier(nn.Module):
    """A bottom-up network with average pooling and one linear layer.

    Pixels are normalized, and channels ordered, as the detector of the same config does it.

    Args:
        cfg: a detector's config; stages that it would freeze are trained.
        classes: number of classes.

    Raises:
        UserError: the config's network has FrozenBN.
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
        return self.linear(features[self._feature].mean((2, 3)))

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights under the names that Detectron2's ResNet classifier has."""
        linear = {f"linear.{name}": value for name, value in self.linear.state_dict().items()}
        return {**self.bottom_up.state_dict(), **linear}
