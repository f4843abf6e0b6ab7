"""What is tried before a study trains: that each arm's model can be built and its weights fit.

``svp plan --check`` also trains a few iterations of every arm, in a temporary folder with the very
trainer of a run, and tells what the whole study will take.
"""

import itertools
import re
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from tabulate import tabulate  # type: ignore[import-untyped]

from scratch_vs_pretrain.config import config_text
from scratch_vs_pretrain.data.check import check_decodable
from scratch_vs_pretrain.data.datasets import annotations_of, check_files, ensure, register
from scratch_vs_pretrain.errors import UserError, located, reason_of, say
from scratch_vs_pretrain.evaluation.evaluator import check_test_sets, run_inference
from scratch_vs_pretrain.evaluation.others import EVALUATORS, WithOthers, check_names
from scratch_vs_pretrain.modeling.initial import match_initial, report_text
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import RunInfo
from scratch_vs_pretrain.study.audit import missing_weights
from scratch_vs_pretrain.study.data_sets import check_own_images, origin
from scratch_vs_pretrain.study.plan import Plan, PlannedRun, plan
from scratch_vs_pretrain.study.resolve import arm_config, run_config, switched_study, with_origins
from scratch_vs_pretrain.study.spec import Arm, Study
from scratch_vs_pretrain.training.kernels import deterministic_kernels
from scratch_vs_pretrain.training.recipe import check_recipe
from scratch_vs_pretrain.training.trained import config_of
from scratch_vs_pretrain.training.trainer import Trainer

# Iterations of each arm. The first allocate memory and choose kernels.
WARM_UP, TIMED = 3, 5
# Test images, of which the first is not counted.
IMAGES = 9
GB = 1000**3


# What fvcore's Registry says of a name that it does not hold.
_UNKNOWN = re.compile(r"No object named '(.+)' found in '(.+)' registry")


def check_trainable(study: Study) -> None:
    """Tries what every run of a study needs, before any of them is written: that every arm's model
    can be built, that its checkpoint fills its backbone, and that there is what the config names
    beside it.

    What becomes of a whole detector's checkpoint is said.
    """
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


def _build(cfg: CfgNode) -> torch.nn.Module:
    """Builds a config's model, without numbers unless its parts (a user's, say) need them."""
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


@dataclass(frozen=True)
class Measured:
    """What one part of an arm's training takes here: before a switch, or after it."""

    cfg: CfgNode
    iteration: float  # seconds
    evaluation: float  # seconds of detecting on all test images, by the time of a few
    checkpoint: int  # bytes of one
    memory: int  # bytes at most, of the GPU or of this process


def rehearsal_text(study: Study, output: Path) -> str:
    """Tries all that `svp run` would refuse and a few iterations of each arm, and returns hours,
    disk and memory of the whole study.

    Args:
        study: of several sizes the last is tried.
        output: where runs lie that arms start from; nothing is written there.
    """
    if missing := missing_weights(study):
        raise UserError(f"{study.file}: {missing[0]}")
    planned = plan(study)
    last = with_origins(study.by_size()[-1], study.seeds[0], output)
    check_trainable(last)
    stages = [last, switched_study(last)] if last.switch else [last]
    parts: dict[str, list[Measured]] = {}
    total = len(last.arms) * len(stages) * (WARM_UP + TIMED)
    with Bar(desc="trying", total=total, unit="it", leave=False) as bar:
        for arm, stage in itertools.product(last.arms, stages):
            bar.set_description_str(arm.name, refresh=False)
            with located(f"{study.file}: arms.{arm.name}"):
                parts.setdefault(arm.name, []).append(_measure(stage, arm, bar))
    costs = {arm: np.zeros(2) for arm in parts}
    rows = [(row.arm, row) for row in planned.rows]
    if planned.search:  # whose arms are called ARM-NUMBER
        rows += [(row.arm.rpartition("-")[0], row) for row in planned.search.rows]
    for name, row in rows:
        costs[name] += _costs(planned, row, parts[name])
    disk = np.sum(list(costs.values()), axis=0)[1]
    return "\n".join([_table(parts, costs), *_notes(study, last, parts, disk, output)])


def _table(parts: Mapping[str, list[Measured]], costs: Mapping[str, np.ndarray]) -> str:
    rows = []
    for arm in (*parts, "in all"):
        found = parts.get(arm, [])
        seconds, disk = costs[arm] if found else np.sum(list(costs.values()), axis=0)
        measured = found or itertools.chain(*parts.values())
        rows.append(
            {
                "arm": arm,
                "s/iteration": " then ".join(f"{part.iteration:.3g}" for part in found),
                "s/evaluation": f"{found[-1].evaluation:.3g}" if found else "",
                "hours": f"{seconds / 3600:.3g}",
                "disk GB": f"{disk / GB:.2f}",
                "memory GB": f"{max(part.memory for part in measured) / GB:.2f}",
            }
        )
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate(rows, "keys", tablefmt="plain", disable_numparse=True, colalign=align)


def _notes(
    study: Study, tried: Study, parts: Mapping[str, list[Measured]], disk: float, output: Path
) -> Iterator[str]:
    cfg = next(iter(parts.values()))[-1].cfg
    where = "this CPU" if cfg.MODEL.DEVICE == "cpu" else torch.cuda.get_device_name()
    yield (
        f"note: hours of one run after another on {where}, by {TIMED} iterations of each arm; "
        "evaluations by a few images and detectors that are not trained, without their scoring"
    )
    if cfg.TEST.AUG.ENABLED:
        yield "note: the last evaluation of each run, with TEST.AUG, takes several times as long"
    if study.sizes:
        yield f"note: measured on {tried.size} images"
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    short = ", fewer than the study needs; make room, or choose another folder with -o"
    yield f"note: {there} has {free / GB:.0f} GB free{short if free < disk else ''}"


