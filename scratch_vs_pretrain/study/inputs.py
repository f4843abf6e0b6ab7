"""What a study needs beside its file: checkpoints, data sets, registered parts.

``svp plan`` looks at names and at what lies open in files, without torch; :func:`check_trainable`,
before anything is written, at models and at every tensor.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

from scratch_vs_pretrain._detectron2 import part_names, registered_sets
from scratch_vs_pretrain.config import flatten, unknown_part
from scratch_vs_pretrain.errors import UserError, located, nearest, reason_of, say
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.data_sets import check_own_images, origin
from scratch_vs_pretrain.study.fields import is_uri
from scratch_vs_pretrain.study.resolve import ORIGINS, arm_config
from scratch_vs_pretrain.study.spec import REQUIRED, RUN_SCHEME, Arm, Study

if TYPE_CHECKING:
    from torch import nn

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
# What fvcore's Registry says of a name that it does not hold.
_UNKNOWN = re.compile(r"No object named '(.+)' found in '(.+)' registry")


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
    missing: dict[str, None] = {}
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            found = origin(cfg, name)
            if not found.own and found.base not in registered_sets():
                own = [name for name, *_ in (*cfg.SVP.DATASETS, *cfg.SVP.VOC_DATASETS)]
                near = nearest(found.base, [*own, *registered_sets()])
                missing[f"no data set is called {found.base}{near}"] = None
        try:
            check_own_images(cfg)
        except UserError as error:
            missing[str(error)] = None
    return list(missing)


def unfit(study: Study, output: Path) -> list[str]:
    """Returns what else `svp run` would refuse, as far as it shows in names and in open files; runs
    that arms start from lie in `output`."""
    found: dict[str, None] = {}
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        problems = _weights_problems(study, arm, cfg, output)
        found |= dict.fromkeys(f"arms.{arm.name}.init: {problem}" for problem in problems)
        found |= dict.fromkeys(_unknown_parts(cfg))
    return list(found)


def origin_run(arm: Arm, seed: int, output: Path) -> RunFolder:
    """Returns the run that an arm of ``init: run://...`` starts from, which must have finished."""
    path = arm.init.removeprefix(RUN_SCHEME)
    folder = RunFolder(output / (path if path[-1].isdigit() else f"{path}{seed}"))
    state = folder.state() if folder.run_file.exists() else "not there"
    if state != "finished":
        raise UserError(f"the run in {folder.path} is {state}; train it to its end first")
    return folder


def _weights_problems(study: Study, arm: Arm, cfg: CfgNode, output: Path) -> Iterator[str]:
    weights, batch_norm = arm.weights, False
    if arm.init.startswith(RUN_SCHEME):
        try:
            origin_run(arm, study.seeds[0], output)
        except UserError as error:
            yield str(error)
    elif is_uri(weights):
        presets = [preset for start, preset in ORIGINS.items() if weights.startswith(start)]
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


def _unknown_parts(cfg: CfgNode) -> Iterator[str]:
    values = flatten(cfg)
    for key, (module, registry) in PARTS.items():
        known = part_names(module, registry)
        for name in values[key] if isinstance(values[key], (tuple, list)) else [values[key]]:
            if name not in known:
                yield unknown_part(name, key, known)


def with_origins(study: Study, seed: int, output: Path) -> Study:
    """Returns a study in which arms that start from another run have that run's checkpoint.

    Arms of ``init: run://STUDY/ARM/SCHEDULE/seed`` start from the run below `output` of the same
    `seed`, those of ``.../seed0`` from that one.
    """
    arms = tuple(
        dataclasses.replace(arm, init=_origin(study, arm, seed, output))
        if arm.init.startswith(RUN_SCHEME)
        else arm
        for arm in study.arms
    )
    return dataclasses.replace(study, arms=arms)


def _origin(study: Study, arm: Arm, seed: int, output: Path) -> str:
    from scratch_vs_pretrain.training.checkpoint import newest_first

    where = f"{study.file}: arms.{arm.name}.init: {arm.init}"
    with located(where):
        folder = origin_run(arm, seed, output)
    newest = next(iter(newest_first(folder)), None)
    if newest is None:
        raise UserError(f"{where}: {folder.checkpoints} has no checkpoint left; train it again")
    return str(newest.resolve())


def check_trainable(study: Study) -> None:
    """Tries what every run of a study needs, before any of them is written: that every arm's model
    can be built, that its checkpoint fills its backbone, and that there is what the config names
    beside it.

    What becomes of a whole detector's checkpoint is said.
    """
    from scratch_vs_pretrain.data.datasets import check_files, ensure
    from scratch_vs_pretrain.evaluation.others import check_names
    from scratch_vs_pretrain.modeling.initial import match_initial, report_text
    from scratch_vs_pretrain.training.recipe import check_recipe

    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1]).clone()
        cfg.defrost()
        with located(place := f"{study.file}: arms.{arm.name}"):
            check_recipe(cfg)
            check_names(cfg)
            model = _build(cfg)
            if arm.weights:
                report, *_ = match_initial(model, cfg)
                if cfg.SVP.LOAD == "detector":
                    say(f"{place}: {report_text(report, arm.weights)}")
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1])
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        # The annotations of the study's own sets were read with it.
        others = [name for name in names if not origin(cfg, name).own]
        with located(study.file):
            ensure(others)
            check_files(others)
            check_own_images(cfg)


def _build(cfg: CfgNode) -> nn.Module:
    """Builds a config's model, without numbers unless its parts (a user's, say) need them."""
    import torch
    from detectron2.modeling import build_model

    try:
        try:
            cfg.MODEL.DEVICE = "meta"
            with torch.device("meta"):
                return build_model(cfg)
        except RuntimeError:
            cfg.MODEL.DEVICE = "cpu"
            return build_model(cfg)
    except UserError:
        raise
    except Exception as error:  # of any kind, from a user's own module
        if unknown := _UNKNOWN.search(str(error)):
            name, registry = unknown.groups()
            raise UserError(
                f"Detectron2 knows no {name} in its {registry} registry; correct the name, or "
                "import the module that registers it"
            ) from None
        raise UserError(
            f"this model cannot be built ({reason_of(error)}); correct MODEL"
        ) from error
