"""Reads a study file: safe, strict, and with a sentence for everything that is wrong."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis.stats.thresholds import read_thresholds
from scratch_vs_pretrain.config import nearest
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse_data import read_data
from scratch_vs_pretrain.study.parse_switch import read_switch
from scratch_vs_pretrain.study.parse_tune import read_tune
from scratch_vs_pretrain.study.spec import (
    PRESETS,
    REQUIRED,
    SCRATCH,
    Arm,
    Data,
    Evaluation,
    ScheduleSpec,
    Study,
)
from scratch_vs_pretrain.study.yaml_fields import (
    Place,
    absolute,
    is_uri,
    read_file,
    read_integer,
    read_integers,
    read_list,
    read_mapping,
    read_name,
    read_plain_yaml,
    read_text,
    read_texts,
    refuse_repeated,
    shorten,
)

MOST_ITERATIONS = 10**9
LARGEST_SEED = 2**32 - 1

# Config keys that follow from other fields of the study, and the field to use.
OWNED_KEYS = {
    "MODEL.WEIGHTS": "the arm's init",
    "SOLVER.MAX_ITER": "schedules",
    "SOLVER.STEPS": "schedules",
    "SEED": "seeds",
    "OUTPUT_DIR": "the --output option",
    "SVP.DATASETS": "data",
    "SVP.VOC_DATASETS": "data",
}
# And those that follow from `data`, where the study has it.
OWNED_BY_DATA = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
)

_STUDY_KEYS = (
    "name",
    "description",
    "base",
    "arms",
    "schedules",
    "seeds",
    "preset",
    "overrides",
    "evaluation",
    "data",
    "allow_differences",
    "switch",
    "tune",
    "conclusions",
)
_ARM_KEYS = ("init", "schedules", "preset", "overrides")
_SCHEDULE_KEYS = ("iterations", "name", "drops_before_end")


def load_study(
    path: Path | str, weights: Mapping[str, str] | None = None, *, need_weights: bool = True
) -> Study:
    """Reads a study file.

    Args:
        path: the file; paths in it are relative to its folder.
        weights: checkpoint paths or URIs by arm, in place of the file's; relative to the current
            folder. See :func:`parse_weights`.
        need_weights: whether an arm with ``init: required`` must have been given weights; reading
            results, or planning, can do without.

    Raises:
        UserError: whatever is wrong with the file, in one sentence that names file and key.
    """
    file = Path(path)
    return parse_study(read_plain_yaml(file), file, weights or {}, need_weights)


def parse_study(
    content: Any, file: Path, weights: Mapping[str, str], need_weights: bool = True
) -> Study:
    """Returns the study that plain YAML content describes; see :func:`load_study`."""
    top = Place(file)
    if content is None:
        raise top.error("the file is empty; it needs name, base, arms and schedules")
    study = read_mapping(content, top, _STUDY_KEYS, required=("name", "base", "arms"))
    schedules = _schedules(study["schedules"], top / "schedules") if "schedules" in study else None
    arms_at = top / "arms"
    found = read_mapping(study["arms"], arms_at)
    if not found:
        raise arms_at.error("names no arm; for example scratch: {init: scratch}")
    for name in weights:
        if name not in found:
            raise UserError(f"--weights {name}=...: {file} has no arm {name}{nearest(name, found)}")
    arms = tuple(_arm(name, arm, arms_at / name, schedules) for name, arm in found.items())
    overrides = _overrides(study.get("overrides", {}), top / "overrides")
    evaluation = _evaluation(study.get("evaluation", {}), top / "evaluation")
    data = read_data(study["data"], top / "data") if "data" in study else None
    fields = _keys_of_fields(evaluation, data)
    _refuse_set_twice(top, overrides, arms, fields)
    tune = None
    if "tune" in study:
        taken = {**OWNED_KEYS, **fields, **dict.fromkeys(overrides, "overrides")}
        for arm in arms:
            taken.update(dict.fromkeys(arm.overrides, f"arms.{arm.name}.overrides"))
        tune = read_tune(study["tune"], top / "tune", [arm.name for arm in arms], taken)
    return Study(
        name=read_name(study["name"], top / "name"),
        file=file,
        base=read_file(study["base"], top / "base", file.parent),
        arms=tuple(_with_weights(arm, top, weights.get(arm.name), need_weights) for arm in arms),
        seeds=read_integers(study.get("seeds", [0]), top / "seeds", 0, LARGEST_SEED, least=1),
        description=_description(study.get("description", ""), top / "description"),
        preset=_preset(study, found, top),
        overrides=overrides,
        evaluation=evaluation,
        data=data,
        allow_differences=read_texts(study.get("allow_differences", []), top / "allow_differences"),
        switch=read_switch(study["switch"], top / "switch") if "switch" in study else None,
        tune=tune,
        conclusions=_conclusions(study.get("conclusions", {}), top / "conclusions"),
    )


def check_weights(study: Study) -> None:
    """Checks that every arm's checkpoint is there, before anything trains.

    Raises:
        UserError: one is not; the message names arm and file.
    """
    for arm in study.arms:
        if arm.weights and not is_uri(arm.weights) and not os.path.isfile(arm.weights):
            raise UserError(
                f"{study.file}: arms.{arm.name}.init: {arm.weights}: no such checkpoint; give one "
                f"with --weights {arm.name}=PATH"
            )


def parse_weights(options: Sequence[str]) -> dict[str, str]:
    """Returns checkpoints by arm from the command line's ``ARM=PATH`` texts.

    Raises:
        UserError: a text of another form, or an arm named twice.
    """
    weights: dict[str, str] = {}
    for option in options:
        arm, equals, path = option.partition("=")
        if not (arm and equals and path):
            raise UserError(f"--weights {option}: write --weights ARM=PATH")
        if arm in weights:
            raise UserError(f"--weights {option}: arm {arm} is given twice")
        weights[arm] = path
    return weights


def parse_schedule(value: Any, place: Place) -> ScheduleSpec:
    """Returns the schedule that ``2x``, ``600it`` or ``{iterations: 600, ...}`` means."""
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,3}x", value, re.ASCII):
        return ScheduleSpec(value, multiple=int(value[:-1]))
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,8}it", value, re.ASCII):
        return ScheduleSpec(value, iterations=int(value[:-2]))
    if not isinstance(value, dict):
        raise place.error(
            f"{shorten(value)} is no schedule; write 2x (twice 90,000 iterations of 16 images), or "
            "{iterations: 600} for a literal length"
        )
    fields = read_mapping(value, place, _SCHEDULE_KEYS, required=("iterations",))
    iterations = read_integer(fields["iterations"], place / "iterations", 1, MOST_ITERATIONS)
    name = read_name(fields.get("name", f"{iterations}it"), place / "name")
    if re.fullmatch(r"[0-9]+x", name):
        raise (place / "name").error(f"{name} would read like a multiple of 90,000 iterations")
    drops = None
    if "drops_before_end" in fields:
        at = place / "drops_before_end"
        drops = read_integers(fields["drops_before_end"], at, 1, iterations - 1)
        if list(drops) != sorted(drops, reverse=True):
            raise at.error("write the earliest drop first, such as [200, 67]")
    return ScheduleSpec(name, iterations=iterations, drops_before_end=drops)


def _arm(name: str, value: Any, place: Place, schedules: tuple[ScheduleSpec, ...] | None) -> Arm:
    arm = read_mapping(value, place, _ARM_KEYS, required=("init",))
    if "schedules" in arm:
        schedules = _schedules(arm["schedules"], place / "schedules")
    if schedules is None:
        raise place.error("has no schedules, and neither has the study; for example [2x]")
    init = read_text(arm["init"], place / "init")
    for word in (SCRATCH, REQUIRED):
        if init != word and init.lower() == word:
            raise (place / "init").error(f"write {word} instead of {init}")
    if init not in (SCRATCH, REQUIRED):
        init = absolute(init, place.file.parent)
    overrides = _overrides(arm.get("overrides", {}), place / "overrides")
    return Arm(read_name(name, place), init, schedules, overrides)


def _with_weights(arm: Arm, top: Place, given: str | None, need_weights: bool) -> Arm:
    if given is not None:
        if arm.init == SCRATCH:
            raise UserError(
                f"--weights {arm.name}={given}: {top.file} starts {arm.name} from random weights; "
                "name another arm"
            )
        return Arm(arm.name, absolute(given, Path.cwd()), arm.schedules, arm.overrides)
    if need_weights and arm.init == REQUIRED:
        raise (top / "arms" / arm.name / "init").error(
            f"a checkpoint must be given with --weights {arm.name}=PATH"
        )
    return arm


def _preset(study: Mapping[str, Any], arms: Mapping[str, Any], top: Place) -> str | None:
    """Returns the one preset that study and arms name; an arm's is for every arm."""
    named: dict[str, Place] = {}
    places = [(study, top), *((arms[name], top / "arms" / name) for name in arms)]
    for fields, place in places:
        if "preset" not in fields:
            continue
        at = place / "preset"
        preset = read_text(fields["preset"], at)
        if preset not in PRESETS:
            raise at.error(f"unknown preset {shorten(preset)}; known are {', '.join(PRESETS)}")
        named.setdefault(preset, at)
    if len(named) > 1:
        (one, one_at), (other, other_at) = itertools.islice(named.items(), 2)
        raise one_at.error(
            f"is {one}, but {other_at.key} is {other}; pixels and strides must be alike in every "
            "arm, so keep one of them"
        )
    return next(iter(named), None)


