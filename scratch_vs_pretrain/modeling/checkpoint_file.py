"""Checkpoint files: found, and opened without executing anything that they hold."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import catalog as _catalog  # noqa: F401  registers catalog://
from detectron2.utils.file_io import PathManager

from scratch_vs_pretrain.errors import UserError

# Where checkpoints keep the state dict among other things.
CONTAINERS = ("model", "state_dict", "model_state", "model_state_dict", "blobs")
# How torch.save's files begin, today's archives and those from before 2020.
_TORCH_FILE = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")

# Detectron's GroupNorm models as one would write them after detectron2://ImageNetPretrained/MSRA/
# R-50.pkl. They are not stored there; Detectron2's catalogue knows where, by a name without ending.
_GROUPNORM_MODEL = re.compile(
    r"(?:detectron2|catalog)://(ImageNetPretrained/FAIR/R-\d+-GN)(?:\.pkl)?"
)


def local_file(source: str | Path) -> Path:
    """Returns a readable local file for a path, or for a URI that Detectron2 can fetch.

    Args:
        source: a path, or ``detectron2://``, ``catalog://``, ``https://`` ... A GroupNorm model of
            Detectron is found as ``detectron2://ImageNetPretrained/FAIR/R-50-GN.pkl``, too.

    Raises:
        UserError: there is no such file, or it cannot be fetched or read.
    """
    if "://" in str(source):
        catalogued = _GROUPNORM_MODEL.fullmatch(str(source))
        address = f"catalog://{catalogued[1]}" if catalogued else str(source)
        try:
            path = Path(PathManager.get_local_path(address))
        except Exception as error:  # whatever a handler, a server or a catalogue may raise
            raise UserError(
                f"{source}: cannot be fetched ({_one_line(error)}); "
                "download it by other means and give its path"
            ) from None
    else:
        path = Path(source).expanduser()
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as weights ({error.strerror})") from None
    if empty:
        raise UserError(f"{source}: the file is empty; copy or make it again")
    return path


def load(path: Path, source: str) -> Any:
    """Returns a checkpoint's content: tensors, arrays and plain containers.

    A ``.pkl`` that torch did not write goes through a restricted unpickler, which can rebuild
    arrays and tensors and nothing else; every other file through ``torch.load(weights_only=True)``.

    Args:
        path: a readable file.
        source: what messages call it.

    Raises:
        UserError: truncated, no checkpoint, or something that could execute code.
    """
    with path.open("rb") as file:
        of_torch = file.read(32).startswith(_TORCH_FILE)
    try:
        if path.suffix == ".pkl" and not of_torch:
            with path.open("rb") as file:
                # Detectron's files are from Python 2.
                return _TensorUnpickler(file, encoding="latin1").load()
        with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (_Refused, pickle.UnpicklingError) as error:
        refused = _refused_name(error)
        if refused:
            raise UserError(
                f"{source}: refused, nothing executed: it holds {refused}, which is no tensor and "
                "could run code; save the state dict alone and give that"
            ) from None
        raise UserError(_not_a_checkpoint(source)) from None
    except Exception:  # bytes that are no pickle can raise anything
        raise UserError(_not_a_checkpoint(source)) from None


def find_tensors(content: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Returns the tensors and arrays of a checkpoint's content; nested names are joined by dots."""
    if not isinstance(content, Mapping):
        return {}
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return find_tensors(content[container])
    found: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or name.endswith("_momentum"):
            continue
        if isinstance(value, torch.Tensor):
            found[prefix + name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            # Arrays from big-endian machines exist; torch has native byte order only.
            native = value.astype(value.dtype.newbyteorder("="))
            found[prefix + name] = torch.from_numpy(native)
        elif isinstance(value, Mapping):
            found.update(find_tensors(value, f"{prefix}{name}."))
    return found


class _Refused(Exception):
    """Carries the name of a class or function that a pickle asked for."""


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy.core is numpy._core since NumPy 2.
        key = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if key not in _REBUILDERS:
            raise _Refused(f"{module}.{name}")
        return _REBUILDERS[key]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _load_storage(data: bytes) -> Any:
    # torch.storage._load_from_bytes, but for tensors alone.
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_REBUILDERS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    # What numpy itself names in its pickles, whatever module it lives in.
    "numpy.core.multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "numpy.core.multiarray.scalar": np.float32(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _load_storage,
}


# Training scripts keep their arguments and NumPy figures (best accuracy) beside the weights.
_BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    np.zeros(1).__reduce__()[0],
    np.float32(0).__reduce__()[0],
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")},
]


def _refused_name(error: Exception) -> str | None:
    if isinstance(error, _Refused):
        return str(error)
    # torch words it "Unsupported global: GLOBAL x.y was not ..." or "unsupported GLOBAL x.y whose".
    words = str(error).partition("GLOBAL ")[2].split()
    return words[0] if words else None


def _not_a_checkpoint(source: str) -> str:
    return f"{source}: truncated, or not a checkpoint; copy or make it again"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
