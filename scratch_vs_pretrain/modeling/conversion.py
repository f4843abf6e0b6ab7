"""Foreign parameter names into Detectron2's.

Known layouts of backbones: Detectron2's (alone or in a detector), torchvision's ResNets with any
prefix (MoCo, SwAV, BYOL, DINO, VISSL, MMPretrain, timm ... wrap one), Hugging Face's, Lightly's,
Caffe2 Detectron's, and VGG-16 as three of them have it, fc6 and fc7 included; of other networks
their own names. Names are matched exactly once the prefix is known; Detectron2's longest-suffix
heuristic is not used, because it may match a wrong layer without saying so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

from scratch_vs_pretrain.config import default_config, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import vgg
from scratch_vs_pretrain.modeling.backbone import build_bottom_up

if TYPE_CHECKING:
    from torch import Tensor, nn

# How MODEL.RESNETS describes each architecture. Stride in the 3x3 convolution, as torchvision.
ARCHITECTURES: dict[str, dict[str, int]] = {
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "resnet50": {"DEPTH": 50},
    "resnet101": {"DEPTH": 101},
    "resnet152": {"DEPTH": 152},
    "resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "resnext101_32x8d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    "resnext101_64x4d": {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4},
    "resnext152_8x32d": {"DEPTH": 152, "NUM_GROUPS": 8, "WIDTH_PER_GROUP": 32},
}
VGG16 = "vgg16"
ARCHITECTURE_NAMES = (*ARCHITECTURES, VGG16)

# A key that each layout has exactly once per network.
MARKERS = {
    "detectron2": "stem.conv1.weight",
    "torchvision": "layer1.0.conv1.weight",
    "Hugging Face": "embedder.embedder.convolution.weight",
    "Lightly": "4.0.conv1.weight",
    "caffe2": "res2_0_branch2a_w",
    "detectron2 VGG": "conv5_3.weight",
    "torchvision VGG": "features.28.weight",
    "caffe2 VGG": "conv5_3_w",
}

# Second networks in self-supervised checkpoints: the slowly moving copy of MoCo and BYOL, and
# DINO's student, whose teacher is the one that DINO evaluates.
NOT_THE_NETWORK = ("encoder_k", "momentum", "target", "student")

# Stage, block, convolution and parameter; torchvision counts stages from 1, Detectron2 from 2.
_TORCHVISION = (
    (r"conv1\.()()()(\w+)", "stem.conv1.{p}"),
    (r"bn1\.()()()(\w+)", "stem.conv1.norm.{p}"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", "res{s}.{b}.conv{c}.{p}"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", "res{s}.{b}.conv{c}.norm.{p}"),
    (r"layer(\d)\.(\d+)\.downsample\.0()\.(\w+)", "res{s}.{b}.shortcut.{p}"),
    (r"layer(\d)\.(\d+)\.downsample\.1()\.(\w+)", "res{s}.{b}.shortcut.norm.{p}"),
)
# Hugging Face counts stages and convolutions from 0.
_HUGGING_FACE = (
    (r"embedder\.embedder()()()", "stem.conv1"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)", "res{s}.{b}.conv{c}"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut()", "res{s}.{b}.shortcut"),
)
_HUGGING_FACE_KINDS = ((r"\.convolution\.(\w+)", ".{p}"), (r"\.normalization\.(\w+)", ".norm.{p}"))
# Of each layout: its patterns, and what is added to its numbers of stages and convolutions.
_PATTERNS = {
    "torchvision": (_TORCHVISION, 1, 0),
    "Hugging Face": (
        [(a + c, b + d) for a, b in _HUGGING_FACE for c, d in _HUGGING_FACE_KINDS],
        2,
        1,
    ),
}
# Lightly keeps torchvision's children in a Sequential, by their places.
_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

# Networks that are none of the known, by a key that they have.
_FAMILIES = {
    "Swin transformer": r"layers\.0\.blocks\.0\.attn\.(w_msa\.)?relative_position_bias_table$",
    "vision transformer (ViT)": r"(blocks|layers)\.0\.(attn|ln1|norm1)\."
    r"|layer\.0\.attention\.(attention\.query|q_proj)\.",
    "ConvNeXt": r"stages\.0\.(blocks\.|layers\.)?0\.(conv_dw|dwconv|depthwise)",
}
_BACKBONE_NAME = re.compile(r"^(stem|res[2-5])\.")

_FC_LAYERS = ("box_head.fc1", "box_head.fc2")
# What each layout calls VGG-16's layers. conv1_1 to conv5_3 have these names in two of them;
# torchvision counts ReLUs and poolings, too, and VGG-19's numbers are others from conv3_4 on.
_VGG_LAYERS = {
    "detectron2 VGG": {name: name for name in _FC_LAYERS},
    "torchvision VGG": dict(
        zip(
            (
                *(f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
                "classifier.0",
                "classifier.3",
            ),
            (*vgg.LAYERS, *_FC_LAYERS),
            strict=True,
        )
    ),
    "caffe2 VGG": dict(zip(("fc6", "fc7"), _FC_LAYERS, strict=True)),
}
_OWN_NAMES = "its own"
_VGG_KEY = re.compile(r"^(.+)[._](w|weight|b|bias)$")


@dataclass(frozen=True)
class BackboneWeights:
    """A checkpoint's backbone under Detectron2's names.

    Attributes:
        others: keys of the checkpoint that are no part of the backbone, as they are there.
        layout: a key of :data:`MARKERS`, or "its own" for a network's own names.
        prefix: what stood before the backbone's names.
        norm: "BN" (with running statistics), "fused BN" (Caffe2: statistics multiplied into scale
            and shift), or "": GroupNorm, or none.
        surplus: those of `others` that say that the file is of another, deeper network.
    """

    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    layout: str
    prefix: str
    norm: str
    surplus: tuple[str, ...] = ()


def to_detectron2(
    state: Mapping[str, Tensor], source: str = "the checkpoint", network: nn.Module | None = None
) -> BackboneWeights:
    """Finds the backbone in a state dict and renames it. Tensors are passed on as they are.

    Args:
        source: what messages call the checkpoint.
        network: what is to take them, by default a ResNet or VGG-16. Any other takes its own names,
            or what its method ``name_in_files(name)`` says.

    Raises:
        UserError: no known layout; or several networks, none of which is the obvious one.
    """
    own = _names_in_files(network)
    markers = _own_markers(own) if own else MARKERS
    layout, prefix = _locate(state, source, markers, _family_of(network))
    # In a VGG detector fc6 and fc7 are beside the backbone.
    heads = f"{prefix.removesuffix('backbone.')}roi_heads."
    tensors: dict[str, Tensor] = {}
    others = []
    for key, tensor in state.items():
        name = None
        if layout == "detectron2 VGG" and key.startswith(heads):
            name = _rename(key.removeprefix(heads), layout)
        elif key.startswith(prefix):
            rest = key.removeprefix(prefix)
            name = own.get(rest) if own else _rename(rest, layout)
        if name is None:
            others.append(key)
        elif name in tensors:
            raise UserError(f"{source}: two of its tensors are called {name} in Detectron2")
        else:
            tensors[name] = tensor
    norm = _norm(tensors, state, layout)
    surplus = tuple(key for key in others if _is_one_more(key.removeprefix(prefix), own))
    return BackboneWeights(tensors, tuple(others), layout, prefix, norm, surplus)


def _is_one_more(name: str, own: Mapping[str, str]) -> bool:
    """Tells whether `name` is of one more in a row: of block 9 where the network ends with 8."""
    row = re.match(r"(.*\..*?)\d+\.\D*$", name)
    return row is not None and any(known.startswith(row[1]) for known in own)


def _names_in_files(network: nn.Module | None) -> dict[str, str]:
    """Returns the name in files of each tensor of a network, empty for ResNet and VGG-16."""
    names = list(network.state_dict()) if network else []
    if not {MARKERS["detectron2"], MARKERS["detectron2 VGG"]}.isdisjoint(names):
        return {}
    in_files = getattr(network, "name_in_files", str)
    return {in_files(name): name for name in names} | {name: name for name in names}


def _own_markers(own: Mapping[str, str]) -> dict[str, str]:
    # The most nested name, which is no other name's end.
    here = max(own.values(), key=lambda name: name.count("."))
    in_files = next(name for name in own if own[name] == here)
    return {_OWN_NAMES: in_files, f"{_OWN_NAMES}, as built": here}


def _family_of(network: nn.Module | None) -> str:
    if network is None:
        return "ResNet or VGG-16"
    name = "VGG-16" if hasattr(network, "conv5_3") else type(network).__name__
    return getattr(network, "family", name)


def convert(
    state: Mapping[str, Tensor], architecture: str, source: str = "the checkpoint"
) -> BackboneWeights:
    """Returns the backbone of `state` under Detectron2's names, checked to be `architecture`.

    Raises:
        UserError: unknown architecture, or the checkpoint is of another one, which is named; or
            its BatchNorm is fused.
    """
    if architecture not in ARCHITECTURE_NAMES:
        known = ", ".join(ARCHITECTURE_NAMES)
        raise UserError(f"{architecture}: unknown architecture; use one of {known}")
    weights = to_detectron2(state, source)
    refuse_fused(weights, source)
    expected, found = _expected_shapes(architecture, weights.tensors), _shapes(weights.tensors)
    if expected != found:
        differing = [name for name in expected if expected[name] != found.get(name, expected[name])]
        raise UserError(
            f"{source}: these are not the weights of a {architecture} "
            f"({len(expected.keys() - found.keys())} missing, {len(differing)} of another shape, "
            f"{len(found.keys() - expected.keys())} too many of {len(expected)})"
            f"{describe(weights.tensors)}"
        )
    return weights


def refuse_fused(weights: BackboneWeights, source: str) -> None:
    """Raises UserError for Caffe2's BatchNorm, whose names cannot be told from GroupNorm's."""
    if weights.norm == "fused BN":
        raise UserError(
            f"{source}: its BatchNorm is fused into a fixed scale and shift, which only FrozenBN "
            "can use; take a checkpoint with running statistics (for SyncBN) or with GroupNorm"
        )


def _expected_shapes(
    architecture: str, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    norm = "BN" if any(name.endswith("running_mean") for name in tensors) else "GN"
    return _shapes_of(architecture, norm)


@functools.cache
def _shapes_of(architecture: str, norm: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = vgg.vgg16() if architecture == VGG16 else _resnet(architecture, norm)
    return _shapes(network.state_dict())


def _resnet(architecture: str, norm: str) -> nn.Module:
    cfg = default_config()
    resnets = {"NORM": norm, "STRIDE_IN_1X1": False, **ARCHITECTURES[architecture]}
    settings = {f"MODEL.RESNETS.{key}": value for key, value in resnets.items()}
    merge_overrides(cfg, settings | {"MODEL.BACKBONE.NAME": "build_svp_resnet_backbone"}, "arch")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_bottom_up(cfg)


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Returns "; they are those of a resnet101", or nothing if no known architecture fits."""
    found = _shapes(tensors)
    names = [name for name in ARCHITECTURE_NAMES if _expected_shapes(name, tensors) == found]
    return f"; they are those of a {' or '.join(names)}" if names else ""


