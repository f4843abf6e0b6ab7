"""Evaluators beside COCO's: users' (``SVP.EVALUATORS``), VOC's, and a Panoptic FPN's."""

import functools
import math
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.registry import Registry

from scratch_vs_pretrain.config import registered
from scratch_vs_pretrain.data.coco import CocoFile
from scratch_vs_pretrain.data.voc import is_voc, voc_file
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.panoptic import BACKGROUND, PanopticEvaluator

# AP50 is the VOC benchmark's; of VOC 2007 with its 11-point metric.
VOC_NUMBERS = ("AP", "AP50", "AP75")

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


class VocScoreEvaluator(PascalVOCDetectionEvaluator):
    """Scores the task ``voc``; numbers are percent, and NaN where a class has no object.

    Detectron2's evaluator is given a copy of the tree, corners rounded and missing flags 0: it
    cannot read all (VOC 2012 has a few fractions, others lack flags, or list images with blank
    lines).
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(_plain_copy(dataset_name, voc_file(dataset_name))[0])

    def evaluate(self) -> dict[str, dict[str, float]]:
        with warnings.catch_warnings():
            # It divides by the number of objects of each class.
            warnings.simplefilter("ignore", RuntimeWarning)
            found = super().evaluate()
        return {"voc": {name: float(found["bbox"][name]) for name in VOC_NUMBERS}} if found else {}


@functools.lru_cache(maxsize=4)
def _plain_copy(dataset_name: str, file: CocoFile) -> tuple[str, tempfile.TemporaryDirectory[str]]:
    """Returns a tree's copy that Detectron2's evaluator can read: registered name and folder."""
    folder = tempfile.TemporaryDirectory(prefix="svp_voc_")
    annotations, lists = Path(folder.name) / "Annotations", Path(folder.name) / "ImageSets/Main"
    annotations.mkdir()
    lists.mkdir(parents=True)
    trees = {image["id"]: ElementTree.Element("annotation") for image in file.images}
    (lists / "all.txt").write_text("".join(f"{one}\n" for one in trees))
    for one in file.annotations:
        entry = ElementTree.SubElement(trees[one["image_id"]], "object")
        fields = {"name": one["name"], "pose": "Unspecified", "truncated": "0"}
        for key, text in {**fields, "difficult": str(one["difficult"])}.items():
            ElementTree.SubElement(entry, key).text = text
        box = ElementTree.SubElement(entry, "bndbox")
        left, top, width, height = one["bbox"]
        corners = (left + 1, top + 1, left + width, top + height)
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(box, key).text = str(round(value))
    for identity, top_element in trees.items():
        ElementTree.ElementTree(top_element).write(annotations / f"{identity}.xml")
    original, name = MetadataCatalog.get(dataset_name), f"{dataset_name} in {folder.name}"
    classes = original.thing_classes
    MetadataCatalog.get(name).set(
        dirname=folder.name, split="all", year=original.year, thing_classes=classes
    )
    return name, folder
