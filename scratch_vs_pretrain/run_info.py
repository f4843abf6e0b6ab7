"""What ``run.json`` says of a run: one schema for what writes it and for what reads it.

Format 1, of which format 2 has every field and more, is read as well. Numbers end at 2**53, up to
which a float64 holds every integer, so that no sum or square of a few leaves its range.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from scratch_vs_pretrain.errors import UserError, from_validation, say

FORMAT: Final = 2
State = Literal["planned", "running", "interrupted", "finished", "diverged", "failed"]
LARGEST = 2**53
# Iterations and images of each, whose product an int64 holds.
MOST_ITERATIONS, MOST_PER_BATCH = 2**40, 2**20
LARGEST_NOTE = 10_000  # bytes that are read of what lies beside weights

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Iteration = Annotated[int, Field(ge=0, le=MOST_ITERATIONS)]

# By what a study's answer judges a run, which may change; all but the first are `answer`'s. Bounds
# are those of the study file.
JUDGED_BY = ("noise", "margin", "level", "metric", "converged")
Margin = Annotated[float, Field(strict=True, gt=0, le=100)]
Deviation = Annotated[float, Field(strict=True, gt=0, le=100)]
Level = Annotated[float, Field(strict=True, gt=0.5, le=0.9999)]


def _bounded(value: Any) -> Any:
    """Refuses numbers, anywhere in a JSON value, that arithmetic could not bear."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _bounded(item)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("integers of 64 bits are expected")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("finite numbers are expected")
    return value


# Any JSON: a config's value, or what a checkpoint notes of its training.
Json = Annotated[Any, AfterValidator(_bounded)]


class Model(BaseModel):
    """A part of a file: no field but these, no type but theirs, and it stays as it is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Init(Model):
    """The weights that a run starts from."""

    name: str | None = None  # "scratch" or "checkpoint"
    weights: str | None = None  # where the checkpoint was, None for random weights
    sha256: str | None = None  # of the checkpoint
    pretraining: Json = None  # what the checkpoint notes of its own training
    load: str | None = None  # which part of the checkpoint: its "backbone", or the whole "detector"


class PretrainingCost(Model):
    """What ``svp pretrain`` notes beside the weights; in `Init.pretraining` as "cost"."""

    seconds: Seconds
    device: str

    @staticmethod
    def file(weights: object) -> Path:
        """Returns where it is noted."""
        return Path(f"{weights}.cost.json")

    @classmethod
    def of(cls, weights: object) -> dict[str, Any]:
        """Returns what is noted of these weights, empty where nothing that can be read is."""
        file = cls.file(weights)
        with contextlib.suppress(OSError, ValueError):
            if file.is_file():  # a pipe would be waited for
                with file.open("rb") as content:
                    noted = cls.model_validate_json(content.read(LARGEST_NOTE))
                return {"cost": noted.model_dump()}
        if os.path.lexists(file):
            say(f"{file}: says no time and device of a pre-training, and is left out; restore it")
        return {}


class Loaded(Model):
    """What became of a checkpoint's tensors."""

    loaded: Count = 0  # in the bottom-up network, VGG's fc6 and fc7 included, or in the detector
    missing: tuple[str, ...] = ()  # what the checkpoint lacks of them
    unexpected: tuple[str, ...] = ()  # what of it was not used: classifier, heads, optimizer
    mismatched: tuple[str, ...] = ()  # names with both shapes
    reinitialized: tuple[str, ...] = ()  # what ``load: detector`` found nothing for
    layout: str | None = None  # whose names the checkpoint has
    prefix: str = ""  # what stood before them


class Taken(Model):
    """What a branch had from its trunk: the iterations, and the seconds that they took there."""

    iteration: Count
    seconds: Seconds | None = None


class Branch(Model):
    """Where a run begins that does not begin by itself."""

    of: str  # the schedule of its trunk
    at: Count  # iterations that are the trunk's
    taken: Taken | None = None  # None until it has begun


class Switch(Model):
    """The iteration at which another config takes over."""

    at: Count


class Resume(Model):
    """A start that went on from a checkpoint."""

    iteration: Count
    time: str | None = None
    exact: bool
    inexact_because: tuple[str, ...] = ()