def _locate(
    state: Mapping[str, Tensor], source: str, markers: Mapping[str, str], wanted: str
) -> tuple[str, str]:
    for layout, marker in markers.items():
        prefixes = [
            key.removesuffix(marker) for key in state if key == marker or key.endswith(f".{marker}")
        ]
        if len(prefixes) > 1:
            originals = [p for p in prefixes if not any(word in p for word in NOT_THE_NETWORK)]
            if len(originals) == 0 or not all(
                _same_network(state, originals[0], other) for other in originals[1:]
            ):
                found = ", ".join(p or "(none)" for p in originals) or "copies only"
                raise UserError(
                    f"{source}: holds several networks, with the prefixes {found}; "
                    "save the state dict of the one you mean"
                )
            prefixes = originals
        if prefixes:
            return layout, prefixes[0]
    for family, pattern in _FAMILIES.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key and markers is MARKERS:
            raise UserError(
                f"{source}: these are the weights of a {family} ({key}), but a {wanted} is to take "
                "them; give a checkpoint of the config's architecture"
            )
    raise UserError(
        f"{source}: no {wanted} with names that are known (its own, Detectron2's, torchvision's, "
        "Hugging Face's, Lightly's, Caffe2 Detectron's) in it; its first keys are "
        f"{', '.join(list(state)[:5])}"
    )


