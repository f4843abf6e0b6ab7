"""COCO's box, mask and keypoint AP, computed by faster-coco-eval, equal to pycocotools.

The numbers are those of pycocotools' ``COCOeval`` (https://cocodataset.org/#detection-eval) with
its default parameters: same thresholds, area ranges, detection limits, treatment of crowds and
order of tied scores. Three things differ from calling pycocotools by hand: no result at all scores
0 instead of failing, nothing given is changed, and annotations are numbered anew, because
pycocotools takes a match with one whose id is 0 for none.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as mask_api

from scratch_vs_pretrain.data.coco import id_order

logger = logging.getLogger(__name__)

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
IOU_TYPES = tuple(NUMBERS)


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
        iou_type: one of :data:`IOU_TYPES`.
        keypoint_sigmas: OKS sigma of each keypoint; COCO's 17 by default.

    Raises:
        ValueError: another `iou_type`, or an image that the ground truth does not have.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"unknown task {iou_type!r}, expected one of {', '.join(IOU_TYPES)}")
    results = list(results)
    # The library wants integers as ids; tied scores are ordered by image id.
    ids = sorted((image["id"] for image in ground_truth["images"]), key=id_order)
    numbers = {image_id: number for number, image_id in enumerate(ids)}
    unknown = {result["image_id"] for result in results} - numbers.keys()
    if unknown:
        raise ValueError(f"images that the ground truth does not have, such as {unknown.pop()}")
    truth = _index_ground_truth(ground_truth, iou_type, numbers)
    detections = _index_results(truth, results, iou_type, numbers)
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
    return _read_out(evaluation, iou_type, truth.cats)


class _Evaluation(COCOeval_faster):
    """Takes masks as they were encoded by this module.

    The library's own encoding of results that are encoded already takes longer than all the rest.
    """

    def _prepare(self) -> None:
        self.params.compute_rle = False
        super()._prepare()
        self.params.compute_rle = self.params.iouType == "segm"


def _index_ground_truth(
    ground_truth: Mapping[str, Any], iou_type: str, numbers: Mapping[Any, int]
) -> COCO:
    # Copies, because the library writes into them.
    truth = COCO(
        {
            "images": [{**image, "id": numbers[image["id"]]} for image in ground_truth["images"]],
            "annotations": [
                {
                    **annotation,
                    "id": number,  # from 1: pycocotools takes a match with id 0 for none
                    "image_id": numbers[annotation["image_id"]],
                }
                for number, annotation in enumerate(ground_truth["annotations"], start=1)
                if annotation["image_id"] in numbers
            ],
            "categories": list(ground_truth["categories"]),
        }
    )
    if iou_type == "segm":
        for annotation in truth.dataset["annotations"]:
            annotation["rle"] = truth.annToRLE(annotation)
    return truth


def _index_results(
    truth: COCO, results: Iterable[Mapping[str, Any]], iou_type: str, numbers: Mapping[Any, int]
) -> COCO:
    """Does what loadRes of pycocotools does, without changing `results` or failing on none."""
    detections = COCO()
    detections.dataset = {
        **truth.dataset,
        "annotations": [
            {**one, **_shape(one, iou_type), "id": number, "image_id": numbers[one["image_id"]]}
            for number, one in enumerate(results, start=1)
        ],
    }
    detections.createIndex()
    return detections


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
    evaluation: COCOeval_faster, iou_type: str, categories: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    params = evaluation.params
    # [thresholds, recalls, categories], over all areas, at the highest limit of detections.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    names = NUMBERS[iou_type]
    summary = map(_percent, evaluation.all_stats[: len(names)])
    thresholds = (f"{threshold:.2f}" for threshold in params.iouThrs)
    classes = _category_names(categories, params.catIds)
    of_classes = np.moveaxis(precision, -1, 0)
    return {
        **dict(zip(names, summary, strict=True)),
        "per_iou": dict(zip(thresholds, map(_mean_percent, precision), strict=True)),
        "per_class": dict(zip(classes, map(_mean_percent, of_classes), strict=True)),
    }


def _category_names(categories: Mapping[int, Mapping[str, Any]], ids: Iterable[int]) -> list[str]:
    """Returns names that tell categories apart: an id is added to a name used twice."""
    names = {int(number): str(categories[number].get("name", number)) for number in ids}
    uses = Counter(names.values())
    return [name if uses[name] == 1 else f"{name} ({n})" for n, name in names.items()]


def _mean_percent(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return _percent(known.mean()) if known.size else None


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)
