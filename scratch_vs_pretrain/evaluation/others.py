"""Evaluators beside COCO's: users' (``SVP.EVALUATORS``), VOC's, and a Panoptic FPN's.

A Panoptic FPN is scored on COCO-format data with masks: the objects are the things; what no object
covers is one class of stuff, ``background``. Crowds are void. Definitions: Kirillov et al.,
"Panoptic Segmentation" (arXiv 1801.00868), Section 4.
"""

import functools
import math
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from pycocotools import mask as mask_api

from scratch_vs_pretrain.config import registered
from scratch_vs_pretrain.data.coco import CocoFile
from scratch_vs_pretrain.data.loading import load_ground_truth
from scratch_vs_pretrain.data.voc import is_voc, voc_file
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.scores import by_image

# AP50 is the VOC benchmark's; of VOC 2007 with its 11-point metric.
VOC_NUMBERS = ("AP", "AP50", "AP75")
# Of the semantic head, as Detectron2 numbers them: all things are 0.
THINGS, BACKGROUND = 0, 1
STUFF = "background"

Segments = dict[int, str | int]

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
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and semantic != BACKGROUND + 1:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {semantic}; set it to {BACKGROUND + 1}: things "
            "and, as the one class of stuff, the background"
        )


def others_of(cfg: Any, dataset_name: str) -> dict[str, DatasetEvaluator]:
    """Returns a config's evaluators beside COCO's, by name."""
    others: dict[str, DatasetEvaluator] = {}
    if is_voc(dataset_name):
        others["VOC"] = VocScoreEvaluator(dataset_name)
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
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


class PanopticEvaluator(DatasetEvaluator):
    """Scores "sem_seg" and "panoptic_seg" of a model's outputs; numbers are percent."""

    def __init__(self, dataset_name: str) -> None:
        truth = load_ground_truth(dataset_name, "segm")
        self._images = {image["id"]: image for image in truth["images"]}
        ids = sorted(category["id"] for category in truth["categories"])
        self._classes = {category: k for k, category in enumerate(ids)}
        self._objects = by_image(truth["annotations"])
        self.reset()

    def reset(self) -> None:
        self._matched: Counter = Counter()
        self._confusion = np.zeros((2, 2), np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            truth, classes = self._truth(image["image_id"])
            segments, found = output["panoptic_seg"]
            names = {one["id"]: one["category_id"] if one["isthing"] else STUFF for one in found}
            self._matched += match(segments.cpu().numpy(), names, truth, classes)
            wanted = np.array([-1, *(int(name == STUFF) for name in classes.values())])[truth]
            known, semantic = wanted >= 0, output["sem_seg"].argmax(0).cpu().numpy()
            pairs = 2 * wanted[known] + semantic[known]
            self._confusion += np.bincount(pairs, minlength=4).reshape(2, 2)

    def evaluate(self) -> dict[str, dict[str, float]]:
        parts = comm.gather((self._matched, self._confusion))
        if not comm.is_main_process():
            return {}
        matched: Counter = sum((counts for counts, _ in parts), Counter())
        confusion = sum(table for _, table in parts)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = confusion.diagonal()[union > 0] / union[union > 0]
        numbers: dict[str, float] = {}
        things: tuple[str | int, ...] = tuple(self._classes.values())
        for suffix, names in {"": (*things, STUFF), "_th": things, "_st": (STUFF,)}.items():
            found = np.array([panoptic_quality(matched, name) for name in names])
            known = found[np.isfinite(found).all(1)]
            means = known.mean(0) if len(known) else np.full(3, math.nan)
            keys = [f"{kind}Q{suffix}" for kind in "PSR"]
            numbers |= zip(keys, means.tolist(), strict=True)
        mean_iou = 100 * float(iou.mean()) if len(iou) else math.nan
        return {"sem_seg": {"mIoU": mean_iou}, "panoptic_seg": numbers}

    def _truth(self, image_id: Any) -> tuple[np.ndarray, Segments]:
        """Returns (height, width) segment numbers, 0 where void, and each number's class."""
        height, width = (self._images[image_id][side] for side in ("height", "width"))
        segments = np.full((height, width), -1, np.int64)
        classes: Segments = {}
        for one in self._objects[image_id]:
            free = decoded(one["segmentation"], height, width) & (segments < 0)
            if one.get("iscrowd"):
                segments[free] = 0
            elif free.any():
                classes[len(classes) + 1] = self._classes[one["category_id"]]
                segments[free] = len(classes)
        if (segments < 0).any():
            classes[len(classes) + 1] = STUFF
            segments[segments < 0] = len(classes)
        return segments, classes


def match(
    found: np.ndarray, found_classes: Segments, truth: np.ndarray, true_classes: Segments
) -> Counter:
    """Matches one image's segments of one class whose IoU is above 0.5.

    `found` and `truth` are (height, width) numbers of segments, 0 for none (void).

    Returns:
        by (class, what): the sum of IoUs ("iou"), and how many "matched", "found" and "true".
    """
    counts: Any = Counter()
    numbers = found.ravel().tolist(), truth.ravel().tolist()
    area, true_area = map(Counter, numbers)
    pairs = Counter(zip(*numbers, strict=True))
    matched = set()
    for (one, other), shared in pairs.items():
        if found_classes.get(one, -1) != true_classes.get(other):
            continue
        iou = shared / (area[one] - pairs[one, 0] + true_area[other] - shared)
        if iou > 0.5:
            counts[true_classes[other], "iou"] += iou
            counts[true_classes[other], "matched"] += 1
            matched.add(one)
    for one, name in found_classes.items():
        # What lies in the void is no error.
        if one in matched or pairs[one, 0] <= 0.5 * area[one]:
            counts[name, "found"] += 1
    for name in true_classes.values():
        counts[name, "true"] += 1
    return counts


def panoptic_quality(counts: Counter, name: str | int) -> tuple[float, float, float]:
    """Returns PQ, SQ and RQ of a class in percent, NaN where it neither is nor is found."""
    either = (counts[name, "found"] + counts[name, "true"]) / 2
    if not either:
        return (np.nan, np.nan, np.nan)
    iou, matched = counts[name, "iou"], counts[name, "matched"]
    return 100 * iou / either, 100 * iou / max(matched, 1), 100 * matched / either


def semantic_truth(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Returns the semantic head's (height, width) int64 classes for (n, height, width) masks."""
    covered = masks.any(0) if len(masks) else torch.zeros(height, width, dtype=torch.bool)
    return torch.where(covered, THINGS, BACKGROUND)


def decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Returns a mask, given as polygons or encoded, as (height, width) bool."""
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, height, width)
    return mask_api.decode(segmentation).astype(bool)
