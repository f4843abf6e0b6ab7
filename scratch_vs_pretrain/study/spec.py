"""A study file as frozen, validated objects: arms, schedules, seeds, and the runs they make."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

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

from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.fields import (
    MOST_ITERATIONS,
    NOT_STATED,
    STRICT,
    Distinct,
    ExistingFile,
    ExistingFolder,
    Iterations,
    Line,
    Name,
    NotEmpty,
    Section,
    Stated,
    Text,
    absolute,
    folder_of,
    matching,
    read_mapping,
    real,
    refuse_repeated,
    shorten,
    whole,
    wrong,
)
from scratch_vs_pretrain.study.schedule import Schedule, Switch
from scratch_vs_pretrain.text import nearest

SCRATCH = "scratch"
REQUIRED = "required"
FULL = "full"

# Config keys that follow from other fields of the study, and the field to use.
OWNED_KEYS = {
    "MODEL.WEIGHTS": "the arm's init",
    "SOLVER.MAX_ITER": "schedules",
    "SOLVER.STEPS": "schedules",
    "SEED": "seeds",
    "OUTPUT_DIR": "the --output option",
    "SVP.DATASETS": "data",
    "SVP.VOC_DATASETS": "data",
    "SVP.IMPORTS": "imports",
}
# And those that follow from `data`, where the study has it.
OWNED_BY_DATA = (
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
)
TASKS = ("bbox", "segm", "keypoints")
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS = tuple(f"{task}/{number}" for task in TASKS for number in NUMBERS)
# Each point of a search is a training.
MOST_POINTS = 1000


def _read_overrides(value: Any) -> dict[str, Any]:
    overrides = read_mapping(value)
    for key, item in overrides.items():
        if key in OWNED_KEYS:
            raise wrong(f"cannot be overridden; use {OWNED_KEYS[key]}", key)
        if isinstance(item, dict):
            raise wrong(f"write dotted keys, such as {key}.{next(iter(item), 'KEY')}", key)
        # NaN equals nothing: the audit would see arms differ in what they share.
        if any(part != part for part in (item if isinstance(item, list) else [item])):
            raise wrong("is not a number (nan); write one", key)
    return overrides


def _read_init(init: str, info: ValidationInfo) -> str:
    for word in (SCRATCH, REQUIRED):
        if init != word and init.lower() == word:
            raise wrong(f"write {word} instead of {init}")
    if init.startswith(RUN_SCHEME) and not _RUN.fullmatch(init):
        raise wrong(
            f"{init} names no run; write run://STUDY/ARM/SCHEDULE/seed for the run of each "
            "seed, or run://STUDY/ARM/SCHEDULE/seed0 for one of them"
        )
    if init in (SCRATCH, REQUIRED) or info.context is None:
        return init
    return absolute(init, folder_of(info))


def _joined(value: Any) -> Any:
    """Joins the lines of a text."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _read_base(value: Any) -> Any:
    if isinstance(value, str) and value.endswith(".py"):
        raise wrong(
            f"{value} is a LazyConfig, which is Python and would be executed; write the same model "
            "as a YAML config, and register its parts in a module that imports names"
        )
    return value


def _read_metric(metric: str) -> str:
    task, _, number = metric.partition("/")
    if not number or (task in TASKS and number not in NUMBERS):
        known = nearest(metric, METRICS) or f"; for example {METRICS[0]}"
        raise wrong(f"unknown metric {metric}{known}")
    return metric


