"""Backbones that can be trained from random weights: ResNet, ResNeXt, VGG-16, and timm's networks.

ResNets, their parameter names and initialization are Detectron2's own: convolutions of the
bottom-up network are filled by fvcore's ``c2_msra_fill`` (std = sqrt(2 / fan_out)), those of the
FPN by ``c2_xavier_fill``. Added are narrow ResNet-18 and 34 for small studies, FCOS from a config,
and messages that name the config key where Detectron2 or torch fail on an assertion.

VGG-16 without any normalization trains from scratch by initialization alone (Simonyan & Zisserman,
"Very Deep Convolutional Networks", configuration D, as Faster R-CNN uses it): conv1_1 to conv5_3
for the image, fc6 and fc7 for each region. Pre-training fills both.

The maps of timm's networks (``MODEL.TIMM.NAME: convnext_tiny``; needs this package's extra
``timm``) at strides 4, 8, 16 and 32 are called res2 to res5: configs need no other change.
"""

import math
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    Backbone,
    build_backbone,
)
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.meta_arch import fcos
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import Tensor, nn
from torch.nn import functional as F

from scratch_vs_pretrain.config import flatten
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import nearest

GROUP_NORM_GROUPS = 32
DEPTHS = (18, 34, 50, 101, 152)
# Of each part with a NORM, the channels that it normalizes.
NORMALIZED = (
    *("RESNETS.STEM_OUT_CHANNELS", "RESNETS.RES2_OUT_CHANNELS", "FPN.OUT_CHANNELS"),
    *("ROI_BOX_HEAD.CONV_DIM", "ROI_MASK_HEAD.CONV_DIM"),
)
BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

VGG_BOX_HEAD = "VGGFC67Head"
VGG_FEATURE = "conv5_3"
# Of each convolution of VGG-16, its channels as a multiple of the first's.
VGG_CHANNELS = {
    f"conv{stage}_{layer}": multiple
    for stage, (multiple, layers) in enumerate(((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)), start=1)
    for layer in range(1, layers + 1)
}
VGG_LAYERS = tuple(VGG_CHANNELS)
TIMM_LEVELS = {"res2", "res3", "res4", "res5"}


