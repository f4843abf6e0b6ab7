"""The fairness audit: what a study's arms differ in, and recipes that cannot train from scratch.

Reads merged configs alone, so it runs before anything is built; modeling/checks.py looks at the
built models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.config import (
    SMALLEST_BATCH,
    default_config,
    differences,
    flatten,
    missing_warmup,
    nearest,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.tta import augmentation_problems
from scratch_vs_pretrain.modeling.vgg import norm_problems
from scratch_vs_pretrain.study.data_fit import data_problems
from scratch_vs_pretrain.study.own_data import data_notices
from scratch_vs_pretrain.study.resolve import ORIGINS, PRESETS, arm_config
from scratch_vs_pretrain.study.schedule import Schedule
from scratch_vs_pretrain.study.spec import Arm, Study
from scratch_vs_pretrain.study.switch import check_switch

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# What arms are meant to differ in.
INITIAL_WEIGHTS = "MODEL.WEIGHTS"
SCHEDULE_KEYS = ("SOLVER.MAX_ITER", "SOLVER.STEPS")


@dataclass(frozen=True)
class Audit:
    """What the arms of a study differ in, all of it admitted.

    Attributes:
        differing: the config keys, initial weights first.
        allowed: each key that `allow_differences` admitted, with every arm's value.
        notices: sentences for the user; nothing is wrong.
    """

    differing: tuple[str, ...]
    allowed: Mapping[str, Mapping[str, Any]]
    notices: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns the audit as `svp plan` prints it."""
        lines = [f"arms differ in: {', '.join(self.differing) or 'nothing'}"]
        for key, values in self.allowed.items():
            each = ", ".join(f"{arm} {value}" for arm, value in values.items())
            lines.append(f"allowed difference {key}: {each}")
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])


def audit(study: Study) -> Audit:
    """Compares the arms' final configs key by key and checks their recipe.

    Arms are compared under each schedule that they share, and each under its own last schedule;
    seeds enter all configs alike.

    Raises:
        UserError: the arms differ in a key that the study does not allow (all are listed), a key
            that it allows does not exist, a config cannot train from scratch, or its data sets
            lack what its model learns.
    """
    configs = {
        (arm.name, schedule.name): arm_config(study, arm, schedule)
        for arm in study.arms
        for schedule in arm.schedules
    }
    _check_allowed_keys(study)
    check_switch(study)
    problems = {
        f"arm {arm}, schedule {schedule}: {problem}"
        for (arm, schedule), cfg in configs.items()
        for problem in recipe_problems(cfg)
    }
    if problems:
        raise UserError(f"{study.file}: {'; '.join(sorted(problems))}")
    unfit = dict.fromkeys(problem for cfg in configs.values() for problem in data_problems(cfg))
    if unfit:
        raise UserError(f"{study.file}: {'; '.join(unfit)}")
    found: dict[str, dict[str, Any]] = {}
    for group in _comparisons(study):
        for key, values in differences({arm: configs[arm, name] for arm, name in group}).items():
            found.setdefault(key, values)
    expected = (INITIAL_WEIGHTS, *SCHEDULE_KEYS)
    confounders = {key: each for key, each in found.items() if key not in expected}
    _refuse_confounders(study, confounders)
    return Audit(
        differing=tuple(key for key in (*expected, *confounders) if key in found),
        allowed=confounders,
        notices=tuple(_notices(study, confounders, configs)),
    )


