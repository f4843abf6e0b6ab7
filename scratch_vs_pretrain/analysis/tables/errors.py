"""``svp errors``: what each type of error costs each arm (``evaluation/error_types.py``)."""

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

ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
COSTS = tuple(f"bbox/dAP-{kind}" for kind in ERROR_TYPES)
EXCESS = "bbox/dAP-excess"
ROWS = ("bbox/AP50", *COSTS, EXCESS)
LABELS = ("box AP50", *ERROR_TYPES, "classification less localization")
FALLBACK = ("bbox/AP50", "bbox/AP75")

MEANING = (
    "Costs: by how much box AP50 rises when all errors of a type are mended (TIDE's dAP, "
    "arXiv 2008.08115). They do not add up."
)
UNTOLD = (
    "These evaluations were written before they had the costs of errors. A gap that is larger at "
    "AP75 than at AP50 says that boxes lie less well."
)


def errors_text(roots: Iterable[Path], form: str) -> str:
    """Returns one table per study of the runs below `roots`, as `table.render` does.

    Raises:
        UserError: see :func:`errors_table`; or no runs there.
    """
    studies = by_study(load_runs(roots)).values()
    return "\n".join(render(errors_table(runs), form) for runs in studies)


def errors_table(runs: Sequence[RunRecord]) -> Table:
    """Returns what each type of error costs each arm of a study at its longest schedule.

    Evaluations without error costs are compared by what they have, AP at two thresholds.

    Raises:
        UserError: see :func:`.comparison.final_results`.
    """
    results = final_results(runs)
    results = dataclasses.replace(
        results, finals={index: _with_excess(final) for index, final in results.finals.items()}
    )
    told = has_costs(results)
    metrics, labels = (ROWS, LABELS) if told else (FALLBACK, ("box AP50", "box AP75"))
    scratch = (results.scratch, results.longest(results.scratch).schedule)
    found = results.of(*scratch)
    header = ["cost of errors", f"{scratch[0]} {scratch[1]}"]
    columns: list[list[Cell]] = [["seeds", *labels], [len(found), *means(found, metrics)]]
    said: list[str] = []
    for arm in results.others:
        other = (arm, results.longest(arm).schedule)
        theirs, paired = results.of(*other), pairs(results, scratch, other)
        header += [f"{arm} {other[1]}", f"{results.scratch} - {arm}"]
        columns.append([len(theirs), *means(theirs, metrics)])
        columns.append([len(paired), *gaps(paired, metrics)])
        said += _sentence(results, arm, paired)
    return Table(
        f"{results.study}: AP50 that each type of error costs at the longest schedule of each arm",
        tuple(header),
        tuple(zip(*columns, strict=True)),
        (*said, MEANING if told else UNTOLD, *notes(results)),
    )


def has_costs(results: Results) -> bool:
    """Tells whether any final evaluation says what errors cost."""
    return any(cost in final.scores for final in results.finals.values() for cost in COSTS)


def _with_excess(final: Evaluation) -> Evaluation:
    classification, localization = (final.scores.get(cost, math.nan) for cost in COSTS[:2])
    return dataclasses.replace(
        final, scores={**final.scores, EXCESS: classification - localization}
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
