"""The answer to one question, does pre-training help?, in a few lines; docs/answer.md explains it.

for answer in answers(load_runs("output/demo")):
    print(answer.text())
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.comparable import looks_at, weights_of_seeds
from scratch_vs_pretrain.analysis.stats.contrast import (
    Judged,
    catch_up_text,
    growth,
    half_as_long,
    judge_contrast,
    open_end,
    paired,
    shared_leads,
)
from scratch_vs_pretrain.analysis.stats.cost import (
    hours_text,
    mean_hours,
    on_processors,
    pretraining_text,
)
from scratch_vs_pretrain.analysis.stats.needs import Need, need_of
from scratch_vs_pretrain.analysis.stats.results import (
    MASKS,
    Setting,
    by_study,
    metric_name,
    score_name,
    settings,
)
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SEEDS,
    LEVEL,
    NO,
    UNDECIDED,
    Band,
    Verdict,
    alpha_of,
    band_of,
    bounds,
    holm_errors,
    interval_text,
    signed,
    spread,
    two_sided,
)
from scratch_vs_pretrain.analysis.stats.worth import Worth, one_worth, worth_of
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import counted, printable


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
class Line:
    """One line of an answer."""

    key: str  # "early", "at", "end", "worth", "cost", "next", "ranks", "size", "setting", "numbers"
    title: str  # what stands before it: "at 1200it"
    text: str  # the line
    verdict: str = ""  # "yes", "no" or "undecided"; empty where it is none


@dataclass(frozen=True)
class Answer:
    """The answer that one study gives."""

    study: str
    setting: str  # what was trained on what: one phrase
    metric: str  # that decides
    margin: float  # in AP
    assuming: str  # what it rests on beside the runs; empty if on nothing
    lines: tuple[Line, ...]  # the answer
    worth: dict[str, tuple[Worth, ...]]  # of each other arm, in images, by size
    parts: tuple[Part, ...]  # scratch against each other arm, at each size, largest first

    def text(self) -> str:
        """Returns the answer for a terminal."""
        head = f"Does pre-training help?   {self.setting}"
        width = max(10, *(len(line.title) for line in self.lines)) + 2
        lines = [f"{line.title:<{width}}{line.text}" for line in self.lines]
        return "\n".join(map(printable, [head, *lines]))

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as JSON: lines, verdicts, what is needed, and the picture's data."""
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
        found: dict[str, Any] = plain({**vars(self), "parts": parts})
        return found


def plain(value: Any) -> Any:
    """Returns dataclasses and arrays as JSON; what is not finite becomes null."""

    def as_json(one: Any) -> Any:
        return one.tolist() if isinstance(one, (np.ndarray, np.generic)) else vars(one)

    return json.loads(json.dumps(value, default=as_json), parse_constant=lambda constant: None)


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
        UserError: a level outside (0, 1); see also :func:`.settings` and :func:`.looks_at`.
    """
    found = settings(runs, metric)
    # Arms beside scratch are ranked among themselves too, which is a family of its own.
    families = len(found) + (len({s.other for s in found}) > 1)
    level = found[0].runs[0].level or LEVEL if level is None else level
    if not 0 < level < 1:
        raise UserError(f"level {level:g} must lie between 0 and 1")
    alpha = alpha_of(level, look, looks or looks_at(runs)) / families
    parts = tuple(part_of(setting, alpha) for setting in found)
    sizes = {x.other: [s for s in found[::-1] if s.other == x.other and s.size] for x in found}
    worth = {arm: worth_of(sized) for arm, sized in sizes.items() if len(sized) > 1}
    first = found[0]
    # What mask AP would say is no part of the answer, only what it lacks.
    masks = [
        need
        for setting in found
        if setting.metric != MASKS
        and all(MASKS in setting.results.scored(arm) for arm in setting.arms)
        for need in part_of(replace(setting, metric=MASKS), alpha).needs
    ]
    resting = [part for part in parts if any(v.assuming for v in part.judged.verdicts)]
    assumed = dict.fromkeys(text for part in resting for text in part.setting.assumed())
    ranks, lost, assuming = ranking(found, alpha), lost_text(runs, found), " and ".join(assumed)
    lines = lines_of(parts, masks, worth, ranks, lost, assuming, level)
    about = (first.results.study, setting_text(first), first.metric, first.limits.margin)
    return Answer(*about, assuming, lines, worth, parts)


def part_of(setting: Setting, alpha: float) -> Part:
    """Judges one setting, in its part of the answer's error."""
    judged, common = judge_contrast(setting.contrast, alpha), setting.contrast.common()
    arms = dict(zip(setting.arms, setting.contrast.arms, strict=True))
    return Part(
        "" if setting.alone else setting.name.partition(", ")[2],
        setting,
        judged,
        tuple(sorted((need_of(setting, lack) for lack in judged.lacks), key=lambda n: n.hours)),
        {name: band_of(arm[-1].iterations, arm[-1].values) for name, arm in arms.items() if arm},
        band_of(*shared_leads(*common[-1])) if common else None,
    )


