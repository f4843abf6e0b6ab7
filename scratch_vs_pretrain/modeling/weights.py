"""Checkpoints: read without executing them, and loaded into a backbone completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import (
    local_file,
    read_checkpoint,
    read_metadata,
    save,
    weights_sha256,
)
from scratch_vs_pretrain.modeling.checks import norm_layers, some
from scratch_vs_pretrain.modeling.conversion import (
    BackboneWeights,
    convert,
    describe,
    to_detectron2,
)
from scratch_vs_pretrain.modeling.vgg import pretrained_part
from scratch_vs_pretrain.run_folder import write_json
from scratch_vs_pretrain.run_info import Loaded, PretrainingCost

NAMES_SHOWN = 20
COUNTER = "num_batches_tracked"
STATISTICS = ("running_mean", "running_var", COUNTER)


def report_text(report: Loaded, source: str) -> str:
    """Returns a sentence on what a detector's checkpoint was used for."""
    said = [f"{report.loaded} tensors are from {source}"]
    if report.reinitialized:
        said.append(f"{', '.join(report.reinitialized)} start at random, as in arms from scratch")
    if report.unexpected:
        more = some(report.unexpected, NAMES_SHOWN)
        said.append(f"{len(report.unexpected)} are left over ({more})")
    return "; ".join(said)


