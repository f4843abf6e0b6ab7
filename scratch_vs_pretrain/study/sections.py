"""Parts of a study file: its schedules, its data, the search for a recipe, what is an answer.

Two runs of one arm and seed that differ in their schedule alone are the same run until the shorter
one's first rate drop. The run that stays longest at the constant rate is the trunk; the others
branch off from its checkpoints.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_info import Branch, Deviation, Level, Margin
from scratch_vs_pretrain.study import fields
from scratch_vs_pretrain.text import nearest

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# The paper's schedule rule (Sections 3 and 4): 1x is 90k iterations of 16 images; the rate drops
# to a tenth 60k and again 20k iterations before the end, whatever the length.
ITERATIONS_1X = 90_000
DROPS_BEFORE_END = (60_000, 20_000)


def _read_drops(drops: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
    if list(drops) != sorted(drops, reverse=True):
        raise fields.wrong("write the earliest drop first, such as [200, 67]")
    if drops and drops[0] >= info.data.get("iterations", fields.MOST_ITERATIONS):
        raise fields.wrong(f"{drops[0]:,} iterations before the end is no later than the begin")
    return drops


@dataclass(frozen=True, config=fields.STRICT)
class Schedule(fields.Section):
    """How long one run trains and when its rate drops."""

    name: fields.Name
    """names the run folder. Default: 600it."""
    iterations: fields.Iterations
    """the length, whatever the batch size."""
    drops_before_end: Annotated[
        tuple[fields.Iterations, ...], fields.Distinct, AfterValidator(_read_drops)
    ] = ()
    """the rate drops to a tenth so many iterations before the end. Default: the proportions of 2x,
    a third and a ninth of the length."""
    rate_factor: Annotated[float, fields.NOT_STATED] = 1.0
    """multiplies SOLVER.BASE_LR and divides SOLVER.WARMUP_ITERS (linear scaling)."""
    per_batch: Annotated[bool, fields.NOT_STATED] = False
    """whether its numbers are those of SVP.REFERENCE_BATCH images a batch, as those of the paper's
    multiples; see :meth:`resolve`."""

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """Reads ``2x``, ``600it`` or ``{iterations: 600, ...}``."""
        if isinstance(value, (ArgsKwargs, cls)):
            return value
        if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,3}x", value, re.ASCII):
            return ArgsKwargs((), vars(paper_schedule(int(value[:-1]))))
        if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,8}it", value, re.ASCII):
            return ArgsKwargs((), vars(short_schedule(int(value[:-2]))))
        if not isinstance(value, dict):
            raise fields.wrong(
                f"{fields.shorten(value)} is no schedule; write 2x (twice 90,000 iterations of 16 "
                "images), or {iterations: 600} for a literal length"
            )
        name, length = value.get("name"), value.get("iterations")
        if isinstance(name, str) and is_multiple(name):
            raise fields.wrong(f"{name} would read like a multiple of 90,000 iterations", "name")
        proportions = short_schedule(
            length if type(length) is int and 0 < length <= fields.MOST_ITERATIONS else 1
        )
        usual = {"name": proportions.name, "drops_before_end": proportions.drops_before_end}
        return {**usual, **value}

    @property
    def steps(self) -> tuple[int, ...]:
        """Iterations at which the rate drops."""
        return tuple(self.iterations - before for before in self.drops_before_end)

    def resolve(self, images_per_batch: int, reference_batch: int) -> Schedule:
        """Returns the schedule at this batch size.

        A literal length stays as it is, and so does its rate; a multiple is scaled linearly.
        """
        if images_per_batch < 1 or reference_batch < 1:
            raise UserError(
                f"schedule {self.name}: SOLVER.IMS_PER_BATCH ({images_per_batch}) and "
                f"SVP.REFERENCE_BATCH ({reference_batch}) must be at least 1"
            )
        if not self.per_batch:
            return self
        shrink = reference_batch / images_per_batch
        length = round(self.iterations * shrink)
        drops = tuple(round(before * shrink) for before in self.drops_before_end)
        if length > fields.MOST_ITERATIONS:
            raise UserError(
                f"schedule {self.name}: {length:,} iterations at {images_per_batch} images per "
                f"batch are more than {fields.MOST_ITERATIONS:,}; choose a shorter schedule"
            )
        if any(longer <= shorter for longer, shorter in itertools.pairwise((length, *drops, 0))):
            raise UserError(
                f"schedule {self.name}: {length} iterations leave no room for rate "
                f"drops {' and '.join(map(str, drops))} iterations before the "
                f"end at {images_per_batch} images per batch; choose a longer schedule"
            )
        return Schedule(self.name, length, drops, images_per_batch / reference_batch)

    def apply(self, cfg: CfgNode) -> None:
        """Writes the schedule, which has been resolved, into SOLVER."""
        cfg.SOLVER.MAX_ITER = self.iterations
        cfg.SOLVER.STEPS = self.steps
        cfg.SOLVER.BASE_LR *= self.rate_factor
        cfg.SOLVER.WARMUP_ITERS = round(cfg.SOLVER.WARMUP_ITERS / self.rate_factor)


def is_multiple(name: str) -> bool:
    """Tells by a schedule's name whether it is a multiple of the paper's 1x."""
    return re.fullmatch(r"[0-9]+x", name) is not None


def paper_schedule(multiple: int) -> Schedule:
    """Returns the paper's schedule of `multiple` times 90k iterations, to be resolved."""
    return Schedule(f"{multiple}x", ITERATIONS_1X * multiple, DROPS_BEFORE_END, per_batch=True)