def recipe_problems(cfg: CfgNode) -> list[str]:
    """Finds what would train but not from random weights, in a config; each says what to change.

    A network without any normalization, such as VGG-16, is allowed.
    """
    problems = []
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at != 0:
        problems.append(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, which keeps random stages random (3.3 to "
            "3.5 AP lost, says Detectron's GN page); set it to 0"
        )
    norms = _norms_in_use(cfg)
    for key in (key for key, norm in norms.items() if norm == "FrozenBN"):
        problems.append(f"{key} is FrozenBN, which normalizes nothing; set it to GN or SyncBN")
    if cfg.SOLVER.AMP.ENABLED:
        problems.append(
            "SOLVER.AMP.ENABLED is Detectron2's float16, which this trainer does not do; set it to "
            "False and SVP.FAST.ENABLED to True for bfloat16"
        )
    images = cfg.SOLVER.IMS_PER_BATCH
    if images < SMALLEST_BATCH:
        problems += [
            f"{key} is BN at {images} images per batch, fewer than {SMALLEST_BATCH}; set it to GN "
            "or SyncBN"
            for key, norm in norms.items()
            if norm == "BN"
        ]
    return [
        *problems,
        *norm_problems(cfg),
        *missing_warmup(cfg),
        *augmentation_problems(cfg),
        *_preset_problems(cfg),
    ]


def _preset_problems(cfg: CfgNode) -> Iterator[str]:
    """Finds pixels or strides that weights of a known address were not trained with."""
    weights, values = cfg.MODEL.WEIGHTS, flatten(cfg)
    preset = next((name for start, name in ORIGINS.items() if weights.startswith(start)), None)
    expected = PRESETS[preset] if preset else {}
    wrong = [f"{key} {value}" for key, value in expected.items() if values[key] != value]
    if wrong:
        yield f"{weights} was trained with {', '.join(wrong)}; set preset: {preset}"


def _norms_in_use(cfg: CfgNode) -> dict[str, str]:
    """Returns the normalization of every part that the config's model has."""
    model, backbone = cfg.MODEL, cfg.MODEL.BACKBONE.NAME
    used = {
        "MODEL.RESNETS.NORM": "resne" in backbone,
        "MODEL.FPN.NORM": "fpn" in backbone,
        "MODEL.ROI_BOX_HEAD.NORM": model.ROI_BOX_HEAD.NUM_CONV > 0,
        "MODEL.ROI_MASK_HEAD.NORM": model.MASK_ON,
        "MODEL.RETINANET.NORM": model.META_ARCHITECTURE == "RetinaNet",
        "MODEL.SEM_SEG_HEAD.NORM": model.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"),
    }
    return {
        key: norm
        for key, norm in flatten(cfg).items()
        if key.endswith(".NORM") and norm and used.get(key, True)
    }


def _comparisons(study: Study) -> Iterator[list[tuple[str, str]]]:
    """Yields groups of (arm, schedule name) to be compared with each other."""
    yield [(arm.name, arm.schedules[-1].name) for arm in study.arms]
    names = dict.fromkeys(schedule.name for arm in study.arms for schedule in arm.schedules)
    for name in names:
        yield [(arm.name, name) for arm in study.arms if _find(arm, name)]


def _find(arm: Arm, name: str) -> Schedule | None:
    return next((schedule for schedule in arm.schedules if schedule.name == name), None)


def _check_allowed_keys(study: Study) -> None:
    known = flatten(default_config())
    for key in study.allow_differences:
        if key not in known:
            raise UserError(
                f"{study.file}: allow_differences: unknown config key {key}{nearest(key, known)}"
            )


def _refuse_confounders(study: Study, found: Mapping[str, Mapping[str, Any]]) -> None:
    refused = [key for key in found if key not in study.allow_differences]
    if refused:
        listed = "; ".join(
            f"{key} ({', '.join(f'{arm}: {value!r}' for arm, value in found[key].items())})"
            for key in refused
        )
        raise UserError(
            f"{study.file}: arms may differ in initial weights and schedule alone, but differ in "
            f"{listed}; make them equal, or admit it with "
            f"allow_differences: [{', '.join(refused)}]"
        )


def _notices(
    study: Study,
    confounders: Mapping[str, Any],
    configs: Mapping[tuple[str, str], CfgNode],
) -> Iterator[str]:
    for key in study.allow_differences:
        if key not in confounders:
            yield f"allow_differences names {key}, in which the arms do not differ"
    inits: dict[str, list[str]] = {}
    for arm in study.arms:
        inits.setdefault(arm.weights, []).append(arm.name)
    for names in inits.values():
        if len(names) > 1:
            yield f"arms {' and '.join(names)} start from the same initial weights"
    yield from dict.fromkeys(notice for arm in study.arms for notice in data_notices(study, arm))
    for (name, schedule), cfg in configs.items():
        first = (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)[0]
        if first <= cfg.SOLVER.WARMUP_ITERS:
            yield (
                f"arm {name}, schedule {schedule}: the rate drops after {first:,} iterations, "
                f"before its warm-up of SOLVER.WARMUP_ITERS {cfg.SOLVER.WARMUP_ITERS:,} ends"
            )
