"""The paper's tables from run folders; see :mod:`.results` for what their numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import (
    Results,
    final_results,
    gaps,
    means,
    notes,
    pairs,
)
from scratch_vs_pretrain.analysis.stats.paired import NOISE_ON_COCO
from scratch_vs_pretrain.analysis.tables.table import Cell, Estimate, Table

TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
MAIN = ("AP", "AP50", "AP75")
ALL = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FULL_COCO = (("coco_2017_train",), ("coco_2017_val",))

# A folder may hold part of COCO under the whole one's name; training drops unlabelled images.
FULL_COCO_IMAGES = 117_266


def schedules_table(runs: Sequence[RunRecord], *, best: bool = False) -> Table:
    """Table 1: every arm at every schedule, and the difference where both have that schedule.

    Raises:
        UserError: see :func:`final_results`.
    """
    results = final_results(runs, best=best)
    metrics = metrics_of(results, MAIN)
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
        (*header, *(metric_label(metric) for metric in metrics)),
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


def metrics_table(runs: Sequence[RunRecord], *, best: bool = False) -> Table:
    """Table 2: every metric at each arm's longest schedule, and the difference.

    Raises:
        UserError: see :func:`final_results`.
    """
    results = final_results(runs, best=best)
    metrics = metrics_of(results, ALL)
    scratch = (results.scratch, results.longest(results.scratch).schedule)
    header = ["metric", f"{results.scratch} {scratch[1]}"]
    finals = results.of(*scratch)
    columns: list[list[Cell]] = [
        ["seeds", *(metric_label(metric) for metric in metrics)],
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


def within_noise(gap: Estimate, run: RunRecord) -> str:
    """Returns "yes", "no" or "unknown": inside its interval, else under 0.3 AP on full COCO."""
    if gap.half_width is not None:
        return "yes" if abs(gap.value) <= gap.half_width else "no"
    names = (run.train_set.get("names"), run.test_set.get("names"))
    if names == FULL_COCO and (run.train_images or 0) >= FULL_COCO_IMAGES:
        return "yes" if abs(gap.value) < NOISE_ON_COCO else "no"
    return "unknown"


def metrics_of(results: Results, names: Iterable[str]) -> list[str]:
    """Returns the metrics that any final evaluation has, box before mask before keypoint."""
    known = {metric for final in results.finals.values() for metric in final.scores}
    wanted = [f"{task}/{name}" for task in TASKS for name in names]
    return [metric for metric in wanted if metric in known or (not known and metric[0] != "k")]


def metric_label(metric: str) -> str:
    """Returns a metric's name in tables: "bbox/AP75" is "box AP75"."""
    task, name = metric.split("/")
    return f"{TASKS[task]} {name}"