def short_schedule(iterations: int, name: str | None = None) -> Schedule:
    """Returns a schedule of a literal length with the proportions of 2x, for small studies."""
    last = [round(iterations * before / (2 * ITERATIONS_1X)) for before in DROPS_BEFORE_END]
    # The shortest have no room for both drops.
    return Schedule(name or f"{iterations}it", iterations, tuple(drop for drop in last if drop))


@dataclass(frozen=True, config=fields.STRICT)
class Switch(fields.Section):
    """Another config for the end of every run, such as that of Cascade R-CNN."""

    config: fields.ExistingFile
    """the config that takes the place of base."""
    last: fields.Iterations
    """iterations that it has; with Nx schedules at the reference batch."""

    def start(self, schedule: Schedule) -> int:
        """Returns the number of iterations before the switch; not above 0 if there is no room."""
        return schedule.iterations - round(self.last / schedule.rate_factor)


def own_start(schedule: Schedule, switch: Switch | None = None) -> int:
    """Returns the iteration at which what is a schedule's own begins: its last at least.

    Schedules of one recipe agree on everything before their first drop, the trunk.
    """
    start = schedule.iterations - max(schedule.drops_before_end, default=1)
    return min(start, switch.start(schedule)) if switch else start


def branches_of(
    schedules: Iterable[Schedule], switch: Switch | None = None, begun: Collection[str] = ()
) -> dict[str, Branch]:
    """Returns where runs of one recipe branch off, by schedule; none that shares nothing.

    Args:
        schedules: of one arm and seed; those of one rate share a trunk.
        switch: another config for the last iterations of each, which are its own then.
        begun: schedules of runs that have begun, one of which is to be the trunk.
    """
    groups: dict[float, list[Schedule]] = {}
    for schedule in sorted(schedules, key=lambda one: one.iterations):
        groups.setdefault(schedule.rate_factor, []).append(schedule)
    branches = {}
    for group in groups.values():
        starts = {one.name: own_start(one, switch) for one in group}
        longest = max(group, key=lambda one: (starts[one.name], one.iterations)).name
        there = [one.name for one in group if one.name in begun]
        trunk = max(there, key=lambda name: starts[name], default=longest)
        for name, start in starts.items():
            # Beyond a trunk that has begun, what is longer shares its way with the longest.
            of = longest if start > starts[trunk] and name != longest else trunk
            at = min(start, starts[of])
            if name != of and at > 0:
                branches[name] = Branch(of=of, at=at)
    return branches


TASKS = ("bbox", "segm", "keypoints")
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS = tuple(f"{task}/{number}" for task in TASKS for number in NUMBERS)
# Each point of a search is a training.
MOST_POINTS = 1000


def _read_metric(metric: str) -> str:
    task, _, number = metric.partition("/")
    if not number or (task in TASKS and number not in NUMBERS):
        known = nearest(metric, METRICS) or f"; for example {METRICS[0]}"
        raise fields.wrong(f"unknown metric {metric}{known}")
    return metric


def _read_grid(value: Any) -> dict[str, tuple[Any, ...]]:
    grid = {}
    for key, values in fields.read_mapping(value).items():
        if not isinstance(values, (list, tuple)):
            raise fields.wrong(f"must be a list in brackets, not {fields.shorten(values)}", key)
        if not values:
            raise fields.wrong("the list is empty", key)
        if not key:
            raise fields.wrong("a config key is empty; for example SOLVER.BASE_LR: [0.02, 0.04]")
        for item in values:
            fields.refuse_nan(item, key)
        if any(isinstance(item, dict) for item in values):
            raise fields.wrong("list the values to try, and write dotted keys", key)
        grid[key] = fields.refuse_repeated(tuple(values), key)
    if not grid:
        raise fields.wrong("has nothing to try; for example SOLVER.BASE_LR: [0.02, 0.04]")
    points = math.prod(len(values) for values in grid.values())
    if points > MOST_POINTS:
        raise fields.wrong(f"has {points:,} points, more than {MOST_POINTS:,}; try fewer values")
    return grid


def _read_split(split: str, info: ValidationInfo) -> str:
    listing = info.data.get("voc", Path()) / "ImageSets" / "Main" / f"{split}.txt"
    if info.context and "voc" in info.data and not listing.is_file():
        raise fields.wrong(f"{listing}: no such file")
    return split


