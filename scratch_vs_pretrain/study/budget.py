"""What each arm of a study will see, from its configs and annotation files alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from scratch_vs_pretrain.analysis.stats.cost import (
    Annotated,
    Budget,
    Budgets,
    Counts,
    assumptions,
    expected_instances,
    expected_pixels,
    pretraining,
)
from scratch_vs_pretrain.data.datasets import location, register
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_info import Init
from scratch_vs_pretrain.study.data_sets import origin
from scratch_vs_pretrain.study.plan import OFFICIAL_IMAGES, check_parts
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import Arm, Study

# COCO without its files. Instances: train2017 has 849,949 that are no crowds, in 117,266 images,
# as Detectron2 logs it (facebookresearch/detectron2, issue 1134); train2014 and valminusminival
# together are train2017. Pixels: as of COCO's usual picture.
COCO_TRAIN = ("coco_2017_train", "coco_2014_train", "coco_2014_valminusminival")
COCO_INSTANCES_PER_IMAGE = 849_949 / 117_266
COCO_HEIGHT, COCO_WIDTH = 480, 640


@dataclass(frozen=True)
class _PerImage:
    """What is expected of one image of a training set; None where unknown."""

    instances: float | None
    pixels: float | None
    note: str = ""


def study_budgets(study: Study) -> Budgets:
    """Returns what to expect of every arm and schedule of a study; opens images for their headers.

    Raises:
        UserError: a config cannot be made, or a training set cannot be used. Missing files of
            Detectron2's built-in data sets are no error: what is assumed instead is noted.
    """
    check_parts(study)
    rows: list[Budget] = []
    known: dict[tuple[Any, ...], _PerImage] = {}
    for part in study.by_size():
        for arm, schedule in [(one, of_it) for one in part.arms for of_it in one.schedules]:
            cfg = arm_config(part, arm, schedule)
            key = _relevant(cfg)
            if key not in known:
                known[key] = _per_image(cfg)
            one, images = known[key], cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
            training = Counts(images, _times(one.instances, images), _times(one.pixels, images))
            rows.append(Budget(arm.name, schedule.name, _pretraining(arm), training, part.size))
    notes = [one.note for one in known.values() if one.note]
    if study.tune:
        notes.append(
            f"The search for the recipe on arm {study.tune.on}, which the recipe favours, is not "
            "counted."
        )
    return Budgets(study.name, tuple(rows), False, (*assumptions(rows), *dict.fromkeys(notes)))


def annotated(records: list[dict[str, Any]]) -> Annotated:
    """Returns the sizes and instances of Detectron2's training records."""
    from detectron2.structures import BoxMode

    instances = [
        (number, BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS))
        for number, record in enumerate(records)
        for entry in record.get("annotations", ())
        if not entry.get("iscrowd", 0)
    ]
    return Annotated(
        heights=np.array([record["height"] for record in records]),
        widths=np.array([record["width"] for record in records]),
        owners=np.array([owner for owner, _ in instances], dtype=int),
        boxes=np.array([box for _, box in instances], dtype=float).reshape(-1, 4),
    )


def _per_image(cfg: CfgNode) -> _PerImage:
    rule, missing = cfg.INPUT, list(_missing(cfg))
    if not missing:
        register(cfg)
        data = annotated(load_training_records(cfg).records)
        return _PerImage(expected_instances(data, rule), expected_pixels(data, rule))
    names, reasons = zip(*missing, strict=True)
    if len(names) < len(cfg.DATASETS.TRAIN) or not set(names) <= set(COCO_TRAIN):
        return _PerImage(None, None, f"Unknown without its annotations: {'; '.join(reasons)}.")
    shape = Annotated(
        np.array([COCO_HEIGHT]), np.array([COCO_WIDTH]), np.empty(0, int), np.empty((0, 4))
    )
    note = (
        f"Assumed without the annotations ({'; '.join(reasons)}): "
        f"{COCO_INSTANCES_PER_IMAGE:.2f} instances an image as in train2017, and images of "
        f"{COCO_WIDTH} x {COCO_HEIGHT} pixels before they are resized."
    )
    return _PerImage(COCO_INSTANCES_PER_IMAGE, expected_pixels(shape, rule), note)


def _missing(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Yields the built-in training sets whose files are not there, and why they are not."""
    for name in cfg.DATASETS.TRAIN:
        full = origin(cfg, name).base
        if full in OFFICIAL_IMAGES or full.startswith("keypoints_coco_"):
            try:
                location(full)
            except UserError as error:
                yield full, str(error)


def _pretraining(arm: Arm) -> Counts:
    """Returns what an arm's weights have seen; only a file that is here is asked."""
    noted = None
    if arm.weights and os.path.isfile(os.path.expanduser(arm.weights)):
        from scratch_vs_pretrain.modeling.checkpoint_file import read_metadata

        noted = read_metadata(arm.weights)
    return pretraining(Init(weights=arm.weights, pretraining=noted))


def _relevant(cfg: CfgNode) -> tuple[Any, ...]:
    """Returns all of a config on which the expectation depends."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    return tuple(cfg.DATASETS.TRAIN), cfg.MODEL.MASK_ON, keypoints, empty, str(cfg.INPUT)


def _times(mean: float | None, images: int) -> int | None:
    return None if mean is None else round(mean * images)
