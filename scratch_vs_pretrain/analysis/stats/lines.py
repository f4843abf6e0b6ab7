"""The words of an answer's lines."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.analysis.stats.contrast import (
    Region,
    Worth,
    half_as_long,
    paired,
    worth_in_images,
)
from scratch_vs_pretrain.analysis.stats.cost import hours_text, mean_hours, on_processors
from scratch_vs_pretrain.analysis.stats.results import Setting, metric_name, score_name
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SEEDS,
    NO,
    UNDECIDED,
    Verdict,
    bounds,
    holm,
    spread,
    two_sided,
)
from scratch_vs_pretrain.run_info import Init

if TYPE_CHECKING:
    from scratch_vs_pretrain.analysis.stats.answer import Need, Part


@dataclass(frozen=True)
class Line:
    """One line of an answer."""

    key: str  # "early", "at", "end", "worth", "cost", "next", "ranks", "size", "setting", "numbers"
    title: str  # what stands before it: "at 1200it"
    text: str  # the line
    verdict: str = ""  # "yes", "no" or "undecided"; empty where it is none


def setting_text(setting: Setting) -> str:
    """Returns what is trained on what: "demo: Mask R-CNN ..., 3,000 training images"."""
    description = setting.runs[0].description
    what = description or f"{setting.scratch} and {setting.other}"
    parts = [f"{setting.results.study}: {what}"]
    if setting.images is not None:
        parts.append(f"{setting.images:,} training images")
    if setting.instances is not None:
        parts.append(f"{setting.instances:.1f} instances an image")
    parts.append(f"margin {setting.limits.margin:g} {metric_name(setting.metric)}")
    return ", ".join(parts)


def interval_text(verdict: Verdict, unit: str = "") -> str:
    """Returns "+5.8 box AP [+3.1, +8.5]"; without the interval where there is none."""
    if not math.isfinite(verdict.mean):
        return ""
    unit = f" {unit}" if unit else ""
    if verdict.low is None or verdict.high is None:
        return f"{signed(verdict.mean)}{unit}"
    return f"{signed(verdict.mean)}{unit} [{signed(verdict.low)}, {signed(verdict.high)}]"


def signed(value: float | np.ndarray) -> str:
    """Returns a number with its sign and one decimal; nothing is "-0.0"."""
    return f"{round(float(value), 1) + 0.0:+.1f}"


def lines_of(
    parts: Sequence[Part],
    masks: Sequence[Need],
    worth: Sequence[Worth],
    ranks: str,
    lost: str,
    assuming: str,
    level: float,
) -> tuple[Line, ...]:
    """Returns the lines of an answer."""
    largest = [part for part in parts if part.setting.size == parts[0].setting.size]
    lines: list[Line] = []
    for part in largest:
        if len(largest) > 1:
            both = ": both from random weights" * part.setting.both_random
            lines.append(Line("setting", "", f"{part.setting.other}, {part.setting.scratch}{both}"))
        lines += [_claim_line(part, verdict) for verdict in part.judged.asked]
    lines += [_size_line(part) for part in parts[len(largest) :]]
    if len(parts) > len(largest):
        lines.append(Line("worth", "worth", _worth_text(worth, parts)))
    lines += [Line("ranks", "ranks", ranks + _doubt(largest))] if ranks else []
    for part in largest:
        title = "cost" if len(largest) == 1 else f"cost, {part.setting.other}"
        text = _cost_text(part.setting)
        lines += [Line("cost", title, text)] if text else []
    lines.append(Line("next", "next", "; ".join([_next_text(parts), *_masks_text(parts, masks)])))
    first = parts[0].setting
    if first.without:
        absent = ", ".join(map(metric_name, first.without))
        text = f"{metric_name(first.metric)}, since no finished run has a number for {absent}"
        lines.append(Line("setting", "judged by", text))
    lines += [Line("setting", "left out", lost)] if lost else []
    lines += [Line("setting", "assuming", assuming)] if assuming else []
    other = first.other if len(largest) == 1 else "the other arm"
    text = (
        f"leads: {other} less {first.scratch}, by seed; in brackets one-sided bounds, so wide that "
        f"all verdicts together are right with probability {level:g}"
    )
    return (*lines, Line("numbers", "numbers", text))


def _title(part: Part, claim: str) -> str:
    return {"early": "early", "at": f"at {part.judged.shortest}", "end": "at the end"}[claim]


def _claim_line(part: Part, verdict: Verdict) -> Line:
    claim, scratch = verdict.claim, part.setting.scratch
    shown = interval_text(verdict, metric_name(part.setting.metric) if claim == "early" else "")
    need = next((f"; {need.text()}" for need in part.needs if need.claim == claim), "")
    if claim == "early" and shown:
        length = min(curves.length for curves in part.setting.contrast.shortest() or ())
        shown += f" over the first {part.judged.until:,.0f} of {length:,} iterations"
    longest = part.setting.contrast.scratch[-1].length if part.setting.contrast.scratch else 0
    assuming = ", assuming" * verdict.assuming
    if verdict.reason == "short":
        text = f"undecided, {_why(part, verdict)}{need}"
    elif verdict.verdict == UNDECIDED:
        text = ": ".join(one for one in ("undecided", shown) if one)
        text += f"; {_why(part, verdict)}{need}"
    elif claim == "end" and verdict.verdict == NO:
        caught = catch_up_text(part.judged.catch_up)
        text = f"no{assuming}: {scratch} ends no worse at {longest:,} iterations, {shown}"
        text += f"; it {caught}" * bool(caught)
    else:
        text = f"{verdict.verdict}{assuming}: {shown}"
        text += f" at {longest:,} iterations" * (claim == "end")
        text += f" ({seeds_text(verdict.seeds)})" * (claim == "early")
    return Line(claim, _title(part, claim), text, verdict.verdict)


def _why(part: Part, verdict: Verdict) -> str:
    """Says why a claim is undecided."""
    contrast, unit = part.setting.contrast, score_name(part.setting.metric)
    if verdict.reason == "short":
        if not contrast.learned:
            return f"training too short: both arms end under {contrast.limits.least_ap:g} {unit}"
        longest, half = contrast.scratch[-1].schedule, half_as_long(contrast.scratch)
        if half is None:
            return f"training too short: no schedule half as long shows that {longest} is enough"
        gain = f"gains {contrast.gain:.1f} {unit} from {half.schedule} to {longest}"
        if contrast.gain < contrast.limits.margin:
            return f"not shown that training is long enough: {part.setting.scratch} {gain}"
        return f"training too short: {part.setting.scratch} still {gain}"
    nothing = f"has a number for {metric_name(part.setting.metric)}"
    return {
        "nothing": f"no seed of both arms {nothing if all(contrast.arms) else 'is finished'}",
        "unasked": "the arms were not evaluated at the same iterations then",
        "seeds": f"{seeds_text(verdict.seeds)}, a verdict needs {LEAST_SEEDS} or a stated noise",
        "noise": "the interval holds both",
        "low": f"both arms are under {contrast.limits.least_ap:g} {unit} until then",
    }[verdict.reason]


def seeds_text(seeds: int) -> str:
    """Returns "1 seed" or "3 seeds"."""
    return f"{seeds} seed{'s' * (seeds != 1)}"


def catch_up_text(region: Region | None) -> str:
    """Returns "caught up between 4,300 and 6,200"; empty where nothing can be said."""
    if region is None or math.isnan(region.low):
        return ""
    if math.isinf(region.low):
        return f"had not caught up by {region.end:,.0f}"
    if math.isinf(region.high):
        earliest = f", not before {_round(region.low)}" * bool(region.low)
        return f"may have caught up by {region.end:,.0f}{earliest}"
    if not region.low:
        return f"caught up by {_round(region.high)}"
    return f"caught up between {_round(region.low)} and {_round(region.high)}"


def _round(iterations: float) -> str:
    """Returns two digits of it: what a region's end is known to, at best."""
    digits = max(0, math.floor(math.log10(max(iterations, 1))) - 1)
    return f"{round(iterations, -digits):,.0f}"


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
        if hours is None:
            return ""
        before = _pretraining_text(runs[0].init) if runs[0].init.weights else ""
        shown.append(f"{name} {hours_text(hours, cpu)} ({reaching.schedule}){before}")
    return f"one run to {target:.1f} {score_name(setting.metric)}: {', '.join(shown)}"


