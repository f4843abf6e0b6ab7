"""``svp errors``: what each type of error costs each arm (``evaluation/error_types.py``)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from scratch_vs_pretrain.analysis.runs.evaluations import Evaluation
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import (
    Results,
    final_results,
    gaps,
    notes,
    pairs,
)
from scratch_vs_pretrain.analysis.tables.pairs import side_by_side
from scratch_vs_pretrain.analysis.tables.table import Table, shown

ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
COSTS = tuple(f"bbox/dAP-{kind}" for kind in ERROR_TYPES)
EXCESS = "bbox/dAP-excess"
ROWS = {
    "box AP50": "bbox/AP50",
    **dict(zip(ERROR_TYPES, COSTS, strict=True)),
    "classification less localization": EXCESS,
}
FALLBACK = {"box AP50": "bbox/AP50", "box AP75": "bbox/AP75"}

MEANING = (
    "Costs: by how much box AP50 rises when all errors of a type are mended (TIDE's dAP, "
    "arXiv 2008.08115). They do not add up."
)
UNTOLD = (
    "These evaluations were written before they had the costs of errors. A gap that is larger at "
    "AP75 than at AP50 says that boxes lie less well."
)


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
    told = any(cost in final.scores for final in results.finals.values() for cost in COSTS)
    header, rows = side_by_side(results, "cost of errors", ROWS if told else FALLBACK)
    said = [line for arm in results.others for line in _sentence(results, arm)]
    return Table(
        f"{results.study}: AP50 that each type of error costs at the longest schedule of each arm",
        header,
        rows,
        (*said, MEANING if told else UNTOLD, *notes(results)),
    )


def _with_excess(final: Evaluation) -> Evaluation:
    classification, localization = (final.scores.get(cost, math.nan) for cost in COSTS[:2])
    return dataclasses.replace(
        final, scores={**final.scores, EXCESS: classification - localization}
    )


def _sentence(results: Results, arm: str) -> Iterator[str]:
    ends = [(one, results.longest(one).schedule) for one in (results.scratch, arm)]
    costs = gaps(pairs(results, *ends), [COSTS[0], COSTS[1], EXCESS])
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
        f"Beyond {arm}, {results.scratch} loses {shown(classification)} AP50 to classification "
        f"and {shown(localization)} to localization: {verdict}."
    )
