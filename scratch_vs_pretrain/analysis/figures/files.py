"""Figures as PNG, SVG or PDF files; equal figures give equal bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically

FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": None}, "dpi": 200},
    ".svg": {"metadata": {"Date": None, "Creator": None}},
    ".pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
}


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF by the path's ending; equal figures give equal bytes.

    Raises:
        UserError: another ending, or the folder is missing or cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: figures are written as {', '.join(FORMATS)}; choose one of them")
    try:
        write_atomically(path, figure_bytes(figure, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Returns a figure in the format of an ending of :data:`FORMATS`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "scratch_vs_pretrain", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=ending[1:], **FORMATS[ending])
    return buffer.getvalue()
