"""Loads the records of data sets, for training and for evaluation."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.data.coco import CocoFile, Note, by_id, read_coco, without_gc
from scratch_vs_pretrain.data.datasets import coco_of, describe, location
from scratch_vs_pretrain.data.findings import KINDS, MENDED, SEVERE, Heads
from scratch_vs_pretrain.data.judge import judge
from scratch_vs_pretrain.data.pictures import DEEP, facts_of_images, locate
from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError

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
    ``build_detection_train_loader`` leaves them out. What is dropped and mended is counted and
    logged.

    Raises:
        UserError: a name is not registered, an annotation file cannot be used, nothing is left,
            or the config wants precomputed proposals (pickles, which are never read).
    """
    from detectron2.data.build import (
        filter_images_with_few_keypoints,
        filter_images_with_only_crowd_annotations,
    )

    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError("MODEL.LOAD_PROPOSALS: proposal files are pickles; set it to False")
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN: is empty; name a data set to train on")
    files = [coco_of(name) for name in names]  # held, so that each is parsed once
    describe(names)
    records: list[dict[str, Any]] = []
    notes: list[Note] = []
    for name, file in zip(names, files, strict=True):
        with without_gc():
            found, remarks = _judged(name, file, heads_of(cfg), cfg.SVP.MAX_DROPPED)
        if problem := refusal(name, remarks):
            raise UserError(problem)
        records += found
        notes += remarks
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    fewest = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.KEYPOINT_ON and fewest > 0:
        records = filter_images_with_few_keypoints(records, fewest)
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
    file = coco_of(name, ("annotations", "categories"))
    return _judged(name, dataclasses.replace(file, annotations=[]), Heads(), 1)[0]


def count_repairs(notes: Sequence[Note]) -> dict[str, int]:
    """Returns how many entries are dropped or mended, as "degenerate box, dropped", and logs it."""
    found: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        if KINDS[note.kind].means == MENDED:
            found[f"{note.kind}, {KINDS[note.kind].fate}"].append(note.where)
    for kind, where in sorted(found.items()):
        logger.warning("%d times %s, for example %s", len(where), kind, where[0])
    return {kind: len(where) for kind, where in sorted(found.items())}


def _judged(
    name: str, file: CocoFile, heads: Heads, most_dropped: float
) -> tuple[list[dict[str, Any]], list[Note]]:
    _, folder = location(name)
    images = file.images if is_voc(name) else by_id(file.images)
    located = locate(folder, [image["file_name"] for image in images])
    for problem in located.unusable.values():
        raise UserError(f"{file.path}: {problem}")
    facts = facts_of_images(folder, located.files)
    file = dataclasses.replace(file, images=images)
    records, notes = judge(file, facts, heads, most_dropped)
    for record in records:
        deep = record["file_name"] in facts and facts[record["file_name"]].deep
        path = os.path.join(folder, located.files[record["file_name"]])
        record["file_name"] = DEEP + path if deep else path
    renamed = (f"{name} ({file})" for name, file in located.renamed.items())
    return records, [*notes, *(Note("file of another name", where) for where in renamed)]


def refusal(name: str, notes: Sequence[Note]) -> str:
    """Returns why a data set is not trained on, empty if it can be."""
    severe = [note for note in notes if KINDS[note.kind].means in SEVERE]
    if not severe:
        return ""
    more = f" (and {len(severe) - 1} more)" if severe[1:] else ""
    return (
        f"{name}: cannot train on it: {severe[0].kind}: {severe[0].where}{more}; `svp check-data` "
        "lists all, and SVP.MAX_DROPPED: 1.0 trains all the same"
    )


def refusal_of_annotations(name: str, file: Path, cfg: CfgNode) -> str:
    """Returns what :func:`refusal` says of a COCO file before its images are looked at."""
    state = file.stat()
    key = file, state.st_size, state.st_mtime_ns
    return refusal(name, _found(*key, heads_of(cfg), cfg.SVP.MAX_DROPPED))


@functools.lru_cache(maxsize=16)
def _found(
    file: Path, size: int, modified: int, heads: Heads, most_dropped: float
) -> Sequence[Note]:
    return judge(read_coco(file), {}, heads, most_dropped)[1]
