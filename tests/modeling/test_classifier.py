import pytest
import torch

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pretraining.pretrain import Classifier


def test_scores_are_those_of_detectron2s_layers(make_cfg):
    cfg = make_cfg({"INPUT.FORMAT": "BGR", "MODEL.PIXEL_STD": [50.0, 60.0, 70.0]})
    torch.manual_seed(0)
    model = Classifier(cfg, classes=5)
    rgb = torch.rand(2, 3, 64, 64) * 255
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1)
    bgr = torch.stack([(image[[2, 1, 0]] - mean) / std for image in rgb])
    pooled = torch.nn.AdaptiveAvgPool2d(1)(model.bottom_up(bgr)["res5"]).flatten(1)
    torch.testing.assert_close(model(rgb), model.linear(pooled), rtol=1e-5, atol=1e-6)


def test_rgb_configs_take_channels_as_they_are(make_cfg):
    torch.manual_seed(0)
    zero_mean = {"MODEL.PIXEL_MEAN": [0.0] * 3}
    rgb = Classifier(make_cfg(zero_mean | {"INPUT.FORMAT": "RGB"}), classes=2)
    bgr = Classifier(make_cfg(zero_mean | {"INPUT.FORMAT": "BGR"}), classes=2)
    bgr.load_state_dict(rgb.state_dict())
    images = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(rgb(images), bgr(images.flip(1)))
    assert not torch.allclose(rgb(images), bgr(images))


def test_stages_that_the_detector_freezes_are_trained(make_cfg):
    cfg = make_cfg({"MODEL.BACKBONE.FREEZE_AT": 2})
    model = Classifier(cfg, classes=2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2


def test_weights_fill_the_detectors_backbone(make_cfg, load_backbone):
    source, target = Classifier(make_cfg(), classes=2), Classifier(make_cfg(), classes=2)
    report = load_backbone(target.bottom_up, source.weights())
    assert report.unexpected == ("linear.weight", "linear.bias")
    own, expected = target.bottom_up.state_dict(), source.bottom_up.state_dict()
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_networks_that_cannot_learn_are_refused(make_cfg):
    with pytest.raises(UserError, match=r"cannot be pre-trained: 20 layers are FrozenBN"):
        Classifier(make_cfg(NORM="FrozenBN"), classes=2)
    with pytest.raises(UserError, match=r"INPUT.FORMAT: L"):
        Classifier(make_cfg({"INPUT.FORMAT": "L"}), classes=2)
