"""What a study's data sets are, what follows from its own ones, and whether they fit its model.

All of it is asked before anything is written: class count, heads, keypoints, evaluation.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.config import ONE_STAGE, classes_key, flatten
from scratch_vs_pretrain.data.coco import COCO_KEYPOINTS, AnnotationFile, read_annotations
from scratch_vs_pretrain.data.datasets import (
    ALIASES,
    Subset,
    annotations_of,
    check_images,
    describe,
    subset_file,
    subset_of,
)
from scratch_vs_pretrain.data.loading import refusal_at_a_look
from scratch_vs_pretrain.data.voc import voc_classes, voc_images, voc_tree
from scratch_vs_pretrain.errors import UserError, located
from scratch_vs_pretrain.pictures import locate
from scratch_vs_pretrain.run_info import Data as RunData
from scratch_vs_pretrain.study.sections import Data, DataFiles, VocTree
from scratch_vs_pretrain.study.spec import Arm, Study

# Larger annotation files of built-in names are COCO's own: their names say what they hold.
OFFICIAL_BYTES = 50_000_000
# The mean of COCO's 17, for keypoints whose categories state none.
USUAL_SIGMA = 0.067

# COCO_PERSON_KEYPOINT_NAMES of Detectron2's data/datasets/builtin_meta.py.
_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON_KEYPOINTS = (
    "nose",
    *(f"{side}_{part}" for part in _PAIRED for side in ("left", "right")),
)

# What a model learns beside boxes: its key, COCO's task, its name, and a data set that has it.
HEADS = (
    ("MODEL.MASK_ON", "segm", "masks", "coco_2017_train"),
    ("MODEL.KEYPOINT_ON", "keypoints", "keypoints", "keypoints_coco_2017_train"),
)
BOXES_ALONE = "VOC trees have boxes alone"


@dataclass(frozen=True)
class DataFacts:
    """What a study's files say."""

    classes: tuple[str, ...]  # names, in the order that the model numbers them
    lacks: Mapping[str, str]  # by key of a head, why it cannot be learnt and scored, if it cannot
    keypoints: tuple[str, ...] = ()  # their names
    sigmas: tuple[float, ...] = ()  # of each keypoint; empty for those of COCO's persons
    stated_sigmas: bool = True  # whether the files state them
    run_lengths: bool = False  # some masks are no polygons


def data_facts(data: Data) -> DataFacts:
    """Reads a study's annotations."""
    all_of_it = data.named().values()
    if isinstance(data.test, VocTree):
        trees = [tree for tree in all_of_it if isinstance(tree, VocTree)]
        classes = data.classes or voc_classes((tree.voc, tree.split) for tree in trees)
        return DataFacts(classes, {key: BOXES_ALONE for key, *_ in HEADS})
    sources = [files for files in all_of_it if isinstance(files, DataFiles)]
    read = [read_annotations(files.annotations) for files in sources]
    for files, found in zip(sources, read, strict=True):
        locate(files.images, found.file_names).checked(files.annotations)
    for files, found in zip(sources, read, strict=True):
        if found.categories != read[0].categories:
            raise UserError(
                f"data: {files.annotations} has other categories than {sources[0].annotations} "
                f"({len(found.categories)} and {len(read[0].categories)}); both must list the same "
                "names by ascending id"
            )
    if not read[0].categories:
        raise UserError(f"data: {sources[0].annotations}: lists no categories to detect")
    *train, test = read
    unknown = not test.sigmas and test.keypoints not in ((), COCO_PERSON_KEYPOINTS)
    return DataFacts(
        classes=test.categories,
        lacks={key: _missing(sources, train, test, task) for key, task, *_ in HEADS},
        keypoints=test.keypoints,
        sigmas=(USUAL_SIGMA,) * len(test.keypoints) if unknown else test.sigmas,
        stated_sigmas=not unknown,
        run_lengths=any(found.run_lengths for found in train),
    )


