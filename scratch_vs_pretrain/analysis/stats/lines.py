"""The words of an answer's lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.stats.contrast import Contrast, Curves, paired
from scratch_vs_pretrain.analysis.stats.crossing import Region, Worth, worth_in_images
from scratch_vs_pretrain.analysis.stats.evidence import Setting, metric_name
from scratch_vs_pretrain.analysis.stats.needs import Need, hours_text, mean_hours
from scratch_vs_pretrain.analysis.stats.part import Part
from scratch_vs_pretrain.analysis.stats.verdicts import (
    LEAST_SEEDS,
    NO,
    UNDECIDED,
    YES,
    Verdict,
    alpha_of,
    holm,
    spread,
)


@dataclass(frozen=True)
class Line:
    """One line of an answer.

    Attributes:
        key: "early", "at", "end", "worth", "cost", "next", "ranks", "size" or "setting".
        title: what stands before it: "at 1200it".
        text: the line.
        verdict: "yes", "no" or "undecided"; empty where it is none.
    """

    key: str
    title: str
    text: str
    verdict: str = ""


def setting_text(setting: Setting) -> str:
    """Returns what is trained on what: "demo: Mask R-CNN ..., 3,000 training images"."""
    description = setting.runs[0].description
    what = description or f"{setting.scratch} and {setting.other}"
    parts = [f"{setting.study}: {what}"]
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


def signed(value: float) -> str:
    """Returns a number with its sign and one decimal; nothing is "-0.0"."""
    return f"{round(value, 1) + 0.0:+.1f}"


def lines_of(
    parts: Sequence[Part], worth: Sequence[Worth], ranks: str, assuming: str
) -> tuple[Line, ...]:
    """Returns the lines of an answer."""
    lines: list[Line] = []
    largest = [part for part in parts if part.setting.size == parts[0].setting.size]
    for part in largest:
        if len(largest) > 1:
            lines.append(
                Line("setting", "", f"{part.setting.other} against {part.setting.scratch}")
            )
        lines += _part_lines(part)
    lines += [Line("size", *_size_line(part)) for part in parts[len(largest) :]]
    if len(parts) > len(largest):
        lines.append(Line("worth", "worth", _worth_text(worth, parts)))
    if ranks:
        lines.append(Line("ranks", "ranks", ranks))
    lines += [
        Line("cost", "cost" if len(largest) == 1 else f"cost, {part.setting.other}", text)
        for part in largest
        if (text := _cost_text(part))
    ]
    lines.append(Line("next", "next", _next_text(parts)))
    if assuming:
        lines.append(Line("setting", "assuming", assuming))
    return tuple(lines)


def _part_lines(part: Part) -> Iterator[Line]:
    judged, unit = part.judged, metric_name(part.setting.metric)
    length = judged.until / part.setting.limits.early_share
    share = "first half" if part.setting.limits.early_share == 0.5 else "beginning"
    over = f" over the {share} of {length:,.0f} iterations" if math.isfinite(length) else ""
    early = _verdict_text(judged.early, part, unit, over)
    if judged.early.verdict != UNDECIDED:
        early += f" ({seeds_text(judged.early.seeds)})"
    yield Line("early", "early", early, judged.early.verdict)
    if judged.shortest:
        text = _verdict_text(judged.at, part, "", "")
        yield Line("at", f"at {judged.shortest}", text, judged.at.verdict)
    yield Line("end", "at the end", _end_text(part), judged.end.verdict)


def _verdict_text(verdict: Verdict, part: Part, unit: str, where: str) -> str:
    shown = interval_text(verdict, unit)
    if verdict.verdict == UNDECIDED:
        why = {
            "nothing": "no seed of both arms is finished and evaluated",
            "unasked": "the arms were not evaluated at the same iterations then",
            "seeds": f"a verdict needs {LEAST_SEEDS} seeds, or a noise that the study states",
            "short": "training too short",
            "noise": "the interval holds both",
        }[verdict.reason]
        need = _need_text(verdict, part.needs)
        return ", ".join(
            x for x in (f"undecided: {shown}{where}" if shown else "undecided", why, need) if x
        )
    assuming = ", assuming" if verdict.assuming else ""
    return f"{verdict.verdict}{assuming}: {shown}{where}"


def seeds_text(seeds: int) -> str:
    """Returns "1 seed" or "3 seeds"."""
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _need_text(verdict: Verdict, needs: Sequence[Need]) -> str:
    return next((need.text() for need in needs if need.claim == verdict.claim), "")


def _end_text(part: Part) -> str:
    judged, setting = part.judged, part.setting
    verdict = judged.end
    ours = [run.iterations for run in setting.of(setting.scratch)]
    at = f" at {max(ours):,} iterations" if ours else ""
    shown, assuming = interval_text(verdict), ", assuming" if verdict.assuming else ""
    if verdict.verdict == NO:
        caught = catch_up_text(judged.catch_up)
        return f"no{assuming}: {setting.scratch} ends no worse{at}, {shown}" + (
            f"; it {caught}" if caught else ""
        )
    if verdict.verdict == YES:
        return f"yes{assuming}: {shown}{at}"
    if verdict.reason == "short":
        still = ""
        if judged.shorter and math.isfinite(judged.gain):
            still = (
                f": {setting.scratch} still gains {judged.gain:.1f} AP from {judged.shorter} "
                f"to {judged.ends[0]}"
            )
        elif not judged.shorter:
            still = f": no schedule at most half as long shows that {judged.ends[0]} is enough"
        need = _need_text(verdict, part.needs)
        return f"undecided, training too short{still}; {need}"
    return _verdict_text(verdict, part, "", at)


def catch_up_text(region: Region | None) -> str:
    """Returns "caught up between 4,300 and 6,200"; empty where nothing can be said."""
    if region is None or math.isnan(region.low):
        return ""
    if math.isinf(region.low):
        return f"had not caught up by {region.end:,.0f}"
    if math.isinf(region.high):
        earliest = _round(region.low)
        return f"caught up after {earliest} at the earliest, perhaps not by {region.end:,.0f}"
    return f"caught up between {_round(region.low)} and {_round(region.high)}"


def _round(iterations: float) -> str:
    """Returns two digits of it: what a region's end is known to, at best."""
    digits = max(0, math.floor(math.log10(max(iterations, 1))) - 1)
    return f"{round(iterations, -digits):,.0f}"


