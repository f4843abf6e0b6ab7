"""A study as frozen objects: arms, schedules, seeds, and the runs they make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.config import Schedule, paper_schedule, short_schedule
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder

SCRATCH = "scratch"
REQUIRED = "required"

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


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule as a study states it.

    A multiple of 1x says nothing about iterations before the batch size is known, which the merged
    config tells; :meth:`resolve` makes the literal schedule.

    Attributes:
        name: names the run folder.
        multiple: of the paper's 1x; None for a literal length.
        iterations: the literal length; None for a multiple.
        drops_before_end: of a literal length; None for the proportions of 2x.
    """

    name: str
    multiple: int | None = None
    iterations: int | None = None
    drops_before_end: tuple[int, ...] | None = None

    def resolve(self, images_per_batch: int, reference_batch: int) -> Schedule:
        """Returns the schedule at this batch size.

        A literal length stays as it is, and so does its rate; a multiple is scaled linearly.

        Raises:
            UserError: a batch size is not positive, or too large for so short a schedule.
        """
        if images_per_batch < 1 or reference_batch < 1:
            raise UserError(
                f"schedule {self.name}: SOLVER.IMS_PER_BATCH ({images_per_batch}) and "
                f"SVP.REFERENCE_BATCH ({reference_batch}) must be at least 1"
            )
        if self.multiple is not None:
            schedule = paper_schedule(self.multiple, images_per_batch, reference_batch)
        elif self.drops_before_end is None:
            schedule = short_schedule(self.iterations or 0, self.name)
        else:
            schedule = Schedule(self.name, self.iterations or 0, self.drops_before_end)
        bounds = (schedule.iterations, *schedule.drops_before_end, 0)
        if any(longer <= shorter for longer, shorter in itertools.pairwise(bounds)):
            raise UserError(
                f"schedule {self.name}: {schedule.iterations} iterations leave no room for rate "
                f"drops {' and '.join(map(str, schedule.drops_before_end))} iterations before the "
                f"end at {images_per_batch} images per batch; choose a longer schedule"
            )
        return schedule


@dataclass(frozen=True)
class DataFiles:
    """One COCO-format data set: its annotation file and the folder of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class VocTree:
    """One PASCAL VOC data set.

    Attributes:
        root: holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: the list of its images, ``ImageSets/Main/<split>.txt``.
        year: 2007 or 2012, whose metric counts.
    """

    root: Path
    split: str
    year: int = 2012


@dataclass(frozen=True)
class Data:
    """A study's own data: COCO files or VOC trees.

    Attributes:
        train, test: what to train on, all of it, and what to evaluate on.
        classes: of VOC trees; empty for those of their objects.
    """

    train: tuple[DataFiles | VocTree, ...]
    test: DataFiles | VocTree
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """When to evaluate: every `period` iterations (None: as the config says), and after `at`."""

    period: int | None = None
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tune:
    """A search for the recipe on one arm alone, whose winner every arm then trains with.

    Attributes:
        on: the arm.
        grid: the values to try of each config key, all combinations of them.
        metric: what decides, such as ``bbox/AP``; larger is better.
    """

    on: str
    grid: Mapping[str, tuple[Any, ...]]
    metric: str = "bbox/AP"


@dataclass(frozen=True)
class Switch:
    """Another config for the end of every run, such as that of Cascade R-CNN.

    Attributes:
        config: takes the place of the study's base.
        last: iterations that it has; with "Nx" schedules stated for the reference batch, as they.
    """

    config: Path
    last: int

    def start(self, schedule: Schedule) -> int:
        """Returns the number of iterations before the switch; not above 0 if there is no room."""
        return schedule.iterations - round(self.last / schedule.rate_factor)


@dataclass(frozen=True)
class Arm:
    """One side of the comparison.

    Attributes:
        name: names the run folder.
        init: "scratch", a checkpoint's absolute path or URI, or "required": still to be given.
        schedules: in the study's order.
        overrides: config keys of this arm alone; the audit asks the study to allow them.
    """

    name: str
    init: str
    schedules: tuple[ScheduleSpec, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """What MODEL.WEIGHTS is to be."""
        return "" if self.init == SCRATCH else self.init


@dataclass(frozen=True)
class Run:
    """One training: an arm, a schedule, a seed."""

    study: str
    arm: Arm
    schedule: ScheduleSpec
    seed: int

    def folder(self, output: Path) -> RunFolder:
        """Returns the run's folder below `output`."""
        return RunFolder(
            output / self.study / self.arm.name / self.schedule.name / f"seed{self.seed}"
        )


@dataclass(frozen=True)
class Study:
    """One question: arms that are to differ in their initial weights and their schedules alone.

    Attributes:
        name: names the output folder.
        file: where it was read; messages name it.
        base: the Detectron2 config that every arm starts from.
        arms: in the order of tables.
        seeds: for every arm.
        preset: a key of :data:`PRESETS`, for every arm.
        overrides: config keys, for every arm.
        allow_differences: config keys that arms may differ in.
        switch: what every run goes on with at its end.
        tune: the search that has to come first.
        tuned_on: the arm on which a search found the recipe, whose winner `overrides` holds.
        conclusions: thresholds by which this study's evidence is judged; see
            :class:`scratch_vs_pretrain.analysis.stats.thresholds.Thresholds`.
    """

    name: str
    file: Path
    base: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0,)
    description: str = ""
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    data: Data | None = None
    allow_differences: tuple[str, ...] = ()
    switch: Switch | None = None
    tune: Tune | None = None
    tuned_on: str | None = None
    conclusions: Mapping[str, float] = field(default_factory=dict)

    def runs(self) -> tuple[Run, ...]:
        """Returns every run, by arm, schedule and seed."""
        return tuple(
            Run(self.name, arm, schedule, seed)
            for arm in self.arms
            for schedule in arm.schedules
            for seed in self.seeds
        )
