import pytest
import torch
import torchvision

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import VGG16, build_bottom_up, vgg16
from scratch_vs_pretrain.modeling.checkpoint_file import find_tensors
from scratch_vs_pretrain.modeling.conversion import (
    ARCHITECTURES,
    convert,
    describe,
    to_detectron2,
)


def random_network(name):
    """A torchvision network with random weights, running statistics and affine parameters."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def torchvision_features(model, images):
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {}
    for stage in range(1, 5):
        features[f"res{stage + 1}"] = x = getattr(model, f"layer{stage}")(x)
    return features


def meta_state(name):
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None).state_dict()


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_features_equal_torchvisions(name, norm, make_full_cfg):
    settings = ARCHITECTURES[name] | {"NORM": norm}
    cfg = make_full_cfg(settings.pop("DEPTH"), **settings)
    bottom_up = build_bottom_up(cfg).eval()
    reference = random_network(name)
    _, tensors = convert(reference.state_dict(), name)
    bottom_up.load_state_dict(tensors, strict=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = torchvision_features(reference, images)
        features = bottom_up(images)
    for level in expected:
        torch.testing.assert_close(features[level], expected[level], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if hasattr(torchvision.models, name)]
)
def test_every_torchvision_architecture_converts_and_fits_itself(name):
    state = meta_state(name)
    report, tensors, _ = to_detectron2(state)
    assert (report.layout, report.prefix) == ("torchvision", "")
    assert set(report.unexpected) == {"fc.weight", "fc.bias"}
    assert describe(tensors) == f"; they are those of a {name}"


def test_vgg_features_equal_torchvisions():
    torch.manual_seed(0)
    with torch.device("meta"):  # initialization takes seconds
        reference, backbone, ours = torchvision.models.vgg16(weights=None), VGG16(), vgg16()
    reference.to_empty(device="cpu").eval()
    for parameter in reference.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        torch.nn.init.uniform_(parameter.data, -((6 / fan_in) ** 0.5), (6 / fan_in) ** 0.5)
    _, weights = convert(reference.state_dict(), "vgg16")
    ours.load_state_dict(weights, strict=True, assign=True)
    convolutions = {name: tensor for name, tensor in weights.items() if name.startswith("conv")}
    backbone.load_state_dict(convolutions, strict=True, assign=True)
    images = torch.randn(1, 3, 64, 96)
    regions = torch.randn(2, 512, 7, 7)
    with torch.no_grad():
        expected = reference.features[:30](images)
        torch.testing.assert_close(backbone(images)["conv5_3"], expected, rtol=1e-5, atol=1e-5)
        expected = reference.classifier[:5](regions.flatten(1)).relu()
        torch.testing.assert_close(ours.box_head(regions), expected, rtol=1e-5, atol=1e-5)


def test_other_vggs_are_not_taken_for_vgg16():
    report, tensors, _ = to_detectron2(meta_state("vgg16"))
    assert report.layout == "torchvision VGG"
    assert set(report.unexpected) == {"classifier.6.weight", "classifier.6.bias"}
    assert describe(tensors) == "; they are those of a vgg16"
    for name in ("vgg19", "vgg16_bn"):
        with pytest.raises(
            UserError, match=r"not the weights of a vgg16 \(.* missing, .* of 30\)$"
        ):
            convert(meta_state(name), "vgg16")
    with pytest.raises(
        UserError, match=r"not the weights of a resnet50 .* they are those of a vgg16"
    ):
        convert(meta_state("vgg16"), "resnet50")
    with pytest.raises(UserError, match="no ResNet or VGG-16"):
        convert(meta_state("vgg11"), "vgg16")


def test_wrong_architecture_is_refused_and_the_right_one_named():
    state = meta_state("resnet101")
    with pytest.raises(
        UserError, match=r"not the weights of a resnet50 .* they are .* a resnet101"
    ):
        convert(state, "resnet50", "r.pth")
    with pytest.raises(UserError, match="unknown architecture; use one of resnet18"):
        convert(state, "resnet51")
    del state["layer3.7.conv2.weight"]
    with pytest.raises(
        UserError, match=r"a resnet101 \(1 missing, 0 of another shape, 0 too many of 520\)$"
    ):
        convert(state, "resnet101", "r.pth")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.encoder_q.",  # MoCo v1, v2
        "module.base_encoder.",  # MoCo v3
        "module.",  # SwAV, and anything saved from DataParallel
        "backbone.",  # OpenMMLab
        "module.backbone.",  # Barlow Twins
        "encoder.",
        "online_encoder.net.",  # BYOL
        "teacher.backbone.",  # DINO
    ],
)
def test_prefixes_of_self_supervised_checkpoints_are_stripped(prefix):
    state = meta_state("resnet18")
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    others = {"queue": torch.zeros(2), "head.0.weight": torch.zeros(1)}
    report, tensors, _ = to_detectron2(prefixed | others)
    assert report.prefix == prefix
    assert tensors == to_detectron2(state)[1]
    assert set(report.unexpected) == {
        "queue",
        "head.0.weight",
        f"{prefix}fc.weight",
        f"{prefix}fc.bias",
    }


@pytest.mark.parametrize(
    ("used", "other"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("online_network.encoder.", "target_network.encoder."),
        ("teacher.backbone.", "student.module.backbone."),
    ],
)
def test_the_trained_encoder_is_used_not_its_copy(used, other):
    state = meta_state("resnet18")
    two = {}
    for prefix in (other, used):
        two |= {prefix + name: tensor.clone() for name, tensor in state.items()}
    report, tensors, _ = to_detectron2(two)
    assert report.prefix == used
    assert tensors["stem.conv1.weight"] is two[f"{used}conv1.weight"]
    assert f"{other}conv1.weight" in report.unexpected


def test_two_networks_are_refused_unless_they_are_the_same():
    state = small_state()
    left = {f"left.{name}": tensor for name, tensor in state.items()}
    right = {f"right.{name}": tensor.clone() for name, tensor in state.items()}
    report, *_ = to_detectron2(left | right)
    assert report.prefix == "left."
    right["right.layer2.0.conv1.weight"][0] += 1
    with pytest.raises(UserError, match=r"several networks, with the prefixes left\., right\."):
        to_detectron2(left | right, "w.pth")


def small_state():
    """torchvision's names of an R18, with shapes of one number per channel."""
    torch.manual_seed(0)
    return {
        name: torch.randn(tensor.shape[:1]) if tensor.ndim else tensor.new_zeros((), device="cpu")
        for name, tensor in meta_state("resnet18").items()
    }


