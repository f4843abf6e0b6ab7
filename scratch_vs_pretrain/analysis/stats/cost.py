"""What training costs: hours, and images, instances and pixels, pre-training included (Figure 2).

What an arm sees is counted by runs, or expected before them from annotations alone: then by
Detectron2's training augmentation (``data/detection_utils.py:build_augmentation``, and the crop
that ``DatasetMapper`` puts before it): a random crop, the resizing of the shorter side, and a flip
that changes no count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratch_vs_pretrain.analysis import AXES
from scratch_vs_pretrain.analysis.runs import RunRecord, grouped
from scratch_vs_pretrain.analysis.runs.numbers import curve
from scratch_vs_pretrain.analysis.tables import Cell, Table
from scratch_vs_pretrain.errors import UserError, check_choice
from scratch_vs_pretrain.run_info import Init

COUNTED = ("images", "instances", "pixels")

# What is assumed of weights that do not say how they were trained, as the paper's Figure 2 does:
# the training set of ILSVRC 2012, 100 epochs, one object and 224 x 224 pixels an image.
IMAGENET_IMAGES = 1_281_167
IMAGENET_EPOCHS = 100
IMAGENET_SIDE = 224

# A crop's random size, and with crops a range of shorter sides, stands for so many values.
POINTS = 8


@dataclass(frozen=True)
class Counts:
    """What was seen; what was seen again counts again."""

    images: int = 0  # after augmentation
    instances: int | None = 0  # objects to learn from, of these images; None where unknown
    pixels: int | None = 0  # of these images without padding; None where unknown
    # By weights that do not say it; ImageNet's usual recipe stands in.
    assumed: bool = False

    def __add__(self, other: Counts) -> Counts:
        pairs = [(getattr(self, name), getattr(other, name)) for name in COUNTED]
        sums = [None if None in pair else sum(pair) for pair in pairs]
        found: dict[str, Any] = dict(zip(COUNTED, sums, strict=True))
        return Counts(**found, assumed=self.assumed or other.assumed)


@dataclass(frozen=True)
class Budget:
    """What one arm sees with one schedule."""

    arm: str
    schedule: str
    pretraining: Counts  # by its initial weights; nothing by random ones
    training: Counts  # by the run itself; mean over seeds
    size: str | None = None  # of the training data, where the study varies it

    @property
    def total(self) -> Counts:
        """Everything."""
        return self.pretraining + self.training


@dataclass(frozen=True)
class Budgets:
    """The budgets of one study, and what must be said with them."""

    study: str
    rows: tuple[Budget, ...]  # by arm and schedule, in the study's order
    counted: bool  # by a hook during training; else expected before it
    notes: tuple[str, ...]  # a sentence each


def pretraining(init: Init) -> Counts:
    """Returns what an arm's initial weights have seen, by what `svp pretrain` noted in them."""
    if not init.weights:
        return Counts()
    noted = init.pretraining
    counts = counts_of(noted.get("samples") if isinstance(noted, Mapping) else None)
    images = IMAGENET_IMAGES * IMAGENET_EPOCHS
    return counts or Counts(images, images, images * IMAGENET_SIDE**2, assumed=True)


def counts_of(samples: Any) -> Counts | None:
    """Returns the counts that a file holds as "images", "instances", "pixels"; None if not all."""
    if not isinstance(samples, Mapping):
        return None
    found: dict[str, Any] = {name: samples.get(name) for name in COUNTED}
    if any(type(value) is not int or value < 0 for value in found.values()):
        return None
    return Counts(**found)


def budgets(runs: Sequence[RunRecord]) -> Budgets:
    """Returns what the finished runs of one study have seen, as counted during training.

    Raises:
        UserError: none has finished, or runs of several studies.
    """
    studies = sorted({run.study for run in runs})
    if len(studies) > 1:
        raise UserError(f"budgets are of one study, these are {', '.join(studies)}")
    rows, left_out = [], []
    for (arm, schedule), group in grouped(runs, lambda run: (run.arm, run.schedule)).items():
        found = []
        for run in group:
            counts = counts_of(run.samples.model_dump()) if run.state == "finished" else None
            if counts:
                found.append(counts)
            else:
                left_out.append(run)
        if found:
            columns = ([getattr(counts, name) for counts in found] for name in COUNTED)
            mean = Counts(*(round(sum(column) / len(found)) for column in columns))
            rows.append(Budget(arm, schedule, pretraining(group[0].init), mean))
    if not rows:
        raise UserError(
            f"study {studies[0]}: no run has finished and counted what it saw; "
            "before training, `svp budget STUDY` says what to expect"
        )
    tuned = {run.tuned_on for run in runs if run.tuned_on}
    notes = [f"Left out: {run.name} ({run.state})." for run in left_out]
    notes += [
        f"The search for the recipe on arm {arm}, which the recipe favours, is not counted."
        for arm in sorted(tuned)
    ]
    return Budgets(studies[0], tuple(rows), True, (*assumptions(rows), *notes))


