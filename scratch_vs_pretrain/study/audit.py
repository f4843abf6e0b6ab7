"""The fairness audit: what a study's arms differ in, and recipes that cannot train from scratch.

Reads merged configs alone, so it runs before anything is built; modeling/checks.py looks at the
built models.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain.config import (
    ADMISSIBLE,
    ONE_STAGE,
    SMALLEST_BATCH,
    augmentation_problems,
    differences,
    flatten,
    missing_warmup,
    norm_problems,
)
from scratch_vs_pretrain.errors import UserError, nearest
from scratch_vs_pretrain.study.data_sets import HEADS, data_notices, data_problems
from scratch_vs_pretrain.study.resolve import (
    ORIGINS,
    PRESETS,
    arm_config,
    base_config,
    resolved_schedule,
)
from scratch_vs_pretrain.study.spec import RUN_SCHEME, Study

# What arms are meant to differ in.
INITIAL_WEIGHTS = "MODEL.WEIGHTS"
LOADED_PART = "SVP.LOAD"
SCHEDULE_KEYS = ("SOLVER.MAX_ITER", "SOLVER.STEPS")
BACKBONE_NORM = "MODEL.RESNETS.NORM"

CASCADE_HEADS = "CascadeROIHeads"
# What the switch may change. All else decides what the iterations before it were worth.
CASCADE_KEYS = (
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_BOX_CASCADE_HEAD.",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
)


@dataclass(frozen=True)
class Audit:
    """What the arms of a study differ in, all of it admitted."""

    differing: tuple[str, ...]  # the config keys, initial weights first
    # Each key that `allow_differences` admitted, with every arm's value.
    allowed: Mapping[str, Mapping[str, Any]]
    notices: tuple[str, ...] = ()  # sentences for the user; nothing is wrong
    admitted: tuple[str, ...] = ()  # checks that the study switches off

    def text(self) -> str:
        """Returns the audit as `svp plan` prints it."""
        lines = [f"arms differ in: {', '.join(self.differing) or 'nothing'}"]
        for key, values in self.allowed.items():
            each = ", ".join(f"{arm} {value}" for arm, value in values.items())
            lines.append(f"allowed difference {key}: {each}")
        if self.admitted:
            lines.append(f"wrong on purpose, admitted: {', '.join(self.admitted)}")
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])


def joined(audits: Sequence[Audit]) -> Audit:
    """Returns what studies of several sizes differ in, in all."""
    differing = dict.fromkeys(key for one in audits for key in one.differing)
    allowed = {key: values for one in audits for key, values in one.allowed.items()}
    notices = dict.fromkeys(notice for one in audits for notice in one.notices)
    return replace(audits[0], differing=tuple(differing), allowed=allowed, notices=tuple(notices))


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
    base = base_config(study)
    known = flatten(base)
    for key in study.allow_differences:
        if key not in known:
            near = nearest(key, known)
            raise UserError(f"{study.file}: allow_differences: unknown config key {key}{near}")
    for check in (check for cfg in configs.values() for check in cfg.SVP.ADMIT):
        if check not in ADMISSIBLE:
            near = nearest(check, ADMISSIBLE) or f"; known are {', '.join(ADMISSIBLE)}"
            raise UserError(f"{study.file}: admit: there is no check {check!r}{near}")
    _check_circles(study)
    check_switch(study)
    problems = {
        f"arm {arm}, schedule {schedule}: {problem}"
        for (arm, schedule), cfg in configs.items()
        for problem in recipe_problems(cfg, study.allow_differences)
    }
    if problems:
        raise UserError(f"{study.file}: {'; '.join(sorted(problems))}")
    unfit = dict.fromkeys(
        problem
        for cfg in configs.values()
        for problem in (*data_problems(cfg), *_metric_problems(study, cfg))
    )
    if unfit:
        raise UserError(f"{study.file}: {'; '.join(unfit)}")
    found: dict[str, dict[str, Any]] = {}
    for group in _comparisons(study):
        for key, values in differences({arm: configs[arm, name] for arm, name in group}).items():
            found.setdefault(key, values)
    expected = (INITIAL_WEIGHTS, LOADED_PART, *SCHEDULE_KEYS)
    confounders = {key: each for key, each in found.items() if key not in expected}
    _refuse_confounders(study, confounders)
    return Audit(
        differing=tuple(key for key in (*expected, *confounders) if key in found),
        allowed=confounders,
        notices=tuple(_notices(study, confounders, configs, base)),
        admitted=tuple(dict.fromkeys(check for cfg in configs.values() for check in cfg.SVP.ADMIT)),
    )


def recipe_problems(cfg: CfgNode, allowed: Collection[str] = ()) -> list[str]:
    """Finds what would train, but not what it should, in a config; each says what to change.

    What is a mistake with random weights may be the usual recipe with pre-trained ones: a frozen
    backbone, in part or whole. Then the study has to name the key. A network without any
    normalization, such as VGG-16, is allowed. `allowed` are the study's `allow_differences`.
    """
    norms, images = _norms_in_use(cfg), cfg.SOLVER.IMS_PER_BATCH
    found = {
        "frozen-stages-from-scratch": list(_frozen(cfg, allowed)),
        "frozen-norm-from-scratch": [
            f"{key} is FrozenBN, which normalizes nothing; set it to GN or SyncBN"
            for key, norm in norms.items()
            if norm == "FrozenBN" and not (cfg.MODEL.WEIGHTS and key == BACKBONE_NORM)
        ],
        "small-batch-norm": [
            f"{key} is BN at {images} images per batch, fewer than {SMALLEST_BATCH}; set it to GN "
            "or SyncBN"
            for key, norm in norms.items()
            if norm == "BN" and images < SMALLEST_BATCH
        ],
        "no-warm-up": missing_warmup(cfg),
    }
    problems = [p for check, each in found.items() if check not in cfg.SVP.ADMIT for p in each]
    return [
        *problems,
        *norm_problems(cfg),
        *augmentation_problems(cfg),
        *_preset_problems(cfg),
    ]


def _frozen(cfg: CfgNode, allowed: Collection[str]) -> Iterator[str]:
    """Finds what keeps initial weights: never random ones, others where the study names the key."""
    frozen = {
        "MODEL.BACKBONE.FREEZE_AT": cfg.MODEL.BACKBONE.FREEZE_AT,
        "SVP.FREEZE": cfg.SVP.FREEZE,
        BACKBONE_NORM: "FrozenBN" if _norms_in_use(cfg).get(BACKBONE_NORM) == "FrozenBN" else "",
    }
    for key, value in frozen.items():
        if cfg.MODEL.WEIGHTS and value and key not in allowed:
            yield (
                f"{key} is {value}: usual for pre-trained weights, but no arm from scratch can "
                f"have it; set it as the others, or admit it with allow_differences: [{key}]"
            )
    if cfg.MODEL.WEIGHTS:
        return
    if frozen["MODEL.BACKBONE.FREEZE_AT"]:
        yield (
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, which keeps random "
            "stages random (3.3 to 3.5 AP lost, says Detectron's GN page); set it to 0"
        )
    if frozen["SVP.FREEZE"]:
        yield f"freeze: {cfg.SVP.FREEZE} keeps random features random; leave it out"


def _preset_problems(cfg: CfgNode) -> Iterator[str]:
    """Finds pixels or strides that weights of a known address were not trained with."""
    weights, values = cfg.MODEL.WEIGHTS, flatten(cfg)
    preset = next((name for start, name in ORIGINS.items() if weights.startswith(start)), None)
    expected = PRESETS[preset] if preset else {}
    wrong = [f"{key} {value}" for key, value in expected.items() if values[key] != value]
    if wrong:
        yield f"{weights} was trained with {', '.join(wrong)}; set preset: {preset}"


def _metric_problems(study: Study, cfg: CfgNode) -> Iterator[str]:
    """Finds metrics by which a config's model is not evaluated."""
    heads = {task: key for key, task, *_ in HEADS}
    known = (*heads, "bbox", "voc", "panoptic_seg", "sem_seg")
    other = "; choose another, such as bbox/AP, or name what measures it in SVP.EVALUATORS"
    for key, part in (("answer.metric", study.answer), ("tune.metric", study.tune)):
        metric = (part.metric if part else None) or "bbox/AP"
        task = metric.partition("/")[0].removesuffix("_TTA")
        if task in heads and not flatten(cfg)[heads[task]]:
            yield f"{key}: is {metric}, but {heads[task]} is False; choose another metric"
        elif task not in known and not cfg.SVP.EVALUATORS:
            yield f"{key}: nothing measures {metric}{nearest(task, known) or other}"