def hugging_face_name(name):
    """transformers' convert_resnet_to_pytorch in reverse, for basic blocks."""
    stem = {"conv1": "convolution", "bn1": "normalization"}
    first, *rest = name.split(".")
    if first in stem:
        return ".".join(["resnet.embedder.embedder", stem[first], *rest])
    if first == "fc":
        return f"classifier.1.{rest[0]}"
    block, layer, *end = rest
    place = f"resnet.encoder.stages.{int(first[-1]) - 1}.layers.{block}"
    if layer == "downsample":
        kind = ("convolution", "normalization")[int(end[0])]
        return f"{place}.shortcut.{kind}.{end[1]}"
    kind = "convolution" if layer.startswith("conv") else "normalization"
    return f"{place}.layer.{int(layer[-1]) - 1}.{kind}.{end[0]}"


LIGHTLY_PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
# Each maker returns a file of that project: its top level, and the names below it.
PROJECTS = {
    "OpenSelfSup MoCo": lambda s: {
        "state_dict": {
            **{f"encoder_q.0.{k}": t for k, t in s.items()},
            **{f"encoder_k.0.{k}": t + 1 for k, t in s.items()},
            **{f"backbone.{k}": t for k, t in s.items()},
            "encoder_q.1.mlp.0.weight": torch.zeros(2),
            "queue": torch.zeros(2),
        }
    },
    "OpenSelfSup BYOL": lambda s: {
        "state_dict": {
            **{f"online_net.0.{k}": t for k, t in s.items()},
            **{f"target_net.0.{k}": t + 1 for k, t in s.items()},
            **{f"backbone.{k}": t for k, t in s.items()},
        }
    },
    "MMPretrain": lambda s: {
        "meta": {"epoch": 200},
        "state_dict": {
            **{f"backbone.{k}": t for k, t in s.items()},
            **{f"target_net.module.0.{k}": t + 1 for k, t in s.items()},
            "neck.fc0.weight": torch.zeros(2),
        },
    },
    "VISSL": lambda s: {
        "classy_state_dict": {
            "base_model": {
                "model": {
                    "trunk": {f"_feature_blocks.{k}": t for k, t in s.items()},
                    "heads": {"0.clf.0.weight": torch.zeros(2)},
                }
            }
        }
    },
    "Hugging Face": lambda s: {hugging_face_name(k): t for k, t in s.items()},
    "Lightly": lambda s: {
        "state_dict": {
            f"backbone.{LIGHTLY_PLACES[k.split('.')[0]]}.{k.partition('.')[2]}": t
            for k, t in s.items()
            if not k.startswith("fc.")
        }
        | {"projection_head.layers.0.weight": torch.zeros(2)}
    },
    "MoCo v3": lambda s: {
        "state_dict": {
            **{f"module.base_encoder.{k}": t for k, t in s.items()},
            **{f"module.momentum_encoder.{k}": t + 1 for k, t in s.items()},
            "module.predictor.0.weight": torch.zeros(2),
        }
    },
    "DINO": lambda s: {
        "student": {f"module.backbone.{k}": t + 1 for k, t in s.items()},
        "teacher": {f"backbone.{k}": t for k, t in s.items()},
    },
    "SwAV": lambda s: (
        {f"module.{k}": t for k, t in s.items()} | {"module.prototypes.weight": torch.zeros(2)}
    ),
    "VICReg": lambda s: {"model": {f"module.backbone.{k}": t for k, t in s.items()}},
    "DETR": lambda s: {
        "model": {f"backbone.0.body.{k}": t for k, t in s.items()}
        | {"transformer.encoder.layers.0.norm1.weight": torch.zeros(2)}
    },
    "Hugging Face DETR": lambda s: {
        f"model.backbone.conv_encoder.model.{k}": t for k, t in s.items()
    },
    "torchvision, timm": lambda s: s,
}