def assumptions(rows: Iterable[Budget]) -> tuple[str, ...]:
    """Returns what is assumed about pre-training, a sentence."""
    arms = dict.fromkeys(row.arm for row in rows if row.pretraining.assumed)
    if not arms:
        return ()
    return (
        f"Assumed for the weights of {', '.join(arms)}, of which nothing else is known: "
        f"pre-training on ImageNet, {IMAGENET_IMAGES:,} images x {IMAGENET_EPOCHS} epochs of "
        f"{IMAGENET_SIDE} x {IMAGENET_SIDE} pixels, one instance an image.",
    )


def samples_table(runs: Sequence[RunRecord]) -> Table:
    """Returns the table of what the finished runs of one study have seen."""
    return budget_table(budgets(runs))


def budget_table(found: Budgets) -> Table:
    """Returns the table of a study's budgets: pre-training, training and both together."""
    rows: list[tuple[Cell, ...]] = []
    sized = ("size",) if any(row.size for row in found.rows) else ()
    for row in found.rows:
        size = (row.size,) if sized else ()
        parts = {"training": row.training}
        if row.pretraining.images:
            parts = {"pre-training": row.pretraining, **parts, "together": row.total}
        rows += [
            (*size, row.arm, row.schedule, part, seen.images, seen.instances, seen.pixels)
            for part, seen in parts.items()
        ]
    how = "counted during training" if found.counted else "expected before training"
    header = (*sized, "arm", "schedule", "part", "images", "instances", "pixels")
    return Table(f"Samples seen, {found.study}, {how}", header, tuple(rows), found.notes)


def cost(run: RunRecord, x: str, iterations: np.ndarray) -> np.ndarray:
    """Returns where completed iterations lie on an axis of :data:`AXES`, NaN where unknown.

    Pixels include those of pre-training. GPU hours are seconds of training and evaluation times
    devices; a branch's include its trunk's.

    Raises:
        UserError: there is no such axis.
    """
    check_choice("x axis", x, AXES)
    at = np.asarray(iterations, float)
    if x == "iterations":
        return at
    if x == "pixels":
        return _pixels(run, at)
    if x != "gpu-hours":
        images = at * (run.images_per_batch or np.nan)
        return images if x == "images" else images / (run.train_images or np.nan)
    if not run.seconds or not run.iteration:
        return np.full(len(at), np.nan)
    # Every iteration of one start takes as long.
    knots = {0: 0.0, run.iteration: run.seconds}
    if run.trunk_seconds:
        knots[run.branch_at] = run.trunk_seconds
    known = sorted(knots)
    return run.devices / 3600 * np.interp(at, known, [knots[iteration] for iteration in known])


def _pixels(run: RunRecord, at: np.ndarray) -> np.ndarray:
    """Returns the pixels seen at each iteration: between logged counts, evenly."""
    counted = curve(run, "samples/pixels")
    x, y = counted.iterations.astype(float), counted.values
    total = run.samples.pixels
    if total is not None and run.iteration > x.max(initial=0):
        x, y = np.append(x, run.iteration), np.append(y, total)
    before = pretraining(run.init).pixels
    if before is None or len(x) == 0:
        return np.full(len(at), np.nan)
    seen = np.interp(at, np.append(0, x), np.append(0, y))
    return np.where(at <= x[-1], before + seen, np.nan)


def mean_hours(runs: Iterable[RunRecord]) -> float:
    """Returns the mean device hours of finished runs, each alone; infinite where unknown."""
    hours = [r.seconds * r.devices / 3600 for r in runs if r.state == "finished" and r.seconds]
    return float(np.mean(hours)) if hours else math.inf