def _read_arms(value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return value
    read_mapping(value)
    raise wrong("names no arm; for example scratch: {init: scratch}")


def _read_grid(value: Any) -> dict[str, tuple[Any, ...]]:
    grid = {}
    for key, values in read_mapping(value).items():
        if not isinstance(values, (list, tuple)):
            raise wrong(f"must be a list in brackets, not {shorten(values)}", key)
        if not values:
            raise wrong("the list is empty", key)
        if any(isinstance(item, dict) for item in values):
            raise wrong("list the values to try, and write dotted keys", key)
        grid[key] = refuse_repeated(tuple(values), key)
    if not grid:
        raise wrong("has nothing to try; for example SOLVER.BASE_LR: [0.02, 0.04]")
    points = math.prod(len(values) for values in grid.values())
    if points > MOST_POINTS:
        raise wrong(f"has {points:,} points, more than {MOST_POINTS:,}; try fewer values")
    return grid


def _read_split(split: str, info: ValidationInfo) -> str:
    listing = info.data.get("root", Path()) / "ImageSets" / "Main" / f"{split}.txt"
    if info.context and "root" in info.data and not listing.is_file():
        raise wrong(f"{listing}: no such file")
    return split


def _read_size(value: Any) -> str:
    name = str(value) if type(value) is int and 0 < value < 10**12 else value
    if name != FULL and not (isinstance(name, str) and _SIZE.fullmatch(name)):
        raise wrong(
            f"{shorten(value)} is no size; write a number of images (300), of thousands of them "
            f"(3.5k), a percentage (10pct), or {FULL}"
        )
    return name


RUN_SCHEME = "run://"
_RUN = re.compile(r"run://[^/]+/[^/]+/[^/]+/seed(?P<seed>0|[1-9][0-9]{0,9})?", re.ASCII)
_SIZE = re.compile(r"(?!0+(\.0+)?(k|pct)?$)[0-9]{1,12}(\.[0-9]{1,12})?(k|pct)?", re.ASCII)

Overrides = Annotated[dict[str, Any], BeforeValidator(_read_overrides)]
Metric = Annotated[Text, AfterValidator(_read_metric), Field(examples=METRICS)]
Schedules = Annotated[tuple[Schedule, ...], NotEmpty, Distinct]
Module = Annotated[
    Text,
    matching(
        r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*",
        "is no module; write the dotted name of one that is installed or on PYTHONPATH, such as "
        "my_project.parts, and no path",
    ),
]
Split = Annotated[
    Text,
    matching("[A-Za-z0-9][A-Za-z0-9._-]*", "names no list; such as trainval or val"),
    AfterValidator(_read_split),
]
# Of :data:`scratch_vs_pretrain.study.resolve.PRESETS`.
Preset = Literal["detectron2", "detectron2-gn", "torchvision"]


@dataclass(frozen=True, config=STRICT)
class DataFiles(Section):
    """One COCO-format data set: its annotation file and the folder of its images.

    Attributes:
        annotations: a COCO annotation file.
        images: what its file names are relative to.
    """

    removed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("split", "year"), "is of VOC trees; give annotations and images, or voc and split"
    )

    annotations: ExistingFile
    images: ExistingFolder


@dataclass(frozen=True, config={**STRICT, "populate_by_name": True})
class VocTree(Section):
    """One PASCAL VOC data set.

    Attributes:
        root: holds Annotations, ImageSets and JPEGImages.
        split: ImageSets/Main/<split>.txt.
        year: whose metric counts.
    """

    root: Annotated[ExistingFolder, Field(alias="voc")]
    split: Split
    year: Literal[2007, 2012] = 2012


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


@dataclass(frozen=True, config=STRICT)
class Data(Section):
    """A study's own data: COCO files or VOC trees.

    Attributes:
        train: what to train on, all of it: one data set, or a list of several.
        test: what to evaluate on.
        classes: of VOC trees. Default: those of their objects.
    """

    train: Annotated[
        tuple[Source, ...],
        NotEmpty,
        Distinct,
        BeforeValidator(
            lambda value: value if isinstance(value, (list, tuple)) else (value,),
            json_schema_input_type=Source | list[Source],
        ),
    ]
    test: Source
    classes: Annotated[tuple[Text, ...], Distinct] = ()

    @model_validator(mode="after")
    def _alike(self) -> Data:
        if len({type(source) for source in (*self.train, self.test)}) > 1:
            raise wrong("COCO files and VOC trees cannot be mixed; convert one of them")
        if self.classes and not isinstance(self.test, VocTree):
            raise wrong("the categories of COCO files are stated there; remove it", "classes")
        return self


@dataclass(frozen=True, config=STRICT)
class Evaluation(Section):
    """When to evaluate; the last iteration always is.

    Attributes:
        period: every so many iterations. Default: as the config says.
        at: and after so many.
    """

    period: Annotated[int, whole(0, MOST_ITERATIONS)] | None = None
    at: Annotated[
        tuple[Iterations, ...], Distinct, AfterValidator(lambda at: tuple(sorted(at)))
    ] = ()