def setting_text(setting: Setting) -> str:
    """Returns what is trained on what: "demo: Mask R-CNN ..., 3,000 training images"."""
    what = setting.runs[0].description or f"{setting.scratch} and {setting.other}"
    counts = dict.fromkeys(run.train_images for run in setting.runs if run.train_images is not None)
    trained = " and ".join(f"{count:,}" for count in counts)
    images = f", {trained} training image{'s' * (counts.keys() != {1})}" if counts else ""
    boxes = "" if setting.instances is None else f", {setting.instances:.1f} instances an image"
    margin = f", margin {setting.limits.margin:g} {metric_name(setting.metric)}"
    return f"{setting.results.study}: {what}{images}{boxes}{margin}"


def lines_of(
    parts: Sequence[Part],
    masks: Sequence[Need],
    worth: dict[str, tuple[Worth, ...]],
    ranks: str,
    lost: str,
    assuming: str,
    level: float,
) -> tuple[Line, ...]:
    """Returns the lines of an answer."""
    first = parts[0].setting
    largest = [part for part in parts if part.setting.size == first.size]
    several, smaller = len(largest) > 1, parts[len(largest) :]
    lines: list[Line] = []
    for part in largest:
        both = ": both from random weights" * part.setting.both_random
        pair = f"{part.setting.other}, {first.scratch}{both}"
        lines += [Line("setting", "", pair)] if several else []
        lines += [_claim_line(part, verdict) for verdict in part.judged.asked]
    absent = ", ".join(map(metric_name, first.without))
    stands_in = f"{metric_name(first.metric)}, since no finished run has a number for {absent}"
    cost, other = ("cost, {}", "the other arm") if several else ("cost", first.other)
    title = "worth, {}" if len(worth) > 1 else "worth"
    numbers = (
        f"leads: {other} less {first.scratch}, by seed; in brackets one-sided bounds, so wide that "
        f"all verdicts together are right with probability {level:g}"
    )
    lines += [
        *map(_size_line, smaller),
        *(Line("worth", title.format(arm), _worth_text(worth[arm], arm, parts)) for arm in worth),
        Line("ranks", "ranks", ranks and ranks + _doubt(largest)),
        *(Line("cost", cost.format(p.setting.other), _cost_text(p.setting)) for p in largest),
        Line("next", "next", _next_text(parts, masks)),
        Line("setting", "judged by", stands_in if absent else ""),
        Line("setting", "left out", lost),
        Line("setting", "weights", "; ".join(weights_of_seeds(first.results.runs))),
        Line("setting", "assuming", assuming),
        Line("numbers", "numbers", numbers),
    ]
    return tuple(line for line in lines if line.text)


def _title(part: Part, claim: str) -> str:
    return {"early": "early", "at": f"at {part.judged.shortest}", "end": "at the end"}[claim]


