"""The ground truth of a test data set: read once, and checked for what a task needs.

Two things differ from pycocotools on the same file, see docs/data.md: annotation ids are numbered
anew (its matching takes id 0 for no match), and annotations that no detection could match are left
out, by the rules by which training drops them.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.data.coco import COCO_KEYPOINTS, keypoint_lack, state_of
from scratch_vs_pretrain.data.datasets import coco_of, location
from scratch_vs_pretrain.data.findings import MOST_DROPPED, Heads
from scratch_vs_pretrain.data.judge import scorable
from scratch_vs_pretrain.data.loading import load_test_records, refusal_of_test_set, sizes_of
from scratch_vs_pretrain.errors import UserError

# The config key that asks for a task.
_ASKED_BY = {
    "bbox": "DATASETS.TEST",
    "segm": "MODEL.MASK_ON",
    "keypoints": "MODEL.KEYPOINT_ON or TEST.KEYPOINT_OKS_SIGMAS",
}


def load_ground_truth(dataset_name: str, task: str = "bbox") -> Mapping[str, Any]:
    """Returns a data set's COCO JSON for a task, kept in memory until its file changes. Not to be
    changed.

    Images have the sizes of their files, where these can be read. In VOC trees difficult objects
    are crowds: VOC's evaluation neither rewards nor punishes detections of them, and COCO's treats
    crowds so.

    Raises:
        UserError: the data set has no annotation file, or it is no COCO JSON.
    """
    return _ground_truth(dataset_name, task, *state_of(location(dataset_name)[0]))


@functools.lru_cache(maxsize=8)
def _ground_truth(name: str, task: str, path: Path, size: int, modified: int) -> Mapping[str, Any]:
    file = coco_of(name, ("annotations",))
    sizes = sizes_of(load_test_records(name), "image_id")
    return {
        "images": [
            {**image, "width": sizes[image["id"]][0], "height": sizes[image["id"]][1]}
            for image in file.images
        ],
        "annotations": [
            {**one, **_filled_in(one), "id": number}
            for number, one in enumerate(scorable(file, sizes, task), 1)
        ],
        "categories": file.categories,
    }


def _filled_in(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a VOC object, or one with keypoints, lacks in COCO's scoring."""
    if annotation.get("difficult"):
        return {"iscrowd": 1}
    keypoints = annotation.get("keypoints")
    if keypoints and not isinstance(annotation.get("num_keypoints"), int):
        return {"num_keypoints": sum(visible > 0 for visible in keypoints[2::3])}
    return {}


def check_ground_truth(
    dataset_name: str,
    tasks: Sequence[str],
    keypoint_sigmas: Sequence[float] = (),
    most_dropped: float = MOST_DROPPED,
) -> None:
    """Raises UserError where a data set lacks what a task needs, or is not fit to be evaluated on;
    without sigmas, keypoints are COCO's 17."""
    if not tasks:
        return
    file = coco_of(dataset_name, ("annotations",))
    lacks = dict(file.facts.lacks)
    lacks["keypoints"] = keypoint_lack(file.annotations, len(keypoint_sigmas) or COCO_KEYPOINTS)
    for task in tasks:
        if lack := lacks.get(task):
            raise UserError(
                f"{dataset_name}: {lack}, so that there is no {task} AP; "
                f"evaluate on another data set or change {_ASKED_BY[task]}"
            )
    state = state_of(location(dataset_name)[0])
    if refused := refusal_of_test_set(dataset_name, state, Heads("segm" in tasks), most_dropped):
        raise UserError(f"{dataset_name}: {refused}")
