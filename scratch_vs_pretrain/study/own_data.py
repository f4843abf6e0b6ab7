"""What follows from a study's own data: class count, heads, keypoints, evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.config import ONE_STAGE, default_config, merge_file
from scratch_vs_pretrain.data.coco import USUAL_SIGMA, AnnotationFile, read_annotations
from scratch_vs_pretrain.data.datasets import check_names
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.spec import Arm, Data, DataFiles, Study, VocTree

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# COCO_PERSON_KEYPOINT_NAMES of Detectron2's data/datasets/builtin_meta.py.
_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON_KEYPOINTS = (
    "nose",
    *(f"{side}_{part}" for part in _PAIRED for side in ("left", "right")),
)


@dataclass(frozen=True)
class DataFacts:
    """What a study's files say.

    Attributes:
        classes: names, in the order that the model numbers them.
        without_masks, without_keypoints: why these cannot be learnt and scored; empty if they can.
        keypoints: their names.
        sigmas: of each keypoint; empty for those of COCO's persons.
        stated_sigmas: whether the files state them.
        run_lengths: some masks are no polygons.
    """

    classes: tuple[str, ...]
    without_masks: str
    without_keypoints: str
    keypoints: tuple[str, ...] = ()
    sigmas: tuple[float, ...] = ()
    stated_sigmas: bool = True
    run_lengths: bool = False


def data_facts(data: Data) -> DataFacts:
    """Reads a study's annotations.

    Raises:
        UserError: a file cannot be used, or they do not belong together.
    """
    if isinstance(data.test, VocTree):
        from scratch_vs_pretrain.data.voc import voc_classes

        trees = [tree for tree in (*data.train, data.test) if isinstance(tree, VocTree)]
        classes = data.classes or voc_classes((tree.root, tree.split) for tree in trees)
        boxes = "VOC trees have boxes alone"
        return DataFacts(classes, boxes, boxes)
    sources = [files for files in (*data.train, data.test) if isinstance(files, DataFiles)]
    read = [read_annotations(files.annotations) for files in sources]
    for files, found in zip(sources, read, strict=True):
        check_names(files.annotations, files.images, found.file_names)
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
    return DataFacts(
        classes=test.categories,
        without_masks=_missing(sources, train, test, "masks", "segm"),
        without_keypoints=_missing(sources, train, test, "labelled", "keypoints"),
        keypoints=test.keypoints,
        sigmas=_sigmas(test),
        stated_sigmas=bool(test.sigmas) or not _sigmas(test),
        run_lengths=any(found.run_lengths for found in train),
    )


def merge_data(cfg: CfgNode, study: Study, arm: Arm) -> None:
    """Writes what follows from a study's data into a config; overrides of heads stay.

    Raises:
        UserError: as :func:`data_facts`, or an override contradicts the files.
    """
    if study.data is None:
        return
    data = study.data
    try:
        facts = data_facts(data)
    except UserError as error:
        raise UserError(f"{study.file}: {error}") from None
    overrides = {**study.overrides, **arm.overrides}
    several = len(data.train) > 1
    named: list[tuple[str, DataFiles | VocTree]] = [
        (f"{study.name}_train" + (f"-{number}" if several else ""), source)
        for number, source in enumerate(data.train, 1)
    ]
    cfg.DATASETS.TRAIN = tuple(name for name, _ in named)
    cfg.DATASETS.TEST = (f"{study.name}_test",)
    named.append((f"{study.name}_test", data.test))
    # Lists, as they are read again from a run folder.
    cfg.SVP.DATASETS = tuple(
        [name, str(source.annotations), str(source.images)]
        for name, source in named
        if isinstance(source, DataFiles)
    )
    cfg.SVP.VOC_DATASETS = tuple(
        [name, str(source.root), source.split, source.year, list(facts.classes)]
        for name, source in named
        if isinstance(source, VocTree)
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(facts.classes)
    if cfg.MODEL.META_ARCHITECTURE in ONE_STAGE:
        cfg.MODEL.RETINANET.NUM_CLASSES = len(facts.classes)
    else:
        for key, value in _head_keys(facts, overrides).items():
            _refuse_contradiction(study, facts, overrides, key, value)
            if key not in overrides:
                cfg.merge_from_list([key, value])


def data_notices(study: Study, arm: Arm) -> Iterator[str]:
    """Says what follows from a study's data, for an arm, in another way than its base has it."""
    if study.data is None:
        return
    facts = data_facts(study.data)
    base = default_config()
    merge_file(base, study.base)
    overrides = {**study.overrides, **arm.overrides}
    follows = _head_keys(facts, overrides)
    reasons = {"MASK_ON": facts.without_masks, "KEYPOINT_ON": facts.without_keypoints}
    for key, reason in reasons.items():
        on = follows[f"MODEL.{key}"]
        if f"MODEL.{key}" not in overrides and on != base.MODEL[key]:
            found = "masks" if key == "MASK_ON" else "keypoints"
            yield (
                f"the data turn MODEL.{key} {'on' if on else 'off'}, unlike {study.base.name}: "
                + (f"they have {found} (override it to keep it off)" if on else reason)
            )
    if "TEST.KEYPOINT_OKS_SIGMAS" in follows.keys() - overrides and not facts.stated_sigmas:
        yield (
            f"no category states sigmas: keypoints are scored with {USUAL_SIGMA} each, the mean "
            "of COCO's; override TEST.KEYPOINT_OKS_SIGMAS to change it"
        )


