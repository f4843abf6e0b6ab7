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

from __future__ import annotations

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


# Of a detection: its error or CORRECT, whether AP counts it (it is not inside a crowd), and the
# class in which it would be a true positive once mended, or -1.
_DETECTION = [("score", float), ("name", int), ("kind", int), ("counts", bool), ("mended", int)]


def error_costs(
    ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> dict[str, float] | dict[str, None]:
    """Returns the cost of each of :data:`ERROR_TYPES` in percent of AP50, None without objects, of
    COCO results with ``bbox`` on COCO JSON."""
    objects, found = (_by_image(entries) for entries in (ground_truth["annotations"], results))
    images = [_image(found[one["id"]], objects[one["id"]]) for one in ground_truth["images"]]
    positives = np.concatenate([np.empty(0, np.int64), *(classes for _, classes, _ in images)])
    if not len(positives):
        return dict.fromkeys(ERROR_TYPES)
    missed = np.concatenate([classes[lost] for _, classes, lost in images])
    return _costs(np.concatenate([part for part, _, _ in images]), positives, missed)


def _by_image(entries: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for one in entries:
        found[one["image_id"]].append(one)
    return found


def _image(
    results: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns an image's detections, best first, objects' classes, and which of them are missed."""
    crowds = [one for one in annotations if one.get("iscrowd", 0)]
    objects = [one for one in annotations if not one.get("iscrowd", 0)]
    classes = np.array([one["category_id"] for one in objects], np.int64)
    scores = np.array([one["score"] for one in results], float)
    best = np.argsort(-scores, kind="stable")[:DETECTIONS_PER_IMAGE]
    predicted = np.array([results[index]["category_id"] for index in best], np.int64)
    boxes = _boxes([results[index] for index in best])
    iou = _overlaps(boxes, _boxes(objects))
    same = predicted[:, None] == classes[None, :]
    holders = _match(np.where(same, iou, 0.0))
    correct = np.zeros(len(best), bool)
    correct[holders[holders >= 0]] = True
    taken = holders >= 0

    kinds, targets = _kinds(iou, same, correct, taken)
    mended, lost = _mended(kinds, targets, classes, taken)
    inside = _overlaps(boxes, _boxes(crowds), crowd=True) > FOREGROUND_IOU
    inside &= predicted[:, None] == np.array([one["category_id"] for one in crowds])[None, :]
    counts = correct | ~inside.any(axis=1)
    found = np.rec.fromarrays((scores[best], predicted, kinds, counts, mended), dtype=_DETECTION)
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


def _kinds(
    iou: np.ndarray, same: np.ndarray, correct: np.ndarray, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each detection's error and the object that it was about."""
    if not iou.shape[1]:
        none = np.zeros(len(iou), np.int64)
        return np.full(len(iou), BACKGROUND), none
    ours, others = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    duplicates = np.where(same & taken[None, :], iou, 0.0).max(axis=1) >= FOREGROUND_IOU
    near = ours.max(axis=1)
    kinds = np.select(
        [
            correct,
            (near >= BACKGROUND_IOU) & (near <= FOREGROUND_IOU),
            others.max(axis=1) >= FOREGROUND_IOU,
            duplicates,
            iou.max(axis=1) <= BACKGROUND_IOU,
        ],
        [CORRECT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    targets = np.where(kinds == LOCALIZATION, ours.argmax(axis=1), others.argmax(axis=1))
    return kinds, targets


def _mended(
    kinds: np.ndarray, targets: np.ndarray, classes: np.ndarray, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class in which each detection would be correct, and which objects are missed.

    Only the best of the errors about one object can be mended, and only if it is not taken.
    """
    mended = np.full(len(kinds), -1, np.int64)
    lost = ~taken
    about = np.isin(kinds, (CLASSIFICATION, LOCALIZATION))
    for detection in np.flatnonzero(about):
        target = targets[detection]
        if lost[target]:
            mended[detection] = classes[target]
            lost[target] = False
    return mended, lost


def _costs(found: np.ndarray, positives: np.ndarray, missed: np.ndarray) -> dict[str, float]:
    found = found[np.argsort(-found["score"], kind="stable")]
    correct, names, mended = found["kind"] == CORRECT, found["name"], found["mended"]

    def mean_ap(counts: np.ndarray, classes: np.ndarray, true: np.ndarray, lost: Any = ()) -> float:
        return _mean_ap(classes[counts], true[counts], positives, np.asarray(lost, np.int64))

    before = mean_ap(found["counts"], names, correct)
    costs = {}
    for kind, name in enumerate(ERROR_TYPES):
        errors = found["kind"] == kind
        saved = errors & (mended >= 0)
        after = mean_ap(
            (found["counts"] & ~errors) | saved,
            np.where(saved, mended, names),
            correct | saved,
            missed if kind == MISSED else (),
        )
        costs[name] = max(0.0, after - before)
    return costs


def _mean_ap(
    classes: np.ndarray, true: np.ndarray, positives: np.ndarray, lost: np.ndarray
) -> float:
    """Returns the mean in percent over classes with objects or detections; these come best first.

    `positives` and `lost` are the classes of all objects, and of those that do not count.
    """
    values = []
    for name in np.union1d(classes, positives):
        count = int(np.sum(positives == name)) - int(np.sum(lost == name))
        hits = true[classes == name]
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


def _boxes(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([one["bbox"] for one in items], float).reshape(-1, 4)


def _overlaps(one: np.ndarray, other: np.ndarray, crowd: bool = False) -> np.ndarray:
    """Returns (n, m) IoU of boxes (x, y, width, height); with crowds, of the first's own area."""
    if not len(one) or not len(other):
        return np.zeros((len(one), len(other)))
    return mask_api.iou(one, other, [int(crowd)] * len(other))
