"""Evaluators beside COCO's: users' (``SVP.EVALUATORS``), VOC's, and a Panoptic FPN's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.registry import Registry

from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.panoptic import BACKGROUND, PanopticEvaluator
from scratch_vs_pretrain.evaluation.voc_score import VocScoreEvaluator
from scratch_vs_pretrain.plugins import registered

EVALUATORS = Registry("EVALUATORS")
EVALUATORS.__doc__ = """Builders of users' evaluators, called with the config and the name of a test
data set; they return a DatasetEvaluator, whose numbers become tasks of evaluations."""


def check_names(cfg: Any) -> None:
    """Checks that every evaluator of a config is there.

    Raises:
        UserError: a name is not registered, or a Panoptic FPN has other stuff than background.
    """
    for name in cfg.SVP.EVALUATORS:
        registered(EVALUATORS, name, "SVP.EVALUATORS")
    semantic = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if _is_panoptic(cfg) and semantic != BACKGROUND + 1:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {semantic}; set it to {BACKGROUND + 1}: things "
            "and, as the one class of stuff, the background"
        )


def others_of(cfg: Any, dataset_name: str) -> dict[str, DatasetEvaluator]:
    """Returns a config's evaluators beside COCO's, by name."""
    others: dict[str, DatasetEvaluator] = {}
    if is_voc(dataset_name):
        others["VOC"] = VocScoreEvaluator(dataset_name)
    if _is_panoptic(cfg):
        others["PanopticFPN"] = PanopticEvaluator(dataset_name)
    return others | {name: EVALUATORS.get(name)(cfg, dataset_name) for name in cfg.SVP.EVALUATORS}


class WithOthers(DatasetEvaluators):
    """Adds the tasks of further evaluators to those of a first one."""

    def __init__(self, first: DatasetEvaluator, others: Mapping[str, DatasetEvaluator]) -> None:
        super().__init__([first, *others.values()])
        self._names = tuple(others)

    def evaluate(self) -> dict[str, Any]:
        tasks, *others = [evaluator.evaluate() for evaluator in self._evaluators]
        if not comm.is_main_process():
            return {}
        for name, found in zip(self._names, others, strict=True):
            tasks |= as_tasks(name, found, tasks)
        return tasks


def as_tasks(name: str, found: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a user's evaluator found, as tasks of an evaluation file.

    Raises:
        UserError: no numbers, something else than numbers, or a task that there is already.
    """
    where = f"SVP.EVALUATORS: {name}"
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where} returned no numbers; let evaluate() return them by name")
    nested = all(isinstance(numbers, Mapping) for numbers in found.values())
    tasks: dict[str, Any] = {}
    for task, numbers in (found if nested else {name: found}).items():
        if task in known:
            raise UserError(f"{where} returned a task {task}, which there is; give it another name")
        tasks[task] = {}
        for key, value in numbers.items():
            if not isinstance(value, (int, float, np.number)):
                raise UserError(f"{where} returned {value!r} for {task}/{key}, which is no number")
            tasks[task][str(key)] = float(value) if math.isfinite(value) else None
    if not all(tasks.values()):
        raise UserError(f"{where} returned no numbers; let evaluate() return them by name")
    return tasks


def _is_panoptic(cfg: Any) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"
