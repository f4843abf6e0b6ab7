"""timm's networks as backbones, with a feature pyramid: ``MODEL.TIMM.NAME: convnext_tiny``.

Their maps at strides 4, 8, 16 and 32 are called res2 to res5, so that configs for ResNets need no
other change. Needs timm, the extra ``timm`` of this package.
"""

import math
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from scratch_vs_pretrain.errors import UserError, nearest
from scratch_vs_pretrain.modeling.backbone import build_pyramid

BACKBONE = "build_svp_timm_fpn_backbone"
LEVELS = ("res2", "res3", "res4", "res5")


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
        if not set(LEVELS) <= set(self._shapes):
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
    _check_known(name)
    from timm.models import get_pretrained_cfg

    trained: Any = get_pretrained_cfg(name)
    return {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in trained.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 3) for value in trained.std],
    }


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    _check_known(name)
    import timm

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


def _check_known(name: str) -> None:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("MODEL.TIMM.NAME: timm is not installed; run: pip install timm") from None
    if not timm.is_model(name):  # also names of files and of other people's repositories
        raise UserError(
            f"MODEL.TIMM.NAME: timm has no network {name!r}{nearest(name, timm.list_models())}"
        )
