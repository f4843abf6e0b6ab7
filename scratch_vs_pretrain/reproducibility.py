"""What a result depends on: random states, and where it comes from (versions, commit, machine)."""

import datetime
import hashlib
import importlib.metadata
import itertools
import platform
import random
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scratch_vs_pretrain import _detectron2

PACKAGES = (
    "scratch-vs-pretrain",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "pycocotools",
    "faster-coco-eval",
    "fvcore",
)


def random_states() -> dict[str, Any]:
    """Returns this process's random states, as types that ``weights_only`` loading admits."""
    version, words, gauss = random.getstate()
    _, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(key, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts the states of :func:`random_states` back."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key, *rest = states["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def provenance(device: str) -> dict[str, Any]:
    """Returns run.json's ``provenance`` for a run on `device` that starts now."""
    folder = _detectron2.source_folder()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "git_commit": git_commit(Path(__file__).parent),
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda if device.startswith("cuda") else None,
            "detectron2_sha256": _detectron2.modules_digest(folder)[0] if folder else None,
            **{name: _version(name) for name in PACKAGES},
        },
    }


def git_commit(folder: Path) -> str | None:
    """Returns the commit of the work tree around `folder`, "+changes" if it is not clean."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.check_output(
            command, cwd=folder, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def module_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns version and hash of the sources of users' modules that are imported, by name.

    The sources are all Python files of the outermost package that a module is in.
    """
    found = {}
    for name in names:
        packages = itertools.accumulate(name.split("."), "{}.{}".format)
        # A namespace package has no file; what is in it belongs to several distributions.
        top = next(sys.modules[part] for part in packages if sys.modules[part].__file__)
        file = Path(str(top.__file__))
        digest = hashlib.sha256()
        for source in sorted(file.parent.rglob("*.py")) if file.stem == "__init__" else [file]:
            digest.update(f"{source.relative_to(file.parent).as_posix()}\0".encode())
            digest.update(hashlib.sha256(source.read_bytes()).digest())
        version = getattr(top, "__version__", None) or _version(top.__name__) or "unversioned"
        found[name] = f"{version} (sha256 {digest.hexdigest()})"
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
