"""The only module that knows which Detectron2 is installed.

Detectron2 v0.6 (2021) names things that NumPy and Pillow have removed since, and imports its
compiled extension even where that is not used. :func:`prepare` supplies them, and only to v0.6:
upstream main needs nothing and gets nothing.

After ``import scratch_vs_pretrain`` the first import of Detectron2, whoever makes it, prepares it.
In an environment that `uv sync` made, the wheel of v0.6 has a ``.pth`` file by which every process
imports this package (packaging/detectron2-build-stub), so that there plain
``import detectron2.modeling`` works, too. This module is therefore light: it imports nothing that
Python has not imported when it starts.
"""

import builtins
import functools
import importlib.util
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

INSTALL_COMMAND = "uv sync"

# sha256 over `sha256sum` lines of v0.6's 140 modules (upstream tag v0.6, commit d1e04565), in
# byte order of their paths, without model_zoo/configs and projects.
V06_DIGEST = "f90ff86f075832a6a74662327b068865732064a1e3333161b2354cafb0d43a44"

# How a module registers what it defines, or something else.
_REGISTERS = re.compile(r"\n@?([A-Z][A-Z_]+)\.register(?:\(\)\n(?:def|class) (\w+)|\((\w+)\))")

# How data/datasets/builtin.py lists data sets: name, images and annotations; name, tree and split.
_COCO_SET = re.compile(r'"([^"]+)": \(\s*"([^"]+)",\s*"([^"]+\.json)",?\s*\)')
_VOC_SET = re.compile(r'\("(voc_[^"]+)", "([^"]+)", "([^"]+)"\)')


def source_folder() -> Path | None:
    """Returns the folder of the installed ``detectron2`` package, None if there is none.

    A clone of Detectron2's repository in the working directory, which Python also finds under
    that name, is none.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def modules_digest(folder: Path) -> tuple[str, int]:
    """Returns the digest that :data:`V06_DIGEST` is to be compared with, and the module count."""
    import hashlib

    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    modules = sorted(n for n in names if not n.startswith(("model_zoo/configs/", "projects/")))
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in modules]
    lines = "".join(f"{one}  ./{name}\n" for one, name in zip(digests, modules, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest(), len(modules)


def is_v06(folder: Path) -> bool:
    """Tells v0.6 from upstream main, whose version string is also "0.6"."""
    transform = folder / "data/transforms/transform.py"
    return transform.is_file() and "Image.LINEAR" in transform.read_text()


def prepare(folder: Path) -> None:
    """Makes ``import detectron2`` work, of which `folder` has v0.6."""
    import numpy as np
    from PIL import Image

    for name in ("bool", "float", "int", "object", "str"):
        if name not in np.__dict__:
            setattr(np, name, getattr(builtins, name))
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.BILINEAR  # type: ignore[attr-defined]
    if not any(folder.glob("_C*")):
        # Imported by layers/deform_conv.py and evaluation/fast_eval_api.py, called by neither here.
        sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")


class _Finder:
    """Finds nothing, and prepares Detectron2 when a part of it is first looked for."""

    @classmethod
    def find_spec(cls, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "detectron2" and cls in sys.meta_path:
            sys.meta_path.remove(cls)
            folder = source_folder()
            if folder is not None and is_v06(folder):
                prepare(folder)


sys.meta_path.insert(0, _Finder)


def default_cfg() -> Any:
    """Returns a copy of Detectron2's default config, as ``get_cfg()`` does, without its torch."""
    if "detectron2.config" in sys.modules:
        from detectron2.config import get_cfg

        return get_cfg()
    return _config_module("defaults")._C.clone()


def merge_into(cfg: Any, loaded: dict[str, Any], name: str) -> None:
    """Merges a config file's content into a config as Detectron2 does: old versions are upgraded.

    The same as the end of ``CfgNode.merge_from_file`` in config/config.py (v0.6, lines 55-83).
    """
    other = type(cfg)(loaded)
    compat = _config_module("compat")
    version = other.get("VERSION") or compat.guess_version(other, name)
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(other)
        return
    if version > cfg.VERSION:
        raise ValueError(f"Cannot merge a v{version} config into a v{cfg.VERSION} config.")
    old = compat.downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(other)
    new = compat.upgrade_config(old)
    cfg.clear()
    cfg.update(new)


