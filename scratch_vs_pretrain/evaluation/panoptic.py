"""Panoptic quality and mean IoU of a Panoptic FPN on COCO-format data with masks.

The objects are the things; what no object covers is one class of stuff, ``background``. Crowds are
void. Definitions: Kirillov et al., "Panoptic Segmentation" (arXiv 1801.00868), Section 4.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from scratch_vs_pretrain.evaluation.detections import decoded
from scratch_vs_pretrain.evaluation.ground_truth import load_ground_truth
from scratch_vs_pretrain.evaluation.scores import by_image

# Of the semantic head, as Detectron2 numbers them: all things are 0.
THINGS, BACKGROUND = 0, 1
STUFF = "background"

Segments = dict[int, str | int]


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
            numbers |= zip(
                (f"PQ{suffix}", f"SQ{suffix}", f"RQ{suffix}"), means.tolist(), strict=True
            )
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