@BACKBONE_REGISTRY.register()
def build_svp_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the ResNet or ResNeXt that ``MODEL.RESNETS`` describes.

    Equal to Detectron2's ``build_resnet_backbone``, beside ``SVP.RESNETS.ALLOW_NARROW``: with it,
    R18 and R34 may have other widths than 64 (res3 to res5 double res2's channels).
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in DEPTHS:
        known = ", ".join(map(str, DEPTHS))
        raise UserError(f"MODEL.RESNETS.DEPTH: no ResNet of depth {resnets.DEPTH}; use {known}")
    _check_norms(cfg)
    try:
        if resnets.DEPTH in BASIC_BLOCKS and resnets.RES2_OUT_CHANNELS != 64:
            return _narrow_resnet(cfg, input_shape)
        return build_resnet_backbone(cfg, input_shape)
    except AssertionError as error:
        raise UserError(f"MODEL.RESNETS does not describe a network: {error}") from None


@BACKBONE_REGISTRY.register()
def build_svp_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds :func:`build_svp_resnet_backbone`'s network with a feature pyramid (p2 to p6).

    Same parameter names and shapes as Detectron2's ``build_resnet_fpn_backbone``.
    """
    return build_pyramid(cfg, build_svp_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_svp_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds the same network with RetinaNet's feature pyramid (p3 to p7).

    Same parameter names and shapes as Detectron2's ``build_retinanet_resnet_fpn_backbone``.
    """
    bottom_up = build_svp_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return build_pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@META_ARCH_REGISTRY.register()
def FCOS(cfg: CfgNode) -> fcos.FCOS:
    """Builds Detectron2's FCOS, which has no config of its own, from ``MODEL.RETINANET``."""
    retinanet, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
    shapes = backbone.output_shape()
    features = [shapes[name] for name in retinanet.IN_FEATURES]
    head = fcos.FCOSHead(
        input_shape=features,
        num_classes=retinanet.NUM_CLASSES,
        conv_dims=[features[0].channels] * retinanet.NUM_CONVS,
        norm=retinanet.NORM,
        prior_prob=retinanet.PRIOR_PROB,
    )
    return fcos.FCOS(
        backbone=backbone,
        head=head,
        head_in_features=list(retinanet.IN_FEATURES),
        num_classes=retinanet.NUM_CLASSES,
        focal_loss_alpha=retinanet.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=retinanet.FOCAL_LOSS_GAMMA,
        test_score_thresh=retinanet.SCORE_THRESH_TEST,
        test_topk_candidates=retinanet.TOPK_CANDIDATES_TEST,
        test_nms_thresh=retinanet.NMS_THRESH_TEST,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def build_pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None = None) -> FPN:
    """Builds the pyramid that ``MODEL.FPN`` describes over a network's features.

    `top_block` makes the coarsest levels; by default one, by pooling.
    """
    absent = sorted(set(cfg.MODEL.FPN.IN_FEATURES) - set(bottom_up.output_shape()))
    if absent:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES: {', '.join(absent)} not in MODEL.RESNETS.OUT_FEATURES; add it"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block or LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_bottom_up(cfg: CfgNode) -> Backbone:
    """Builds a config's backbone without its pyramid: what a classifier pre-trains."""
    return bottom_up_of(build_backbone(cfg))


def bottom_up_of(model: nn.Module) -> nn.Module:
    """Returns the bottom-up network of a detector, of a pyramid, or `model` itself."""
    backbone = getattr(model, "backbone", model)
    return getattr(backbone, "bottom_up", backbone)


def _check_norms(cfg: CfgNode) -> None:
    """Refuses a ``NORM`` that nobody knows, and channels that GroupNorm cannot divide."""
    model, values = cfg.MODEL, flatten(cfg.MODEL)
    channels = {key: values[key] for key in NORMALIZED}
    if model.RESNETS.DEPTH not in BASIC_BLOCKS:
        width = model.RESNETS.NUM_GROUPS * model.RESNETS.WIDTH_PER_GROUP
        channels["RESNETS.NUM_GROUPS x WIDTH_PER_GROUP"] = width
    for key, number in channels.items():
        part = key.partition(".")[0]
        norm = model[part].NORM
        try:
            get_norm(norm, GROUP_NORM_GROUPS)
        except KeyError:
            raise UserError(
                f"MODEL.{part}.NORM: unknown normalization {norm!r}; "
                'use "GN", "SyncBN", "BN", or "" for none'
            ) from None
        if norm == "GN" and number % GROUP_NORM_GROUPS:
            lower = number - number % GROUP_NORM_GROUPS
            fits = f"{lower} or {lower + GROUP_NORM_GROUPS}" if lower else str(GROUP_NORM_GROUPS)
            raise UserError(
                f"MODEL.{key} is {number}, which GroupNorm's {GROUP_NORM_GROUPS} groups cannot "
                f"divide; use {fits}, or another NORM"
            )


def _narrow_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    resnets = cfg.MODEL.RESNETS
    if not cfg.SVP.RESNETS.ALLOW_NARROW:
        raise UserError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {resnets.RES2_OUT_CHANNELS}, but R{resnets.DEPTH} "
            "has 64; set 64, or SVP.RESNETS.ALLOW_NARROW to True for a small study"
        )
    if resnets.NUM_GROUPS != 1 or resnets.RES5_DILATION != 1 or any(resnets.DEFORM_ON_PER_STAGE):
        raise UserError(
            f"MODEL.RESNETS: R{resnets.DEPTH} has neither groups (NUM_GROUPS), nor dilation "
            "(RES5_DILATION), nor deformable convolutions (DEFORM_ON_PER_STAGE); unset them"
        )
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    stages = []
    for index, blocks in enumerate(BASIC_BLOCKS[resnets.DEPTH]):
        strides = [1 if index == 0 else 2] + [1] * (blocks - 1)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=strides,
                norm=resnets.NORM,
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
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
        for name, multiple in VGG_CHANNELS.items():
            layer = nn.Conv2d(in_channels, multiple * width, kernel_size=3, padding=1)
            msra_fill(layer)
            self.add_module(name, layer)
            in_channels = multiple * width
        self._channels = in_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns conv5_3's features (N, 8 x width, H / 16, W / 16) of images (N, C, H, W)."""
        for name in VGG_LAYERS:
            if name.endswith("_1") and name != VGG_LAYERS[0]:
                x = F.max_pool2d(x, kernel_size=2, stride=2)
            x = F.relu(getattr(self, name)(x), inplace=True)
        return {VGG_FEATURE: x}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {VGG_FEATURE: ShapeSpec(channels=self._channels, stride=16)}


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
                f"but {VGG_BOX_HEAD} is fc6 and fc7 alone; set them to 0 and 2"
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
    size = ShapeSpec(channels=bottom_up.output_shape()[VGG_FEATURE].channels, height=7, width=7)
    return joined(bottom_up, VGGFC67Head(size, conv_dims=[], fc_dims=[4096, 4096]))