Metric = Annotated[fields.Text, AfterValidator(_read_metric), Field(examples=METRICS)]
Split = Annotated[
    fields.Text,
    fields.matching("[A-Za-z0-9][A-Za-z0-9._-]*", "names no list; such as trainval or val"),
    AfterValidator(_read_split),
]


@dataclass(frozen=True, config=fields.STRICT)
class DataFiles(fields.Section):
    """One COCO-format data set: its annotation file and the folder of its images."""

    removed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("split", "year"), "is of VOC trees; give annotations and images, or voc and split"
    )

    annotations: fields.ExistingFile
    """a COCO annotation file."""
    images: fields.ExistingFolder
    """what its file names are relative to."""


@dataclass(frozen=True, config=fields.STRICT)
class VocTree(fields.Section):
    """One PASCAL VOC data set."""

    voc: fields.ExistingFolder
    """holds Annotations, ImageSets and JPEGImages."""
    split: Split
    """ImageSets/Main/<split>.txt."""
    year: Literal[2007, 2012] = 2012
    """whose metric counts."""


Source = Annotated[
    Annotated[DataFiles, Tag("(coco)")] | Annotated[VocTree, Tag("(voc)")],
    Discriminator(
        lambda value: (
            "(voc)"
            if isinstance(value, VocTree) or (isinstance(value, dict) and "voc" in value)
            else "(coco)"
        )
    ),
]


@dataclass(frozen=True, config=fields.STRICT)
class Data(fields.Section):
    """A study's own data: COCO files or VOC trees."""

    train: Annotated[
        tuple[Source, ...],
        fields.NotEmpty,
        fields.Distinct,
        BeforeValidator(
            lambda value: value if isinstance(value, (list, tuple)) else (value,),
            json_schema_input_type=Source | list[Source],
        ),
    ]
    """what to train on, all of it: one data set, or a list of several."""
    test: Source
    """what to evaluate on."""
    classes: Annotated[tuple[fields.Text, ...], fields.Distinct] = ()
    """of VOC trees. Default: those of their objects."""

    def named(self) -> dict[str, DataFiles | VocTree]:
        """Returns all of it: ``train``, or ``train-1`` and so on, and ``test``."""
        several = len(self.train) > 1
        names = (f"train-{n}" if several else "train" for n in range(1, len(self.train) + 1))
        return {**dict(zip(names, self.train, strict=True)), "test": self.test}

    @model_validator(mode="after")
    def _alike(self) -> Data:
        if len({type(source) for source in self.named().values()}) > 1:
            raise fields.wrong("COCO files and VOC trees cannot be mixed; convert one of them")
        if self.classes and not isinstance(self.test, VocTree):
            raise fields.wrong(
                "the categories of COCO files are stated there; remove it", "classes"
            )
        return self


@dataclass(frozen=True, config=fields.STRICT)
class Evaluation(fields.Section):
    """When to evaluate; the last iteration always is."""

    period: Annotated[int, Field(strict=True, ge=0, le=fields.MOST_ITERATIONS)] | None = None
    """every so many iterations. Default: as the config says."""
    at: Annotated[
        tuple[fields.Iterations, ...], fields.Distinct, AfterValidator(lambda at: tuple(sorted(at)))
    ] = ()
    """and after so many."""


@dataclass(frozen=True, config=fields.STRICT)
class Tune(fields.Section):
    """A search for the recipe on one arm alone, whose winner every arm then trains with."""

    on: fields.Text
    """the arm."""
    grid: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_read_grid)]
    """the values to try of each config key, all combinations of them."""
    metric: Metric = "bbox/AP"
    """what decides; larger is better."""


@dataclass(frozen=True, config=fields.STRICT)
class Noise(fields.Section):
    """The noise between seeds that is assumed where too few were trained to estimate it."""

    sd: Deviation
    """standard deviation of the AP between two runs of one config."""
    because: fields.Text
    """where the number is from; shown with verdicts."""


@dataclass(frozen=True, config=fields.STRICT)
class SeedRange(fields.Section):
    """How many seeds an answer may rest on."""

    least: Annotated[int, Field(strict=True, ge=1, le=1000)] = 3
    """no verdict from fewer."""
    most: Annotated[int, Field(strict=True, ge=1, le=1000)] = 10
    """no more are trained."""

    @model_validator(mode="after")
    def _ordered(self) -> SeedRange:
        if self.most < self.least:
            raise fields.wrong(f"is {self.most}, less than least, {self.least}", "most")
        return self


@dataclass(frozen=True, config=fields.STRICT)
class Answer(fields.Section):
    """What the study asks, and how sure it wants to be."""

    margin: Margin = 0.5
    """AP by which an arm may be behind and be no worse."""
    seeds: SeedRange = SeedRange()
    """how many seeds."""
    level: Level = 0.95
    """how often all verdicts together are right."""
    metric: Metric | None = None
    """what is compared; larger is better. Default: keypoint AP, or else box AP."""
    converged: fields.Text | None = None
    """why the longest schedule is long enough, where no shorter one shows it."""