def _pretraining_text(init: Init) -> str:
    """Says what pre-training took, where the checkpoint tells."""
    noted = init.pretraining if isinstance(init.pretraining, Mapping) else {}
    cost = noted["cost"] if isinstance(noted.get("cost"), Mapping) else {}
    seconds = cost.get("seconds")
    if not isinstance(seconds, (int, float)) or seconds < 0:
        return " + its pre-training"
    return f" + {hours_text(seconds / 3600, cost.get('device') == 'cpu')} of pre-training"


def _mean(finals: dict[int, float]) -> float:
    return float(np.mean([*finals.values()])) if finals else -math.inf


def _next_text(parts: Sequence[Part]) -> str:
    verdicts = [verdict.verdict for part in parts for verdict in part.judged.asked]
    needs = [(part, need) for part in parts for need in part.needs]
    if UNDECIDED not in verdicts:
        return "nothing undecided"
    undecided = f"{verdicts.count(UNDECIDED)} undecided"
    if not needs:
        return f"{undecided}, which more runs of the same kind cannot decide"
    part, need = min(needs, key=lambda one: one[1].price)
    where = f", {part.name}" if part.name else ""
    title = _title(part, need.claim)
    return f"{undecided}; cheapest is {title}{where}: {need.text()}"


def _masks_text(parts: Sequence[Part], masks: Sequence[Need]) -> list[str]:
    """Says what mask AP still needs beside what decides; nothing where that is nothing."""
    if not masks:
        return []
    need = min(masks, key=lambda need: need.price)
    asked = min((n for part in parts for n in part.needs), key=lambda n: n.price, default=None)
    if asked and need.text() == asked.text():
        return ["mask AP needs the same"]
    return [f"mask AP {need.text('needs about')}"]


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