class DataSet(Model):
    """What identifies the images that a run learns from, or is evaluated on."""

    names: tuple[str, ...] = ()
    images: Count | None = None
    labelled: Count | None = None  # images with an instance at least
    annotations: Count | None = None
    sha256: str | None = None


class Data(Model):
    train: DataSet = DataSet()
    test: DataSet = DataSet()

    def refuse_change(self, now: Self, run: object) -> None:
        """Raises UserError where other data, as far as both are known, bear the same names now."""
        for part, title in (("train", "training"), ("test", "test")):
            before, after = getattr(self, part), getattr(now, part)
            changed = before.names == after.names and before.sha256 != after.sha256
            if changed and before.sha256 and after.sha256:
                raise UserError(
                    f"{run}: {title} data have changed since this run was planned (sha256 "
                    f"{before.sha256} then, {after.sha256} now); restore {', '.join(after.names)}, "
                    "or choose another output folder"
                )


class Samples(Model):
    """What was trained on; what was seen again counts again."""

    images: Count | None = None
    instances: Count | None = None
    pixels: Count | None = None


class Provenance(Model):
    """Where, when and with what a run was started last."""

    started: str | None = None
    host: str | None = None
    platform: str | None = None
    device: str | None = None
    processes: Annotated[int, Field(ge=1, le=LARGEST)] = 1
    threads: Count | None = None
    processor: str | None = None
    deterministic: bool | None = None
    git_commit: str | None = None
    versions: dict[str, str | None] = {}  # of packages, and of users' modules with their hash


class Noise(Model):
    """What a study assumes: the standard deviation of the AP between two runs, and its reason."""

    sd: Deviation
    because: str


class Look(Model):
    """What one look of ``svp run --until answered`` at the evidence found."""

    look: Count
    looks: Annotated[int, Field(ge=1, le=10_000)]  # of its path at most; they share the error
    size: Count | None = None
    schedules: tuple[str, ...] = ()
    seeds: Count = 0
    hours: Seconds = 0.0
    verdicts: tuple[Json, ...] = ()
    next: str = ""


class Looks(Model):
    """``answer.json``: every look at a study so far."""

    format: Literal[1] = 1
    study: str = ""
    looks: tuple[Look, ...]
    search: dict[str, Number] = {}  # what the search for the recipe took


class Found(Model):
    """An object in a picture, or what a detector takes for one."""

    category: str
    score: Number = 1.0
    box: tuple[Number, Number, Number, Number]  # left, top, width, height
    outline: tuple[tuple[Number, ...], ...] = ()  # polygons, each as x, y, x, y, ...


class Picture(Model):
    """A test picture."""

    file: str
    height: Count
    width: Count
    objects: tuple[Found, ...] = ()
    detections: tuple[Found, ...] = ()


class Detections(Model):
    """``detections.json``: what a model finds in the first test pictures."""

    format: Literal[1] = 1
    iteration: Count
    dataset: str
    pictures: tuple[Picture, ...]


