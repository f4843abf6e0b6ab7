"""A trained run as a plain Detectron2 checkpoint and config, which need this package no more."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model

from scratch_vs_pretrain import modeling as _registers_networks  # noqa: F401
from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import save
from scratch_vs_pretrain.run_folder import RunFolder, write_for_user
from scratch_vs_pretrain.training.checkpoint import load_trained
from scratch_vs_pretrain.training.predict import building

# Ours, which build the same networks and more, and Detectron2's.
BUILDERS = {
    "build_svp_resnet_backbone": "build_resnet_backbone",
    "build_svp_resnet_fpn_backbone": "build_resnet_fpn_backbone",
    "build_svp_retinanet_resnet_fpn_backbone": "build_retinanet_resnet_fpn_backbone",
}
PLAIN = ("detectron2", "fvcore", "torch")


def export(run: Path, output: Path) -> tuple[int, tuple[str, ...]]:
    """Writes a run's newest checkpoint as Detectron2's DetectionCheckpointer reads it.

    That is ``{"model": state dict}``, and YAML beside it with its MODEL.WEIGHTS.

    Returns:
        The iteration after which the weights were saved; and modules to be imported before the
        config is read, because the model is not Detectron2's alone: the config says how.
    """
    folder = RunFolder(run)
    folder.read()
    config = output.with_suffix(".yaml")
    if output.suffix != ".pth":
        raise UserError(f"-o {output}: a checkpoint's name ends in .pth; write {output}.pth")
    checkpoint = load_trained(folder)
    cfg = load_config(folder.config_file).clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(output.absolute())
    shapes = {name: tensor.shape for name, tensor in checkpoint["model"].items()}
    plain = _plain(cfg)
    modules: tuple[str, ...] = ()
    if plain is None or _network(plain)[0] != shapes:
        with building(folder.config_file):
            found, modules = _network(cfg)
        if found != shapes:
            raise UserError(
                f"{folder.checkpoints}: the newest checkpoint is not of the model that "
                f"{folder.config_file} describes; restore the config"
            )
    save(output, {"model": checkpoint["model"]})
    write_for_user(config, _text(cfg if modules else plain or cfg, modules))
    return checkpoint["iteration"], modules


def _plain(cfg: CfgNode) -> CfgNode | None:
    """Returns the config with Detectron2's own keys and builders alone; None if it needs others."""
    plain = get_cfg()
    try:
        _copy(cfg, plain)
        name = plain.MODEL.BACKBONE.NAME
        plain.MODEL.BACKBONE.NAME = BUILDERS.get(name, name)
        return None if _network(plain)[1] else plain
    except Exception:  # of any kind, from a builder that needs what is not there
        return None


def _copy(source: CfgNode, target: CfgNode) -> None:
    """Copies the values of the keys that both have."""
    for key, value in source.items():
        if key in target and isinstance(value, dict):
            _copy(value, target[key])
        elif key in target:
            target[key] = value


def _network(cfg: CfgNode) -> tuple[dict[str, torch.Size], tuple[str, ...]]:
    """Returns a model's parameters and buffers by name, and modules that it needs beside torch's
    and Detectron2's."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_model(cfg)
    needed = {type(module).__module__ for module in model.modules()}
    needed.add(BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME).__module__)
    needed.add(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__)
    foreign = sorted(name for name in needed if name.partition(".")[0] not in PLAIN)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}, tuple(foreign)


def _text(cfg: CfgNode, modules: Iterable[str]) -> str:
    lines = [f"#   import {module}" for module in modules]
    if lines:
        own = "from scratch_vs_pretrain.config import add_svp_config; add_svp_config(cfg)"
        lines = ["# Before a config of get_cfg() merges this file:", *lines, f"#   {own}"]
        lines += [f"#   {name}.add_config(cfg)  # if it has one" for name in cfg.SVP.IMPORTS]
    return "\n".join([*lines, cfg.dump()])