def total_hours(runs: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Returns the GPU hours of runs, a shared trunk counted once, and of each alone, if known."""
    if not runs or any(run.seconds is None for run in runs):
        return None
    alone = sum((run.seconds or 0) * run.devices for run in runs)
    shared = sum(run.trunk_seconds * run.devices for run in runs)
    return (alone - shared) / 3600, alone / 3600


# Whose hours they are: a processor's or not, or nobody knows.
WHOSE = {True: "CPU ", False: "GPU ", None: ""}


def hours_text(hours: float, cpu: bool | None) -> str:
    """Returns hours as one says them; see :func:`on_processors`."""
    if hours < 0.095:
        minutes = max(1, round(60 * hours))
        return f"{minutes} {WHOSE[cpu]}minute{'s' * (minutes != 1)}"
    return f"{hours:.1f} {WHOSE[cpu]}hours" if hours < 100 else f"{hours:,.0f} {WHOSE[cpu]}hours"


def pretraining_text(init: Init) -> str:
    """Says what pre-training took, where the checkpoint tells."""
    noted = init.pretraining if isinstance(init.pretraining, Mapping) else {}
    cost = noted["cost"] if isinstance(noted.get("cost"), Mapping) else {}
    seconds = cost.get("seconds")
    if not isinstance(seconds, (int, float)) or seconds < 0:
        return " + its pre-training"
    cpu = cost["device"] == "cpu" if cost.get("device") else None
    return f" + {hours_text(seconds / 3600, cpu)} of pre-training"


def on_processors(runs: Sequence[RunRecord]) -> bool | None:
    """Tells whether all runs trained without a GPU, or all with one; None: neither is known."""
    kinds = {run.device == "cpu" for run in runs if run.device}  # none of runs that have not begun
    return kinds.pop() if len(kinds) == 1 else None


def axis_title(x: str, runs: Sequence[RunRecord]) -> str:
    """Returns what stands under an axis."""
    return f"{WHOSE[on_processors(runs)]}hours" if x == "gpu-hours" else AXES[x]


def axis_sentences(x: str, runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yields what a caption must say about an axis."""
    arms = dict.fromkeys(run.arm for run in runs if pretraining(run.init).assumed)
    if x == "pixels" and arms:
        yield (
            f"Assumed of {', '.join(arms)}: pre-training on ImageNet, 100 epochs of 224 x 224 "
            "pixels."
        )
    if x == "gpu-hours":
        yield "Hours include evaluations."


@dataclass(frozen=True)
class Annotated:
    """The training images of a data set."""

    heights: np.ndarray  # (n,) of the images, pixels
    widths: np.ndarray  # (n,) likewise
    owners: np.ndarray  # (m,) the image of each instance, counted from 0; crowds are no instances
    boxes: np.ndarray  # (m, 4) left, top, right, bottom, pixels


def expected_pixels(data: Annotated, rule: Any) -> float:
    """Returns the mean over images of the expected pixels after augmentation, without padding.

    `rule` is the INPUT node of a Detectron2 config.
    """
    sizes, images = np.unique(np.stack([data.heights, data.widths], 1), axis=0, return_counts=True)
    height, width = sizes.T
    sides = np.array(rule.MIN_SIZE_TRAIN)  # of which each is drawn as likely
    if rule.MIN_SIZE_TRAIN_SAMPLING != "choice":
        sides = np.arange(sides[0], sides[-1] + 1)
        if rule.CROP.ENABLED and len(sides) > POINTS:
            sides = sides[((np.arange(POINTS) + 0.5) / POINTS * len(sides)).astype(int)]
    areas = [
        resized_area(h, w, side, rule.MAX_SIZE_TRAIN)
        for h in _cropped(height, 0, rule.CROP)
        for w in _cropped(width, 1, rule.CROP)
        for side in sides
    ]
    return float(np.mean([np.average(area, weights=images) for area in areas]))


def expected_instances(data: Annotated, rule: Any) -> float:
    """Returns the mean over images of the expected number of instances after augmentation.

    An instance counts if its box has an area within the image and, with crops, within the crop.
    (With masks Detectron2 asks for a part of the mask within the crop, which are a few less.)
    """
    height, width = data.heights[data.owners], data.widths[data.owners]
    left, top, right, bottom = data.boxes.T
    # The crop's two sides and places are drawn independently.
    across = _visible(left, right, width, _cropped(width, 1, rule.CROP))
    down = _visible(top, bottom, height, _cropped(height, 0, rule.CROP))
    return float((across * down).sum() / len(data.heights))


def resized_area(height: np.ndarray, width: np.ndarray, shorter: int, longest: int) -> np.ndarray:
    """Returns the areas (n,) after ``ResizeShortestEdge.get_output_shape``, rounded as there."""
    if shorter == 0:
        return height * width
    scale = shorter / np.minimum(height, width)
    tall = np.where(height < width, float(shorter), scale * height)
    wide = np.where(height < width, scale * width, float(shorter))
    longer = np.maximum(tall, wide)
    shrink = np.where(longer > longest, longest / longer, 1.0)
    return np.floor(tall * shrink + 0.5) * np.floor(wide * shrink + 0.5)


def _cropped(lengths: np.ndarray, axis: int, crop: Any) -> list[np.ndarray]:
    """Returns equally likely lengths (n,) of the crop along an axis, 0 for the height."""
    kind, sizes = crop.TYPE, crop.SIZE
    parts = (np.arange(POINTS) + 0.5) / POINTS
    if not crop.ENABLED:
        return [lengths]
    if kind == "absolute":
        return [np.minimum(lengths, sizes[axis])]
    if kind == "absolute_range":
        low, high = (np.minimum(lengths, size) for size in sizes)
        return [low + np.floor(part * (high - low + 1)) for part in parts]
    fractions = sizes[axis] + parts * (1 - sizes[axis])
    if kind == "relative":
        fractions = np.array(sizes[axis : axis + 1])
    return [np.floor(lengths * fraction + 0.5) for fraction in fractions]


def _visible(
    start: np.ndarray, end: np.ndarray, length: np.ndarray, crops: list[np.ndarray]
) -> np.ndarray:
    """Returns the probability (m,) that some of start..end lies within the crop.

    A crop begins at any whole pixel from which it fits into the image.
    """
    extent = np.minimum(end, length) - np.maximum(start, 0)
    chances = []
    for crop in crops:
        first = np.maximum(np.floor(start - crop) + 1, 0)
        last = np.minimum(np.ceil(end) - 1, length - crop)
        chances.append(np.clip(last - first + 1, 0, None) / (length - crop + 1))
    return np.where(extent > 0, np.mean(chances, axis=0), 0.0)
