"""The fairness audit: what a study's arms differ in, and recipes that cannot train from scratch.

And what is missing or does not fit beside the study file: checkpoints, data sets, registered parts.
Merged configs, names and what lies open in files are all that is looked at, without torch, so it
runs before anything is built; modeling/checks.py looks at the built models.
"""

import json
import mmap
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from scratch_vs_pretrain._detectron2 import part_names, registered_sets
from scratch_vs_pretrain.config import (
    ADMISSIBLE,
    ONE_STAGE,
    SMALLEST_BATCH,
    augmentation_problems,
    differences,
    flatten,
    missing_warmup,
    norm_problems,
    unknown_part,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study import data_sets, resolve
from scratch_vs_pretrain.study.fields import is_uri
from scratch_vs_pretrain.study.spec import REQUIRED, RUN_SCHEME, Arm, Study
from scratch_vs_pretrain.text import nearest

# Config keys that name a part, and the module and registry that hold it.
PARTS = {
    "MODEL.META_ARCHITECTURE": ("detectron2.modeling", "META_ARCH_REGISTRY"),
    "MODEL.BACKBONE.NAME": ("detectron2.modeling", "BACKBONE_REGISTRY"),
    "MODEL.ROI_HEADS.NAME": ("detectron2.modeling", "ROI_HEADS_REGISTRY"),
    "SVP.MAPPER": ("scratch_vs_pretrain.training.recipe", "MAPPERS"),
    "SVP.OPTIMIZER": ("scratch_vs_pretrain.training.recipe", "OPTIMIZERS"),
    "SVP.EVALUATORS": ("scratch_vs_pretrain.evaluation.others", "EVALUATORS"),
}
# How torch's files of before 2020 begin, which hold numbers behind their last pickle.
TORCH_OF_2019 = b"\x80\x02\x8a\nl\xfc\x9cF"
# Names of tensors that a BatchNorm alone has: torch's, Caffe2's.
BATCH_NORM = (b"running_mean", b"_bn_s")
# What arms are meant to differ in.
EXPECTED = ("MODEL.WEIGHTS", "SVP.LOAD", "SOLVER.MAX_ITER", "SOLVER.STEPS")
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
        (arm.name, schedule.name): resolve.arm_config(study, arm, schedule)
        for arm in study.arms
        for schedule in arm.schedules
    }
    base = resolve.base_config(study)
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
    unsuitable = dict.fromkeys(
        problem
        for cfg in configs.values()
        for problem in (*data_sets.data_problems(cfg), *_metric_problems(study, cfg))
    )
    if unsuitable:
        raise UserError(f"{study.file}: {'; '.join(unsuitable)}")
    found = _compare(study, configs)
    confounders = {key: each for key, each in found.items() if key not in EXPECTED}
    return Audit(
        differing=tuple(key for key in (*EXPECTED, *confounders) if key in found),
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
    return [*problems, *norm_problems(cfg), *augmentation_problems(cfg), *_preset_problems(cfg)]


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
    presets = [name for start, name in resolve.ORIGINS.items() if weights.startswith(start)]
    expected = resolve.PRESETS[presets[0]] if presets else {}
    wrong = [f"{key} {value}" for key, value in expected.items() if values[key] != value]
    if wrong:
        yield f"{weights} was trained with {', '.join(wrong)}; set preset: {presets[0]}"


def _metric_problems(study: Study, cfg: CfgNode) -> Iterator[str]:
    """Finds metrics by which a config's model is not evaluated."""
    heads = {task: key for key, task, *_ in data_sets.HEADS}
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


def _compare(study: Study, configs: Mapping[tuple[str, str], CfgNode]) -> dict[str, dict[str, Any]]:
    """Returns the keys in which arms differ, with every arm's value.

    Raises:
        UserError: the study does not allow them all.
    """
    # By the schedule that arms share; "" stands for each one's last.
    groups = {"": [(arm.name, arm.schedules[-1].name) for arm in study.arms]}
    for arm, schedule in configs:
        groups.setdefault(schedule, []).append((arm, schedule))
    found: dict[str, dict[str, Any]] = {}
    for group in groups.values():
        for key, values in differences({arm: configs[arm, name] for arm, name in group}).items():
            found.setdefault(key, values)
    refused = [key for key in found if key not in (*EXPECTED, *study.allow_differences)]
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
    return found


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
    told = (notice for arm in study.arms for notice in data_sets.data_notices(study, arm, base))
    yield from dict.fromkeys(told)
    for (name, schedule), cfg in configs.items():
        first = (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)[0]
        if first <= cfg.SOLVER.WARMUP_ITERS:
            yield (
                f"arm {name}, schedule {schedule}: the rate drops after {first:,} iterations, "
                f"before its warm-up of SOLVER.WARMUP_ITERS {cfg.SOLVER.WARMUP_ITERS:,} ends"
            )


def check_switch(study: Study) -> None:
    """Checks a study's switch, if it has one, under every arm's schedules."""
    if study.switch is None:
        return
    switched = resolve.switched_study(study)
    for arm in study.arms:
        for spec in arm.schedules:
            before, after = (resolve.arm_config(one, arm, spec) for one in (study, switched))
            schedule = resolve.resolved_schedule(study, arm, spec)
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


def missing_weights(study: Study) -> list[str]:
    """Returns the checkpoints that arms start from and that are not there."""
    missing = []
    for arm in study.arms:
        given = f"--weights {arm.name}=PATH"
        if arm.init == REQUIRED:
            missing.append(f"arms.{arm.name}.init: a checkpoint must be given with {given}")
        elif arm.weights and not is_uri(arm.weights) and not os.path.isfile(arm.weights):
            missing.append(
                f"arms.{arm.name}.init: {arm.weights}: no such checkpoint; give one with {given}"
            )
    return missing


def missing_data(study: Study) -> list[str]:
    """Returns the data sets of unknown names, and the study's own whose images are not there."""
    missing = []
    for arm in study.arms:
        cfg = resolve.arm_config(study, arm, arm.schedules[-1])
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            found = data_sets.origin(cfg, name)
            if not found.own and found.base not in registered_sets():
                own = [one for one, *_ in (*cfg.SVP.DATASETS, *cfg.SVP.VOC_DATASETS)]
                near = nearest(found.base, [*own, *registered_sets()])
                missing.append(f"no data set is called {found.base}{near}")
        try:
            data_sets.check_own_images(cfg)
        except UserError as error:
            missing.append(str(error))
    return list(dict.fromkeys(missing))


def unfit(study: Study, output: Path) -> list[str]:
    """Returns what else `svp run` would refuse, as far as it shows in names and in open files; runs
    that arms start from lie in `output`."""
    found = []
    for arm in study.arms:
        cfg = resolve.arm_config(study, arm, arm.schedules[-1])
        problems = _weights_problems(study, arm, cfg, output)
        found += [f"arms.{arm.name}.init: {problem}" for problem in problems]
        values = flatten(cfg)
        for key, (module, registry) in PARTS.items():
            known, value = part_names(module, registry), values[key]
            names = [value] if isinstance(value, str) else value
            found += [unknown_part(name, key, known) for name in names if name not in known]
    return list(dict.fromkeys(found))


def _weights_problems(study: Study, arm: Arm, cfg: CfgNode, output: Path) -> Iterator[str]:
    weights, batch_norm = arm.weights, False
    if arm.init.startswith(RUN_SCHEME):
        try:
            resolve.origin_run(arm, study.seeds[0], output)
        except UserError as error:
            yield str(error)
    elif is_uri(weights):
        presets = [preset for start, preset in resolve.ORIGINS.items() if weights.startswith(start)]
        batch_norm = any(preset != "detectron2-gn" for preset in presets)
    elif os.path.isfile(weights):
        damaged, batch_norm = look_at(Path(weights))
        if damaged:
            yield f"{weights}: truncated, or not a checkpoint; copy or make it again"
    grouped = cfg.MODEL.RESNETS.NORM == "GN" and "resne" in cfg.MODEL.BACKBONE.NAME
    if batch_norm and grouped and cfg.SVP.NORM_WEIGHTS == "all":
        yield (
            f"{weights}: trained with BatchNorm, but MODEL.RESNETS.NORM is GN; take a GroupNorm "
            "checkpoint, set SyncBN in both arms, or SVP.NORM_WEIGHTS: affine_only"
        )


def look_at(path: Path) -> tuple[bool, bool]:
    """Tells of a checkpoint whether it is damaged, and whether it holds a BatchNorm.

    Only what lies open in the file is read: its end, and the names in it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            names: bytes | mmap.mmap = whole
            if whole[:4] == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    [pickled] = [n for n in archive.namelist() if n.endswith("data.pkl")]
                    names, damaged = archive.read(pickled), False
            elif whole[8:9] == b"{":  # safetensors
                end = 8 + int.from_bytes(whole[:8], "little")
                names = whole[8:end]
                tensors = [one for one in json.loads(names).values() if "data_offsets" in one]
                size = max(one["data_offsets"][1] for one in tensors)
                damaged = end + size != len(whole)
            else:
                damaged = whole[: len(TORCH_OF_2019)] != TORCH_OF_2019 and whole[-1:] != b"."
            return damaged, any(names.find(name) >= 0 for name in BATCH_NORM)
    except Exception:  # damaged bytes can raise anything in json, zipfile and zlib
        return True, False
