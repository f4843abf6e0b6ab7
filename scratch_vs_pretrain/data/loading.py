"""Loads the records of data sets, for training and for evaluation."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
)

from scratch_vs_pretrain.data.catalog import describe
from scratch_vs_pretrain.data.coco import entry_problem, without_gc
from scratch_vs_pretrain.data.datasets import location
from scratch_vs_pretrain.data.image_facts import facts_of_images
from scratch_vs_pretrain.data.kinds import KINDS, MENDED, Note
from scratch_vs_pretrain.data.records import Heads, judge
from scratch_vs_pretrain.data.voc import is_voc, voc_content
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import read_json

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecords:
    """What a config trains on.

    Attributes:
        records: Detectron2's, of all images that are left.
        repaired: how many entries were dropped or mended, by what was wrong and what was done.
    """

    records: list[dict[str, Any]]
    repaired: Mapping[str, int]


def heads_of(cfg: CfgNode) -> Heads:
    """Returns what a config's model learns beside boxes."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
    return Heads(cfg.MODEL.MASK_ON, keypoints)


def load_training_records(cfg: CfgNode) -> TrainingRecords:
    """Returns Detectron2's records of all images to train on, by data set, in the order of the
    image ids (of a VOC tree: of its list).

    Images without annotations, or with too few keypoints, are left out as
    ``build_detection_train_loader`` leaves them out. What
    :func:`~scratch_vs_pretrain.data.records.judge` drops and mends is counted and logged.

    Raises:
        UserError: a name is not registered, an annotation file cannot be used, nothing is left,
            or the config wants precomputed proposals (pickles, which are never read).
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError("MODEL.LOAD_PROPOSALS: proposal files are pickles; set it to False")
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN: is empty; name a data set to train on")
    describe(names)
    records: list[dict[str, Any]] = []
    notes: list[Note] = []
    for name in names:
        found, remarks = _load(name, heads_of(cfg))
        records += found
        notes += remarks
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if cfg.MODEL.KEYPOINT_ON and cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE > 0:
        records = filter_images_with_few_keypoints(
            records, cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        )
    if not records:
        raise UserError(
            f"DATASETS.TRAIN: cannot train on {', '.join(names)}: no image has an instance to "
            "learn; `svp check-data` says why"
        )
    return TrainingRecords(records, count_repairs(notes))


def load_test_records(name: str) -> list[dict[str, Any]]:
    """Returns Detectron2's records of all images of a data set, without annotations.

    In the order of the image ids (of a VOC tree: of its list). Heights and widths are those of the
    image files, where these can be read.

    Raises:
        UserError: no such data set, or its images are not listed as COCO's or VOC's are.
    """
    listing, folder = location(name)
    state = listing.stat()
    return list(_test_records(name, listing, folder, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _test_records(
    name: str, listing: Path, folder: Path, size: int, modified: int
) -> list[dict[str, Any]]:
    if is_voc(name):
        images = voc_content(name)["images"]
    else:
        content = read_json(listing)
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, list):
            raise UserError(f"{listing}: not in COCO format; it has no list of images")
        for number, image in enumerate(images):
            if problem := entry_problem("images", image):
                raise UserError(f"{listing}: images[{number}] {problem}")
        images = _by_id(images)
    return _judged(folder, {"images": images, "annotations": [], "categories": []}, Heads())[0]


def count_repairs(notes: Sequence[Note]) -> dict[str, int]:
    """Returns how many entries are dropped or mended, as "degenerate box, dropped", and logs it."""
    found: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        if KINDS[note.kind].means == MENDED:
            found[f"{note.kind}, {KINDS[note.kind].fate}"].append(note.where)
    for kind, where in sorted(found.items()):
        logger.warning("%d times %s, for example %s", len(where), kind, where[0])
    return {kind: len(where) for kind, where in sorted(found.items())}


def _load(name: str, heads: Heads) -> tuple[list[dict[str, Any]], list[Note]]:
    listing, folder = location(name)
    with without_gc():
        if is_voc(name):
            return _judged(folder, voc_content(name), heads)
        content = json.loads(listing.read_bytes())
        content["images"] = _by_id(content["images"])
        return _judged(folder, content, heads)


def _judged(
    folder: Path, content: Mapping[str, Any], heads: Heads
) -> tuple[list[dict[str, Any]], list[Note]]:
    facts = facts_of_images(folder, [image["file_name"] for image in content["images"]])
    records, notes = judge(content, facts, heads)
    for record in records:
        record["file_name"] = os.path.join(folder, record["file_name"])
    return records, notes


def _by_id(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(images, key=lambda image: (isinstance(image["id"], str), image["id"]))
