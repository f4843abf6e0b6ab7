import itertools
import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from scratch_vs_pretrain.config import norm_problems
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import (
    VGG16,
    VGG_LAYERS,
    build_bottom_up,
    pretrained_part,
)
from scratch_vs_pretrain.pretraining.pretrain import Classifier
from scratch_vs_pretrain.study.audit import recipe_problems


def smooth_image(side=64):
    """Photographs are smooth; white noise would grow in each max pooling."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, side // 10, side // 10, generator=generator)
    return F.interpolate(coarse, size=side, mode="bicubic")


def variances(network, image):
    """Returns the variance of each convolution's output, as a multiple of the image's."""
    found = []
    hooks = [
        getattr(network, name).register_forward_hook(
            # A copy in time: the ReLU that follows works in place.
            lambda _module, _inputs, output: found.append(output.var().item())
        )
        for name in VGG_LAYERS
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return [variance / image.var().item() for variance in found]


def test_layers_are_vgg16s():
    network = VGG16()
    assert VGG_LAYERS[0] == "conv1_1"
    assert VGG_LAYERS[-1] == "conv5_3"
    widths = [getattr(network, name).weight.shape[:2] for name in VGG_LAYERS]
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert widths == [(out, into) for into, out in itertools.pairwise(channels)]
    shape = network.output_shape()["conv5_3"]
    assert (shape.channels, shape.stride) == (512, 16)
    narrow = VGG16(width=2)
    features = narrow(torch.zeros(2, 3, 64, 96))
    assert list(features) == ["conv5_3"]
    assert features["conv5_3"].shape == (2, 16, 4, 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_layer_has_the_deviation_of_msra(seed):
    # The deviation of n normal numbers has a relative standard error of 1 / sqrt(2n); 4.5 of them
    # are exceeded once in 150,000 times, and 15 layers are looked at.
    torch.manual_seed(seed)
    network = VGG16()
    for name in VGG_LAYERS:
        layer = getattr(network, name)
        fan_in = layer.weight[0].numel()
        ratio = layer.weight.std().item() / math.sqrt(2 / fan_in)
        assert abs(ratio - 1) < 4.5 / math.sqrt(2 * layer.weight.numel()), name
        assert not layer.bias.any()


def test_head_has_the_deviation_of_msra(make_vgg_cfg):
    torch.manual_seed(0)
    head = build_model(make_vgg_cfg()).roi_heads.box_head
    assert [name for name, _ in head.named_parameters()] == [
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.bias",
    ]
    for layer in head.fcs:
        ratio = layer.weight.std().item() / math.sqrt(2 / layer.in_features)
        assert abs(ratio - 1) < 4.5 / math.sqrt(2 * layer.weight.numel())
        assert not layer.bias.any()
    assert not any(isinstance(module, nn.Dropout) for module in head.modules())


@pytest.mark.parametrize("seed", [0, 1])
def test_signal_keeps_its_variance_through_thirteen_convolutions(seed):
    torch.manual_seed(seed)
    network = VGG16()
    image = smooth_image()
    ratios = variances(network, image)
    assert len(ratios) == 13
    assert all(0.25 < ratio < 4 for ratio in ratios)


def test_torchs_own_initialization_would_lose_the_signal():
    torch.manual_seed(0)
    network = VGG16()
    for name in VGG_LAYERS:
        getattr(network, name).reset_parameters()
    assert variances(network, smooth_image())[-1] < 0.001


def test_norm_is_refused_with_its_key(make_vgg_cfg):
    for key in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        cfg = make_vgg_cfg({f"MODEL.{key}.NORM": "GN"})
        message = f"no normalization layers, but the config sets MODEL.{key}.NORM GN; set it to"
        assert any(message in problem for problem in recipe_problems(cfg))
    assert norm_problems(make_vgg_cfg()) == []


def test_values_that_make_no_vgg_are_refused(make_vgg_cfg):
    with pytest.raises(UserError, match=r"NUM_CONV and NUM_FC are 0 and 1, .* set them to 0 and 2"):
        build_model(make_vgg_cfg({"MODEL.ROI_BOX_HEAD.NUM_FC": 1}))


def test_pretraining_fills_backbone_and_both_fully_connected_layers(make_vgg_cfg, load_backbone):
    # One checkpoint from `svp pretrain`, one of a whole detector.
    cfg = make_vgg_cfg()
    for source in (Classifier(cfg, classes=3).weights(), build_model(cfg).state_dict()):
        detector = build_model(cfg)
        report = load_backbone(detector, source)
        assert report.loaded == 2 * (13 + 2)
        assert (report.missing, report.mismatched) == ((), ())
        for name, tensor in pretrained_part(detector).state_dict().items():
            key = next(key for key in source if key.endswith(name))
            assert torch.equal(tensor, source[key]), name
    assert "roi_heads.box_predictor.cls_score.weight" in report.unexpected


def test_checkpoint_without_fully_connected_layers_is_refused(make_vgg_cfg, load_backbone):
    cfg = make_vgg_cfg()
    detector = build_model(cfg)
    convolutions = build_bottom_up(cfg).state_dict()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(
        UserError, match=r"26 of the backbone's 30 .* missing \(box_head\.fc1\.weight"
    ):
        load_backbone(detector, convolutions)
    after = detector.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_deeper_vgg_is_refused(make_vgg_cfg, load_backbone):
    cfg = make_vgg_cfg()
    state = Classifier(cfg, classes=3).weights() | {"conv5_4.weight": torch.ones(1)}
    with pytest.raises(UserError, match=r"1 too many \(conv5_4\.weight\)"):
        load_backbone(build_model(cfg), state)


def test_caffe2_names_load(make_vgg_cfg, load_backbone):
    cfg = make_vgg_cfg()
    names = {"box_head.fc1": "fc6", "box_head.fc2": "fc7"}
    blobs = {}
    for name, tensor in Classifier(cfg, classes=3).weights().items():
        layer, kind = name.rsplit(".", 1)
        blobs[f"{names.get(layer, layer)}_{kind[0]}"] = tensor
    report = load_backbone(build_model(cfg), blobs)
    assert report.layout == "caffe2 VGG"
    assert report.unexpected == ("linear_w", "linear_b")


def test_classifier_is_vggs(make_vgg_cfg):
    cfg = make_vgg_cfg({"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0]})
    model = Classifier(cfg, classes=3)
    images = torch.rand(2, 3, 224, 224)
    features = model.bottom_up(images)["conv5_3"]
    assert features.shape[-2:] == (14, 14)
    expected = model.linear(model.box_head(F.max_pool2d(features, 2)))
    torch.testing.assert_close(model(images), expected)
    assert model(images[:, :, :64, :64]).shape == (2, 3)
