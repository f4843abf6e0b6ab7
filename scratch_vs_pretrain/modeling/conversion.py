"""Foreign parameter names into Detectron2's.

Known layouts of backbones: Detectron2's (alone or in a detector), torchvision's ResNets with any
prefix (MoCo, SwAV, BYOL, DINO, VISSL, MMPretrain, timm ... wrap one), Hugging Face's, Lightly's,
Caffe2 Detectron's, and VGG-16 as three of them have it, fc6 and fc7 included; of other networks
their own names. Names are matched exactly once the prefix is known; Detectron2's longest-suffix
heuristic is not used, because it may match a wrong layer without saying so.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import checkpoint_file
from scratch_vs_pretrain.modeling.backbone import VGG_LAYERS, build_svp_resnet_backbone, vgg16
from scratch_vs_pretrain.modeling.checks import some
from scratch_vs_pretrain.run_folder import write_json
from scratch_vs_pretrain.run_info import Loaded, PretrainingCost

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

# Second networks in self-supervised checkpoints: the slowly moving copy of MoCo and BYOL, and
# DINO's student, whose teacher is the one that DINO evaluates.
NOT_THE_NETWORK = ("encoder_k", "momentum", "target", "student")

COUNTER = "num_batches_tracked"  # BatchNorm's, an integer
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Patterns of names, and what stands for each in Detectron2's; "res1+1" is res2.
Rules = tuple[tuple[str, str], ...]
# A key that a layout has exactly once per network, and what gives a name in Detectron2's, if any.
Layout = tuple[str, Callable[[str], str | None]]


def renamed(key: str, rules: Rules) -> str | None:
    """Returns what the first of the rules that fits makes of a name, None where none does."""
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return re.sub(
                r"(\d+)([+-]\d)", lambda sum_: str(int(sum_[1]) + int(sum_[2])), match.expand(name)
            )
    return None


def _layout(marker: str, *rules: tuple[str, str]) -> Layout:
    return marker, functools.partial(renamed, rules=rules)


def _resnet(conv1: str, bn1: str, layer: str, shift: str) -> Rules:
    """Returns torchvision's names, by what it calls the stem's layers and the stages."""
    return (
        (rf"{conv1}\.(\w+)", r"stem.conv1.\1"),
        (rf"{bn1}\.(\w+)", r"stem.conv1.norm.\1"),
        (rf"{layer}\.(\d+)\.conv(\d)\.(\w+)", rf"res\1{shift}.\2.conv\3.\4"),
        (rf"{layer}\.(\d+)\.bn(\d)\.(\w+)", rf"res\1{shift}.\2.conv\3.norm.\4"),
        (rf"{layer}\.(\d+)\.downsample\.0\.(\w+)", rf"res\1{shift}.\2.shortcut.\3"),
        (rf"{layer}\.(\d+)\.downsample\.1\.(\w+)", rf"res\1{shift}.\2.shortcut.norm.\3"),
    )


_OWN = (r"((?:stem|res[2-5])\..*)", r"\1")
_HUGGING_FACE = r"encoder\.stages\.(\d)\.layers\.(\d+)\."
# torchvision counts VGG's ReLUs and poolings, too; VGG-19's numbers are others from conv3_4 on.
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LAYOUTS: dict[str, Layout] = {
    "detectron2": _layout("stem.conv1.weight", _OWN),
    "torchvision": _layout("layer1.0.conv1.weight", *_resnet("conv1", "bn1", r"layer(\d)", "+1")),
    "Hugging Face": _layout(
        "embedder.embedder.convolution.weight",
        (r"embedder\.embedder\.convolution\.(\w+)", r"stem.conv1.\1"),
        (r"embedder\.embedder\.normalization\.(\w+)", r"stem.conv1.norm.\1"),
        (rf"{_HUGGING_FACE}layer\.(\d)\.convolution\.(\w+)", r"res\1+2.\2.conv\3+1.\4"),
        (rf"{_HUGGING_FACE}layer\.(\d)\.normalization\.(\w+)", r"res\1+2.\2.conv\3+1.norm.\4"),
        (rf"{_HUGGING_FACE}shortcut\.convolution\.(\w+)", r"res\1+2.\2.shortcut.\3"),
        (rf"{_HUGGING_FACE}shortcut\.normalization\.(\w+)", r"res\1+2.\2.shortcut.norm.\3"),
    ),
    # torchvision's children in a Sequential, by their places.
    "Lightly": _layout("4.0.conv1.weight", *_resnet("0", "1", "([4-7])", "-2")),
    "caffe2": (
        "res2_0_branch2a_w",
        lambda name: renamed(convert_basic_c2_names([name])[0], (_OWN,)),
    ),
    # Convolutions that VGG-16 lacks are renamed, too, so that VGG-19 is not taken for it.
    "detectron2 VGG": _layout(
        "conv5_3.weight", (r"(conv\d_\d|box_head\.fc[12])\.(weight|bias)", r"\1.\2")
    ),
    "torchvision VGG": _layout(
        "features.28.weight",
        *(
            (rf"features\.{number}\.(weight|bias)", rf"{name}.\1")
            for number, name in zip(_FEATURES, VGG_LAYERS, strict=True)
        ),
        (r"classifier\.0\.(weight|bias)", r"box_head.fc1.\1"),
        (r"classifier\.3\.(weight|bias)", r"box_head.fc2.\1"),
    ),
    "caffe2 VGG": _layout(
        "conv5_3_w",
        *((r"(conv\d_\d)_w", r"\1.weight"), (r"(conv\d_\d)_b", r"\1.bias")),
        *((r"fc([67])_w", r"box_head.fc\1-5.weight"), (r"fc([67])_b", r"box_head.fc\1-5.bias")),
    ),
}

# Networks that are none of the known, by a key that they have.
_FAMILIES = {
    "Swin transformer": r"layers\.0\.blocks\.0\.attn\.(w_msa\.)?relative_position_bias_table$",
    "vision transformer (ViT)": r"(blocks|layers)\.0\.(attn|ln1|norm1)\."
    r"|layer\.0\.attention\.(attention\.query|q_proj)\.",
    "ConvNeXt": r"stages\.0\.(blocks\.|layers\.)?0\.(conv_dw|dwconv|depthwise)",
}


def to_detectron2(
    state: Mapping[str, Tensor], source: str = "the checkpoint", network: nn.Module | None = None
) -> tuple[Loaded, dict[str, Tensor], tuple[str, ...]]:
    """Finds the backbone in a state dict and renames it. Tensors are passed on as they are.

    Args:
        source: what messages call the checkpoint.
        network: what is to take them, by default a ResNet or VGG-16. Any other takes its own names,
            or what its method ``name_in_files(name)`` says.

    Returns:
        A report: the layout (a key of :data:`LAYOUTS`, or "its own"), what stood before the names,
        and, as `unexpected`, the keys that are no part of the backbone. The backbone's tensors by
        Detectron2's names. And the keys by which the file is of another, deeper network.

    Raises:
        UserError: no known layout; several networks, none of which is the obvious one; or Caffe2's
            fused BatchNorm, whose names cannot be told from GroupNorm's.
    """
    own, layouts = _layouts_of(network)
    family = "VGG-16" if hasattr(network, "conv5_3") else type(network).__name__
    wanted = getattr(network, "family", family) if network else "ResNet or VGG-16"
    layout, prefix = _locate(state, source, layouts, wanted)
    _, rename = layouts[layout]
    # In a VGG detector fc6 and fc7 are beside the backbone.
    heads = f"{prefix.removesuffix('backbone.')}roi_heads."
    tensors: dict[str, Tensor] = {}
    others = []
    for key, tensor in state.items():
        start = heads if layout == "detectron2 VGG" and key.startswith(heads) else prefix
        name = rename(key.removeprefix(start)) if key.startswith(start) else None
        if name is None:
            others.append(key)
        elif name in tensors:
            raise UserError(f"{source}: two of its tensors are called {name} in Detectron2")
        else:
            tensors[name] = tensor
    if layout == "caffe2" and any(key.endswith("_bn_s") for key in state):
        raise UserError(
            f"{source}: its BatchNorm is fused into a fixed scale and shift, which only FrozenBN "
            "can use; take a checkpoint with running statistics (for SyncBN) or with GroupNorm"
        )
    surplus = tuple(key for key in others if _is_one_more(key.removeprefix(prefix), own))
    found = Loaded(loaded=len(tensors), unexpected=tuple(others), layout=layout, prefix=prefix)
    return found, tensors, surplus


def _is_one_more(name: str, own: Mapping[str, str]) -> bool:
    """Tells whether `name` is of one more in a row: of block 9 where the network ends with 8."""
    row = re.match(r"(.*\..*?)\d+\.\D*$", name)
    return row is not None and any(known.startswith(row[1]) for known in own)


def _layouts_of(network: nn.Module | None) -> tuple[dict[str, str], Mapping[str, Layout]]:
    """Returns the layouts in which a network's files may be; and, but for ResNet and VGG-16, what
    it calls each tensor that files of its own hold."""
    names = list(network.state_dict()) if network else []
    if not names or any(LAYOUTS[known][0] in names for known in ("detectron2", "detectron2 VGG")):
        return {}, LAYOUTS
    in_files = getattr(network, "name_in_files", str)
    own = {in_files(name): name for name in names} | {name: name for name in names}
    # The most nested name, which is no other name's end.
    here = max(names, key=lambda name: name.count("."))
    return own, {"its own": (in_files(here), own.get), "its own, as built": (here, own.get)}


def convert(
    state: Mapping[str, Tensor], architecture: str, source: str = "the checkpoint"
) -> tuple[Loaded, dict[str, Tensor]]:
    """Returns the backbone of `state` as :func:`to_detectron2`, checked to be `architecture`."""
    if architecture not in ARCHITECTURE_NAMES:
        known = ", ".join(ARCHITECTURE_NAMES)
        raise UserError(f"{architecture}: unknown architecture; use one of {known}")
    report, tensors, _ = to_detectron2(state, source)
    expected, found = _expected_shapes(architecture, tensors), _shapes(tensors)
    if expected != found:
        differing = [name for name in expected if expected[name] != found.get(name, expected[name])]
        raise UserError(
            f"{source}: these are not the weights of a {architecture} "
            f"({len(expected.keys() - found.keys())} missing, {len(differing)} of another shape, "
            f"{len(found.keys() - expected.keys())} too many of {len(expected)})"
            f"{describe(tensors)}"
        )
    return report, tensors


def convert_file(source: str | Path, output: Path, architecture: str) -> Loaded:
    """Writes the backbone of a checkpoint under Detectron2's names, for any study's arm.

    The file must be an `architecture` entirely, in any layout that ``to_detectron2`` knows.
    """
    checkpoint_file.check_output(output)
    if output.exists() and output.samefile(checkpoint_file.local_file(source)):
        raise UserError(f"{output}: is the checkpoint itself; choose another output file")
    state = checkpoint_file.read_checkpoint(source)
    report, tensors = convert(state, architecture, str(source))
    check_weights({n: t for n, t in tensors.items() if not n.endswith(COUNTER)}, str(source))
    converted = {
        "architecture": architecture,
        "source": str(source),
        "sha256": checkpoint_file.weights_sha256(source),
    }
    # What `svp pretrain` noted about pixels still holds.
    checkpoint_file.write_backbone(
        output, tensors, {**checkpoint_file.read_metadata(source), "converted": converted}
    )
    # And what it cost, which lies beside the file.
    cost = PretrainingCost.file(output)
    cost.unlink(missing_ok=True)
    if noted := PretrainingCost.of(source):
        write_json(cost, noted["cost"])
    return report


def check_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError for what fills no network of float32: integers and floats of 8 bits, which
    mean nothing without their scale, and NaN or infinity, be it beyond float32 alone."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{source}: {name} holds {kind} numbers (quantised?); give one of float32 weights"
            )
    unusable = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if unusable:
        shown = some(unusable)
        raise UserError(f"{source}: NaN or infinity in {shown}, as float32; use another checkpoint")


def _expected_shapes(
    architecture: str, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    norm = "BN" if any(name.endswith("running_mean") for name in tensors) else "GN"
    return _shapes_of(architecture, norm)


@functools.cache
def _shapes_of(architecture: str, norm: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        if architecture == VGG16:
            return _shapes(vgg16().state_dict())
        cfg = default_config()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RESNETS.update({"NORM": norm, "STRIDE_IN_1X1": False})
        cfg.MODEL.RESNETS.update(ARCHITECTURES[architecture])
        return _shapes(build_svp_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict())


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Returns "; they are those of a resnet101", or nothing if no known architecture fits."""
    found = _shapes(tensors)
    names = [name for name in ARCHITECTURE_NAMES if _expected_shapes(name, tensors) == found]
    return f"; they are those of a {' or '.join(names)}" if names else ""


def _locate(
    state: Mapping[str, Tensor], source: str, layouts: Mapping[str, Layout], wanted: str
) -> tuple[str, str]:
    for layout, (marker, _) in layouts.items():
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
        if key and layouts is LAYOUTS:
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
    pairs = ((state[one + name].float(), state[other + name].float()) for name in common)
    return all(torch.equal(*pair) for pair in pairs)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(COUNTER)
    }