def _norms_in_use(cfg: CfgNode) -> dict[str, str]:
    """Returns the normalization of every part that the config's model has."""
    model, backbone = cfg.MODEL, cfg.MODEL.BACKBONE.NAME
    used = {
        "MODEL.RESNETS.NORM": "resne" in backbone,
        "MODEL.FPN.NORM": "fpn" in backbone,
        "MODEL.ROI_BOX_HEAD.NORM": model.ROI_BOX_HEAD.NUM_CONV > 0,
        "MODEL.ROI_MASK_HEAD.NORM": model.MASK_ON,
        "MODEL.RETINANET.NORM": model.META_ARCHITECTURE in ONE_STAGE,
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
    sharing: dict[str, list[tuple[str, str]]] = {}
    for arm in study.arms:
        for schedule in arm.schedules:
            sharing.setdefault(schedule.name, []).append((arm.name, schedule.name))
    yield from sharing.values()


def _check_circles(study: Study) -> None:
    """Refuses arms that start from each other's runs."""
    inits = {f"{study.name}/{arm.name}": arm.init for arm in study.arms}
    for arm in study.arms:
        init, seen = arm.init, [arm.name]
        while init.startswith(RUN_SCHEME):
            source = init.removeprefix(RUN_SCHEME).rsplit("/", 2)[0]
            init = inits.get(source, "")
            name = source.partition("/")[2]
            seen.append(name)
            if init and name in seen[:-1]:
                raise UserError(
                    f"{study.file}: arms.{arm.name}.init: {arm.init}: goes in a circle "
                    f"({' from '.join(seen)}); let one of them start from a checkpoint or from "
                    "scratch"
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
    base: CfgNode,
) -> Iterator[str]:
    for key in study.allow_differences:
        if key not in confounders:
            yield f"allow_differences names {key}, in which the arms do not differ"
    inits: dict[str, list[str]] = {}
    for arm in study.arms:
        inits.setdefault(arm.weights, []).append(arm.name)
    for weights, names in inits.items():
        if len(names) > 1:
            yield f"arms {' and '.join(names)} start from {weights or 'random weights'}"
    told = (notice for arm in study.arms for notice in data_notices(study, arm, base))
    yield from dict.fromkeys(told)
    for (name, schedule), cfg in configs.items():
        first = (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)[0]
        if first <= cfg.SOLVER.WARMUP_ITERS:
            yield (
                f"arm {name}, schedule {schedule}: the rate drops after {first:,} iterations, "
                f"before its warm-up of SOLVER.WARMUP_ITERS {cfg.SOLVER.WARMUP_ITERS:,} ends"
            )


def switched_study(study: Study) -> Study:
    """Returns the study whose runs are the ends of this study's: same arms, the switch's config."""
    assert study.switch is not None
    return replace(study, base=study.switch.config, switch=None)


def check_switch(study: Study) -> None:
    """Checks a study's switch, if it has one, under every arm's schedules."""
    if study.switch is None:
        return
    switched = switched_study(study)
    for arm in study.arms:
        for spec in arm.schedules:
            before, after = (arm_config(one, arm, spec) for one in (study, switched))
            schedule = resolved_schedule(study, arm, spec)
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
