"""``svp errors``: what each type of error costs each arm; the types are those of :mod:`.tide`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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
from scratch_vs_pretrain.evaluation.error_types import ERROR_TYPES

COSTS = tuple(f"bbox/dAP-{kind}" for kind in ERROR_TYPES)
EXCESS = "bbox/dAP-excess"
ROWS = ("bbox/AP50", *COSTS, EXCESS)
LABELS = ("box AP50", *ERROR_TYPES, "classification less localization")


def errors_text(roots: Iterable[Path], form: str) -> str:
    """Returns one table per study of the runs below `roots`, as `formats.render` does.

    Args:
        roots: hold run folders.
        form: one of ``formats.FORMATS``.

    Raises:
        UserError: see :func:`errors_table`; or no runs there.
    """
    studies = by_study(load_runs(roots)).values()
    return "\n".join(render(errors_table(runs), form) for runs in studies)


def errors_table(runs: Sequence[RunRecord]) -> Table:
    """Returns what each type of error costs each arm of a study at its longest schedule.

    Args:
        runs: of one study.

    Raises:
        UserError: see :func:`.results.final_results`; or a final evaluation without error costs.
    """
    results = final_results(runs)
    finals = {index: _with_excess(final) for index, final in results.finals.items()}
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


def _with_excess(final: Evaluation) -> Evaluation:
    if not any(cost in final.scores for cost in COSTS):
        raise UserError(
            f"{final.file}: has no error costs, because an older version wrote it; train the run "
            "again, or leave it out"
        )
    excess = final.scores.get(COSTS[0], math.nan) - final.scores.get(COSTS[1], math.nan)
    return dataclasses.replace(final, scores={**final.scores, EXCESS: excess})