class TimmBackbone(Backbone):
    """The feature maps of a network of timm, with its own normalization or GroupNorm ("GN")."""

    def __init__(self, name: str, norm: str = "") -> None:
        super().__init__()
        self.family = name  # for messages
        self.net = _create(name, {"norm_layer": "groupnorm"} if norm == "GN" else {})
        info: Any = self.net.feature_info
        self._shapes = {
            f"res{int(math.log2(stride))}": ShapeSpec(channels=channels, stride=stride)
            for channels, stride in zip(info.channels(), info.reduction(), strict=True)
        }
        if not set(self._shapes) >= TIMM_LEVELS:
            strides = ", ".join(map(str, sorted(set(info.reduction()))))
            raise UserError(
                f"MODEL.TIMM.NAME: {name} has feature maps at strides {strides}, not at 4, 8, 16 "
                "and 32, which the pyramid needs; use another, such as convnext_tiny"
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the maps (N, C, H / stride, W / stride) of images (N, 3, H, W)."""
        maps = self.net(x)
        if str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [found.permute(0, 3, 1, 2).contiguous() for found in maps]
        return dict(zip(self._shapes, maps, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @staticmethod
    def name_in_files(name: str) -> str:
        """Returns what timm's files call a tensor of this module: its maps flatten ``stages.0``."""
        return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name.removeprefix("net."))


@BACKBONE_REGISTRY.register()
def build_svp_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds ``MODEL.TIMM.NAME`` with a feature pyramid (p2 to p6)."""
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but timm's networks have no stages of these "
            "numbers; set it to 0, or freeze: backbone in a pretrained arm"
        )
    return build_pyramid(cfg, TimmBackbone(cfg.MODEL.TIMM.NAME, cfg.SVP.TIMM.NORM))


def pixel_settings(name: str) -> dict[str, Any]:
    """Returns the pixels that a network of timm was trained with, as config keys."""
    trained: Any = _timm_with(name).models.get_pretrained_cfg(name)
    return {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in trained.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 3) for value in trained.std],
    }


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    timm = _timm_with(name)
    try:
        try:  # Swin's windows fit any size of image, but it insists on one unless told otherwise.
            return timm.create_model(name, features_only=True, strict_img_size=False, **options)
        except TypeError as error:
            if "strict_img_size" not in str(error):
                raise
            return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, ValueError, AssertionError, TypeError, AttributeError) as error:
        what = "with GroupNorm" if options else "with feature maps"
        remedy = 'set SVP.TIMM.NORM to ""' if options else "use another, such as convnext_tiny"
        raise UserError(
            f"MODEL.TIMM.NAME: timm cannot make {name} {what} ({' '.join(str(error).split())}); "
            f"{remedy}"
        ) from None


def _timm_with(name: str) -> Any:
    """Returns the module timm, which must have a network of this name."""
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("MODEL.TIMM.NAME: timm is not installed; run: pip install timm") from None
    if not timm.is_model(name):  # also names of files and of other people's repositories
        raise UserError(
            f"MODEL.TIMM.NAME: timm has no network {name!r}{nearest(name, timm.list_models())}"
        )
    return timm
