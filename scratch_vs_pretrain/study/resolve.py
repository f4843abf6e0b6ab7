"""The final config of a run: Detectron2's default, the base, and what the study says."""

from collections.abc import Collection
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import default_config, flatten, merge_file, merge_overrides
from scratch_vs_pretrain.config_checks import value_problems
from scratch_vs_pretrain.errors import UserError, located
from scratch_vs_pretrain.run_info import Branch
from scratch_vs_pretrain.study.data_sets import merge_data
from scratch_vs_pretrain.study.schedule import Schedule, branches_of
from scratch_vs_pretrain.study.spec import FULL, Arm, Run, Study

# What the pixels of a pre-trained backbone looked like, and where its stages halve the resolution.
# The three belong together, and to both arms. Sources: comments in Detectron2's
# checkpoint/catalog.py and config/defaults.py; torchvision's ImageNet normalization times 255.
PRESETS: dict[str, dict[str, Any]] = {
    # ImageNetPretrained/MSRA/*: Caffe models.
    "detectron2": {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    },
    # ImageNetPretrained/FAIR/*-GN: Caffe2 models.
    "detectron2-gn": {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
    # ImageNetPretrained/torchvision/* and most self-supervised ones.
    "torchvision": {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
}
# Whose weights an address gives: what it begins with, and the preset that they need.
ORIGINS = {
    "detectron2://ImageNetPretrained/MSRA/": "detectron2",
    "catalog://ImageNetPretrained/MSRA/": "detectron2",
    "detectron2://ImageNetPretrained/FAIR/R-": "detectron2-gn",
    "catalog://ImageNetPretrained/FAIR/R-": "detectron2-gn",
    "detectron2://ImageNetPretrained/torchvision/": "torchvision",
    "https://download.pytorch.org/models/": "torchvision",
}


def run_config(study: Study, run: Run) -> CfgNode:
    """Returns the frozen config of one run, as its folder will hold it.

    Later ones win: Detectron2's default, the base file, the preset, the study's overrides,
    evaluation and data, the arm's overrides, the schedule, the initial weights and the seed.

    OUTPUT_DIR is empty in every run: the folder that holds the config *is* the output folder, so
    that a run whose folder was moved or copied to another machine resumes there, with a config
    that still equals the study's.
    """
    cfg = arm_config(study, run.arm, run.schedule).clone()
    cfg.defrost()
    cfg.SEED = run.seed
    cfg.freeze()
    return cfg


def arm_config(study: Study, arm: Arm, schedule: Schedule) -> CfgNode:
    """Returns the frozen config that an arm's runs share with this schedule; :func:`run_config`.

    It is merged once for each study.
    """
    made = vars(study).setdefault("_configs", {})  # no field: equal studies stay equal
    key = id(arm), id(schedule)
    if key not in made:
        made[key] = arm, schedule, _merged(study, arm, schedule)  # held, so that ids stay theirs
    return made[key][-1]


def base_config(study: Study) -> CfgNode:
    """Returns what all runs begin with: the default, with the keys of own modules, and the base."""
    cfg = default_config(study.imports, f"{study.file}: imports")
    merge_file(cfg, study.base)
    return cfg


def _merged(study: Study, arm: Arm, schedule: Schedule) -> CfgNode:
    cfg = base_config(study)
    if study.preset:
        merge_overrides(cfg, PRESETS[study.preset], f"preset {study.preset}")
    merge_overrides(cfg, study.overrides, f"{study.file}: overrides")
    if study.evaluation.period is not None:
        cfg.TEST.EVAL_PERIOD = study.evaluation.period
    if study.evaluation.at:
        cfg.SVP.EVAL_ITERATIONS = study.evaluation.at
    merge_data(cfg, study, arm)
    merge_overrides(cfg, arm.overrides, f"{study.file}: arms.{arm.name}.overrides")
    if cfg.MODEL.TIMM.NAME:
        from scratch_vs_pretrain.modeling.backbone import pixel_settings

        # The pixels that it was trained with, unless the study states others.
        stated = {**study.overrides, **arm.overrides}
        with located(f"{study.file}: arms.{arm.name}"):
            pixels = pixel_settings(cfg.MODEL.TIMM.NAME)
            unstated = {key: value for key, value in pixels.items() if key not in stated}
            merge_overrides(cfg, unstated, "MODEL.TIMM.NAME")
    if study.size and study.size != FULL:
        if len(cfg.DATASETS.TRAIN) != 1:
            raise UserError(
                f"{study.file}: sizes: are subsets of one training set, but DATASETS.TRAIN names "
                f"{len(cfg.DATASETS.TRAIN)}; join their files, or remove sizes"
            )
        cfg.DATASETS.TRAIN = (f"{cfg.DATASETS.TRAIN[0]}_{study.size}",)
    _check_data_names(cfg, study)
    if problems := value_problems(flatten(cfg)):
        raise UserError(f"{study.file}: {'; '.join(problems)}")
    with located(study.file):
        schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH).apply(cfg)
    cfg.MODEL.WEIGHTS = arm.weights
    if arm.load == "detector" and not arm.weights:
        raise UserError(
            f"{study.file}: arms.{arm.name}.load: init is scratch, which is no detector; "
            "leave load out"
        )
    cfg.SVP.LOAD = arm.load if arm.load != "backbone" else cfg.SVP.LOAD
    cfg.SVP.FREEZE = arm.freeze or cfg.SVP.FREEZE
    cfg.SVP.ADMIT = study.admit or cfg.SVP.ADMIT
    cfg.OUTPUT_DIR = ""
    cfg.freeze()
    return cfg


def resolved_schedule(study: Study, arm: Arm, schedule: Schedule) -> Schedule:
    """Returns an arm's schedule at its batch size."""
    cfg = arm_config(study, arm, schedule)
    return schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH)


def schedules_of(study: Study, arm: Arm) -> list[Schedule]:
    """Returns an arm's schedules, in the study's order."""
    return [resolved_schedule(study, arm, schedule) for schedule in arm.schedules]


def arm_branches(study: Study, arm: Arm, begun: Collection[str] = ()) -> dict[str, Branch]:
    """Returns where an arm's runs of one seed branch off, by schedule; see :func:`branches_of`."""
    return branches_of(schedules_of(study, arm), study.switch, begun) if study.sharing else {}


def _check_data_names(cfg: CfgNode, study: Study) -> None:
    from scratch_vs_pretrain.data.datasets import find_subset, refuse_subsets

    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{study.file}: DATASETS.{key} names no data set, neither in {study.base} nor in "
                f"the overrides (it is {names!r}); for example [coco_2017_{key.lower()}]"
            )
    own = [name for name, *_ in (*cfg.SVP.DATASETS, *cfg.SVP.VOC_DATASETS)]
    with located(study.file):
        for name in cfg.DATASETS.TRAIN:
            find_subset(name, own)
        refuse_subsets(cfg.DATASETS.TEST, own)
