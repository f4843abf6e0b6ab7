"""Checkpoints of other libraries, written again as a backbone with Detectron2's names."""

from __future__ import annotations

from pathlib import Path

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import (
    local_file,
    read_checkpoint,
    read_metadata,
    weights_sha256,
)
from scratch_vs_pretrain.modeling.conversion import convert
from scratch_vs_pretrain.modeling.weights import LoadReport, check_finite, write_backbone


def convert_file(source: str | Path, output: Path, architecture: str) -> LoadReport:
    """Writes the backbone of a checkpoint under Detectron2's names, for any study's arm.

    Args:
        source: see :func:`local_file`; any layout that ``to_detectron2`` knows.
        output: a ``.pth`` file, written atomically.
        architecture: one of ``ARCHITECTURE_NAMES``, which the file must be entirely.

    Raises:
        UserError: as :func:`read_checkpoint` and ``convert``; nothing is written.
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
    return LoadReport(
        tuple(weights.tensors), (), weights.others, (), weights.layout, weights.prefix
    )