def _costs(planned: Plan, row: PlannedRun, parts: list[Measured]) -> tuple[float, int]:
    """Returns the seconds of a run, and its bytes on the disk."""
    first, last = parts[0], parts[-1]
    switch = row.iterations if row.switch is None else row.switch
    before = max(0, switch - row.shared)
    after = row.iterations - row.shared - before
    period, solver = last.cfg.TEST.EVAL_PERIOD, last.cfg.SOLVER
    ends = {*last.cfg.SVP.EVAL_ITERATIONS, switch, row.iterations}
    evaluated = {at for at in ends | _every(period, row.iterations) if at <= row.iterations}
    seconds = before * first.iteration + after * last.iteration
    seconds += last.evaluation * sum(at > row.shared for at in evaluated)
    saved = len(_every(solver.CHECKPOINT_PERIOD, row.iterations)) + 1
    branches = {
        other.shared
        for other in planned.rows
        if (other.arm, other.seed, other.size, other.trunk)
        == (row.arm, row.seed, row.size, row.schedule)
    }
    # From the first rate drop on, longer schedules can begin on another day.
    kept = min(saved, last.cfg.SVP.KEEP_CHECKPOINTS) + len(branches | set(row.drops[:1]))
    return seconds, kept * max(part.checkpoint for part in parts)


def _every(period: int, last: int) -> set[int]:
    return set(range(period, last, period)) if period > 0 else set()


def _measure(study: Study, arm: Arm, bar: Bar) -> Measured:
    with tempfile.TemporaryDirectory(prefix="svp-check-") as name, warnings.catch_warnings():
        # Of Detectron2 v0.6's calls of a newer torch; training's go into its log.
        warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
        folder = RunFolder(Path(name))
        run = study.run(arm, arm.schedules[-1], study.seeds[0])
        folder.config_file.write_text(config_text(run_config(study, run)))
        folder.write(RunInfo(study=study.name, arm=arm.name, schedule="", seed=0, iterations=TIMED))
        cfg = config_of(folder.config_file)
        register(cfg)
        check_test_sets(cfg)
        check_decodable(cfg.DATASETS.TEST)
        cuda = cfg.MODEL.DEVICE != "cpu"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer = Trainer(cfg, folder)
            try:
                seconds = list(_iterations(trainer, bar))
                evaluation = _evaluation(cfg, trainer.network)
            finally:
                trainer.close_writers()
        except UserError:
            raise
        except FloatingPointError as error:
            raise UserError(f"in its first iterations: {error}; lower SOLVER.BASE_LR") from None
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                "a batch needs more memory than the GPU has; lower SOLVER.IMS_PER_BATCH or the "
                "size of images (INPUT.MIN_SIZE_TRAIN)"
            ) from None
        except Exception as error:  # of any kind, from a user's own module
            raise UserError(f"fails in its first iterations: {reason_of(error)}") from error
    moments = (one for state in trainer.optimizer.state.values() for one in state.values())
    saved = (*trainer.network.state_dict().values(), *moments)
    return Measured(
        cfg=cfg,
        iteration=statistics.median(seconds[WARM_UP:]),
        evaluation=evaluation,
        checkpoint=sum(one.nbytes for one in saved if torch.is_tensor(one)),
        memory=torch.cuda.max_memory_reserved()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _iterations(trainer: Trainer, bar: Bar) -> Iterator[float]:
    """Trains a few iterations at the schedule's first rate, and yields the seconds of each."""
    with deterministic_kernels(trainer.cfg), EventStorage(0) as trainer.storage:
        for trainer.iter in range(WARM_UP + TIMED):
            start = time.perf_counter()
            trainer.run_step()
            if trainer.cfg.MODEL.DEVICE != "cpu":
                torch.cuda.synchronize()
            bar.update()
            yield time.perf_counter() - start


def _evaluation(cfg: CfgNode, model: torch.nn.Module) -> float:
    """Returns the seconds that detecting on all test images takes, by those of the first.

    Users' evaluators are given these.
    """
    seconds = 0.0
    for name in cfg.DATASETS.TEST:
        first = _First()
        own = {one: EVALUATORS.get(one)(cfg, name) for one in cfg.SVP.EVALUATORS}
        scored = WithOthers(_NoScores(), own)
        run_inference(cfg, model, name, scored, first.of, test_aug=False)
        each = [after - before for before, after in itertools.pairwise(first.times)]
        seconds += statistics.median(each[1:] or each) * len(annotations_of(name).file_names)
    return seconds


class _NoScores(DatasetEvaluator):
    """In the place of COCO's scores."""

    def evaluate(self) -> dict[str, Any]:
        return {}


class _First:
    """The first batches of a loader, and when each was asked for."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def of(self, batches: Any) -> Any:
        self._batches = batches
        return self

    def __len__(self) -> int:
        return min(IMAGES, len(self._batches))

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.islice(self._batches, len(self)):
            self.times.append(time.perf_counter())
            yield batch
        self.times.append(time.perf_counter())
