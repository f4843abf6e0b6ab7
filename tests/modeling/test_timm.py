import sys

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from safetensors.torch import save_file

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up, pixel_settings
from scratch_vs_pretrain.modeling.checkpoint_file import local_file, read_checkpoint
from scratch_vs_pretrain.modeling.checks import norm_layers


@pytest.fixture
def make_timm_cfg(make_cfg):
    def make(name, overrides=None):
        keys = {"MODEL.BACKBONE.NAME": "build_svp_timm_fpn_backbone", "MODEL.TIMM.NAME": name}
        return make_cfg(keys | (overrides or {}))

    return make


@pytest.fixture
def undrawn(monkeypatch):
    """Makes networks whose weights are to be replaced: none are drawn, which takes seconds."""

    def make(build, *arguments, **options):
        with monkeypatch.context() as patch:
            for name in ("uniform_", "normal_", "erfinv_"):
                patch.setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor.zero_())
            return build(*arguments, **options)

    return make


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "resnet50_gn",
        "swin_tiny_patch4_window7_224",
        "regnety_016",
        "efficientnet_b0",
        "test_convnext",
    ],
)
def test_features_equal_timms_own_with_the_weights_of_a_timm_file(
    name, make_timm_cfg, tmp_path, load_backbone, undrawn
):
    torch.manual_seed(0)
    whole = timm.create_model(name)
    state = {key: tensor.contiguous() for key, tensor in whole.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    backbone = undrawn(build_backbone, make_timm_cfg(name)).eval()
    report = load_backbone(backbone, read_checkpoint(tmp_path / "model.safetensors"))
    assert report.missing == report.mismatched == ()
    # The file's own values, and not those of timm's conversion, are the reference.
    reference = undrawn(timm.create_model, name, features_only=True).eval()
    flat = reference.state_dict()
    for key in flat:
        in_file = key if key in state else key.replace("_", ".", 1)
        flat[key] = state[in_file]
    reference.load_state_dict(flat)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference(images)[-4:]
        found = backbone.bottom_up(images)
        pyramid = backbone(images)
    for level, features in zip(("res2", "res3", "res4", "res5"), expected, strict=True):
        if name.startswith("swin"):
            features = features.permute(0, 3, 1, 2)
        torch.testing.assert_close(found[level], features, rtol=1e-5, atol=1e-5)
        shape = backbone.bottom_up.output_shape()[level]
        assert features.shape[1:] == (shape.channels, 224 // shape.stride, 224 // shape.stride)
    assert [tuple(p.shape[-2:]) for p in pyramid.values()] == [(n, n) for n in (56, 28, 14, 7, 4)]


def test_swin_takes_images_of_any_size(make_timm_cfg, undrawn):
    backbone = undrawn(build_bottom_up, make_timm_cfg("swin_tiny_patch4_window7_224")).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 96, 160))
    assert features["res5"].shape == (1, 768, 3, 5)


def test_resnet50_gn_is_detectron2s_resnet_too(
    make_full_cfg, make_timm_cfg, load_backbone, undrawn
):
    """The natural pretrained arm of the paper's baseline: the same numbers in Detectron2's R50."""
    torch.manual_seed(0)
    state = timm.create_model("resnet50_gn").state_dict()
    ours = undrawn(build_bottom_up, make_full_cfg(50)).eval()
    report = load_backbone(ours, state)
    assert report.missing == ()
    assert set(report.unexpected) == {"fc.weight", "fc.bias"}
    wrapped = undrawn(build_bottom_up, make_timm_cfg("resnet50_gn")).eval()
    load_backbone(wrapped, state)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = ours(images), wrapped(images)
    for level in found:
        torch.testing.assert_close(found[level], expected[level], rtol=1e-4, atol=1e-4)
    assert pixel_settings("resnet50_gn") == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }


def test_a_detector_of_ours_gives_its_timm_backbone(make_timm_cfg, load_backbone):
    first, second = (build_backbone(make_timm_cfg("test_convnext")) for _ in range(2))
    state = {f"backbone.{name}": tensor for name, tensor in first.state_dict().items()}
    assert any(name.startswith("backbone.bottom_up.net.stages_0.") for name in state)
    assert load_backbone(second, state).prefix == "backbone.bottom_up."
    assert all(
        torch.equal(tensor, second.bottom_up.state_dict()[name])
        for name, tensor in first.bottom_up.state_dict().items()
    )


@pytest.mark.parametrize(
    ("name", "deeper"), [("convnext_tiny", "convnext_small"), ("regnety_016", "regnety_032")]
)
def test_a_deeper_networks_file_is_refused(name, deeper, make_timm_cfg, load_backbone):
    with torch.device("meta"):
        backbone = build_bottom_up(make_timm_cfg(name))
        whole = timm.create_model(deeper)
    state = {n: torch.zeros(t.shape) for n, t in whole.state_dict().items()}
    with pytest.raises(UserError, match=r"too many|of another shape"):
        load_backbone(backbone, state)


def test_groupnorm_takes_the_place_of_batchnorm_where_timm_can(make_timm_cfg, undrawn):
    def norms(name, overrides=None):
        network = undrawn(build_bottom_up, make_timm_cfg(name, overrides))
        return {kind for _, _, kind in norm_layers(network)}

    assert norms("resnet50", {"SVP.TIMM.NORM": ""}) == {"BN"}
    assert norms("resnet50", {"SVP.TIMM.NORM": "GN"}) == {"GN"}
    assert norms("test_convnext") == {"LN"}


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        (
            "resnet_50",
            {},
            r"MODEL\.TIMM\.NAME: .* no network 'resnet_50'; did you mean resnet50",
        ),
        ("hf-hub:someone/net", {}, r"timm has no network 'hf-hub:someone/net'"),
        ("vit_tiny_patch16_224", {}, "feature maps at strides 16, not at 4, 8, 16 and 32"),
        ("efficientnet_b0", {"SVP.TIMM.NORM": "GN"}, "cannot make efficientnet_b0 with GroupNorm"),
        ("convnext_tiny", {"SVP.TIMM.NORM": "GN"}, "cannot make convnext_tiny with GroupNorm"),
        ("test_resnet", {"MODEL.BACKBONE.FREEZE_AT": 2}, "FREEZE_AT is 2, but timm's networks"),
    ],
)
def test_what_timm_has_not_is_one_sentence(name, keys, message, make_timm_cfg):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        build_backbone(make_timm_cfg(name, keys))


def test_without_timm_the_sentence_says_what_to_install(make_timm_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm is not installed; run: pip install timm"):
        build_backbone(make_timm_cfg("convnext_tiny"))


def test_weights_of_timm_are_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    asked, create = [], timm.create_model

    def download(name, pretrained):
        asked.append((name, pretrained))
        return create(name)

    monkeypatch.setattr(timm, "create_model", download)
    for _ in range(2):
        assert "stem.0.weight" in read_checkpoint("timm://test_convnext")
    assert asked == [("test_convnext", True)]
    with pytest.raises(UserError, match=r"timm://resnet_50: cannot be fetched"):
        local_file("timm://resnet_50")
