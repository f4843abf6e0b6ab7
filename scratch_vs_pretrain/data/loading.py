"""Loads the records of data sets, for training and for evaluation, and the ground truth of those
that are evaluated on: read once, and checked for what a task needs.

Two things differ from pycocotools on the same file, see docs/data.md: annotation ids are numbered
anew (its matching takes id 0 for no match), and annotations that no detection could match are left
out, by the rules by which training drops them.
"""

import dataclasses
import functools
import logging
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import KINDS, CocoFile, FileState, Note, read_coco, state_of
from scratch_vs_pretrain.data.datasets import coco_of, describe, location
from scratch_vs_pretrain.data.judge import MOST_DROPPED, Heads, judge, scorable
from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pictures import DEEP, facts_of_images, locate

logger = logging.getLogger(__name__)

# Twice so many images are looked at before anything else is done with a data set.
_FEW = 10
# The config key that asks for a task.
_ASKED_BY = {
    "bbox": "DATASETS.TEST",
    "segm": "MODEL.MASK_ON",
    "keypoints": "MODEL.KEYPOINT_ON or TEST.KEYPOINT_OKS_SIGMAS",
}


class TrainingRecords(NamedTuple):
    """Records of all images that are left, and how many entries were mended, by kind and fate."""

    records: list[dict[str, Any]]
    repaired: Mapping[str, int]


def heads_of(cfg: CfgNode) -> Heads:
    """Returns what a config's model learns beside boxes."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
    return Heads(cfg.MODEL.MASK_ON, keypoints)


def load_training_records(cfg: CfgNode) -> TrainingRecords:
    """Returns the records of all images to train on, by data set, ordered as in
    :func:`load_test_records`; images without annotations, or with too few keypoints, are left out
    as ``build_detection_train_loader`` leaves them out. Raises UserError where nothing is left."""
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
        with coco.without_gc():
            found, remarks = _judged(file, location(name)[1], heads_of(cfg), cfg.SVP.MAX_DROPPED)
        if problem := refusal(remarks):
            raise UserError(f"{name}: {problem}")
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
    """Returns Detectron2's records of all images of a data set, without annotations, ordered by id
    (of a VOC tree: as listed), with the sizes of the files that can be read."""
    listing, folder = location(name)
    return list(_test_records(name, folder, state_of(listing)))


@functools.lru_cache(maxsize=4)
def _test_records(name: str, folder: Path, state: FileState) -> list[dict[str, Any]]:
    file = coco_of(name, ("annotations", "categories"))
    return _judged(dataclasses.replace(file, annotations=[]), folder, Heads(), 1)[0]


def count_repairs(notes: Sequence[Note]) -> dict[str, int]:
    """Returns how many entries are dropped or mended, as "degenerate box, dropped", and logs it."""
    found: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        if KINDS[note.kind].means == coco.MENDED:
            found[f"{note.kind}, {KINDS[note.kind].fate}"].append(note.where)
    for kind, where in sorted(found.items()):
        logger.warning("%d times %s, for example %s", len(where), kind, where[0])
    return {kind: len(where) for kind, where in sorted(found.items())}


def _judged(
    file: CocoFile, folder: Path, heads: Heads, most_dropped: float
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Judges a data set with its image files; names of records are paths."""
    located = locate(folder, [image["file_name"] for image in file.images]).checked(file.path)
    facts = facts_of_images(folder, located.files)
    records, notes = judge(file, facts, heads, most_dropped)
    for record in records:
        deep = record["file_name"] in facts and facts[record["file_name"]].deep
        path = os.path.join(folder, located.files[record["file_name"]])
        record["file_name"] = DEEP + path if deep else path
    renamed = (f"{name} ({file})" for name, file in located.files.items() if name != file)
    return records, [*notes, *(Note("file of another name", where) for where in renamed)]


def refusal(notes: Sequence[Note], use: str = "train") -> str:
    """Returns why a data set is not trained or evaluated on, empty if it can be."""
    severe = [note for note in notes if KINDS[note.kind].means in coco.SEVERE]
    if not severe:
        return ""
    more = f" (and {len(severe) - 1} more)" if severe[1:] else ""
    text = f"cannot {use} on it: {severe[0].kind}: {severe[0].where}{more}; `svp check-data` lists "
    if any(KINDS[note.kind].means == coco.BREAKS for note in severe):
        return f"{text}all"
    return f"{text}all, and SVP.MAX_DROPPED: 1.0 takes it all the same"


def _as_scored(file: CocoFile) -> CocoFile:
    """Returns a file whose annotations marked ``ignore`` count, as scoring them does."""
    return dataclasses.replace(file, annotations=[{**one, "ignore": 0} for one in file.annotations])


