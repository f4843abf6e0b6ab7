"""The paper's tables from run folders; see :mod:`.results` for what their numbers are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from scratch_vs_pretrain.analysis.formats import Cell, Estimate, Table
from scratch_vs_pretrain.analysis.paper_numbers import PublishedNumber, published
from scratch_vs_pretrain.analysis.results import (
    Results,
    final_results,
    gaps,
    means,
    notes,
    pairs,
)
from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.analysis.statistics import NOISE_ON_COCO
from scratch_vs_pretrain.errors import UserError

TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
MAIN = ("AP", "AP50", "AP75")
ALL = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FULL_COCO = (("coco_2017_train",), ("coco_2017_val",))

ZOO_NOTE = (
    "The zoo's own arms differ in pixel std, STRIDE_IN_1X1, FREEZE_AT, batch size and rate, "
    "and its recipe is not the paper's."
)

# A folder may hold part of COCO under the whole one's name; training drops unlabelled images.
FULL_COCO_IMAGES = 117_266
PAPER_EVAL_IMAGES = {"coco_2017_val": 5000, "keypoints_coco_2017_val": 5000}


def schedules_table(runs: Sequence[RunRecord]) -> Table:
    """Table 1: every arm at every schedule, and the difference where both have that schedule.

    Raises:
        UserError: see :func:`final_results`.
    """
    results = final_results(runs)
    metrics = _metrics(results, MAIN)
    schedules: dict[str, RunRecord] = {}
    for run in sorted(runs, key=lambda run: (run.iterations, run.schedule)):
        schedules.setdefault(run.schedule, run)
    rows: list[tuple[Cell, ...]] = []
    for schedule in schedules:
        for arm in (results.scratch, *results.others):
            final = results.of(arm, schedule)
            if final:
                run = next(r for r in runs if (r.arm, r.schedule) == (arm, schedule))
                length = (run.iterations, run.images, run.epochs)
                rows.append((arm, schedule, *length, len(final), *means(final, metrics)))
        for other in results.others:
            paired = pairs(results, (results.scratch, schedule), (other, schedule))
            if paired:
                name = f"{results.scratch} - {other}"
                rows.append((name, schedule, None, None, None, len(paired), *gaps(paired, metrics)))
    header = ("arm", "schedule", "iterations", "images", "epochs", "seeds")
    return Table(
        f"{results.study}: AP by arm and schedule",
        (*header, *(_label(metric) for metric in metrics)),
        tuple(rows),
        (*notes(results), *_notes_on_unlike_schedules(results)),
    )


def _notes_on_unlike_schedules(results: Results) -> Iterator[str]:
    planned = {(run.arm, run.schedule) for run in results.runs}
    for other in results.others:
        if not any((results.scratch, name) in planned for arm, name in planned if arm == other):
            yield (
                f"{results.scratch} and {other} have no schedule in common; "
                "the metrics table compares their longest ones."
            )


def metrics_table(runs: Sequence[RunRecord]) -> Table:
    """Table 2: every metric at each arm's longest schedule, and the difference.

    Raises:
        UserError: see :func:`final_results`.
    """
    results = final_results(runs)
    metrics = _metrics(results, ALL)
    scratch = (results.scratch, results.longest(results.scratch).schedule)
    header = ["metric", f"{results.scratch} {scratch[1]}"]
    finals = results.of(*scratch)
    columns: list[list[Cell]] = [
        ["seeds", *(_label(metric) for metric in metrics)],
        [len(finals), *means(finals, metrics)],
    ]
    for arm in results.others:
        other = (arm, results.longest(arm).schedule)
        finals, paired = results.of(*other), pairs(results, scratch, other)
        header += [f"{arm} {other[1]}", f"{results.scratch} - {arm}"]
        columns.append([len(finals), *means(finals, metrics)])
        columns.append([len(paired), *gaps(paired, metrics)])
    return Table(
        f"{results.study}: AP, its parts, and the difference at the longest schedule of each arm",
        tuple(header),
        tuple(zip(*columns, strict=True)),
        notes(results),
    )


def paper_table(
    runs: Sequence[RunRecord],
    experiment: str,
    *,
    backbone: str | None = None,
    norm: str | None = None,
    train_set: str | None = None,
    by: str = "paper",
) -> Table:
    """Our final numbers beside those that the paper, or Detectron2's model zoo, published.

    Published "pretrained" numbers are compared with the arm of that name, else with the first
    pretrained arm; those of the schedule "best", or of none, with the arm's longest schedule.
    Within noise is a difference inside our interval; below three seeds, one under 0.3 AP on full
    COCO, and an open question elsewhere.

    Raises:
        UserError: see :func:`final_results`; or the experiment is unknown, or its numbers are of
            another evaluation set.
    """
    results = final_results(runs)
    numbers = published(experiment, by=by, backbone=backbone, norm=norm, train_set=train_set)
    ours = _comparable_set(results, {number.eval_set for number in numbers}, experiment)
    rows = tuple(
        row for number in numbers if number.eval_set == ours for row in _beside(results, number)
    )
    return Table(
        f"{results.study}: ours and the {by}'s",
        ("arm", "schedule", "metric", "ours", by, f"ours - {by}", "within noise", "source"),
        rows,
        (*notes(results), *((ZOO_NOTE,) if by == "zoo" else ())),
    )


def _comparable_set(results: Results, theirs: set[str], experiment: str) -> str | None:
    """Returns the name of our evaluation set, None while nothing is finished."""
    for index, evaluation in results.finals.items():
        ours, images = evaluation.dataset, results.runs[index].test_set.get("images")
        there = f"study {results.study} is evaluated on {ours}"
        if ours not in theirs:
            raise UserError(
                f"{there}, the paper's {experiment} numbers on "
                f"{', '.join(sorted(theirs)) or 'nothing that fits'}; they cannot be compared"
            )
        if images != PAPER_EVAL_IMAGES.get(ours, images):
            raise UserError(
                f"{there} of {images} images, the paper's numbers on the {PAPER_EVAL_IMAGES[ours]} "
                "of the whole; they cannot be compared"
            )
        return ours
    return None


def _beside(results: Results, number: PublishedNumber) -> list[tuple[Cell, ...]]:
    pretrained = "pretrained" if "pretrained" in results.others else results.others[0]
    arm = results.scratch if number.init == "scratch" else pretrained
    run = results.longest(arm)
    if number.schedule not in ("", "best"):
        run = next((r for r in results.runs if (r.arm, r.schedule) == (arm, number.schedule)), run)
        if run.schedule != number.schedule:
            return []
    (mean,) = means(results.of(arm, run.schedule), [number.metric])
    if math.isnan(mean.value):
        return []
    gap = Estimate(mean.value - number.value, mean.half_width, signed=True)
    source = f"{number.source}, {number.note}" if number.note else number.source
    noise = _within_noise(gap, run)
    return [
        (arm, run.schedule, _label(number.metric), mean, number.value, gap, noise, source),
    ]


def _within_noise(gap: Estimate, run: RunRecord) -> str:
    if gap.half_width is not None:
        return "yes" if abs(gap.value) <= gap.half_width else "no"
    names = (run.train_set.get("names"), run.test_set.get("names"))
    if names == FULL_COCO and (run.train_images or 0) >= FULL_COCO_IMAGES:
        return "yes" if abs(gap.value) < NOISE_ON_COCO else "no"
    return "unknown"


def _metrics(results: Results, names: Iterable[str]) -> list[str]:
    """Returns the metrics that any final evaluation has, box before mask before keypoint."""
    known = {metric for final in results.finals.values() for metric in final.scores}
    wanted = [f"{task}/{name}" for task in TASKS for name in names]
    return [metric for metric in wanted if metric in known or (not known and metric[0] != "k")]


def _label(metric: str) -> str:
    task, name = metric.split("/")
    return f"{TASKS[task]} {name}"
