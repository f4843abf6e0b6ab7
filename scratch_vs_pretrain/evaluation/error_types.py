"""What a detector's errors cost, by TIDE's definitions (Bolya et al., arXiv 2008.08115), for boxes.

Every detection that is no true positive at IoU 0.5 has one error: it overlaps an object of

- its class by 0.1 to 0.5: *localization*;
- another class by at least 0.5: *classification*;
- its class by more than 0.5, but a better detection has the object: *duplicate*;
- no object by more than 0.1: *background*;
- else *both* the class and the place are wrong.

An object that was not found, and that no classification or localization error would find once
mended, is *missed*. The cost of an error type is by how much AP50 rises when all of its errors are
mended: TIDE's dAP. Costs do not add up to what AP50 lacks, because one mended error may hide
another.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(ERROR_TYPES))
CORRECT = len(ERROR_TYPES)

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
DETECTIONS_PER_IMAGE = 100
RECALLS = np.arange(101) / 100


Entries = Sequence[Mapping[str, Any]]

# Of a detection: its error or CORRECT, whether AP counts it (it is not inside a crowd), and the
# class in which it would be a true positive once mended, or -1.
_DETECTION = [("score", float), ("name", int), ("kind", int), ("counts", bool), ("mended", int)]


def error_costs(
    ground_truth: Mapping[str, Any], results: Entries
) -> dict[str, float] | dict[str, None]:
    """Returns the cost of each of :data:`ERROR_TYPES` in percent of AP50, None without objects, of
    COCO results with ``bbox`` on COCO JSON."""
    objects, found = (by_image(entries) for entries in (ground_truth["annotations"], results))
    images = [_image(found[one["id"]], objects[one["id"]]) for one in ground_truth["images"]]
    positives = np.concatenate([np.empty(0, np.int64), *(classes for _, classes, _ in images)])
    if not len(positives):
        return dict.fromkeys(ERROR_TYPES)
    missed = np.concatenate([classes[lost] for _, classes, lost in images])
    return _costs(np.concatenate([part for part, _, _ in images]), positives, missed)


def by_image(entries: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Groups annotations or results; an image without any has none."""
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for one in entries:
        found[one["image_id"]].append(one)
    return found


def _image(results: Entries, annotations: Entries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns an image's detections, best first, objects' classes, and which of them are missed."""
    best = sorted(results, key=lambda one: -one["score"])[:DETECTIONS_PER_IMAGE]
    crowds = [one for one in annotations if one.get("iscrowd", 0)]
    objects = [one for one in annotations if not one.get("iscrowd", 0)]
    predicted, classes, theirs = (
        np.array([one["category_id"] for one in some], np.int64) for some in (best, objects, crowds)
    )
    iou = _overlaps(best, objects)
    same = predicted[:, None] == classes
    holders = _match(np.where(same, iou, 0.0))
    correct = np.isin(np.arange(len(best)), holders)
    kinds, mended, lost = _errors(iou, same, correct, holders >= 0, classes)
    inside = (_overlaps(best, crowds, crowd=True) > FOREGROUND_IOU) & (predicted[:, None] == theirs)
    counts = correct | ~inside.any(axis=1)
    scores = [one["score"] for one in best]
    found = np.rec.fromarrays((scores, predicted, kinds, counts, mended), dtype=_DETECTION)
    return found, classes, lost


def _match(overlaps: np.ndarray) -> np.ndarray:
    """Returns (objects,) the detection that has each object, -1 for none; the best choose first."""
    holders = np.full(overlaps.shape[1], -1)
    left = overlaps.copy()
    for detection in np.flatnonzero((overlaps >= FOREGROUND_IOU).any(axis=1)):
        target = int(left[detection].argmax())
        if left[detection, target] >= FOREGROUND_IOU:
            holders[target] = detection
            left[:, target] = 0
    return holders


def _errors(
    iou: np.ndarray, same: np.ndarray, correct: np.ndarray, taken: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each detection's error, the class in which it would be correct, and what is missed.

    Only the best of the errors about one object can be mended, and only if it is not taken.
    """
    ours, others = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    near, wrong, double, nearest = (
        one.max(axis=1, initial=0.0) for one in (ours, others, ours[:, taken], iou)
    )
    kinds = np.select(
        [
            correct,
            (near >= BACKGROUND_IOU) & (near <= FOREGROUND_IOU),
            wrong >= FOREGROUND_IOU,
            double >= FOREGROUND_IOU,
            nearest <= BACKGROUND_IOU,
        ],
        [CORRECT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    mended, lost = np.full(len(kinds), -1, np.int64), ~taken
    for at in np.flatnonzero(np.isin(kinds, (CLASSIFICATION, LOCALIZATION))):
        target = (ours if kinds[at] == LOCALIZATION else others)[at].argmax()
        if lost[target]:
            mended[at] = classes[target]
            lost[target] = False
    return kinds, mended, lost


def _costs(found: np.ndarray, positives: np.ndarray, missed: np.ndarray) -> dict[str, float]:
    found = found[np.argsort(-found["score"], kind="stable")]
    correct, names, mended = found["kind"] == CORRECT, found["name"], found["mended"]
    before = _mean_ap(found["counts"], names, correct, positives, missed[:0])
    costs = {}
    for kind, name in enumerate(ERROR_TYPES):
        errors = found["kind"] == kind
        saved = errors & (mended >= 0)
        counts, true = (found["counts"] & ~errors) | saved, correct | saved
        lost = missed if kind == MISSED else missed[:0]
        after = _mean_ap(counts, np.where(saved, mended, names), true, positives, lost)
        costs[name] = max(0.0, after - before)
    return costs


def _mean_ap(
    counts: np.ndarray, names: np.ndarray, true: np.ndarray, positives: np.ndarray, lost: np.ndarray
) -> float:
    """Returns the mean in percent over classes with objects or detections; these come best first.

    `positives` and `lost` are the classes of all objects, and of those that do not count.
    """
    values = []
    for name in np.union1d(names[counts], positives):
        count = int(np.sum(positives == name)) - int(np.sum(lost == name))
        hits = true[counts & (names == name)]
        if len(hits) or count:
            values.append(_ap(hits, count))
    return 100 * float(np.mean(values)) if values else 100.0  # nothing was found, nor is left to


def _ap(hits: np.ndarray, positives: int) -> float:
    """Returns COCO's AP: precision at 101 recalls, made monotonous from the right."""
    if not positives or not len(hits):
        return 0.0
    found = np.cumsum(hits)
    precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(found / positives, RECALLS, side="left")
    return float(precision[places[places < len(hits)]].sum() / len(RECALLS))


def _overlaps(one: Entries, other: Entries, crowd: bool = False) -> np.ndarray:
    """Returns (n, m) IoU of boxes (x, y, width, height); with crowds, of the first's own area."""
    if not one or not other:
        return np.zeros((len(one), len(other)))
    boxes = (np.array([each["bbox"] for each in some], float) for some in (one, other))
    return mask_api.iou(*boxes, [int(crowd)] * len(other))
