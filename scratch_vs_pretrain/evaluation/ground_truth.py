"""The ground truth of a test data set: read once, and checked for what a task needs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from scratch_vs_pretrain.data.coco import COCO_KEYPOINTS, find_lack
from scratch_vs_pretrain.data.voc import is_voc, voc_ground_truth
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import read_json

# The config key that asks for a task.
_ASKED_BY = {
    "bbox": "DATASETS.TEST",
    "segm": "MODEL.MASK_ON",
    "keypoints": "MODEL.KEYPOINT_ON or TEST.KEYPOINT_OKS_SIGMAS",
}


def load_ground_truth(dataset_name: str) -> dict[str, Any]:
    """Returns a data set's COCO JSON, kept in memory until the file changes. Not to be changed.

    That of a VOC tree is made from it.

    Raises:
        UserError: the data set has no annotation file, or it is no COCO JSON.
    """
    if is_voc(dataset_name):
        return voc_ground_truth(dataset_name)
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        raise UserError(f"{dataset_name}: is not in COCO format; choose a COCO-format data set")
    path = Path(PathManager.get_local_path(json_file))
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror})") from None
    return _read_ground_truth(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _read_ground_truth(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise UserError(f"{path}: not in COCO format; it has no images or no categories")
    return content


def check_ground_truth(
    dataset_name: str, tasks: Sequence[str], keypoint_sigmas: Sequence[float] = ()
) -> None:
    """Checks that a data set can be scored.

    Args:
        dataset_name: registered with Detectron2.
        tasks: of "bbox", "segm", "keypoints".
        keypoint_sigmas: one for each keypoint; COCO's 17 if empty.

    Raises:
        UserError: it lacks what a task needs, see also :func:`load_ground_truth`.
    """
    for task in tasks:
        keypoints = len(keypoint_sigmas) or COCO_KEYPOINTS
        lack = find_lack(load_ground_truth(dataset_name), task, keypoints)
        if lack:
            raise UserError(
                f"{dataset_name}: {lack}, so that there is no {task} AP; "
                f"evaluate on another data set or change {_ASKED_BY[task]}"
            )