def _claim_line(part: Part, verdict: Verdict) -> Line:
    claim, contrast = verdict.claim, part.setting.contrast
    shown = interval_text(verdict, metric_name(part.setting.metric) if claim == "early" else "")
    need = next((f"; {need.text()}" for need in part.needs if need.claim == claim), "")
    if claim == "early" and shown:
        length = min(curves.length for curves in contrast.shortest() or ())
        shown += f" over the first {part.judged.until:,.0f} of {length:,} iterations"
    at_end = ""
    if all(contrast.arms):
        ours, theirs = (arm[-1].length for arm in contrast.arms)
        at_end = f" at {ours:,} iterations"
        at_end += f" ({part.setting.other}: {theirs:,})" * (ours != theirs)
    assuming = ", assuming" * verdict.assuming
    if verdict.reason == "short":
        text = f"undecided, {_why(part, verdict)}{need}"
    elif verdict.verdict == UNDECIDED:
        text = ": ".join(one for one in ("undecided", shown) if one)
        text += f"; {_why(part, verdict)}{need}"
    elif claim == "end" and verdict.verdict == NO:
        caught = catch_up_text(part.judged.catch_up)
        text = f"no{assuming}: {part.setting.scratch} ends no worse{at_end}, {shown}"
        text += f"; it {caught}" * bool(caught)
    else:
        text = f"{verdict.verdict}{assuming}: {shown}"
        text += at_end * (claim == "end")
        text += f" ({counted(verdict.seeds, 'seed')})" * (claim == "early")
    return Line(claim, _title(part, claim), text, verdict.verdict)


def _why(part: Part, verdict: Verdict) -> str:
    """Says why a claim is undecided."""
    contrast, unit = part.setting.contrast, score_name(part.setting.metric)
    if verdict.reason == "short":
        if not contrast.learned:
            return f"training too short: both arms end under {contrast.limits.least_ap:g} {unit}"
        whose = open_end(contrast, verdict)
        name, arm, gains = part.setting.arms[whose], contrast.arms[whose], growth(contrast)[whose]
        longest, half = arm[-1].schedule, half_as_long(arm)
        if half is None or gains is None or not len(gains):
            return f"training too short: no schedule half as long shows that {longest} is enough"
        gain = f"gains {gains.mean():.1f} {unit} from {half.schedule} to {longest}"
        if gains.mean() < contrast.limits.margin:
            return f"not shown that training is long enough: {name} {gain}"
        return f"training too short: {name} still {gain}"
    seeds = counted(verdict.seeds, "seed")
    return {
        "nothing": "no seed of both arms is finished",
        "unmeasured": f"no seed of both arms has a number for {metric_name(part.setting.metric)}",
        "unasked": "the arms were not evaluated at the same iterations then",
        "seeds": f"{seeds}, a verdict needs {LEAST_SEEDS} or a stated noise",
        "noise": "the interval holds both",
        "low": f"both arms are under {contrast.limits.least_ap:g} {unit} until then",
    }[verdict.reason]


def _size_line(part: Part) -> Line:
    shown = [
        f"{_title(part, v.claim)} {v.verdict}"
        + " (assuming)" * (v.assuming and v.verdict != UNDECIDED)
        + f" {interval_text(v)}".rstrip()
        + " (training too short)" * (v.reason == "short")
        for v in part.judged.asked
    ]
    return Line("size", part.name, "; ".join(shown), part.judged.end.verdict)


def _cost_text(setting: Setting) -> str:
    """Says what each arm's shortest schedule costs that ends where the lower arm does."""
    contrast = setting.contrast
    if not all(contrast.ends()):
        return ""
    target = min(_mean(finals) for finals in contrast.ends())
    cpu, shown = on_processors(setting.runs), []
    for name, arm in zip(setting.arms, contrast.arms, strict=True):
        reaching = next(c for c in arm if _mean(c.finals()) >= target)
        runs = [run for run in setting.of(name) if run.schedule == reaching.schedule]
        hours = mean_hours(runs)
        if math.isinf(hours):
            return ""
        before = pretraining_text(runs[0].init) if runs[0].init.weights else ""
        shown.append(f"{name} {hours_text(hours, cpu)} ({reaching.schedule}){before}")
    return f"one run to {target:.1f} {score_name(setting.metric)}: {', '.join(shown)}"


def _mean(finals: dict[int, float]) -> float:
    return float(np.mean([*finals.values()])) if finals else -math.inf


