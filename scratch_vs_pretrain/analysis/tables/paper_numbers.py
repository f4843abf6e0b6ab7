"""The published numbers of "Rethinking ImageNet Pre-training" (arXiv 1811.08883)."""

from __future__ import annotations

import csv
import functools
import importlib.resources
import re
from dataclasses import dataclass

from scratch_vs_pretrain.errors import UserError

# The zoo's numbers are from Detectron2 v0.6. Its pairs differ in more than their initial weights:
# pixel std, STRIDE_IN_1X1, FREEZE_AT, batch size and rate.
FILES = {"paper": "paper_results.csv", "zoo": "zoo_results.csv"}


@dataclass(frozen=True)
class PublishedNumber:
    """One number with where it stands.

    Attributes:
        experiment: "baseline", "metrics", "enhanced", "large", "keypoints", "vgg", "less_data",
            "voc".
        source: table, figure or section of the paper.
        detector: "mask_rcnn_fpn" and so on.
        backbone: "R50", "R101", "X152-8x32d", "VGG16".
        norm: "GN" or "none".
        init: "scratch" or "pretrained".
        schedule: "2x" to "11x", "best", or empty.
        iterations: None where the paper gives none.
        train_set: name of the training set.
        eval_set: name of the data set evaluated on.
        metric: Detectron2's key, "bbox/AP".
        value: in percent.
        note: what else was done ("train aug").
    """

    experiment: str
    source: str
    detector: str
    backbone: str
    norm: str
    init: str
    schedule: str
    iterations: int | None
    train_set: str
    eval_set: str
    metric: str
    value: float
    note: str


@functools.cache
def all_published(by: str = "paper") -> tuple[PublishedNumber, ...]:
    """Returns every number that the "paper" or Detectron2's model "zoo" published, in order."""
    text = (importlib.resources.files(__package__) / FILES[by]).read_text()
    return tuple(_number(row) for row in csv.DictReader(text.splitlines()))


def _number(row: dict[str, str]) -> PublishedNumber:
    fields: dict[str, str | int | float | None] = dict(row)
    fields["iterations"] = int(row["iterations"]) if row["iterations"] else None
    fields["value"] = float(row["value"])
    return PublishedNumber(**fields)  # type: ignore[arg-type]


def published(
    experiment: str, *, by: str = "paper", **filters: str | int | None
) -> tuple[PublishedNumber, ...]:
    """Returns the numbers of one experiment whose fields equal `filters`; None filters nothing.

    Example: ``published("baseline", backbone="R50", init="scratch", schedule="2x")``.

    Raises:
        UserError: the paper, or the zoo, has no such experiment.
    """
    experiments = sorted({number.experiment for number in all_published(by)})
    if experiment not in experiments:
        raise UserError(
            f"the {by} has no experiment {experiment!r}; choose one of {', '.join(experiments)}"
        )
    wanted = {name: value for name, value in filters.items() if value is not None}
    return tuple(
        number
        for number in all_published(by)
        if number.experiment == experiment
        and all(getattr(number, name) == value for name, value in wanted.items())
    )


@dataclass(frozen=True)
class PaperStudy:
    """Which of the paper's studies a study repeats; None where its name does not tell."""

    experiment: str
    backbone: str | None
    norm: str | None


def paper_study(name: str) -> PaperStudy:
    """Reads from a study's name, like "baseline-r50-gn" or "less_data_10k", what it repeats.

    Raises:
        UserError: the name holds none of the paper's experiments.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    experiments = sorted({number.experiment for number in all_published()})
    experiment = next((e for e in experiments if re.match(rf"{e}(_|\d|$)", plain)), None)
    if experiment is None:
        raise UserError(
            f"study {name!r} is none of the paper's by its name; "
            "a name such as baseline-r50-gn tells which experiment a study repeats "
            f"({', '.join(experiments)})"
        )
    numbers = published(experiment)
    # The zoo also has SyncBN, and a study of it must not be compared with GN's numbers.
    zoo = {number.norm for number in all_published("zoo")}
    norm = _named({number.norm for number in numbers}, plain)
    return PaperStudy(
        experiment,
        _named({number.backbone for number in numbers}, plain),
        next((other for other in zoo if other.lower() in plain.split("_")), norm),
    )


def _named(choices: set[str], plain: str) -> str | None:
    """Returns the choice that the name holds ("x152" is X152-8x32d), or the only one."""
    parts = plain.split("_")
    found = [c for c in choices if c.lower() in parts or c.lower().split("-")[0] in parts]
    found = found or list(choices)
    return found[0] if len(found) == 1 else None
