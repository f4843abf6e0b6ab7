"""What a trained run gives: detections on any data set, as COCO's evaluation server takes them, and
a plain Detectron2 checkpoint and config, which need this package no more."""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from torch import nn

from scratch_vs_pretrain import modeling
from scratch_vs_pretrain.config import classes_key, flatten, load_config
from scratch_vs_pretrain.data import datasets as registration
from scratch_vs_pretrain.data.loading import load_ground_truth
from scratch_vs_pretrain.errors import UserError, reason_of
from scratch_vs_pretrain.evaluation.evaluator import (
    CocoScoreEvaluator,
    run_inference,
    tasks_of,
    write_detections,
)
from scratch_vs_pretrain.modeling.checkpoint_file import check_output, save
from scratch_vs_pretrain.modeling.checks import use_runnable_norms
from scratch_vs_pretrain.modeling.initial import freeze
from scratch_vs_pretrain.run_folder import RunFolder, read_section, write_for_user
from scratch_vs_pretrain.training.checkpoint import load_trained

# What a result of each task has beside image, category and score.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}

# Where the modules of a plain Detectron2 model are.
PLAIN = ("detectron2", "fvcore", "torch")


def predict(
    run: Path,
    dataset: str,
    prefix: Path | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> list[Path]:
    """Writes the detections of a run's newest checkpoint, one file for each task of its model.

    Test augmentation is used if the run's config has it.

    Args:
        dataset: registered with Detectron2 or by the run's config; it needs no annotations.
        prefix: ``PREFIX_bbox.json`` and so on are written; by default ``RUN/predictions/DATASET``.
        progress: wraps the iterable of batches.

    Returns:
        The files, each a list of COCO results.
    """
    folder = RunFolder(run)
    folder.read()
    cfg = config_of(folder.config_file)
    registration.register(cfg)
    _check_dataset(cfg, dataset)
    model = load_model(folder, cfg)
    with warnings.catch_warnings():
        # Of Detectron2 v0.6's calls of a newer torch; training's go into its log.
        warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
        evaluator = CocoScoreEvaluator(dataset, tasks=())
        run_inference(cfg, model, dataset, evaluator, progress)
    if dataset == cfg.DATASETS.TEST[0]:
        write_detections(folder, folder.read().iteration, dataset, evaluator.results)
    prefix = prefix or folder.predictions / dataset
    files = {task: prefix.with_name(f"{prefix.name}_{task}.json") for task in tasks_of(cfg)}
    for task, file in files.items():
        keys = ("image_id", "category_id", FIELDS[task], "score")
        write_for_user(file, json.dumps([{k: one[k] for k in keys} for one in evaluator.results]))
    return list(files.values())


def load_model(folder: RunFolder, cfg: CfgNode) -> nn.Module:
    """Builds a run's model with the weights of its newest readable checkpoint."""
    checkpoint = load_trained(folder)
    with building(folder.config_file):
        model = build_model(cfg)
    use_runnable_norms(model, cfg.MODEL.DEVICE, world_size=1)
    freeze(model, cfg)
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError:
        raise _not_of_the_config(folder) from None
    return model


def _not_of_the_config(folder: RunFolder) -> UserError:
    return UserError(
        f"{folder.checkpoints}: the newest checkpoint is not of the model that "
        f"{folder.config_file} describes; restore the config"
    )


@contextlib.contextmanager
def building(config_file: Path) -> Iterator[None]:
    """Says of what goes wrong in it that the config describes no model."""
    try:
        yield
    except Exception as error:  # of any kind, from a registry or a builder
        reason = reason_of(error)[:200]
        raise UserError(
            f"{config_file}: its model cannot be built ({reason}); restore the config"
        ) from None


def config_of(file: Path) -> CfgNode:
    """Returns a run folder's frozen config, on the CPU where there is no CUDA device."""
    cfg = load_config(file).clone()
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
    return cfg


def _check_dataset(cfg: CfgNode, dataset: str) -> None:
    registration.source(dataset)
    registration.ensure([dataset])
    categories = len(load_ground_truth(dataset)["categories"])
    classes = flatten(cfg)[classes_key(cfg)]
    if categories != classes:
        raise UserError(
            f"{dataset}: has {categories} categories, but the model was trained for "
            f"{classes}; choose a data set with the same ones"
        )
    if cfg.MODEL.KEYPOINT_ON and not MetadataCatalog.get(dataset).get("keypoint_names"):
        raise UserError(f"{dataset}: has no keypoints; choose a keypoint data set")


def export(run: Path, output: Path) -> tuple[int, tuple[str, ...]]:
    """Writes a run's newest checkpoint as Detectron2's DetectionCheckpointer reads it.

    That is ``{"model": state dict}``, and YAML beside it with its MODEL.WEIGHTS. Of files that are
    there already, only those of an earlier export are replaced: the YAML names the checkpoint.

    Returns:
        The iteration after which the weights were saved; and modules to be imported before the
        config is read, because the model is not Detectron2's alone: the config says how.

    Raises:
        UserError: an output that is no ``.pth`` file, lies in a run folder or would replace what is
            no export; or a run that cannot be exported.
    """
    folder = RunFolder(run)
    folder.read()
    config = output.with_suffix(".yaml")
    check_output(output)
    _check_replaced(output, config)
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
            raise _not_of_the_config(folder)
    lines = [f"#   import {module}" for module in modules]
    if lines:
        own = "from scratch_vs_pretrain.config import add_svp_config; add_svp_config(cfg)"
        lines = ["# Before a config of get_cfg() merges this file:", *lines, f"#   {own}"]
        lines += [f"#   {name}.add_config(cfg)  # if it has one" for name in cfg.SVP.IMPORTS]
    written = cfg if modules or plain is None else plain
    save(output, {"model": checkpoint["model"]})
    write_for_user(config, "\n".join([*lines, written.dump()]))
    return checkpoint["iteration"], modules


def _check_replaced(output: Path, config: Path) -> None:
    if read_section(config, "MODEL").get("WEIGHTS") == str(output.absolute()):
        return
    for file in (output, config):
        if file.exists():
            raise UserError(
                f"{file}: is there, and svp export did not write it; choose another name"
            )


def _plain(cfg: CfgNode) -> CfgNode | None:
    """Returns the config with Detectron2's own keys and builders alone; None if it needs others."""
    plain = get_cfg()
    try:
        _copy(cfg, plain)
        # Our builders of ResNets make the same networks as Detectron2's, and more.
        plain.MODEL.BACKBONE.NAME = plain.MODEL.BACKBONE.NAME.replace("build_svp_", "build_")
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
    # Of this package the room, which registers its networks wherever in it they will be.
    room = modeling.__name__
    foreign = {
        room if name.startswith(f"{room}.") else name
        for name in needed
        if name.partition(".")[0] not in PLAIN
    }
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return shapes, tuple(sorted(foreign))
