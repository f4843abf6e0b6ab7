"""COCO's box, mask and keypoint AP, and what a detector's errors cost.

The numbers of :func:`score` are those of pycocotools' ``COCOeval``
(https://cocodataset.org/#detection-eval) with its default parameters, computed by faster-coco-eval:
same thresholds, area ranges, detection limits, treatment of crowds and order of tied scores. Three
things differ from calling pycocotools by hand: no result at all scores 0 instead of failing,
nothing given is changed, and annotations are numbered anew, because pycocotools takes a match with
one whose id is 0 for none.

The errors of :func:`error_costs` are TIDE's (Bolya et al., arXiv 2008.08115), for boxes; see
docs/errors.md. A type costs by how much AP50 rises when all of its errors are mended. Costs do not
add up to what AP50 lacks, because one mended error may hide another.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_api

from scratch_vs_pretrain.data.coco import id_order

logger = logging.getLogger(__name__)

Entries = Sequence[Mapping[str, Any]]

_DETECTION_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# In the order of COCOeval.stats.
NUMBERS = {
    "bbox": _DETECTION_NUMBERS,
    "segm": _DETECTION_NUMBERS,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}

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


def score(
    ground_truth: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    iou_type: str,
    keypoint_sigmas: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Scores detections: returns one task's entry of an evaluation file.

    In percent, None where there is no ground truth: COCO's summary by the names of
    :data:`NUMBERS`, AP at each IoU (or OKS) threshold under "per_iou" ("0.50" to "0.95"), and of
    each category by name, in the order of ids, under "per_class".

    For masks the area of a detection is its mask's, also if the result has a box beside it (as
    Detectron2's COCOEvaluator has it). As in pycocotools, results of categories that the ground
    truth does not know are ignored.

    Args:
        ground_truth: COCO JSON: ``images``, ``annotations``, ``categories``.
        results: COCO results with ``bbox``, ``segmentation`` (compressed RLE) or ``keypoints``.
        iou_type: a key of :data:`NUMBERS`.
        keypoint_sigmas: OKS sigma of each keypoint; COCO's 17 by default.

    Raises:
        ValueError: another `iou_type`, or an image that the ground truth does not have.
    """
    if iou_type not in NUMBERS:
        raise ValueError(f"unknown task {iou_type!r}, expected one of {', '.join(NUMBERS)}")
    results = list(results)
    # The library wants integers as ids; tied scores are ordered by image id.
    ids = sorted((image["id"] for image in ground_truth["images"]), key=id_order)
    numbers = {image_id: number for number, image_id in enumerate(ids)}
    unknown = {result["image_id"] for result in results} - numbers.keys()
    if unknown:
        raise ValueError(f"images that the ground truth does not have, such as {unknown.pop()}")
    truth = _indexed(ground_truth, ground_truth["annotations"], numbers)
    for annotation in truth.dataset["annotations"] if iou_type == "segm" else ():
        annotation["rle"] = truth.annToRLE(annotation)
    detections = _indexed(ground_truth, results, numbers)
    for detection in detections.dataset["annotations"]:
        detection |= _shape(detection, iou_type)
    evaluation = _Evaluation(
        truth,
        detections,
        iou_type,
        print_function=logger.debug,
        kpt_oks_sigmas=None if keypoint_sigmas is None else list(keypoint_sigmas),
        rle_iou_max_workers=1,  # its threads wait for one another: two are no faster than one
    )
    # For keypoints the library would leave out categories without annotations.
    evaluation.params.catIds = sorted(truth.cats)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return _read_out(evaluation, truth.cats)


class _Evaluation(COCOeval_faster):
    """Takes masks as they were encoded by this module.

    The library's own encoding of results that are encoded already takes longer than all the rest.
    """

    def _prepare(self) -> None:
        self.params.compute_rle = False
        super()._prepare()
        self.params.compute_rle = self.params.iouType == "segm"