@pytest.mark.parametrize("project", PROJECTS)
def test_checkpoints_of_public_projects_give_the_same_backbone(project):
    state = small_state()
    _, expected, _ = to_detectron2(state)
    assert len(expected) == 120
    _, found, _ = to_detectron2(find_tensors(PROJECTS[project](state)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


TRANSFORMERS = {
    "MAE": ["cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight"],
    "DINOv2": ["blocks.0.ls1.gamma", "blocks.0.attn.proj.weight"],
    "DINOv3": ["storage_tokens", "rope_embed.periods", "blocks.0.attn.qkv.bias_mask"],
    "MMPretrain": ["backbone.cls_token", "backbone.layers.0.ln1.weight"],
    "Hugging Face": ["vit.encoder.layer.0.attention.attention.query.weight"],
}


@pytest.mark.parametrize("keys", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_a_vision_transformer_for_a_resnet_names_both_families(keys, make_cfg):
    state = {key: torch.zeros(1) for key in keys}
    with pytest.raises(
        UserError, match=r"w\.pth: these are the weights of a vision transformer .*a ResNet is to"
    ):
        to_detectron2(state, "w.pth", build_bottom_up(make_cfg()))


def test_swin_and_convnext_are_named():
    for key, family in (
        ("layers.0.blocks.0.attn.relative_position_bias_table", "Swin transformer"),
        ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
    ):
        with pytest.raises(UserError, match=f"weights of a {family}"):
            to_detectron2({key: torch.zeros(1)})


def test_detectors_give_their_backbone(make_cfg):
    backbone = build_bottom_up(make_cfg()).state_dict()
    state = {f"backbone.bottom_up.{name}": tensor for name, tensor in backbone.items()}
    heads = {"backbone.fpn_output2.weight": torch.zeros(1), "roi_heads.res5.0.w": torch.zeros(1)}
    report, tensors, _ = to_detectron2(state | heads)
    assert (report.layout, report.prefix) == ("detectron2", "backbone.bottom_up.")
    assert list(tensors) == list(backbone)
    assert set(report.unexpected) == set(heads)


def test_unknown_layout_is_refused_with_its_keys():
    with pytest.raises(UserError, match=r"w\.pth: no ResNet or VGG-16 .* first keys are some\.w"):
        to_detectron2({"some.w": torch.zeros(1)}, "w.pth")