def _next_text(parts: Sequence[Part], masks: Sequence[Need]) -> str:
    """Says what is undecided, the cheapest runs that would decide it, and what mask AP needs."""
    verdicts = [verdict.verdict for part in parts for verdict in part.judged.asked]
    needs = [(need, part) for part in parts for need in part.needs]
    said, asked = "nothing undecided", ""
    if count := verdicts.count(UNDECIDED):
        said = f"{count} undecided, which more runs of the same kind cannot decide"
    if count and needs:
        need, part = min(needs, key=lambda one: one[0].hours)
        where, asked = f", {part.name}" if part.name else "", need.text()
        said = f"{count} undecided; cheapest is {_title(part, need.claim)}{where}: {asked}"
    if masks:
        need = min(masks, key=lambda one: one.hours)
        same = need.text() == asked
        said += f"; mask AP {'needs the same' if same else need.text('needs about')}"
    return said


def lost_text(runs: Sequence[RunRecord], found: Sequence[Setting]) -> str:
    """Says which runs ended without a result, and at which sizes an arm is missing."""
    lost: Counter[tuple[str, ...]] = Counter()
    for run in runs:
        size = "" if run.size is None else f", {run.size:,} images"
        if run.size not in {setting.size for setting in found}:
            lost[f"{run.arm}{size}", "without the other arm"] += 1
        elif run.state in ("diverged", "failed"):
            lost[f"{run.arm} {run.schedule}{size}", run.state] += 1
    return "; ".join(f"{what}: {count} {why}" for (what, why), count in lost.items())


def _worth_text(worth: Sequence[Worth], other: str, parts: Sequence[Part]) -> str:
    of_one = [part for part in parts if part.setting.other == other]
    inside = list(itertools.takewhile(lambda part: part.judged.end.verdict == NO, of_one))
    assuming = ", assuming" * any(part.judged.end.assuming for part in of_one)
    margin = f"; inside the margin from {inside[-1].setting.size:,} images on" if inside else ""
    each = [f"{one_worth(one)} at {one.size:,} images" for one in worth]
    known = "; ".join(each) or "not known: no seed has both arms at every size, by one test set"
    return known + margin + assuming + _doubt(of_one)


def _doubt(parts: Sequence[Part]) -> str:
    """Says of ends that are compared as they are whether training may have been too short."""
    return "; training may be too short" * any(p.judged.end.reason == "short" for p in parts)


def ranking(found: Sequence[Setting], alpha: float) -> str:
    """Ranks the arms of the largest size by their final AP; "" for two arms.

    Every pair of arms is compared by a two-sided t test and Holm's method; the intervals of
    neighbours are at the error at which that tested them.
    """
    largest = [s for s in found if s.size == found[0].size]
    if len(largest) < 2:
        return ""
    arms = {s.other: s.contrast.ends()[1] for s in largest}
    arms[largest[0].scratch] = largest[0].contrast.ends()[0]
    order = sorted(arms, key=lambda arm: -_mean(arms[arm]))
    pairs = list(itertools.combinations(order, 2))
    leads = {(a, b): spread(paired(arms[b], arms[a]), found[0].sd) for a, b in pairs}
    errors = holm_errors([min(two_sided(leads[pair], 0.0)) for pair in pairs], alpha)
    tested = dict(zip(pairs, errors, strict=True))
    text = order[0]
    for pair in itertools.pairwise(order):
        low, high = bounds(leads[pair], tested[pair] / 2)
        interval = f" [{signed(low)}, {signed(high)}]" if np.isfinite(low) else ""
        interval += ", assuming" * math.isinf(leads[pair].df)
        # Not all arms' means need be of the same seeds, of which the lead is.
        sign = ">" if low > 0 else "<" if high < 0 else "~"
        text += f" {sign} {pair[1]} ({signed(leads[pair].mean)}{interval})"
    return text


def answers_text(
    roots: Path | Iterable[Path], form: str = "text", metric: str | None = None
) -> str:
    """Returns the answers of the studies below `roots`, for a terminal or as JSON."""
    found = answers(load_runs(roots), metric=metric)
    if form == "json":
        return json.dumps([one.to_json() for one in found], indent=1, allow_nan=False)
    return "\n\n".join(one.text() for one in found)
