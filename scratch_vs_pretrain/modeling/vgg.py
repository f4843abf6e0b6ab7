"""VGG-16 without any normalization: the network that trains from scratch by initialization alone.

Simonyan & Zisserman, "Very Deep Convolutional Networks", configuration D, as Faster R-CNN uses it:
conv1_1 to conv5_3 for the image, fc6 and fc7 for each region. Pre-training fills both.
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, Backbone
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import Tensor, nn
from torch.nn import functional as F

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import bottom_up_of

BOX_HEAD = "VGGFC67Head"
FEATURE = "conv5_3"
STRIDE = 16

# Of each stage: its channels as a multiple of the first's, and its convolutions.
STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
LAYERS = tuple(
    f"conv{stage}_{layer}"
    for stage, (_, convolutions) in enumerate(STAGES, start=1)
    for layer in range(1, convolutions + 1)
)


def msra_fill(layer: nn.Conv2d | nn.Linear) -> None:
    """Fills a layer's weight with N(0, 2 / fan_in) and its bias with zeros.

    He et al., "Delving Deep into Rectifiers", Eq. 10: the signal keeps its variance on the way
    forward. fvcore's ``c2_msra_fill`` takes fan_out, which is the same within a ResNet's stage, but
    divides the variance by 170 over VGG's widening layers, where no normalization restores it.
    """
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class VGG16(Backbone):
    """conv1_1 to conv5_3, each with a ReLU, and four 2 x 2 max poolings."""

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        names = iter(LAYERS)
        self._stages = [[next(names) for _ in range(layers)] for _, layers in STAGES]
        channels = in_channels
        for (multiple, _), stage in zip(STAGES, self._stages, strict=True):
            for name in stage:
                layer = nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1)
                msra_fill(layer)
                self.add_module(name, layer)
                channels = multiple * width
        self._channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns conv5_3's features (N, 8 x width, H / 16, W / 16) of images (N, C, H, W)."""
        for position, stage in enumerate(self._stages):
            if position > 0:
                x = F.max_pool2d(x, kernel_size=2, stride=2)
            for name in stage:
                x = F.relu(getattr(self, name)(x), inplace=True)
        return {FEATURE: x}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {FEATURE: ShapeSpec(channels=self._channels, stride=STRIDE)}


@BACKBONE_REGISTRY.register()
def build_svp_vgg16_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16:
    """Builds VGG-16 up to conv5_3, ``SVP.VGG.WIDTH`` channels wide in its first stage."""
    return VGG16(input_shape.channels, cfg.SVP.VGG.WIDTH)


@ROI_BOX_HEAD_REGISTRY.register()
class VGGFC67Head(FastRCNNConvFCHead):
    """fc6 and fc7 of ``MODEL.ROI_BOX_HEAD.FC_DIM`` each, here called fc1 and fc2 (Detectron2).

    VGG's classifier has dropout after both. Detectron and Detectron2 train their fully connected
    box heads without; neither arm has it here, so that fewer things than initial weights differ.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Detectron2 fills them by Xavier's rule, which is half of MSRA's variance.
        for layer in self.fcs:
            msra_fill(layer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        if (head.NUM_CONV, head.NUM_FC) != (0, 2):
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are {head.NUM_CONV} and {head.NUM_FC}, "
                f"but {BOX_HEAD} is fc6 and fc7 alone; set them to 0 and 2"
            )
        return super().from_config(cfg, input_shape)


def pretrained_part(model: nn.Module) -> nn.Module:
    """Returns what pre-training fills: the bottom-up network, and VGG's fc6 and fc7 with it.

    It shares its parameters with a detector or a part of one; fc6 is ``box_head.fc1`` in it.
    """
    box_head = getattr(getattr(model, "roi_heads", None), "box_head", None)
    bottom_up = bottom_up_of(model)
    return joined(bottom_up, box_head) if isinstance(box_head, VGGFC67Head) else bottom_up


def joined(bottom_up: nn.Module, box_head: VGGFC67Head) -> nn.Module:
    """Returns VGG-16's two halves under one module, the second as ``box_head``."""
    whole = nn.Module()
    for name, child in bottom_up.named_children():
        whole.add_module(name, child)
    whole.add_module("box_head", box_head)
    return whole


def vgg16() -> nn.Module:
    """Builds the whole of VGG-16 but for its classifier's last layer, with the names of both."""
    bottom_up = VGG16()
    size = ShapeSpec(channels=bottom_up.output_shape()[FEATURE].channels, height=7, width=7)
    return joined(bottom_up, VGGFC67Head(size, conv_dims=[], fc_dims=[4096, 4096]))