def merge_data(cfg: CfgNode, study: Study, arm: Arm) -> None:
    """Writes what follows from a study's data into a config; overrides of heads stay."""
    if study.data is None:
        return
    with located(study.file):
        facts = data_facts(study.data)
    overrides = {**study.overrides, **arm.overrides}
    named = {f"{study.name}_{part}": source for part, source in study.data.named().items()}
    *train, test = named
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), (test,)
    # Lists, as they are read again from a run folder.
    cfg.SVP.DATASETS = tuple(
        [name, str(source.annotations), str(source.images)]
        for name, source in named.items()
        if isinstance(source, DataFiles)
    )
    cfg.SVP.VOC_DATASETS = tuple(
        [name, str(source.voc), source.split, source.year, list(facts.classes)]
        for name, source in named.items()
        if isinstance(source, VocTree)
    )
    for key, reason in facts.lacks.items():
        if overrides.get(key) and reason:
            raise UserError(f"{study.file}: {key} is True, but {reason}; remove the override")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(facts.classes)
    if cfg.MODEL.META_ARCHITECTURE in ONE_STAGE:
        cfg.MODEL.RETINANET.NUM_CLASSES = len(facts.classes)
    else:
        for key, value in _head_keys(facts, overrides).items():
            if key not in overrides:
                cfg.merge_from_list([key, value])


def data_notices(study: Study, arm: Arm, base: CfgNode) -> Iterator[str]:
    """Says what follows from a study's data, for an arm, in another way than `base` has it."""
    if study.data is None:
        return
    facts = data_facts(study.data)
    overrides = {**study.overrides, **arm.overrides}
    architecture = overrides.get("MODEL.META_ARCHITECTURE", base.MODEL.META_ARCHITECTURE)
    if architecture in ONE_STAGE:  # They learn boxes alone.
        return
    follows = _head_keys(facts, overrides)
    for key, _, what, _ in HEADS:
        on = follows[key]
        if key not in overrides and on != flatten(base)[key]:
            yield (
                f"the data turn {key} {'on' if on else 'off'}, unlike {study.base.name}: "
                + (f"they have {what} (override it to keep it off)" if on else facts.lacks[key])
            )
    if "TEST.KEYPOINT_OKS_SIGMAS" in follows.keys() - overrides and not facts.stated_sigmas:
        yield (
            f"no category states sigmas: keypoints are scored with {USUAL_SIGMA} each, the mean "
            "of COCO's; override TEST.KEYPOINT_OKS_SIGMAS to change it"
        )


