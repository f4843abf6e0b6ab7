"""The switch to Cascade R-CNN for the last iterations of every run of a study."""

from __future__ import annotations

import dataclasses

from scratch_vs_pretrain.config import differences
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import Study

CASCADE_HEADS = "CascadeROIHeads"
# What the switch may change. All else decides what the iterations before it were worth.
CASCADE_KEYS = (
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_BOX_CASCADE_HEAD.",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
)


def switched_study(study: Study) -> Study:
    """Returns the study whose runs are the ends of this study's: same arms, the switch's config.

    Raises:
        UserError: the study has no switch.
    """
    if study.switch is None:
        raise UserError(f"{study.file}: has no switch")
    return dataclasses.replace(study, base=study.switch.config, switch=None)


def check_switch(study: Study) -> None:
    """Checks a study's switch, if it has one, under every arm's schedules.

    Raises:
        UserError: a schedule has no iterations before the switch, or the switch's config is no
            cascade, or differs from the base in more than the cascade.
    """
    if study.switch is None:
        return
    switched = switched_study(study)
    for arm in study.arms:
        for spec in arm.schedules:
            before, after = (arm_config(one, arm, spec) for one in (study, switched))
            schedule = spec.resolve(before.SOLVER.IMS_PER_BATCH, before.SVP.REFERENCE_BATCH)
            if study.switch.start(schedule) < 1:
                raise UserError(
                    f"{study.file}: switch.last: {study.switch.last:,} iterations leave none "
                    f"before the switch in schedule {spec.name} of arm {arm.name}, which has "
                    f"{schedule.iterations:,}; choose fewer, or a longer schedule"
                )
            found = differences({"before": before, "after": after})
            others = [key for key in found if not key.startswith(CASCADE_KEYS)]
            if others:
                raise UserError(
                    f"{study.file}: switch.config: {study.switch.config} differs from the base in "
                    f"more than the cascade: {', '.join(others)}; "
                    "give it the study's base as _BASE_"
                )
            if after.MODEL.ROI_HEADS.NAME != CASCADE_HEADS:
                raise UserError(
                    f"{study.file}: switch.config: {study.switch.config} is no Cascade R-CNN; "
                    f"set MODEL.ROI_HEADS.NAME to {CASCADE_HEADS} in it"
                )