@functools.cache
def _config_module(name: str) -> Any:
    """Imports a module of ``detectron2.config`` without the packages that it is in.

    ``detectron2/__init__.py`` imports torch, for seconds. defaults.py and compat.py need nothing
    of it but ``from .config import CfgNode``, which is fvcore's but for merging files.
    """
    package = "_scratch_vs_pretrain_detectron2_config"
    if package not in sys.modules:
        from fvcore.common.config import CfgNode

        folder = source_folder()
        if folder is None:
            raise UserError(f"Detectron2 is not installed; run: {INSTALL_COMMAND}")
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder / "config")]
        stand_in: Any = types.ModuleType(f"{package}.config")
        stand_in.CfgNode = CfgNode
        sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module(f"{package}.{name}")


def registered_sets() -> dict[str, dict[str, Any]]:
    """Returns the metadata of all registered data sets by name.

    As long as nothing has imported ``detectron2.data``, which takes torch and seconds, those of
    the built-in COCO, LVIS and VOC sets are read from its source and hold paths alone.
    """
    if "detectron2.data.datasets" in sys.modules:
        from detectron2.data import DatasetCatalog, MetadataCatalog

        return {name: MetadataCatalog.get(name).as_dict() for name in DatasetCatalog}
    return _built_in_sets()


def registered(name: str) -> dict[str, Any] | None:
    """Returns the metadata of one of :func:`registered_sets`, None where there is none."""
    return registered_sets().get(name)


@functools.cache
def _built_in_sets() -> dict[str, dict[str, Any]]:
    """Reads data/datasets/builtin.py (v0.6: lines 33-135 and 211-224), without running it."""
    source, root = source_folder(), os.getenv("DETECTRON2_DATASETS", "datasets")
    text = (source / "data/datasets/builtin.py").read_text() if source else ""
    found: dict[str, dict[str, Any]] = {}
    for name, images, file in _COCO_SET.findall(text):
        paths = {"image_root": images, "json_file": file}
        found[name] = {key: os.path.join(root, path) for key, path in paths.items()}
    for name, tree, split in _VOC_SET.findall(text):
        found[name] = {"dirname": os.path.join(root, tree), "split": split}
    return found


def part_names(module: str, registry: str) -> set[str]:
    """Returns the names that a registry holds, without the torch that importing it takes.

    Until `module` is imported, those of Detectron2's modeling and of this package, as their sources
    register them.
    """
    loaded = getattr(sys.modules.get(module), registry, ())
    return {name for name, _ in loaded} | _built_in_parts().get(registry, set())


@functools.cache
def _built_in_parts() -> dict[str, set[str]]:
    source, own = source_folder(), Path(__file__).parent
    folders = [own / "modeling", own / "training", own / "evaluation"]
    found: dict[str, set[str]] = {}
    for folder in [*folders, source / "modeling"] if source else folders:
        for file in folder.rglob("*.py"):
            text = file.read_text()
            for match in _REGISTERS.finditer(text) if ".register(" in text else ():
                found.setdefault(match[1], set()).add(match[2] or match[3])
    return found


def loss_normalizer(model: Any) -> float | None:
    """Returns what a one-stage detector divides its losses by, None of any other detector.

    A moving average of foreground anchors that is neither parameter nor buffer (Detectron2's
    modeling/meta_arch/dense_detector.py, ``_ema_update``), so that no checkpoint has it by itself.
    """
    return vars(model).get("loss_normalizer")


def restore_loss_normalizer(model: Any, values: Sequence[float | None], rank: int) -> None:
    """Puts the value of this process back, of those of all processes."""
    value = values[rank % len(values)] if values else None
    if value is not None:
        model.loss_normalizer = value
