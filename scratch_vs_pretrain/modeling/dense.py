"""One-stage detectors: the pyramid of RetinaNet, and FCOS, which Detectron2 has without a config.

Detectron2's FCOS (modeling/meta_arch/fcos.py) is built from Python alone. Here it takes RetinaNet's
keys, ``MODEL.RETINANET``: classes, features, convolutions and norm of the head, and how detections
are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.meta_arch import fcos

from scratch_vs_pretrain.modeling.backbone import build_pyramid, build_svp_resnet_backbone

if TYPE_CHECKING:
    from detectron2.config import CfgNode


@BACKBONE_REGISTRY.register()
def build_svp_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds this package's ResNet with RetinaNet's feature pyramid (p3 to p7).

    Same parameter names and shapes as Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Raises:
        UserError: a value that this network cannot have; the message names its key.
    """
    bottom_up = build_svp_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return build_pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


@META_ARCH_REGISTRY.register()
def FCOS(cfg: CfgNode) -> fcos.FCOS:
    """Builds FCOS as ``MODEL.RETINANET`` describes its head."""
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
