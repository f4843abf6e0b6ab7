"""Images, instances and pixels that an arm has seen, pre-training included (paper, Figure 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.tables.table import Cell, Table
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_info import Init

# What is assumed of weights that do not say how they were trained, as the paper's Figure 2 does:
# the training set of ILSVRC 2012, 100 epochs, one object and 224 x 224 pixels an image.
IMAGENET_IMAGES = 1_281_167
IMAGENET_EPOCHS = 100
IMAGENET_SIDE = 224


@dataclass(frozen=True)
class Counts:
    """What was seen; what was seen again counts again."""

    images: int = 0  # after augmentation
    instances: int | None = 0  # objects to learn from, of these images; None where unknown
    pixels: int | None = 0  # of these images without padding; None where unknown

    def __add__(self, other: Counts) -> Counts:
        def total(a: int | None, b: int | None) -> int | None:
            return None if a is None or b is None else a + b

        return Counts(
            self.images + other.images,
            total(self.instances, other.instances),
            total(self.pixels, other.pixels),
        )


@dataclass(frozen=True)
class Pretraining:
    """What the initial weights of an arm have seen."""

    counts: Counts  # nothing from random weights
    assumed: bool = False  # the weights do not say it; ImageNet's usual recipe stands in


@dataclass(frozen=True)
class Budget:
    """What one arm sees with one schedule."""

    arm: str
    schedule: str
    pretraining: Pretraining  # by its initial weights
    training: Counts  # by the run itself; mean over seeds

    @property
    def total(self) -> Counts:
        """Everything."""
        return self.pretraining.counts + self.training


@dataclass(frozen=True)
class Budgets:
    """The budgets of one study, and what must be said with them."""

    study: str
    rows: tuple[Budget, ...]  # by arm and schedule, in the study's order
    counted: bool  # by a hook during training; else expected before it
    notes: tuple[str, ...]  # a sentence each


def pretraining(init: Init) -> Pretraining:
    """Returns what an arm's initial weights have seen, by what `svp pretrain` noted in them."""
    if not init.weights:
        return Pretraining(Counts())
    noted = init.pretraining
    counts = counts_of(noted.get("samples") if isinstance(noted, Mapping) else None)
    if counts is not None:
        return Pretraining(counts)
    images = IMAGENET_IMAGES * IMAGENET_EPOCHS
    return Pretraining(Counts(images, images, images * IMAGENET_SIDE**2), assumed=True)


def counts_of(samples: Any) -> Counts | None:
    """Returns the counts that a file holds as "images", "instances", "pixels"; None if not all."""
    if not isinstance(samples, Mapping):
        return None
    found = [samples.get(name) for name in ("images", "instances", "pixels")]
    values = [value for value in found if type(value) is int and value >= 0]
    return Counts(*values) if len(values) == len(found) else None


def budgets(runs: Sequence[RunRecord]) -> Budgets:
    """Returns what the finished runs of one study have seen, as counted during training.

    Raises:
        UserError: none has finished, or runs of several studies.
    """
    studies = sorted({run.study for run in runs})
    if len(studies) > 1:
        raise UserError(f"budgets are of one study, these are {', '.join(studies)}")
    rows, left_out = [], []
    for arm, schedule in dict.fromkeys((run.arm, run.schedule) for run in runs):
        group = [run for run in runs if (run.arm, run.schedule) == (arm, schedule)]
        seen = {run.seed: _seen(run) for run in group}
        found = [counts for counts in seen.values() if counts]
        left_out += [run for run in group if not seen[run.seed]]
        if found:
            rows.append(Budget(arm, schedule, pretraining(group[0].init), _mean(found)))
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
    for row in found.rows:
        parts = {"training": row.training}
        if row.pretraining.counts.images:
            parts = {"pre-training": row.pretraining.counts, **parts, "together": row.total}
        rows += [
            (row.arm, row.schedule, part, seen.images, seen.instances, seen.pixels)
            for part, seen in parts.items()
        ]
    how = "counted during training" if found.counted else "expected before training"
    header = ("arm", "schedule", "part", "images", "instances", "pixels")
    return Table(f"Samples seen, {found.study}, {how}", header, tuple(rows), found.notes)


def _seen(run: RunRecord) -> Counts | None:
    return counts_of(run.samples.model_dump()) if run.state == "finished" else None


def _mean(counts: Sequence[Counts]) -> Counts:
    columns = zip(*map(dataclasses.astuple, counts), strict=True)
    return Counts(*(round(sum(column) / len(counts)) for column in columns))