def _size_line(part: Part) -> tuple[str, str, str]:
    judged, shown = part.judged, []
    titles = ("early", f"at {judged.shortest}", "at the end")
    for title, verdict in zip(titles, judged.verdicts, strict=True):
        why = " (training too short)" if verdict.reason == "short" else ""
        shown.append(f"{title} {verdict.verdict} {interval_text(verdict)}".rstrip() + why)
    return part.name, "; ".join(shown), judged.end.verdict


def _cost_text(part: Part) -> str:
    """Says what each arm's shortest schedule costs that ends at the lower arm's final AP."""
    setting = part.setting
    contrast = setting.contrast()
    if not contrast.scratch or not contrast.other:
        return ""
    ends = [list(arm[-1].finals().values()) for arm in (contrast.scratch, contrast.other)]
    if not all(ends):
        return ""
    target = min(float(np.mean(values)) for values in ends)
    shown = []
    arms = ((setting.scratch, contrast.scratch), (setting.other, contrast.other))
    cpu = all(run.device == "cpu" for run in setting.runs)
    for name, arm in arms:
        reaching = next(c for c in arm if _reaches(c, target))
        runs = [r for r in setting.of(name) if r.schedule == reaching.schedule]
        hours = mean_hours(runs)
        if hours is None:
            return ""
        before = " + its pre-training" if runs[0].init.weights else ""
        shown.append(f"{name} {hours_text(hours, cpu)} ({reaching.schedule}){before}")
    return f"to {target:.1f} AP: {', '.join(shown)}, a run"


def _reaches(curves: Curves, target: float) -> bool:
    finals = list(curves.finals().values())
    return bool(finals) and float(np.mean(finals)) >= target - 1e-9