def _schedules(value: Any, place: Place) -> tuple[ScheduleSpec, ...]:
    items = read_list(value, place, least=1)
    schedules = tuple(parse_schedule(item, place / str(i)) for i, item in enumerate(items))
    refuse_repeated([schedule.name for schedule in schedules], place)
    return schedules


def _overrides(value: Any, place: Place) -> dict[str, Any]:
    overrides = read_mapping(value, place)
    for key, item in overrides.items():
        if key in OWNED_KEYS:
            raise (place / key).error(f"cannot be overridden; use {OWNED_KEYS[key]}")
        if isinstance(item, dict):
            raise (place / key).error(f"write dotted keys, such as {key}.{next(iter(item), 'KEY')}")
    return overrides


def _keys_of_fields(evaluation: Evaluation, data: Data | None) -> dict[str, str]:
    """Returns the config keys that follow from other fields of this study, and the field."""
    fields = dict.fromkeys(OWNED_BY_DATA, "data") if data else {}
    if evaluation.period is not None:
        fields["TEST.EVAL_PERIOD"] = "evaluation.period"
    if evaluation.at:
        fields["SVP.EVAL_ITERATIONS"] = "evaluation.at"
    return fields


def _refuse_set_twice(
    top: Place, overrides: Mapping[str, Any], arms: Iterable[Arm], fields: Mapping[str, str]
) -> None:
    places = [(overrides, top / "overrides")]
    places += [(arm.overrides, top / "arms" / arm.name / "overrides") for arm in arms]
    for keys, place in places:
        for key in fields.keys() & keys.keys():
            raise (place / key).error(f"follows from {fields[key]}; remove one of them")


def _evaluation(value: Any, place: Place) -> Evaluation:
    fields = read_mapping(value, place, ("period", "at"))
    period = None
    if "period" in fields:
        period = read_integer(fields["period"], place / "period", 0, MOST_ITERATIONS)
    at = read_integers(fields.get("at", []), place / "at", 1, MOST_ITERATIONS)
    return Evaluation(period, tuple(sorted(at)))


def _conclusions(value: Any, place: Place) -> dict[str, float]:
    thresholds = read_mapping(value, place)
    read_thresholds(thresholds, str(place))
    return thresholds


def _description(value: Any, place: Place) -> str:
    return read_text(" ".join(value.split()) if isinstance(value, str) else value, place, True)
