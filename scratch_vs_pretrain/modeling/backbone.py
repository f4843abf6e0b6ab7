"""ResNet and ResNeXt backbones that can be trained from random weights, and one-stage detectors.

Networks, parameter names and initialization are Detectron2's own: convolutions of the bottom-up
network are filled by fvcore's ``c2_msra_fill`` (std = sqrt(2 / fan_out)), those of the FPN by
``c2_xavier_fill``. Added are narrow ResNet-18 and 34 for small studies, and messages that name the
config key where Detectron2 or torch fail on an assertion.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.meta_arch import fcos
from torch import nn

from scratch_vs_pretrain.config import flatten
from scratch_vs_pretrain.errors import UserError

GROUP_NORM_GROUPS = 32
DEPTHS = (18, 34, 50, 101, 152)
# Of each part with a NORM, the channels that it normalizes.
NORMALIZED = (
    *("RESNETS.STEM_OUT_CHANNELS", "RESNETS.RES2_OUT_CHANNELS", "FPN.OUT_CHANNELS"),
    *("ROI_BOX_HEAD.CONV_DIM", "ROI_MASK_HEAD.CONV_DIM"),
)
BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


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
