"""The final config of a run: Detectron2's default, the base, and what the study says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scratch_vs_pretrain.config import Schedule, default_config, merge_file, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.own_data import merge_data
from scratch_vs_pretrain.study.spec import PRESETS, Arm, Run, ScheduleSpec, Study

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def run_config(study: Study, run: Run) -> CfgNode:
    """Returns the frozen config of one run, as its folder will hold it.

    Later ones win: Detectron2's default, the base file, the preset, the study's overrides,
    evaluation and data, the arm's overrides, the schedule, the initial weights and the seed.

    OUTPUT_DIR is empty in every run: the folder that holds the config *is* the output folder, so
    that a run whose folder was moved or copied to another machine resumes there, with a config
    that still equals the study's.

    Raises:
        UserError: the base file, an override, the schedule or the data do not fit; the message
            names file and key.
    """
    cfg = arm_config(study, run.arm, run.schedule)
    cfg.SEED = run.seed
    cfg.freeze()
    return cfg


def arm_config(study: Study, arm: Arm, schedule: ScheduleSpec) -> CfgNode:
    """Returns what the configs of an arm's runs with this schedule share; see :func:`run_config`.

    The result is not frozen.
    """
    cfg = default_config()
    merge_file(cfg, study.base)
    if study.preset:
        merge_overrides(cfg, PRESETS[study.preset], f"preset {study.preset}")
    merge_overrides(cfg, study.overrides, f"{study.file}: overrides")
    if study.evaluation.period is not None:
        cfg.TEST.EVAL_PERIOD = study.evaluation.period
    if study.evaluation.at:
        cfg.SVP.EVAL_ITERATIONS = study.evaluation.at
    merge_data(cfg, study, arm)
    merge_overrides(cfg, arm.overrides, f"{study.file}: arms.{arm.name}.overrides")
    _check_data_names(cfg, study)
    schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH).apply(cfg)
    cfg.MODEL.WEIGHTS = arm.weights
    cfg.OUTPUT_DIR = ""
    return cfg


def resolved_schedule(study: Study, arm: Arm, schedule: ScheduleSpec) -> Schedule:
    """Returns an arm's schedule at its batch size."""
    cfg = arm_config(study, arm, schedule)
    return schedule.resolve(cfg.SOLVER.IMS_PER_BATCH, cfg.SVP.REFERENCE_BATCH)


def schedules_of(study: Study, arm: Arm) -> list[Schedule]:
    """Returns an arm's schedules, in the study's order."""
    return [resolved_schedule(study, arm, schedule) for schedule in arm.schedules]


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
    try:
        for name in cfg.DATASETS.TRAIN:
            find_subset(name, own)
        refuse_subsets(cfg.DATASETS.TEST, own)
    except UserError as error:
        raise UserError(f"{study.file}: {error}") from None
