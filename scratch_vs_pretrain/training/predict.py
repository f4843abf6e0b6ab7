"""A trained run's detections on any data set, as COCO's evaluation server takes them."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from scratch_vs_pretrain.config import classes_key, flatten, load_config
from scratch_vs_pretrain.data import datasets as registration
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.detections import write_detections
from scratch_vs_pretrain.evaluation.evaluator import CocoScoreEvaluator, run_inference, tasks_of
from scratch_vs_pretrain.evaluation.ground_truth import load_ground_truth
from scratch_vs_pretrain.modeling.checks import use_runnable_norms
from scratch_vs_pretrain.modeling.initial import freeze
from scratch_vs_pretrain.run_folder import RunFolder, write_for_user
from scratch_vs_pretrain.training.checkpoint import load_trained

# What a result of each task has beside image, category and score.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


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
    return [_write(prefix, task, evaluator.results) for task in tasks_of(cfg)]


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
        raise UserError(
            f"{folder.checkpoints}: the newest checkpoint is not of the model that "
            f"{folder.config_file} describes; restore the config"
        ) from None
    return model


@contextlib.contextmanager
def building(config_file: Path) -> Iterator[None]:
    """Says of what goes wrong in it that the config describes no model."""
    try:
        yield
    except Exception as error:  # of any kind, from a registry or a builder
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
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


def _write(prefix: Path, task: str, results: Sequence[Mapping[str, Any]]) -> Path:
    keys = ("image_id", "category_id", FIELDS[task], "score")
    path = prefix.with_name(f"{prefix.name}_{task}.json")
    write_for_user(path, json.dumps([{key: one[key] for key in keys} for one in results]))
    return path
