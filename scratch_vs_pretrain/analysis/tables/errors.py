"""``svp errors``: what each type of error costs each arm (``evaluation/error_types.py``)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from scratch_vs_pretrain.analysis.runs.records import Records
from scratch_vs_pretrain.analysis.stats.comparison import Results, final_results, notes
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


def errors_table(runs: Records) -> Table:
    """Returns what each type of error costs each arm of a study at its longest schedule.

    Evaluations without error costs are compared by what they have, AP at two thresholds.
    """
    results = final_results(runs)
    finals = {}
    for index, final in results.finals.items():
        cost, other = (final.scores.get(name, math.nan) for name in COSTS[:2])
        scores = {**final.scores, EXCESS: cost - other}
        finals[index] = dataclasses.replace(final, scores=scores)
    results = dataclasses.replace(results, finals=finals)
    told = any(cost in final.scores for final in finals.values() for cost in COSTS)
    said = [line for arm in results.others for line in _sentence(results, arm)]
    return Table(
        f"{results.study}: AP50 that each type of error costs at the longest schedule of each arm",
        *side_by_side(results, "cost of errors", ROWS if told else FALLBACK),
        (*said, MEANING if told else UNTOLD, *notes(results)),
    )


def _sentence(results: Results, arm: str) -> Iterator[str]:
    costs = (results.of(results.scratch) - results.of(arm)).means([*COSTS[:2], EXCESS])
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