def worths(found: Sequence[Setting]) -> tuple[Worth, ...]:
    """Returns what pre-training is worth at each size, for the first other arm."""
    sized = [s for s in reversed(found) if s.other == found[0].other and s.size]
    ends = [s.contrast.ends() for s in sized]
    seeds = set.intersection(*({*ours} & {*theirs} for ours, theirs in ends)) if ends else set()
    if len(sized) < 2 or not seeds:
        return ()
    scratch, other = (
        np.array([[pair[arm][seed] for pair in ends] for seed in sorted(seeds)]) for arm in (0, 1)
    )
    return worth_in_images([s.size or 0 for s in sized], scratch, other, sd=found[0].sd)


def _worth_text(worth: Sequence[Worth], parts: Sequence[Part]) -> str:
    of_one = [part for part in parts if part.setting.other == parts[0].setting.other]
    inside = list(itertools.takewhile(lambda part: part.judged.end.verdict == NO, of_one))
    assuming = ", assuming" * any(part.judged.end.assuming for part in of_one)
    margin = f"; inside the margin from {inside[-1].setting.size:,} images on" if inside else ""
    each = [f"{_one_worth(one)} at {one.size:,} images" for one in worth]
    known = "; ".join(each) or "not known: no seed has both arms at every size"
    return known + margin + assuming + _doubt(of_one)


def _doubt(parts: Sequence[Part]) -> str:
    """Says of ends that are compared as they are whether training may have been too short."""
    return "; training may be too short" * any(p.judged.end.reason == "short" for p in parts)


def _one_worth(one: Worth) -> str:
    if math.isinf(one.low):
        return f"> {one.most:.1f} times the training images, beyond the largest size,"
    ratio, high = (
        f"> {one.most:.1f}" if math.isinf(x) else f"{x:.1f}" for x in (one.ratio, one.high)
    )
    if math.isnan(one.low):
        return f"{ratio} times (too few seeds for an interval)"
    low = f"{one.low:.1f}" if one.low else "< 1"
    return f"{ratio} [{low}, {high}] times the training images"


def ranking(found: Sequence[Setting], alpha: float) -> str:
    """Ranks the arms of the largest size by their final AP; "" for two arms.

    Every pair of arms is compared by a two-sided t test, adjusted by Holm's method; the intervals
    of neighbours are simultaneous for all pairs (Bonferroni).
    """
    largest = [s for s in found if s.size == found[0].size]
    if len(largest) < 2:
        return ""
    arms = {s.other: s.contrast.ends()[1] for s in largest}
    arms[largest[0].scratch] = largest[0].contrast.ends()[0]
    order = sorted(arms, key=lambda arm: -_mean(arms[arm]))
    pairs = list(itertools.combinations(order, 2))
    leads = {(a, b): spread(paired(arms[b], arms[a]), found[0].sd) for a, b in pairs}
    p = dict(zip(pairs, holm([min(two_sided(leads[pair], 0.0)) for pair in pairs]), strict=True))
    text = order[0]
    for pair in itertools.pairwise(order):
        low, high = (signed(x) for x in bounds(leads[pair], alpha / 2 / len(pairs)))
        interval = f" [{low}, {high}]" if low != "+nan" else ""
        interval += ", assuming" * math.isinf(leads[pair].df)
        sign = ">" if p[pair] <= alpha else "~"
        text += f" {sign} {pair[1]} ({signed(leads[pair].mean)}{interval})"
    return text