def _head_keys(facts: DataFacts, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config keys of the heads, as they follow from the files."""
    keys: dict[str, Any] = {key: not reason for key, reason in facts.lacks.items()}
    if overrides.get("MODEL.MASK_ON", keys["MODEL.MASK_ON"]) and facts.run_lengths:
        keys["INPUT.MASK_FORMAT"] = "bitmask"
    if overrides.get("MODEL.KEYPOINT_ON", keys["MODEL.KEYPOINT_ON"]):
        keys["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = len(facts.keypoints)
        keys["TEST.KEYPOINT_OKS_SIGMAS"] = list(facts.sigmas)
    return keys


def _missing(
    sources: list[DataFiles], train: list[AnnotationFile], test: AnnotationFile, task: str
) -> str:
    """Returns why a task cannot be learnt from the training files and scored on the last one."""
    for files, found in zip(sources, [*train, test], strict=True):
        if lack := _lack(found, task, "TEST" if found is test else "TRAIN"):
            return f"{files.annotations}: {lack}"
    if task == "keypoints" and not all(found.keypoints == test.keypoints != () for found in train):
        return "the categories do not name the same keypoints everywhere"
    return ""


def _lack(found: AnnotationFile, task: str, part: str) -> str:
    """Returns why a task cannot be learnt from a file (TRAIN) or scored on it (TEST)."""
    if part == "TEST" and task in found.lacks:
        return found.lacks[task]
    if task == "segm":
        return "" if found.masks else "no annotation has a mask"
    return "" if found.labelled else "no annotation has keypoints"


@dataclass(frozen=True)
class Origin:
    """Where the name of a data set leads."""

    base: str  # the full set's name
    subset: Subset | None  # which part of that, None for all
    own: bool  # whether it is the study's own
    file: Path | None  # its COCO annotations, which need not be there
    tree: tuple[Path, str] | None  # root and split of a VOC tree

    @property
    def readable(self) -> Path | None:
        """The annotation file, if it is there and not COCO's own large one."""
        if self.file is None or not self.file.is_file():
            return None
        small = self.own or self.file.stat().st_size < OFFICIAL_BYTES
        return self.file if small else None


def origin(cfg: CfgNode, name: str) -> Origin:
    """Returns where a name in a config's DATASETS leads; reads no file."""
    files = {one: Path(file) for one, file, _ in cfg.SVP.DATASETS}
    trees = {one: (Path(root), split) for one, root, split, *_ in cfg.SVP.VOC_DATASETS}
    subset = None if name in trees else subset_of(name, files)
    base = subset.base if subset else name
    base = ALIASES.get(base, base)
    known = registered(base) or {}
    file, tree = files.get(base), trees.get(base)
    if file is None and known.get("json_file"):
        file = Path(known["json_file"])
    if tree is None and known.get("dirname") and known.get("split"):
        tree = Path(known["dirname"]), known["split"]
    return Origin(base, subset, base in files or base in trees, file, tree)


def described_data(cfg: CfgNode) -> RunData:
    """Returns what run.json is to say of a config's data; its own are not registered for it."""
    classes = {name: known for name, *_, known in cfg.SVP.VOC_DATASETS}

    def facts(name: str) -> AnnotationFile:
        where = origin(cfg, name)
        if where.own and where.tree:
            root, split = where.tree
            listing = root / "ImageSets/Main" / f"{split}.txt"
            return voc_tree(listing, root, classes[where.base]).facts
        if where.own and where.file:
            file = subset_file(where.subset, where.file) if where.subset else where.file
            return read_annotations(file)
        return annotations_of(name)

    parts = {"train": cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    return RunData.model_validate_json(
        json.dumps({part: describe(names, facts) for part, names in parts.items()})
    )


def check_own_images(cfg: CfgNode) -> None:
    """Checks that the images of a study's own data sets are there; opens none."""
    folders = {name: Path(images) for name, _, images in cfg.SVP.DATASETS}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        where = origin(cfg, name)
        if where.own and where.tree:
            root, split = where.tree
            check_images(
                name, root / "ImageSets/Main" / f"{split}.txt", root, voc_images(root, split)
            )
        elif where.own and where.file:
            file = subset_file(where.subset, where.file) if where.subset else where.file
            check_images(name, where.file, folders[where.base], read_annotations(file).file_names)


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
    where = origin(cfg, name)
    if where.tree:
        root, split = where.tree
        if (root / "ImageSets" / "Main" / f"{split}.txt").is_file():
            voc_images(root, split)  # refuses a list that cannot be used
    file, known = where.readable, registered(where.base) or {}
    found = read_annotations(file) if file else None
    named = known.get("keypoint_names") or where.base.startswith("keypoints_")
    lacking = False
    for key, task, what, example in HEADS:
        if where.tree:
            lack = BOXES_ALONE
        elif found:
            lack = _lack(found, task, part)
        else:  # its name says what it has
            without = task == "keypoints" and known.get("json_file") and not named
            lack = "no annotation has keypoints" if without else ""
        if lack and flatten(cfg)[key]:
            lacking = True
            yield (
                f"{name}: {lack}, but {key} is True; choose data with {what}, such as {example}, "
                "or set it to False"
            )
    if found:
        yield from _disagreements(cfg, name, found, part)
    if file and not lacking:
        # What holds for a whole set need not for a subset of it.
        part_of_it = subset_file(where.subset, file) if where.subset else file
        if refused := refusal_at_a_look(where.base, part_of_it, cfg, part):
            yield f"{name}: {refused}"


def _disagreements(cfg: CfgNode, name: str, found: AnnotationFile, part: str) -> Iterator[str]:
    """Finds config values that do not go with an annotation file."""
    key = classes_key(cfg)
    classes = flatten(cfg)[key]
    if classes != len(found.categories):
        yield (
            f"{name}: has {len(found.categories)} categories, but {key} is {classes}; set it to "
            f"{len(found.categories)}"
        )
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