def _same_network(state: Mapping[str, Tensor], one: str, other: str) -> bool:
    """Tells whether a network is there twice: OpenSelfSup keeps its encoder under two names."""
    names = [key.removeprefix(other) for key in state if key.startswith(other)]
    common = [name for name in names if one + name in state]
    return all(torch.equal(state[one + name], state[other + name]) for name in common)


def _rename(key: str, layout: str) -> str | None:
    if layout in _VGG_LAYERS:
        return _from_vgg(key, _VGG_LAYERS[layout])
    if layout == "Lightly":
        place, _, rest = key.partition(".")
        key, layout = f"{_PLACES.get(place)}.{rest}", "torchvision"
    if layout in _PATTERNS:
        return _from_pattern(key, layout)
    name = convert_basic_c2_names([key])[0] if layout == "caffe2" else key
    return name if _BACKBONE_NAME.match(name) else None


def _from_pattern(key: str, layout: str) -> str | None:
    patterns, stages, convolutions = _PATTERNS[layout]
    for pattern, name in patterns:
        if match := re.fullmatch(pattern, key):
            stage, block, number, p = match.groups()
            return name.format(
                s=int(stage or 0) + stages, b=block, c=int(number or 0) + convolutions, p=p
            )
    return None


def _from_vgg(key: str, layers: Mapping[str, str]) -> str | None:
    match = _VGG_KEY.match(key)
    if not match:
        return None
    # A convolution that VGG-16 lacks is renamed, too, so that VGG-19 is not taken for it.
    layer = match[1] if re.fullmatch(r"conv\d_\d", match[1]) else layers.get(match[1])
    return layer and f"{layer}.{'weight' if match[2].startswith('w') else 'bias'}"


def _norm(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], layout: str) -> str:
    if any(name.endswith(".running_mean") for name in tensors):
        return "BN"
    fused = layout == "caffe2" and any(key.endswith("_bn_s") for key in state)
    return "fused BN" if fused else ""


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
