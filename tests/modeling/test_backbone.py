import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from torch import nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import backbone as ours
from scratch_vs_pretrain.modeling.backbone import (
    bottom_up_of,
    build_bottom_up,
    build_svp_resnet_fpn_backbone,
)

IMAGE = ShapeSpec(channels=3)
NETWORKS = {
    "R18 BN": (18, {"NORM": "BN"}),
    "R50 GN": (50, {}),
    "R50 SyncBN": (50, {"NORM": "SyncBN"}),
    "X101 32x8d": (101, {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8}),
    "X152 8x32d": (152, {"NUM_GROUPS": 8, "WIDTH_PER_GROUP": 32}),
    "R50 dilated": (50, {"RES5_DILATION": 2}),
}


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_has_the_parameters_of_detectron2s_builder(network, make_full_cfg):
    depth, settings = NETWORKS[network]
    cfg = make_full_cfg(depth, **settings)
    if "dilated" in network:
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4"]
    with torch.device("meta"):
        assert shapes(build_backbone(cfg)) == shapes(build_resnet_fpn_backbone(cfg, IMAGE))


def test_has_detectron2s_initial_values_and_features(make_full_cfg):
    cfg = make_full_cfg(18)
    models = []
    for build in (build_svp_resnet_fpn_backbone, build_resnet_fpn_backbone):
        torch.manual_seed(0)
        models.append(build(cfg, IMAGE))
    mine, theirs = (model.state_dict() for model in models)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    image = torch.randn(1, 3, 64, 64)
    features, reference = (model(image) for model in models)
    assert features.keys() == reference.keys()
    assert all(torch.equal(features[level], reference[level]) for level in reference)


def test_narrow_builder_at_full_width_is_detectron2s_network(make_full_cfg):
    cfg = make_full_cfg(34)
    models = []
    for build in (ours._narrow_resnet, build_resnet_backbone):
        torch.manual_seed(0)
        models.append(build(cfg, IMAGE).state_dict())
    assert list(models[0]) == list(models[1])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


def test_narrow_r18_doubles_res2s_channels(make_cfg):
    backbone = build_backbone(make_cfg())
    channels = {name: shape.channels for name, shape in backbone.bottom_up.output_shape().items()}
    assert channels == {"res2": 32, "res3": 64, "res4": 128, "res5": 256}
    features = backbone(torch.randn(1, 3, 64, 64))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        f"p{level}": (1, 32, 64 >> level, 64 >> level) for level in range(2, 7)
    }


@pytest.mark.parametrize(("depth", "settings"), [(18, {}), (50, {"NUM_GROUPS": 32})])
def test_convolutions_have_msra_initialization(depth, settings, make_full_cfg):
    """std = sqrt(2 / fan_out), fan_out = output channels x kernel area (fvcore's c2_msra_fill).

    The sample standard deviation of n normal numbers has a relative standard error of
    1 / sqrt(2 n); five of them let one in 3 million correct layers fail.
    """
    torch.manual_seed(0)
    settings = settings and settings | {"WIDTH_PER_GROUP": 4}
    model = build_bottom_up(make_full_cfg(depth, **settings))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == {18: 20, 50: 53}[depth]
    for convolution in convolutions:
        weight = convolution.weight
        expected = math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))
        assert weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel()))
        assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel())


def test_freezes_what_the_config_says(make_cfg):
    cfg = make_cfg({"MODEL.BACKBONE.FREEZE_AT": 2})
    frozen = [n for n, p in build_bottom_up(cfg).named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"stem", "res2"}


def test_bottom_up_is_found_in_detector_pyramid_and_itself(make_cfg):
    pyramid = build_backbone(make_cfg())
    detector = nn.Module()
    detector.backbone = pyramid
    assert bottom_up_of(detector) is bottom_up_of(pyramid) is pyramid.bottom_up
    assert bottom_up_of(pyramid.bottom_up) is pyramid.bottom_up
    cfg = make_cfg({"MODEL.BACKBONE.NAME": "build_svp_resnet_backbone"})
    assert shapes(build_bottom_up(cfg)) == shapes(pyramid.bottom_up)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"MODEL.RESNETS.DEPTH": 19}, "MODEL.RESNETS.DEPTH"),
        ({"MODEL.RESNETS.NORM": "GroupNorm"}, "MODEL.RESNETS.NORM"),
        ({"MODEL.FPN.NORM": "groups"}, "MODEL.FPN.NORM"),
        ({"SVP.RESNETS.ALLOW_NARROW": False}, "SVP.RESNETS.ALLOW_NARROW"),
        ({"MODEL.RESNETS.NUM_GROUPS": 2}, "NUM_GROUPS"),
        ({"MODEL.RESNETS.OUT_FEATURES": ["res3"]}, "res2, res4, res5 not in MODEL.RESNETS.OUT"),
        ({"MODEL.RESNETS.OUT_FEATURES": ["res7"]}, "MODEL.RESNETS"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.RESNETS.RES5_DILATION": 2}, "DILATION"),
    ],
)
def test_impossible_networks_are_refused_by_key(overrides, key, make_cfg):
    with pytest.raises(UserError, match=key):
        build_backbone(make_cfg(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL.RESNETS.STEM_OUT_CHANNELS": 48}, r"STEM_OUT_CHANNELS is 48.* use 32 or 64"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 16}, r"RES2_OUT_CHANNELS is 16.* use 32,"),
        ({"MODEL.FPN.OUT_CHANNELS": 100}, r"FPN.OUT_CHANNELS is 100.* use 96 or 128"),
        (
            {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.WIDTH_PER_GROUP": 24},
            r"NUM_GROUPS x WIDTH_PER_GROUP is 24",
        ),
        (
            {"MODEL.ROI_MASK_HEAD.NORM": "GN", "MODEL.ROI_MASK_HEAD.CONV_DIM": 80},
            r"ROI_MASK_HEAD.CONV_DIM is 80",
        ),
    ],
)
def test_channels_that_groupnorm_cannot_divide_are_refused(overrides, message, make_cfg):
    with pytest.raises(UserError, match=message):
        build_backbone(make_cfg(overrides))


def test_other_norms_take_any_width(make_cfg):
    cfg = make_cfg({"MODEL.FPN.NORM": ""}, NORM="BN", RES2_OUT_CHANNELS=24)
    assert build_backbone(cfg).bottom_up.output_shape()["res5"].channels == 192
