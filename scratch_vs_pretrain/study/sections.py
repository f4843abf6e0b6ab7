"""Parts of a study file: its data, when to evaluate, the search for a recipe, what is an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

from scratch_vs_pretrain.errors import nearest
from scratch_vs_pretrain.study import fields

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

    period: Annotated[int, fields.whole(0, fields.MOST_ITERATIONS)] | None = None
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

    sd: Annotated[float, fields.real(0, 100)]
    """standard deviation of the AP between two runs of one config."""
    because: fields.Text
    """where the number is from; shown with verdicts."""


@dataclass(frozen=True, config=fields.STRICT)
class SeedRange(fields.Section):
    """How many seeds an answer may rest on."""

    least: Annotated[int, fields.whole(1, 1000)] = 3
    """no verdict from fewer."""
    most: Annotated[int, fields.whole(1, 1000)] = 10
    """no more are trained."""

    @model_validator(mode="after")
    def _ordered(self) -> SeedRange:
        if self.most < self.least:
            raise fields.wrong(f"is {self.most}, less than least, {self.least}", "most")
        return self


@dataclass(frozen=True, config=fields.STRICT)
class Answer(fields.Section):
    """What the study asks, and how sure it wants to be."""

    margin: Annotated[float, fields.real(0, 100)] = 0.5
    """AP by which an arm may be behind and be no worse."""
    seeds: SeedRange = SeedRange()
    """how many seeds."""
    level: Annotated[float, fields.real(0.5, 0.9999)] = 0.95
    """how often all verdicts together are right."""
    metric: Metric | None = None
    """what is compared; larger is better. Default: keypoint AP, or else box AP."""
    converged: fields.Text | None = None
    """why the longest schedule is long enough, where no shorter one shows it."""