def write_backbone(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes backbone weights (Detectron2's names) and plain metadata, as :func:`save`."""
    model = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save(path, {"model": model, "svp": metadata})


def convert_file(source: str | Path, output: Path, architecture: str) -> Loaded:
    """Writes the backbone of a checkpoint under Detectron2's names, for any study's arm.

    The file must be an `architecture` entirely, in any layout that ``to_detectron2`` knows.
    """
    if output.suffix != ".pth":
        raise UserError(f"{output}: name a file that ends in .pth")
    if output.exists() and output.samefile(local_file(source)):
        raise UserError(f"{output}: is the checkpoint itself; choose another output file")
    weights = convert(read_checkpoint(source), architecture, str(source))
    check_finite(weights.tensors, str(source))
    converted = {
        "architecture": architecture,
        "source": str(source),
        "sha256": weights_sha256(source),
    }
    # What `svp pretrain` noted about pixels still holds.
    write_backbone(output, weights.tensors, {**read_metadata(source), "converted": converted})
    # And what it cost, which lies beside the file.
    cost = PretrainingCost.file(output)
    cost.unlink(missing_ok=True)
    if noted := PretrainingCost.of(source):
        write_json(cost, noted["cost"])
    return Loaded(
        loaded=len(weights.tensors),
        unexpected=weights.others,
        layout=weights.layout,
        prefix=weights.prefix,
    )


def match_backbone(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str = "the checkpoint",
    norm_weights: str = "all",
) -> tuple[Loaded, dict[str, Tensor]]:
    """Returns what fills the bottom-up network completely, by its names, and a report on it.

    FPN, RPN and heads keep their initialization, also if the checkpoint is a whole detector; but
    fc6 and fc7 in the box head of a VGG detector are filled as well (:func:`pretrained_part`).

    Args:
        model: a detector, its backbone, or a bottom-up network, which may be on the meta device;
            it is not changed.
        state: any layout that ``to_detectron2`` knows.
        norm_weights: "all"; or "affine_only": BatchNorm's scale and shift may initialize
            GroupNorm's, without running statistics.

    Raises:
        UserError: anything less than 100 % of the bottom-up's parameters and buffers; a checkpoint
            of a deeper network; BatchNorm into GroupNorm unless asked for; non-finite weights.
    """
    bottom_up = pretrained_part(model)
    weights = to_detectron2(state, source, bottom_up)
    statistics = _unused_statistics(weights, bottom_up, norm_weights, source)
    tensors = {name: t for name, t in weights.tensors.items() if name not in statistics}
    own = bottom_up.state_dict()
    common = [name for name in own if name in tensors]
    mismatched = [name for name in common if own[name].shape != tensors[name].shape]
    loaded = {name: tensors[name] for name in common if name not in mismatched}
    report = Loaded(
        loaded=len(loaded),
        missing=tuple(n for n in own if n not in tensors and not n.endswith(COUNTER)),
        unexpected=(*(n for n in tensors if n not in own), *statistics, *weights.others),
        mismatched=tuple(
            f"{name} {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
            for name in mismatched
        ),
        layout=weights.layout,
        prefix=weights.prefix,
    )
    more = [name for name in report.unexpected if _changes_network(name, tensors, bottom_up)]
    _check_complete(report, [*weights.surplus, *more], tensors, source)
    check_finite(loaded, source)
    return report, loaded


def input_settings(cfg: CfgNode) -> dict[str, Any]:
    """Returns what pre-training and detection must share beside the network itself."""
    return {
        "INPUT.FORMAT": cfg.INPUT.FORMAT,
        "MODEL.PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "MODEL.RESNETS.STRIDE_IN_1X1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }


def check_input(cfg: CfgNode, metadata: Mapping[str, Any], source: str) -> None:
    """Compares a config with the one that a backbone of ours was pre-trained with."""
    trained = metadata.get("input", {})
    for key, value in input_settings(cfg).items():
        if trained.get(key, value) != value:
            raise UserError(
                f"{source}: pre-trained with {key} {trained[key]}, but the config has {value}; "
                "set both arms to the former, or pre-train again"
            )


def _unused_statistics(
    weights: BackboneWeights, bottom_up: nn.Module, norm_weights: str, source: str
) -> list[str]:
    """Returns the file's running statistics that GroupNorm has no place for."""
    found = [name for name in weights.tensors if name.endswith(STATISTICS)]
    if not found or "GN" not in {kind for *_, kind in norm_layers(bottom_up)}:
        return []
    if norm_weights == "all":
        raise UserError(
            f"{source}: trained with BatchNorm, but this backbone has GroupNorm, which normalizes "
            "by other statistics and keeps none, so the features would not be those of the "
            "pre-trained network; take a GroupNorm checkpoint, set SyncBN in both arms, or ask for "
            "scale and shift alone with SVP.NORM_WEIGHTS: affine_only in the overrides"
        )
    return found


def _check_complete(
    report: Loaded, surplus: Sequence[str], tensors: Mapping[str, Tensor], source: str
) -> None:
    found = [
        f"{len(names)} {what} ({some(names, NAMES_SHOWN)})"
        for what, names in (
            ("missing", report.missing),
            ("of another shape", report.mismatched),
            ("too many", surplus),
        )
        if names
    ]
    if not found:
        return
    needed = report.loaded + len(report.missing) + len(report.mismatched)
    if report.missing and all(name.endswith(STATISTICS) for name in report.missing):
        remedy = "; the checkpoint has no BatchNorm statistics: set NORM to GN in both arms"
    else:
        remedy = describe(tensors) or "; give a checkpoint of the config's architecture"
    raise UserError(
        f"{source}: fills {report.loaded} of the backbone's {needed} tensors, "
        f"{', '.join(found)}{remedy}"
    )


def _changes_network(name: str, tensors: Mapping[str, Tensor], bottom_up: nn.Module) -> bool:
    """Tells whether a surplus tensor says that the file is of another, deeper network.

    Whole stages that this network leaves out, counters, and zero biases (Caffe2) do not.
    """
    if name not in tensors or name.endswith(COUNTER):
        return False
    stage = name.split(".")[0].split("_")[0]
    if not any(child.startswith(stage) for child, _ in bottom_up.named_children()):
        return False
    return not (name.endswith(".bias") and not tensors[name].any())


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError for a checkpoint with NaN or infinity in it."""
    unusable = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if unusable:
        shown = some(unusable, NAMES_SHOWN)
        raise UserError(f"{source}: NaN or infinity in {shown}; use another checkpoint")
