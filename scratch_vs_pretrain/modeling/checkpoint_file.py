"""Checkpoint files: found, opened and hashed once, and read without executing what they hold."""

import functools
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import catalog as _catalog  # noqa: F401  registers catalog://
from detectron2.utils.file_io import PathManager
from torch import Tensor

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.unpickling import Refused, read_torch_or_pickle
from scratch_vs_pretrain.run_folder import write_for_user

# Where checkpoints keep the state dict among other things.
CONTAINERS = ("model", "state_dict", "model_state", "model_state_dict", "blobs")

# Detectron's GroupNorm models as one would write them after detectron2://ImageNetPretrained/MSRA/
# R-50.pkl. They are not stored there; Detectron2's catalogue knows where, by a name without ending.
_GROUPNORM_MODEL = re.compile(
    r"(?:detectron2|catalog)://(ImageNetPretrained/FAIR/R-\d+-GN)(?:\.pkl)?"
)


def local_file(source: str | Path) -> Path:
    """Returns a readable local file for a path, or for a URI that Detectron2 can fetch.

    Detectron's GroupNorm models are found as ``detectron2://ImageNetPretrained/FAIR/R-50-GN.pkl``,
    too; ``timm://NAME`` is what timm downloads.
    """
    if "://" in str(source):
        catalogued = _GROUPNORM_MODEL.fullmatch(str(source))
        address = f"catalog://{catalogued[1]}" if catalogued else str(source)
        try:
            if address.startswith("timm://"):
                path = _timm_file(address.removeprefix("timm://"))
            else:
                path = Path(PathManager.get_local_path(address))
        except Exception as error:  # whatever a handler, a server or a catalogue may raise
            raise UserError(
                f"{source}: cannot be fetched ({' '.join(str(error).split())}); "
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


def _timm_file(name: str) -> Path:
    """Returns a file of the weights that timm knows for a network; downloads them once."""
    import timm

    path = Path(torch.hub.get_dir()) / "svp-timm" / f"{name}.pth"
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name}")
    if not path.is_file():
        save(path, timm.create_model(name, pretrained=True).state_dict())
    return path


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, *_version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=8)
def _opened(source: str, path: Path, *_version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a file's tensors, and its notes."""
    try:
        content = load(path, source)
        notes = content.get("svp") if isinstance(content, Mapping) else None
        plain = json.dumps(notes, allow_nan=False) if isinstance(notes, Mapping) else "{}"
        return find_tensors(content), json.loads(plain)
    except (RecursionError, TypeError, ValueError):
        raise UserError(_not_a_checkpoint(source)) from None


def _version(path: Path) -> tuple[Path, int, int]:
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


def weights_sha256(source: str | Path) -> str:
    """Returns the sha256 of a checkpoint file, computed once while it is unchanged."""
    return _sha256(*_version(local_file(source)))


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint, executing nothing that it holds.

    A file of :func:`local_file` stays in memory until it changes or :func:`forget_checkpoints`.

    Returns:
        Names to tensors on the CPU. A state dict within a container such as "model" or "state_dict"
        has its own names; further nesting is joined by dots ("teacher.backbone.conv1.weight").
    """
    tensors, _ = _opened(str(source), *_version(local_file(source)))
    if not tensors:
        raise UserError(f"{source}: holds no tensors; give a checkpoint or a state dict")
    return dict(tensors)


def read_metadata(source: str | Path) -> dict[str, Any]:
    """Returns what ``write_backbone`` noted in a file, empty for files of other origin."""
    return dict(_opened(str(source), *_version(local_file(source)))[1])


def forget_checkpoints() -> None:
    """Frees the memory of all checkpoints that were opened."""
    _opened.cache_clear()


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values with ``torch.save``, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_for_user(path, buffer.getbuffer())


def write_backbone(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes backbone weights (Detectron2's names) and plain metadata, as :func:`save`."""
    model = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save(path, {"model": model, "svp": metadata})


def load(path: Path, source: str) -> Any:
    """Returns a checkpoint's content: tensors (arrays are tensors, too) and plain containers.

    Read are safetensors, torch's archives of today and files of before 2020, and other pickles;
    messages call them `source`.
    """
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            from safetensors.torch import load_file

            return load_file(path)
        return read_torch_or_pickle(path)
    except ModuleNotFoundError:
        raise UserError(f"{source}: a safetensors file; run: pip install safetensors") from None
    except Refused as error:
        raise UserError(
            f"{source}: refused, nothing executed: it holds {error}, which is no tensor and could "
            "run code; save the state dict alone and give that"
        ) from None
    except Exception:  # bytes that are no pickle can raise anything
        raise UserError(_not_a_checkpoint(source)) from None


def find_tensors(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint's content; nested names are joined by dots."""
    if not isinstance(content, Mapping):
        return {}
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return find_tensors(content[container])
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or name.endswith("_momentum"):
            continue
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found.update(find_tensors(value, f"{prefix}{name}."))
    return found


def _not_a_checkpoint(source: str) -> str:
    return f"{source}: truncated, or not a checkpoint; copy or make it again"