def _head_keys(facts: DataFacts, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config keys of the heads, as they follow from the files."""
    keys: dict[str, Any] = {
        "MODEL.MASK_ON": not facts.without_masks,
        "MODEL.KEYPOINT_ON": not facts.without_keypoints,
    }
    if overrides.get("MODEL.MASK_ON", keys["MODEL.MASK_ON"]) and facts.run_lengths:
        keys["INPUT.MASK_FORMAT"] = "bitmask"
    if overrides.get("MODEL.KEYPOINT_ON", keys["MODEL.KEYPOINT_ON"]):
        keys["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = len(facts.keypoints)
        keys["TEST.KEYPOINT_OKS_SIGMAS"] = list(facts.sigmas)
    return keys


def _refuse_contradiction(
    study: Study, facts: DataFacts, overrides: Mapping[str, Any], key: str, value: Any
) -> None:
    """Raises UserError for an override that the files make impossible."""
    wanted = overrides.get(key, value)
    reason = ""
    if key == "MODEL.MASK_ON" and wanted and not value:
        reason = facts.without_masks
    elif key == "MODEL.KEYPOINT_ON" and wanted and not value:
        reason = facts.without_keypoints
    elif key == "INPUT.MASK_FORMAT" and wanted != value:
        reason = "some masks are run lengths, which only bitmask takes"
    elif key == "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS" and wanted != value:
        reason = f"their categories name {value} keypoints"
    elif key == "TEST.KEYPOINT_OKS_SIGMAS" and len(wanted) not in (0, len(facts.keypoints)):
        reason = f"their categories name {len(facts.keypoints)} keypoints"
    if reason:
        raise UserError(
            f"{study.file}: {key} is overridden with {wanted}, but that does not fit the data: "
            f"{reason}; remove the override"
        )


def _missing(
    sources: list[DataFiles],
    train: list[AnnotationFile],
    test: AnnotationFile,
    flag: str,
    task: str,
) -> str:
    """Returns why a task cannot be learnt from the training files and scored on the last one."""
    what = "a mask" if task == "segm" else "keypoints"
    for files, found in zip(sources, train, strict=False):
        if not getattr(found, flag):
            return f"no annotation of {files.annotations} has {what}"
    if task in test.lacks:
        return f"{sources[-1].annotations}: {test.lacks[task]}"
    if task == "keypoints" and not all(found.keypoints == test.keypoints != () for found in train):
        return "the categories do not name the same keypoints everywhere"
    return ""


def _sigmas(file: AnnotationFile) -> tuple[float, ...]:
    """Returns the sigmas that keypoints are scored with, none for COCO's persons."""
    if file.sigmas or not file.keypoints:
        return file.sigmas
    if file.keypoints == COCO_PERSON_KEYPOINTS:
        return ()
    return (USUAL_SIGMA,) * len(file.keypoints)