def load_ground_truth(dataset_name: str, task: str = "bbox") -> Mapping[str, Any]:
    """Returns a data set's COCO JSON for a task, kept in memory until its file changes. Not to be
    changed.

    Images have the sizes of their files, where these can be read. In VOC trees difficult objects
    are crowds: VOC's evaluation neither rewards nor punishes detections of them, and COCO's treats
    crowds so.

    Raises:
        UserError: the data set has no annotation file, or it is no COCO JSON.
    """
    return _ground_truth(dataset_name, task, state_of(location(dataset_name)[0]))


@functools.lru_cache(maxsize=8)
def _ground_truth(name: str, task: str, state: FileState) -> Mapping[str, Any]:
    file = coco_of(name, ("annotations",))
    sizes = {one["image_id"]: (one["width"], one["height"]) for one in load_test_records(name)}
    images = [
        {**image, "width": sizes[image["id"]][0], "height": sizes[image["id"]][1]}
        for image in file.images
    ]
    annotations, voc = [], is_voc(name)
    for number, one in enumerate(scorable(file, sizes, task), 1):
        one = {**one, "id": number}
        if voc and one["difficult"]:
            one["iscrowd"] = 1
        elif task == "keypoints" and not isinstance(one.get("num_keypoints"), int):
            one["num_keypoints"] = sum(visible > 0 for visible in one["keypoints"][2::3])
        annotations.append(one)
    return {"images": images, "annotations": annotations, "categories": file.categories}


def check_ground_truth(
    dataset_name: str,
    tasks: Sequence[str],
    keypoint_sigmas: Sequence[float] = (),
    most_dropped: float = MOST_DROPPED,
) -> None:
    """Raises UserError where a data set lacks what a task needs, or is not fit to be evaluated on;
    without sigmas, keypoints are COCO's 17."""
    keypoints = len(keypoint_sigmas) or coco.COCO_KEYPOINTS
    asked = dataset_name, tuple(tasks), keypoints, most_dropped
    if tasks and (unfit := _unfit(*asked, state_of(location(dataset_name)[0]))):
        raise UserError(f"{dataset_name}: {unfit}")


@functools.lru_cache(maxsize=16)
def _unfit(
    name: str, tasks: tuple[str, ...], keypoints: int, most_dropped: float, state: FileState
) -> str:
    """Returns why a data set of this state is not evaluated on, empty if it can be."""
    file = coco_of(name, ("annotations",))
    lacks = {**file.facts.lacks, "keypoints": coco.keypoint_lack(file.annotations, keypoints)}
    for task in tasks:
        if lacks.get(task):
            return (
                f"{lacks[task]}, so that there is no {task} AP; evaluate on another data set or "
                f"change {_ASKED_BY[task]}"
            )
    heads = Heads("segm" in tasks, keypoints if "keypoints" in tasks else 0)
    return refusal(_judged(_as_scored(file), location(name)[1], heads, most_dropped)[1], "evaluate")


def a_few(names: Sequence[str]) -> list[str]:
    """Returns the first of many names and some from everywhere, always the same."""
    return [*names[:_FEW], *random.Random(0).sample(names[_FEW:], min(len(names[_FEW:]), _FEW))]


def refusal_at_a_look(name: str, file: Path, cfg: CfgNode, part: str) -> str:
    """Returns why a COCO file cannot be trained on (TRAIN) or evaluated on (TEST), empty if it can
    be, as all its annotations and a few of its images tell."""
    folders = {one: folder for one, _, folder in cfg.SVP.DATASETS}
    folder = Path(folders.get(name) or (registered(name) or {}).get("image_root") or file.parent)
    unreadable = cfg.SVP.MAX_UNREADABLE if part == "TRAIN" else 0.0
    limits = heads_of(cfg), cfg.SVP.MAX_DROPPED, unreadable
    return _look(state_of(file), folder, *limits, "train" if part == "TRAIN" else "evaluate")


@functools.lru_cache(maxsize=16)
def _look(
    state: FileState, folder: Path, heads: Heads, most_dropped: float, unreadable: float, use: str
) -> str:
    file = read_coco(state[0]) if use == "train" else _as_scored(read_coco(state[0]))
    located = locate(folder, a_few([image["file_name"] for image in file.images]))
    facts = facts_of_images(folder, located.files)
    broken = [name for name in located.files if name not in (*facts, *located.missing)]
    if len(broken) > unreadable * len(located.files):
        return (
            f"{folder}: {len(broken)} of {len(located.files)} images that were looked at cannot be "
            f"read, such as {broken[0]}; `svp check-data` looks at all"
        )
    refused = refusal(judge(file, facts, heads, most_dropped)[1], use)
    # Sizes of the other images may still save it.
    return refused and refusal(_judged(file, folder, heads, most_dropped)[1], use)