def _indexed(dataset: Mapping[str, Any], annotations: Entries, numbers: Mapping[Any, int]) -> COCO:
    """Does for annotations what COCO does, and for results what its loadRes does, but with copies,
    because the library writes into them, and numbered from 1."""
    indexed = COCO()
    indexed.dataset = {
        "images": [{**image, "id": numbers[image["id"]]} for image in dataset["images"]],
        "annotations": [
            {**one, "id": number, "image_id": numbers[one["image_id"]]}
            for number, one in enumerate(annotations, start=1)
            if one["image_id"] in numbers
        ],
        "categories": list(dataset["categories"]),
    }
    indexed.createIndex()
    return indexed


def _shape(result: Mapping[str, Any], iou_type: str) -> dict[str, Any]:
    """Returns a detection's area in pixels, and its mask for masks."""
    if iou_type == "segm":
        # pycocotools' area is faster than the library's.
        rle = result["segmentation"]
        return {"rle": rle, "area": int(mask_api.area(rle))}
    if len(result.get("bbox", ())):
        _, _, width, height = result["bbox"]
        return {"area": width * height}
    x, y = result["keypoints"][0::3], result["keypoints"][1::3]
    return {"area": (max(x) - min(x)) * (max(y) - min(y))}


def _read_out(
    evaluation: COCOeval_faster, categories: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    params = evaluation.params
    # [thresholds, recalls, categories], over all areas, at the highest limit of detections.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    names = NUMBERS[params.iouType]
    summary = np.asarray(evaluation.all_stats)[: len(names), None]
    thresholds = (f"{threshold:.2f}" for threshold in params.iouThrs)
    # An id is added to a name used twice.
    classes = {int(number): str(categories[number].get("name", number)) for number in params.catIds}
    uses = Counter(classes.values())
    told_apart = [name if uses[name] == 1 else f"{name} ({n})" for n, name in classes.items()]
    of_classes = np.moveaxis(precision, -1, 0)
    return {
        **dict(zip(names, map(_percent, summary), strict=True)),
        "per_iou": dict(zip(thresholds, map(_percent, precision), strict=True)),
        "per_class": dict(zip(told_apart, map(_percent, of_classes), strict=True)),
    }


def _percent(values: np.ndarray) -> float | None:
    """Returns the mean of the known values, None where none is known."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None


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
    # Of each object, the detection that has it, -1 for none; the best detections choose first.
    holders, left = np.full(len(objects), -1), np.where(same, iou, 0.0)
    for detection in np.flatnonzero((left >= FOREGROUND_IOU).any(axis=1)):
        target = int(left[detection].argmax())
        if left[detection, target] >= FOREGROUND_IOU:
            holders[target] = detection
            left[:, target] = 0
    correct = np.isin(np.arange(len(best)), holders)
    kinds, mended, lost = _errors(iou, same, correct, holders >= 0, classes)
    inside = (_overlaps(best, crowds, crowd=True) > FOREGROUND_IOU) & (predicted[:, None] == theirs)
    counts = correct | ~inside.any(axis=1)
    scores = [one["score"] for one in best]
    found = np.rec.fromarrays((scores, predicted, kinds, counts, mended), dtype=_DETECTION)
    return found, classes, lost


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
    """Returns the mean of COCO's AP in percent over classes with objects or detections; these come
    best first.

    `positives` and `lost` are the classes of all objects, and of those that do not count.
    """
    values = []
    for name in np.union1d(names[counts], positives):
        count = int(np.sum(positives == name)) - int(np.sum(lost == name))
        hits = true[counts & (names == name)]
        if count and len(hits):
            found = np.cumsum(hits)
            # Precision at 101 recalls, made monotonous from the right.
            precision = np.maximum.accumulate((found / np.arange(1, len(hits) + 1))[::-1])[::-1]
            places = np.searchsorted(found / count, RECALLS, side="left")
            values.append(float(precision[places[places < len(hits)]].sum() / len(RECALLS)))
        elif count or len(hits):
            values.append(0.0)
    return 100 * float(np.mean(values)) if values else 100.0  # nothing was found, nor is left to


def _overlaps(one: Entries, other: Entries, crowd: bool = False) -> np.ndarray:
    """Returns (n, m) IoU of boxes (x, y, width, height); with crowds, of the first's own area."""
    if not one or not other:
        return np.zeros((len(one), len(other)))
    boxes = (np.array([each["bbox"] for each in some], float) for some in (one, other))
    return mask_api.iou(*boxes, [int(crowd)] * len(other))