@dataclass(frozen=True, config=STRICT)
class Tune(Section):
    """A search for the recipe on one arm alone, whose winner every arm then trains with.

    Attributes:
        on: the arm.
        grid: the values to try of each config key, all combinations of them.
        metric: what decides; larger is better.
    """

    on: Text
    grid: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_read_grid)]
    metric: Metric = "bbox/AP"


@dataclass(frozen=True, config=STRICT)
class Noise(Section):
    """The noise between seeds that is assumed where too few were trained to estimate it.

    Attributes:
        sd: standard deviation of the AP between two runs of one config.
        because: where the number is from; shown with verdicts.
    """

    sd: Annotated[float, real(0, 100)]
    because: Text


@dataclass(frozen=True, config=STRICT)
class SeedRange(Section):
    """How many seeds an answer may rest on.

    Attributes:
        least: no verdict from fewer.
        most: no more are trained.
    """

    least: Annotated[int, whole(1, 1000)] = 3
    most: Annotated[int, whole(1, 1000)] = 10

    @model_validator(mode="after")
    def _ordered(self) -> SeedRange:
        if self.most < self.least:
            raise wrong(f"is {self.most}, less than least, {self.least}", "most")
        return self


@dataclass(frozen=True, config=STRICT)
class Answer(Section):
    """What the study asks, and how sure it wants to be.

    Attributes:
        margin: AP by which an arm may be behind and be no worse.
        seeds: how many seeds.
        level: how often all verdicts together are right.
        metric: what is compared; larger is better. Default: keypoint AP, or else box AP.
        converged: why the longest schedule is long enough, where no shorter one shows it.
    """

    margin: Annotated[float, real(0, 100)] = 0.5
    seeds: SeedRange = SeedRange()
    level: Annotated[float, real(0.5, 0.9999)] = 0.95
    metric: Metric | None = None
    converged: Text | None = None


@dataclass(frozen=True, config={**STRICT, "populate_by_name": True})
class Size(Section):
    """One size of the training data, with what its recipe has of its own.

    Attributes:
        name: the number of images (300), of thousands of them (3.5k), a percentage
            (10pct), or full: all of them.
        overrides: config keys of this size alone.
        schedules: in place of the study's and the arms'.
        tuned_on: as the study's.
    """

    name: Annotated[str, BeforeValidator(_read_size), Field(alias="images")]
    overrides: Overrides = field(default_factory=dict)
    schedules: Schedules = ()
    tuned_on: Annotated[str | None, NOT_STATED] = None

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """Reads ``1k`` or ``{images: 1k, ...}``."""
        return value if isinstance(value, (ArgsKwargs, dict, cls)) else {"images": value}


@dataclass(frozen=True, config=STRICT)
class Arm(Section):
    """One side of the comparison.

    Attributes:
        init: the initial weights: scratch (random ones), a checkpoint's path or URI,
            run://STUDY/ARM/SCHEDULE/seed (what another run of the output folder ended
            with), or required (given with --weights ARM=PATH).
        schedules: in place of the study's.
        overrides: config keys of this arm alone; allow_differences has to name them.
        preset: as the study's, for every arm.
        load: what to take from the checkpoint: its backbone, or all that fits.
        freeze: what keeps its initial weights; only where they are not random.
    """

    name: Annotated[Name, NOT_STATED]
    init: Annotated[Text, AfterValidator(_read_init)]
    schedules: Schedules = ()
    overrides: Overrides = field(default_factory=dict)
    preset: Preset | None = None
    load: Literal["backbone", "detector"] = "backbone"
    freeze: Literal["backbone"] | None = None

    @property
    def weights(self) -> str:
        """What MODEL.WEIGHTS is to be."""
        return "" if self.init == SCRATCH else self.init


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: an arm, a schedule, a seed."""

    study: str
    arm: Arm
    schedule: Schedule
    seed: int
    size: str | None = None

    def folder(self, output: Path) -> RunFolder:
        """Returns the run's folder below `output`."""
        study = output / self.study / (f"images-{self.size}" if self.size else "")
        return RunFolder(study / self.arm.name / self.schedule.name / f"seed{self.seed}")


