"""``svp errors``: what each type of error costs each arm; the types are those of :mod:`.tide`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis.runs.evaluations import Evaluation
from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.comparison import (
    Results,
    by_study,
    final_results,
    gaps,
    means,
    notes,
    pairs,
)
from scratch_vs_pretrain.analysis.tables.table import Cell, Estimate, Table, render
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.error_types import ERROR_TYPES, error_costs
from scratch_vs_pretrain.run_folder import RunFolder, read_json

COSTS = tuple(f"bbox/dAP-{kind}" for kind in ERROR_TYPES)
EXCESS = "bbox/dAP-excess"
ROWS = ("bbox/AP50", *COSTS, EXCESS)
LABELS = ("box AP50", *ERROR_TYPES, "classification less localization")

# Of a detection and of an annotation, all that errors are told by.
FIELDS = ("image_id", "category_id", "bbox")


def errors_text(roots: Iterable[Path], form: str, annotations: Path | None = None) -> str:
    """Returns one table per study of the runs below `roots`, as `formats.render` does.

    Args:
        roots: hold run folders.
        form: one of ``formats.FORMATS``.
        annotations: the evaluation data's annotation file, for runs whose evaluations have no
            error costs: theirs are told from ``predictions/<data set>_bbox.json`` in the run
            folder, which ``svp predict`` writes.

    Raises:
        UserError: see :func:`errors_table`; or no runs there.
    """
    truth = None if annotations is None else _truth(annotations)
    studies = by_study(load_runs(roots)).values()
    return "\n".join(render(errors_table(runs, truth), form) for runs in studies)


def errors_table(runs: Sequence[RunRecord], truth: Mapping[str, Any] | None = None) -> Table:
    """Returns what each type of error costs each arm of a study at its longest schedule.

    Args:
        runs: of one study.
        truth: COCO ground truth for runs whose evaluations have no error costs.

    Raises:
        UserError: see :func:`.results.final_results`; or a final evaluation without error costs
            and no detections to tell them from.
    """
    results = final_results(runs)
    finals = {
        index: _with_costs(results.runs[index], final, truth)
        for index, final in results.finals.items()
    }
    results = dataclasses.replace(results, finals=finals)
    scratch = (results.scratch, results.longest(results.scratch).schedule)
    found = results.of(*scratch)
    header = ["cost of errors", f"{scratch[0]} {scratch[1]}"]
    columns: list[list[Cell]] = [["seeds", *LABELS], [len(found), *means(found, ROWS)]]
    said: list[str] = []
    for arm in results.others:
        other = (arm, results.longest(arm).schedule)
        theirs, paired = results.of(*other), pairs(results, scratch, other)
        header += [f"{arm} {other[1]}", f"{results.scratch} - {arm}"]
        columns.append([len(theirs), *means(theirs, ROWS)])
        columns.append([len(paired), *gaps(paired, ROWS)])
        said += _sentence(results, arm, paired)
    return Table(
        f"{results.study}: AP50 that each type of error costs at the longest schedule of each arm",
        tuple(header),
        tuple(zip(*columns, strict=True)),
        (
            *said,
            "Costs: by how much box AP50 rises when all errors of a type are mended (TIDE's dAP, "
            "arXiv 2008.08115). They do not add up.",
            *notes(results),
        ),
    )


def _sentence(
    results: Results, arm: str, paired: list[tuple[Evaluation, Evaluation]]
) -> Iterator[str]:
    costs = gaps(paired, [COSTS[0], COSTS[1], EXCESS])
    if any(math.isnan(cost.value) for cost in costs):
        return
    classification, localization, excess = costs
    if excess.half_width is None:
        verdict = "too few seeds to tell which of them pre-training helps more"
    elif abs(excess.value) <= excess.half_width:
        verdict = "which of them pre-training helps more is within noise"
    elif excess.value > 0:
        verdict = "pre-training helps classification more than localization"
    else:
        verdict = "pre-training helps localization more than classification"
    yield (
        f"Beyond {arm}, {results.scratch} loses {_shown(classification)} AP50 to classification "
        f"and {_shown(localization)} to localization: {verdict}."
    )


def _shown(cost: Estimate) -> str:
    reach = "" if cost.half_width is None else f" ± {cost.half_width:.1f}"
    return f"{cost.value:+.1f}{reach}"


def _with_costs(run: RunRecord, final: Evaluation, truth: Mapping[str, Any] | None) -> Evaluation:
    scores = dict(final.scores)
    if not any(cost in scores for cost in COSTS):
        scores |= _told_from_detections(run, final, truth)
    scores[EXCESS] = scores.get(COSTS[0], math.nan) - scores.get(COSTS[1], math.nan)
    return dataclasses.replace(final, scores=scores)


def _told_from_detections(
    run: RunRecord, final: Evaluation, truth: Mapping[str, Any] | None
) -> dict[str, float]:
    file = RunFolder(run.folder).predictions / f"{final.dataset}_bbox.json"
    if truth is None:
        raise UserError(
            f"{final.file}: has no error costs; make the run's detections with `svp predict "
            f"{run.folder} --dataset {final.dataset}` and give the annotation file with "
            "--annotations"
        )
    results = _checked(read_json(file), file, (*FIELDS, "score"))
    known = {image["id"] for image in truth["images"]}
    other = next((one["image_id"] for one in results if one["image_id"] not in known), None)
    if other is not None:
        raise UserError(
            f"{file}: has detections in image {other!r}, which the annotation file does not have; "
            f"give the file of {final.dataset}"
        )
    costs = error_costs(truth, results)
    return {
        name: math.nan if cost is None else cost
        for name, cost in zip(COSTS, costs.values(), strict=True)
    }


def _truth(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{file}: not a COCO annotation file (it has no list of images)")
    images = content["images"]
    if not all(isinstance(one, dict) and isinstance(one.get("id"), int) for one in images):
        raise UserError(f"{file}: an image has no id; is it a COCO annotation file?")
    return {
        "images": images,
        "annotations": _checked(content.get("annotations"), file, FIELDS),
    }


def _checked(items: Any, file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a list of COCO boxes, known to be such."""
    if not isinstance(items, list):
        raise UserError(f"{file}: no list of boxes; is it a COCO file?")
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not all(_is_fit(key, item.get(key)) for key in keys):
            raise UserError(
                f"{file}: entry {number} has not all of {', '.join(keys)} as COCO has them"
            )
    return items


def _is_fit(key: str, value: Any) -> bool:
    if key == "bbox":
        return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
    return _is_number(value) if key == "score" else type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