class RunInfo(Model):
    """One run."""

    format: Literal[1, 2] = FORMAT
    study: str
    description: str | None = None
    arm: str
    schedule: str
    seed: Count
    size: Count | None = None  # training images, where the study varies them
    state: State = "planned"
    reason: str | None = None  # why it diverged, failed or was interrupted
    iterations: Annotated[int, Field(ge=1, le=MOST_ITERATIONS)]
    iteration: Iteration = 0
    resumes: tuple[Resume, ...] = ()
    steps: tuple[Count, ...] = ()  # iterations at which the rate drops
    switch: Switch | None = None
    branch: Branch | None = None
    branch_points: tuple[Count, ...] = ()  # iterations whose checkpoints other runs begin with
    images_per_batch: Annotated[int, Field(ge=0, le=MOST_PER_BATCH)] | None = None
    init: Init = Init()
    arm_order: tuple[str, ...] = ()
    allowed_differences: dict[str, dict[str, Json]] = {}  # by config key, the value of each arm
    admitted: tuple[str, ...] = ()  # checks of a recipe switched off, to be wrong on purpose
    tuned_on: str | None = None
    # Of the conclusions of format 1.
    thresholds: dict[str, Annotated[float, Field(gt=0, le=LARGEST)]] = {}
    margin: Margin | None = None  # the difference in AP that matters to the study
    noise: Noise | None = None
    level: Level | None = None  # how often all verdicts of the study together are to be right
    metric: str | None = None  # that decides the study's answer; None: its main AP
    converged: str | None = None  # why the study takes its longest schedule for long enough
    data: Data = Data()
    provenance: Provenance | None = None
    host: str | None = None
    job: str | None = None
    norms: dict[str, Count] = {}
    parameters: Count | None = None
    init_report: Loaded | None = None
    fast: tuple[str, ...] = ()  # options of SVP.FAST in force
    repaired: dict[str, Count] = {}  # entries of the training data dropped or mended, by fault
    seconds: Seconds | None = None  # of training and evaluation; a branch's include its trunk's
    samples: Samples = Samples()
    unreadable_images: tuple[str, ...] = ()  # those that others replaced

    @classmethod
    def from_json(cls, content: bytes, place: object) -> Self:
        """Reads a ``run.json``."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            wrong = {one["loc"] or one["type"] for one in error.errors(include_url=False)}
            if ("format",) in wrong or "model_type" in wrong:
                raise UserError(
                    f"{place}: not a run description of format 1 or {FORMAT}; if a later version "
                    "of scratch_vs_pretrain wrote it, read it with that one"
                ) from None
            remedy = "restore it"
            if "json_invalid" in wrong:
                remedy += ", or delete it and start the study again: svp run writes it anew, and "
                remedy += "the run goes on from its checkpoints"
            raise from_validation(error, place, remedy) from None

    def to_json(self) -> str:
        """Returns the content of a ``run.json``, without the fields that nobody has set."""
        content = {"format": 0} | self.model_dump(exclude_unset=True) | {"format": FORMAT}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def with_changes(self, **changes: Any) -> Self:
        """Returns a run in which some fields are others."""
        content = {**self.model_dump(exclude_unset=True), **changes, "format": FORMAT}
        text = json.dumps(content, default=Model.model_dump, ensure_ascii=False)
        return self.model_validate_json(text.encode("utf-8", "replace"))  # paths may be no text

    @property
    def name(self) -> str:
        """Names the run in messages: "scratch 600it seed 0"."""
        return f"{self.arm} {self.schedule} seed {self.seed}"

    @property
    def setting(self) -> str:
        """Names the study and, where that varies it, the size of the training data."""
        return self.study if self.size is None else f"{self.study}, {self.size:,} images"

    @property
    def from_scratch(self) -> bool:
        """The arm starts from random weights."""
        return (self.init.name or self.arm) == "scratch"

    @property
    def train_images(self) -> int | None:
        """Images of the training set."""
        return self.data.train.images

    @property
    def images(self) -> int | None:
        """Images of the planned training."""
        return None if self.images_per_batch is None else self.iterations * self.images_per_batch

    @property
    def epochs(self) -> float | None:
        """Passes over the training set of the planned training."""
        return self.images / self.train_images if self.images and self.train_images else None

    @property
    def device(self) -> str | None:
        """What it trained on: "cpu", or the name of a GPU."""
        return self.provenance.device if self.provenance else None

    @property
    def devices(self) -> int:
        """How many trained it together."""
        return self.provenance.processes if self.provenance else 1

    @property
    def branch_of(self) -> str | None:
        """The schedule of the run that it branches off from; None if it begins by itself."""
        return self.branch.of if self.branch else None

    @property
    def branch_at(self) -> int:
        """Completed iterations at which it branches off; 0 if it begins by itself."""
        if self.branch is None:
            return 0
        return self.branch.taken.iteration if self.branch.taken else self.branch.at

    @property
    def trunk_seconds(self) -> float:
        """The part of `seconds` that a branch has from its trunk."""
        return (self.branch and self.branch.taken and self.branch.taken.seconds) or 0.0

    @property
    def inexact(self) -> tuple[str, ...]:
        """Why a resume was not exact, each reason once."""
        return tuple(dict.fromkeys(why for one in self.resumes for why in one.inexact_because))
