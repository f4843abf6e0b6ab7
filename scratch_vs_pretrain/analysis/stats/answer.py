"""The answer to one question, does pre-training help?, in a few lines; docs/answer.md explains it.

for answer in answers(load_runs("output/demo")):
    print(answer.text())
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.contrast import (
    MOST_SEEDS,
    Curves,
    Judged,
    Lack,
    Worth,
    judge_contrast,
    shared_leads,
)
from scratch_vs_pretrain.analysis.stats.cost import hours_text, mean_hours, on_processors
from scratch_vs_pretrain.analysis.stats.lines import (
    Line,
    lines_of,
    lost_text,
    ranking,
    setting_text,
    worths,
)
from scratch_vs_pretrain.analysis.stats.results import MASKS, Setting, by_study, looks_at, settings
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SEEDS,
    LEVEL,
    alpha_of,
    bounds,
    spread,
)


@dataclass(frozen=True)
class Need:
    """Runs that would decide a claim."""

    claim: str  # "early", "at" or "end"
    kind: str  # "seeds" (more of them) or "length" (a longer schedule)
    seeds: int | None  # pairs to add; None if more than 100
    iterations: int  # length of the runs
    hours: float | None  # of all of them together; None where the runs do not tell their time
    cpu: bool  # the hours are a processor's

    @property
    def price(self) -> float:
        """The hours; infinite where they are unknown."""
        return math.inf if self.hours is None else self.hours

    def text(self, verb: str = "add") -> str:
        """Says it: "add 2 seeds, 0.4 GPU hours"."""
        more = " more" * (verb != "add")
        cost = "" if self.hours is None else f", {hours_text(self.hours, self.cpu)}"
        if self.kind == "length":
            each = f" for {self.seeds} seeds" if (self.seeds or 0) > 1 else ""
            what = f"{verb} {self.iterations:,}{more} iterations{each}{cost}"
            return f"{what}, thanks to the shared trunk"
        if self.seeds is None:
            return f"not by {MOST_SEEDS} seeds: the lead is too near to the margin, or to 0"
        return f"{verb} {self.seeds}{more} seed{'s' * (self.seeds > 1)}{cost}"


@dataclass(frozen=True)
class Band:
    """A mean over seeds with its pointwise 95 % interval."""

    iterations: np.ndarray  # (k,)
    mean: np.ndarray  # (k,)
    low: np.ndarray  # (k,), NaN below three seeds
    high: np.ndarray  # (k,)
    seeds: int


@dataclass(frozen=True)
class Part:
    """Scratch against one other arm at one size: what was found, and what a picture of it shows."""

    name: str  # what it is among the others of its answer; empty if it is the only one
    setting: Setting  # the runs
    judged: Judged  # the verdicts
    needs: tuple[Need, ...]  # what would decide what is undecided, cheapest first
    curves: dict[str, Band]  # of each arm's longest schedule, by arm, scratch first
    lead: Band | None  # of the longest schedule that both have; None without one

    @property
    def title(self) -> str:
        return f"{self.setting.name}: {self.setting.scratch} and {self.setting.other}"

    @property
    def drops(self) -> tuple[int, ...]:
        """Iterations after which the rate is lower, of scratch's longest schedule."""
        return arm[-1].drops if (arm := self.setting.contrast.scratch) else ()


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
    level = level or found[0].runs[0].level or LEVEL
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
        first.results.study,
        setting_text(first),
        first.metric,
        first.limits.margin,
        parts,
        lines_of(parts, masks, worth, ranks, lost_text(runs, found), assuming, level),
        assuming,
        worth,
    )


def part_of(setting: Setting, alpha: float) -> Part:
    """Judges one setting, in its part of the answer's error."""
    judged, common = judge_contrast(setting.contrast, alpha), setting.contrast.common()
    arms = dict(zip(setting.arms, setting.contrast.arms, strict=True))
    return Part(
        "" if setting.alone else setting.name.partition(", ")[2],
        setting,
        judged,
        tuple(sorted((_need(setting, lack) for lack in judged.lacks), key=lambda n: n.price)),
        {name: _band(arm[-1].iterations, arm[-1].values) for name, arm in arms.items() if arm},
        _band(*shared_leads(*common[-1])) if common else None,
    )


def _band(iterations: np.ndarray, values: np.ndarray) -> Band:
    columns = [spread(column) for column in values.T]
    low, high = np.array([bounds(c, (1 - LEVEL) / 2) for c in columns], float).reshape(-1, 2).T
    return Band(iterations, np.array([float(c.mean) for c in columns]), low, high, len(values))


def _need(setting: Setting, lack: Lack) -> Need:
    contrast = setting.contrast
    both = contrast.scratch[-1:] + contrast.other[-1:]
    length = max((c.length for c in both), default=0) or max(r.iterations for r in setting.runs)
    if lack.longer:
        return _longer(setting, both, length, lack)
    common = contrast.common()
    if lack.claim != "end" and common:
        length = common[0][0].length
    planned = [r for r in setting.runs if r.iterations == length]
    more = None if math.isinf(lack.seeds) else max(1, int(lack.seeds) - lack.have)
    cost = mean_hours(planned or setting.runs)
    hours = None if cost is None or more is None else 2 * more * cost
    return Need(lack.claim, "seeds", more, length, hours, on_processors(setting.runs))


def _longer(setting: Setting, both: Sequence[Curves], length: int, lack: Lack) -> Need:
    """Twice the longest training: from the first rate drop on, before which they are one run."""
    seeds = max(LEAST_SEEDS, lack.have)
    total: float | None = 0.0
    for curves in both:
        runs = [run for run in setting.runs if run.schedule == curves.schedule]
        hours = mean_hours(runs)
        shared = min(curves.drops[:1] or (0,)) * min(len(curves.seeds), seeds)
        share = (2 * length * seeds - shared) / curves.length
        total = None if total is None or hours is None else total + share * hours
    return Need(lack.claim, "length", seeds, 2 * length, total, on_processors(setting.runs))


def answers_text(
    roots: Path | Iterable[Path], form: str = "text", metric: str | None = None
) -> str:
    """Returns the answers of the studies below `roots`, for a terminal or as JSON."""
    found = answers(load_runs(roots), metric=metric)
    if form == "json":
        return json.dumps([one.to_json() for one in found], indent=1, allow_nan=False)
    return "\n\n".join(one.text() for one in found)
