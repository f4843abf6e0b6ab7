"""The answer to one question, does pre-training help?, in a few lines; docs/answer.md explains it.

for answer in answers(load_runs("output/demo")):
    print(answer.text())
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.comparison import by_study
from scratch_vs_pretrain.analysis.stats.crossing import Worth
from scratch_vs_pretrain.analysis.stats.lines import (
    Line,
    lines_of,
    lost_text,
    ranking,
    setting_text,
    worths,
)
from scratch_vs_pretrain.analysis.stats.part import Part, part_of
from scratch_vs_pretrain.analysis.stats.setting import MASKS, looks_at, settings
from scratch_vs_pretrain.analysis.stats.verdicts import UNDECIDED, alpha_of


@dataclass(frozen=True)
class Answer:
    """The answer that one study gives."""

    study: str
    setting: str  # what was trained on what: one phrase
    metric: str  # that decides
    margin: float  # in AP
    parts: tuple[Part, ...]  # scratch against each other arm, at each size, largest first
    lines: tuple[Line, ...]  # the answer
    assuming: str  # what it rests on beside the runs; empty if on nothing
    worth: tuple[Worth, ...]  # in images, by size, of the first other arm

    @property
    def decided(self) -> bool:
        """No line is undecided."""
        verdicts = [v for part in self.parts for v in part.judged.asked]
        return all(v.verdict != UNDECIDED or v.reason == "unasked" for v in verdicts)

    def text(self) -> str:
        """Returns the answer for a terminal."""
        head = f"Does pre-training help?   {self.setting}"
        width = max(10, *(len(line.title) for line in self.lines)) + 2
        lines = [f"{line.title:<{width}}{line.text}" for line in self.lines]
        return "\n".join([head, *lines])

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as JSON: lines, verdicts, what is needed, and the picture's data."""
        names = ("study", "setting", "metric", "margin", "assuming", "lines", "worth")
        parts = [
            {
                "name": part.name,
                "arms": [part.setting.scratch, part.setting.other],
                "size": part.setting.size,
                "verdicts": part.judged.verdicts,
                "catch_up": part.judged.catch_up,
                "needs": part.needs,
                "picture": {
                    "title": part.title,
                    "metric": part.setting.metric,
                    "margin": self.margin,
                    "curves": part.curves,
                    "lead": part.lead,
                    "catch_up": part.judged.catch_up,
                    "drops": part.drops,
                },
            }
            for part in self.parts
        ]
        found: dict[str, Any] = plain({name: getattr(self, name) for name in names})
        return {**found, "parts": plain(parts)}


def plain(value: Any) -> Any:
    """Returns dataclasses and arrays as JSON; what is not finite becomes null."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def answers(runs: Iterable[RunRecord], **options: Any) -> tuple[Answer, ...]:
    """Answers the question of each study; options and errors of :func:`answer`."""
    return tuple(answer(members, **options) for members in by_study(runs).values())


def answer(
    runs: Sequence[RunRecord],
    *,
    metric: str | None = None,
    level: float | None = None,
    look: int = 1,
    looks: int | None = None,
) -> Answer:
    """Answers the question of one study.

    Args:
        runs: of the study.
        metric: that decides; None: the study's own.
        level: of all verdicts together, over all looks; None: the study's own.
        look: which of so many `looks` at its growing evidence this is; None: as many as
            ``svp run --until answered`` may have taken.

    Raises:
        UserError: see :func:`.settings`.
    """
    found = settings(runs, metric)
    # Arms beside scratch are ranked among themselves too, which is a family of its own.
    families = len(found) + (len({s.other for s in found}) > 1)
    level = level or found[0].level
    alpha = alpha_of(level, look, looks or looks_at(runs)) / families
    parts = tuple(part_of(setting, alpha) for setting in found)
    first = found[0]
    # What mask AP would say is no part of the answer, only what it lacks.
    masks = [
        need
        for setting in found
        if setting.metric != MASKS
        and all(MASKS in setting.results.scored(arm) for arm in setting.arms)
        for need in part_of(replace(setting, metric=MASKS), alpha).needs
    ]
    worth = worths(found)
    ranks = ranking(found, alpha)
    resting = [part for part in parts if any(v.assuming for v in part.judged.verdicts)]
    assumed = dict.fromkeys(text for part in resting for text in part.setting.assumed())
    assuming = " and ".join(assumed)
    return Answer(
        first.study,
        setting_text(first),
        first.metric,
        first.limits.margin,
        parts,
        lines_of(parts, masks, worth, ranks, lost_text(runs, found), assuming, level),
        assuming,
        worth,
    )


def answers_text(
    roots: Path | Iterable[Path], form: str = "text", metric: str | None = None
) -> str:
    """Returns the answers of the studies below `roots`, for a terminal or as JSON."""
    found = answers(load_runs(roots), metric=metric)
    if form == "json":
        return json.dumps([one.to_json() for one in found], indent=1, allow_nan=False)
    return "\n\n".join(one.text() for one in found)