@dataclass(frozen=True, config=STRICT)
class Study(Section):
    """One question: arms that are to differ in their initial weights and their schedules alone.

    Attributes:
        file: where it was read; messages name it.
        size: of the training data, in a study of one of another's `sizes`.
        tuned_on: the arm on which a search found the recipe, whose winner `overrides` holds.
        name: names the output folder.
        base: the Detectron2 config (YAML) that every arm starts from.
        schedules: of every arm that states none: 2x (twice 90,000 iterations of 16
            images, scaled with the batch size), 600it, or {iterations: 600}.
        arms: arms by name, in the order of tables.
        seeds: one run of every arm and schedule for each.
        description: for people.
        preset: what the pixels of the pre-trained backbone looked like and where its
            stages halve the resolution, for every arm: INPUT.FORMAT, MODEL.PIXEL_MEAN,
            MODEL.PIXEL_STD and MODEL.RESNETS.STRIDE_IN_1X1.
        overrides: config keys, for every arm.
        evaluation: when to evaluate.
        data: your own data, in place of the config's; classes and heads follow.
        allow_differences: config keys that arms may differ in; every table names them.
        admit: checks to switch off, for a study of mistakes: frozen-stages-from-scratch,
            frozen-norm-from-scratch, small-batch-norm, no-warm-up; every table names them.
        switch: what every run goes on with at its end.
        tune: the search that has to come first; with sizes, one for each whose overrides do not
            set its keys.
        imports: your own modules, installed or on PYTHONPATH: imported in every process
            before configs are read, for what they register with Detectron2.
        sizes: nested subsets of the training data; every arm trains on each.
        answer: what counts as an answer.
        noise: assumed where seeds are too few to estimate it.
    """

    removed: ClassVar[Mapping[str, str]] = {
        "conclusions": (
            "was replaced in version 0.2; write answer: {margin: 0.5}, and for fewer than three "
            "seeds noise: {sd: 0.2, because: ...}"
        )
    }

    name: Name
    file: Annotated[Path, NOT_STATED]
    base: Annotated[ExistingFile, BeforeValidator(_read_base)]
    schedules: Schedules = Field(default=(), kw_only=True)
    arms: Annotated[
        tuple[Arm, ...], BeforeValidator(_read_arms, json_schema_input_type=dict[str, Arm])
    ]
    seeds: Annotated[tuple[Annotated[int, whole(0, 2**32 - 1)], ...], NotEmpty, Distinct] = (0,)
    description: Annotated[Line, BeforeValidator(_joined)] = ""
    preset: Preset | None = None
    overrides: Overrides = field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    data: Data | None = None
    allow_differences: Annotated[tuple[Text, ...], Distinct] = ()
    admit: Annotated[tuple[Text, ...], Distinct] = ()
    switch: Switch | None = None
    tune: Tune | None = None
    imports: Annotated[tuple[Module, ...], Distinct] = ()
    sizes: Annotated[tuple[Size, ...], Distinct] = ()
    answer: Answer | None = None
    noise: Noise | None = None
    tuned_on: Annotated[str | None, NOT_STATED] = None
    size: Annotated[str | None, NOT_STATED] = None

    @model_validator(mode="before")
    @classmethod
    def _share_schedules(cls, value: Any) -> Any:
        """Gives the study's schedules to arms that state none."""
        if not isinstance(value, Stated) or not isinstance(value.content, dict):
            return value
        content, arms = value.content, value.content.get("arms")
        if not isinstance(arms, dict) or not arms:
            return value
        shared = {"schedules": content["schedules"]} if "schedules" in content else {}
        named = tuple(
            Stated(
                arm,
                {**({} if isinstance(arm, dict) and "schedules" in arm else shared), "name": name},
            )
            for name, arm in arms.items()
        )
        return Stated(content, {**value.known, "arms": named})

    def runs(self) -> tuple[Run, ...]:
        """Returns every run, by size, arm, schedule and seed."""
        return tuple(
            Run(one.name, arm, schedule, seed, one.size)
            for one in self.by_size()
            for arm in one.arms
            for schedule in arm.schedules
            for seed in one.seeds
        )

    def by_size(self) -> tuple[Study, ...]:
        """Returns the study of each of the sizes, smallest first as they are stated, or itself."""
        if not self.sizes:
            return (self,)
        return tuple(
            dataclasses.replace(
                self,
                sizes=(),
                size=size.name,
                tune=None,
                tuned_on=size.tuned_on,
                overrides={**self.overrides, **size.overrides},
                arms=tuple(
                    dataclasses.replace(arm, schedules=size.schedules or arm.schedules)
                    for arm in self.arms
                ),
            )
            for size in self.sizes
        )
