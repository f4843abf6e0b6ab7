"""Whether a config's data sets hold what its model learns, asked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.config import classes_key, flatten
from scratch_vs_pretrain.data.coco import (
    COCO_KEYPOINTS,
    AnnotationFile,
    read_annotations,
)
from scratch_vs_pretrain.data.loading import refusal_of_annotations
from scratch_vs_pretrain.data.subsets import ALIASES

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Larger annotation files of built-in names are COCO's own: their names say what they hold.
READ_BYTES = 50_000_000


def data_problems(cfg: CfgNode) -> list[str]:
    """Finds what a config's model needs and its data sets lack; each says what to change.

    Files that are not there are left to the run; what built-in names say is not.
    """
    problems = []
    for part in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[part]:
            problems += [f"DATASETS.{part}: {text}" for text in _problems(cfg, name, part)]
    return list(dict.fromkeys(problems))


def _problems(cfg: CfgNode, name: str, part: str) -> Iterator[str]:
    full, voc, file = _origin(cfg, name)
    if voc:
        _check_list(cfg, full)
    found = read_annotations(file) if file else None
    heads = (
        ("segm", "MODEL.MASK_ON", cfg.MODEL.MASK_ON, "masks", "coco_2017_train"),
        (
            "keypoints",
            "MODEL.KEYPOINT_ON",
            cfg.MODEL.KEYPOINT_ON,
            "keypoints",
            "keypoints_coco_2017_train",
        ),
    )
    lacking = False
    for task, key, on, what, example in heads:
        lack = _lack(found, full, voc, task, part) if on else ""
        if lack:
            lacking = True
            yield (
                f"{name}: {lack}, but {key} is True; choose data with {what}, such as {example}, "
                "or set it to False"
            )
    if found:
        yield from _disagreements(cfg, name, found, part)
    # What holds for a whole set need not for a subset of it.
    whole = found and found.usable and part == "TRAIN" and name == full and not lacking
    if file and whole and (refused := refusal_of_annotations(name, file, cfg)):
        yield refused


def _lack(found: AnnotationFile | None, full: str, voc: bool, task: str, part: str) -> str:
    """Returns why a task cannot be learnt from a set (TRAIN) or scored on it (TEST)."""
    if voc:
        return "VOC trees have boxes alone"
    if found is None:
        unlabelled = task == "keypoints" and _is_official_without_keypoints(full)
        return "no annotation has keypoints" if unlabelled else ""
    if part == "TEST" and task in found.lacks:
        return found.lacks[task]
    if task == "segm":
        return "" if found.masks else "no annotation has a mask"
    return "" if found.labelled else "no annotation has keypoints"


def _disagreements(cfg: CfgNode, name: str, found: AnnotationFile, part: str) -> Iterator[str]:
    """Finds config values that do not go with an annotation file."""
    key = classes_key(cfg)
    classes = flatten(cfg)[key]
    if classes != len(found.categories):
        yield (
            f"{name}: has {len(found.categories)} categories, but {key} is {classes}; set it to "
            f"{len(found.categories)}"
        )
    # A set without any annotation is refused at the run's start, by datasets.check_files.
    if part == "TEST" and found.annotations and "bbox" in found.lacks:
        yield f"{name}: {found.lacks['bbox']}, so that it cannot be evaluated on; add it"
    polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if part == "TRAIN" and polygons and found.run_lengths:
        yield f"{name}: some masks are run lengths; set INPUT.MASK_FORMAT to bitmask"
    if not cfg.MODEL.KEYPOINT_ON or not found.labelled:
        return
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if points != len(found.keypoints):
        yield (
            f"{name}: its categories name {len(found.keypoints)} keypoints, but "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {points}; make them agree"
        )
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_KEYPOINTS
    if part == "TEST" and sigmas != len(found.keypoints):
        yield (
            f"{name}: its categories name {len(found.keypoints)} keypoints, but "
            f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas}; give one for each"
        )


def _origin(cfg: CfgNode, name: str) -> tuple[str, bool, Path | None]:
    """Returns a set's full name, whether it is a VOC tree, and its COCO file if it can be read."""
    from scratch_vs_pretrain.data.datasets import find_subset
    from scratch_vs_pretrain.data.voc import is_voc

    own = {one: Path(file) for one, file, _ in cfg.SVP.DATASETS}
    trees = [one for one, *_ in cfg.SVP.VOC_DATASETS]
    full = ALIASES.get(name, name)
    if full not in own and full not in trees and (subset := find_subset(full, own)):
        full = subset.base
    if full in own:
        return full, False, own[full] if own[full].is_file() else None
    if full in trees or is_voc(full):
        return full, True, None
    stated = (registered(full) or {}).get("json_file")
    file = Path(stated) if stated else None
    readable = file is not None and file.is_file() and file.stat().st_size < READ_BYTES
    return full, False, file if readable else None


def _check_list(cfg: CfgNode, full: str) -> None:
    """Reads the list of a VOC tree's images, if it is there.

    Raises:
        UserError: it cannot be used.
    """
    from scratch_vs_pretrain.data.voc import voc_count

    own = {name: (root, split) for name, root, split, *_ in cfg.SVP.VOC_DATASETS}
    known = registered(full) or {}
    root, split = own.get(full) or (known["dirname"], known["split"])
    if (Path(root) / "ImageSets" / "Main" / f"{split}.txt").is_file():
        voc_count(Path(root), split)


def _is_official_without_keypoints(full: str) -> bool:
    known = registered(full) or {}
    labelled = known.get("keypoint_names") or full.startswith("keypoints_")
    return bool(known.get("json_file")) and not labelled
