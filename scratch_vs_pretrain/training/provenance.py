"""Where a run's numbers come from: versions, commit, machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

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


def provenance(device: str) -> dict[str, Any]:
    """Returns run.json's ``provenance`` for a run on `device` that starts now."""
    from scratch_vs_pretrain import _detectron2

    folder = _detectron2.source_folder()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "processes": comm.get_world_size(),
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
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