def _next_text(parts: Sequence[Part]) -> str:
    needs = [(part, need) for part in parts for need in part.needs]
    if not needs:
        return "nothing undecided"
    part, need = min(needs, key=lambda one: math.inf if one[1].hours is None else one[1].hours)
    judged = part.judged
    title = {"early": "early", "at": f"at {judged.shortest}", "end": "at the end"}[need.claim]
    where = f", {part.name}" if part.name else ""
    return f"{len(needs)} undecided; cheapest is {title}{where}: {need.text()}"


def worths(found: Sequence[Setting]) -> tuple[Worth, ...]:
    """Returns what pre-training is worth at each size, for the first other arm."""
    first = [s for s in found if s.other == found[0].other and s.size]
    if len(first) < 2:
        return ()
    first = sorted(first, key=lambda s: s.size or 0)
    both = [(s.size, *_last(s.contrast())) for s in first]
    seeds = set.intersection(*({*ours} & {*theirs} for _, ours, theirs in both))
    if not seeds:
        return ()
    scratch = np.array([[ours[seed] for _, ours, _ in both] for seed in sorted(seeds)])
    other = np.array([[theirs[seed] for _, _, theirs in both] for seed in sorted(seeds)])
    return worth_in_images([s.size or 0 for s in first], scratch, other, sd=found[0].sd)


def _last(contrast: Contrast) -> tuple[dict[int, float], dict[int, float]]:
    """Returns both arms' final values at the longest schedule that they share, else at each's."""
    common = contrast.common()
    pair = common[-1:] or [(contrast.scratch[-1], contrast.other[-1])]
    return pair[0][0].finals(), pair[0][1].finals()


def _worth_text(worth: Sequence[Worth], parts: Sequence[Part]) -> str:
    inside = [p.setting.size for p in parts if p.judged.end.verdict == NO]
    margin = f"; inside the margin from {min(inside):,} images on" if inside else ""  # type: ignore[type-var]
    if not worth:
        return f"not known: no seed has both arms at every size{margin}"
    return "; ".join(f"{_one_worth(one)} at {one.size:,} images" for one in worth) + margin


def _one_worth(one: Worth) -> str:
    if math.isinf(one.ratio) or math.isinf(one.low):
        least = one.most if math.isinf(one.low) or math.isnan(one.low) else one.low
        return f"> {least:.1f} times the training images, beyond the largest size,"
    if math.isnan(one.low):
        return f"{one.ratio:.1f} times (too few seeds for an interval)"
    high = f"> {one.most:.1f}" if math.isinf(one.high) else f"{one.high:.1f}"
    return f"{one.ratio:.1f} [{one.low:.1f}, {high}] times the training images"


def ranking(found: Sequence[Setting], level: float, look: int, looks: int, families: int) -> str:
    """Ranks the arms of the largest size at their longest common length; "" for two arms.

    Every pair of arms is compared by a two-sided t test, adjusted by Holm's method, in the part of
    the error that is left to the ranking; shown are the simultaneous intervals (Bonferroni's).
    """
    largest = [s for s in found if s.size == found[0].size]
    if len(largest) < 2:
        return ""
    arms = {largest[0].scratch: _arm_finals(largest[0], True)}
    arms |= {s.other: _arm_finals(s, False) for s in largest}
    order = sorted(arms, key=lambda arm: -_mean(arms[arm]))
    alpha = alpha_of(level, look, looks) / families
    names = [(a, b) for at, a in enumerate(order) for b in order[at + 1 :]]
    spreads = [spread(paired(arms[b], arms[a]), largest[0].sd) for a, b in names]
    p = holm([2 * min(float(s.p_above(0)), float(s.p_below(0))) for s in spreads])
    apart = {name: value <= alpha for name, value in zip(names, p, strict=True)}
    text = order[0]
    for a, b in itertools.pairwise(order):
        text += f" {'>' if apart[a, b] else '~'} {b}"
    return text + f" (final AP; > apart, ~ not, {level:.0%} for all pairs together)"


def _arm_finals(setting: Setting, scratch: bool) -> dict[int, float]:
    contrast = setting.contrast()
    arm = contrast.scratch if scratch else contrast.other
    return arm[-1].finals() if arm else {}


def _mean(finals: dict[int, float]) -> float:
    return float(np.mean(list(finals.values()))) if finals else -math.inf
