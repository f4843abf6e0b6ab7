import pytest

from scratch_vs_pretrain.config import default_config, merge_overrides

NARROW_R18 = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_svp_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "GN",
    "SVP.RESNETS.ALLOW_NARROW": True,
}


@pytest.fixture
def make_cfg():
    """Returns a config maker: a narrow R18-FPN with GroupNorm, and MODEL.RESNETS keys over it."""

    def make(overrides=None, **resnets):
        cfg = default_config()
        keys = {f"MODEL.RESNETS.{key}": value for key, value in resnets.items()}
        merge_overrides(cfg, NARROW_R18 | keys | (overrides or {}), "test")
        return cfg

    return make


NARROW_VGG = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_svp_vgg16_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "",
    "MODEL.RPN.IN_FEATURES": ["conv5_3"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["conv5_3"],
    "MODEL.ROI_BOX_HEAD.NAME": "VGGFC67Head",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "SVP.VGG.WIDTH": 4,
}


@pytest.fixture
def make_vgg_cfg():
    """Returns a config maker: Faster R-CNN with a narrow VGG-16."""

    def make(overrides=None):
        cfg = default_config()
        merge_overrides(cfg, NARROW_VGG | (overrides or {}), "test")
        return cfg

    return make


@pytest.fixture
def make_full_cfg(make_cfg):
    """As `make_cfg`, with Detectron2's own widths: 64 in the stem, 256 out of the FPN."""

    def make(depth, overrides=None, **resnets):
        res2 = 64 if depth < 50 else 256
        widths = {"STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": res2, "DEPTH": depth}
        return make_cfg({"MODEL.FPN.OUT_CHANNELS": 256} | (overrides or {}), **widths | resnets)

    return make
