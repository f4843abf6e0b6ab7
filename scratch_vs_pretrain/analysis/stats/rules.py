"""What one setting says about each of the paper's six conclusions: two p values and a sentence.

"For" is the p value of the data if the conclusion did not hold there, "against" if it did. A rule
that cannot be applied says why, and has neither.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scratch_vs_pretrain.analysis.stats.contrast import (
    Curves,
    early_leads,
    end_gate,
    lead_by_seed,
    paired,
    under_least,
)
from scratch_vs_pretrain.analysis.stats.results import MUCH, Setting, metric_name
from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    LEAST_SEEDS,
    OPEN,
    SHUT,
    Spread,
    bounds,
    signed,
    spread,
    two_sided,
)


@dataclass(frozen=True)
class Test:
    """One setting's evidence on one conclusion."""

    what: str  # was measured
    value: Spread | None = None  # over seeds; None if the rule cannot be applied
    p_for: float = 1.0  # small where the conclusion holds
    p_against: float = 1.0  # small where it does not
    lacks: str = ""  # why the rule cannot be applied, or what would have to be known
    # What is said of a lead that is shown to lie between 0 and the margin, which is not worse.
    within: str = "against"
    sides: int = 1  # among which the error is divided, where both could be wrong
    # The smaller p value as if training were long enough, and with the proof that it is.
    gate: tuple[float, float] = (1.0, 1.0)

    @property
    def judged(self) -> bool:
        """Whether the rule could decide at all, by design and not by what was measured."""
        return self.value is not None and min(self.p_for, self.p_against) < 1

    def evidence(self, alpha: float) -> str:
        """Returns the numbers as a sentence, with bounds that are each wrong with `alpha`."""
        if self.value is None or self.value.n == 0:
            return f"{self.what}: {self.lacks}" if self.what else self.lacks
        text = f"{self.what}: {signed(self.value.mean)}"
        if math.isfinite(self.value.error):
            low, high = bounds(self.value, alpha / self.sides)
            text += f" [{signed(low)}, {signed(high)}]"
        text += f" ({self.value.n} seed{'s' * (self.value.n != 1)}"
        text += ", assuming)" if math.isinf(self.value.df) else ")"
        if not math.isfinite(self.value.error):
            text += f"; a verdict needs {LEAST_SEEDS} seeds, or a noise that the study states"
        long = "not shown that training is long enough" * bool(self.gate[0] <= alpha < self.gate[1])
        return "; ".join(filter(None, (text, self.lacks, long)))


class Lacking(Exception):
    """A rule cannot be applied: what it would measure, and why it cannot."""


Rule = Callable[[Setting], Test]


def applied(rule: Rule, setting: Setting) -> Test:
    """Returns what a rule says, also where it cannot be applied."""
    try:
        return rule(setting)
    except Lacking as lacking:
        what, why = lacking.args
        return Test(what, lacks=why)


def works(setting: Setting) -> Test:
    """1: scratch reaches a fair share of the other arm's final AP with the same architecture."""
    allowed = {key: v for run in setting.runs for key, v in run.allowed_differences.items()}
    model = [
        key
        for key, values in sorted(allowed.items())
        if key.startswith("MODEL.") and values.get(setting.scratch) != values.get(setting.other)
    ]
    if model:
        raise Lacking("", f"the arms' models differ in {', '.join(model)}")
    share = setting.limits.working_share
    what = f"final {metric_name(setting.metric)} of scratch less {share:g} of {setting.other}'s"
    ours, theirs = _finals(setting, what)
    value = spread([ours[s] - share * theirs[s] for s in ours if s in theirs], setting.sd)
    p_for, against = two_sided(value, 0.0)
    against = max(against, float(end_gate(setting.contrast).yes))
    lost = [run.name for run in setting.of(setting.scratch) if run.state == "diverged"]
    lacks = f"diverged, so not counted: {', '.join(lost)}" if lost else ""
    return Test(what, value, p_for, against, lacks, sides=2)


def needs_longer(setting: Setting) -> Test:
    """2: at the end of the shortest schedule that both arms have, scratch is still behind."""
    (ours, theirs), *_ = _common(setting)
    what = f"{metric_name(setting.metric)} that scratch lacks at {ours.schedule}"
    value = spread(paired(*_finals(setting, what, (ours, theirs))), setting.sd)
    against, lacks = _no_lead(setting, value)
    if ours.length == max(run.iterations for run in setting.runs if run.state == "finished"):
        against, lacks = 1.0, "it is the longest one too, so only being behind would tell"
    return Test(what, value, float(value.p_above(0.0)), against, lacks)


def ends_no_worse(setting: Setting) -> Test:
    """3: at each arm's longest schedule, if that is long enough, scratch is within the margin."""
    return _at_the_end(setting, no_worse=True)


def speeds_up(setting: Setting) -> Test:
    """4: early in training scratch is behind."""
    leads, until = early_leads(setting.contrast)
    if not len(leads):
        raise Lacking("", "no evaluations of both arms at the same iterations early on")
    value = spread(leads, setting.sd)
    what = f"mean {metric_name(setting.metric)} that scratch lacks up to iteration {until:,.0f}"
    _finals(setting, what)
    return Test(what, value, float(value.p_above(0.0)), *_no_lead(setting, value, until))


def _no_lead(setting: Setting, lead: Spread, until: float = math.inf) -> tuple[float, str]:
    """Tests that a lead on the shortest schedule is none; of what, where it could not be any."""
    if under_least(setting.contrast, until):
        return 1.0, f"both arms are under {setting.limits.least_ap:g} AP until then"
    return float(lead.p_below(setting.limits.margin)), ""


def regularizes_little_data(setting: Setting) -> Test:
    """5: at an equal training loss, no final lead with much data; with very little, a lead."""
    if setting.images is None:
        raise Lacking("", "the number of training images is unknown")
    kind = setting.regime
    if not kind:
        raise Lacking("", f"{setting.images:,} training images lie between few and many")
    test = _at_the_end(setting, no_worse=kind == MUCH)
    p, said = _fits_as_well(setting)
    lacks = "; ".join(text for text in (said, test.lacks) if text)
    return replace(test, p_for=max(test.p_for, p), p_against=max(test.p_against, p), lacks=lacks)


def helps_localization_less(setting: Setting) -> Test:
    """6: where the arms' AP50 are alike, scratch is ahead at AP75."""
    task, door = setting.metric.split("/")[0], end_gate(setting.contrast)
    if door is SHUT:
        return _matched(setting, task)
    what = f"lead of {setting.other} at {task}/AP50 less that at AP75"
    coarse, fine = (
        lead_by_seed(*setting.contrast_of(f"{task}/{metric}").ends()) for metric in ("AP50", "AP75")
    )
    if not coarse.keys() & fine.keys():
        raise Lacking(what, f"no seed of both arms has {task}/AP50 and AP75")
    value = spread(paired(fine, coarse), setting.contrast.sd_of_change)
    alike, margin = spread(list(coarse.values()), setting.sd), setting.limits.margin
    apart = max(float(alike.p_above(-margin)), float(alike.p_below(margin)), float(door.no))
    p_for, p_against = two_sided(value, 0.0)
    lacks = f"at AP50 the lead is {signed(alike.mean)}"
    return Test(what, value, max(p_for, apart), max(p_against, apart), lacks, sides=2)


def _matched(setting: Setting, task: str) -> Test:
    """Compares AP75 where AP50 is the same, along both arms' curves before any rate drop."""
    what = f"AP75 of scratch less {setting.other}'s at equal AP50, along the curves"
    coarse, fine = (_common(setting, f"{task}/{m}", what)[-1] for m in ("AP50", "AP75"))
    values = [
        _ap75_ahead(*(_points(c, f, seed) for c, f in zip(coarse, fine, strict=True)))
        for seed in coarse[0].seeds
        if seed in coarse[1].seeds
    ]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        raise Lacking(what, "the curves share too little of AP50")
    value = spread(known, setting.contrast.sd_of_change)
    return Test(what, value, *two_sided(value, 0.0), sides=2)


def _points(coarse: Curves, fine: Curves, seed: int) -> np.ndarray:
    """Returns (2, k) AP50 and AP75 of one run before its first rate drop, by AP50."""
    until = coarse.drops[0] if coarse.drops else coarse.length
    at = coarse.iterations[coarse.iterations <= until]
    both = np.array([curves.of([seed], at)[0] for curves in (coarse, fine)])
    both = both[:, np.isfinite(both).all(axis=0)]
    return both[:, np.argsort(both[0])]


def _ap75_ahead(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns scratch's AP75 less the other's at equal AP50: an analysis of covariance.

    One quadratic of AP50 for both arms and an offset of scratch, over the AP50 that both went
    through. Straight lines between few evaluations would lie above a curve that bends upwards.
    """
    if not ours.size or not theirs.size:
        return math.nan
    low, high = max(ours[0, 0], theirs[0, 0]), min(ours[0, -1], theirs[0, -1])
    points = np.concatenate([ours, theirs], axis=1)
    offset = np.arange(points.shape[1]) < ours.shape[1]
    shared = (low <= points[0]) & (points[0] <= high)
    (x, y), offset = points[:, shared], offset[shared]
    columns = np.stack([offset, np.ones(len(x)), x, x**2], axis=1)
    if len(x) < 4 or np.linalg.matrix_rank(columns) < 4:
        return math.nan
    return float(np.linalg.lstsq(columns, y, rcond=None)[0][0])


def _at_the_end(setting: Setting, *, no_worse: bool) -> Test:
    margin = setting.limits.margin
    what = f"final {metric_name(setting.metric)} that scratch lacks"
    value = spread(paired(*_finals(setting, what)), setting.sd)
    door = end_gate(setting.contrast)
    # Of training that is too short, both would be wrong.
    sides = 1 if door is OPEN else 2
    alone = np.array([value.p_below(margin), value.p_above(0.0)])
    gated = np.maximum(alone, [door.no, door.yes])
    no, yes = (float(p) for p in np.minimum(1.0, sides * gated))
    short = "training too short: no schedule at most half as long shows that it is enough"
    lacks, gate = (short, (1.0, 1.0)) if door is SHUT else ("", (sides * alone.min(), min(no, yes)))
    if no_worse:
        return Test(what, value, no, yes, lacks, "for", sides, gate)
    return Test(what, value, yes, no, lacks, sides=sides, gate=gate)


def _finals(
    setting: Setting, what: str, of: tuple[Curves, Curves] | None = None
) -> tuple[dict[int, float], dict[int, float]]:
    """Returns both arms' finals by seed, by default each one's at its longest schedule."""
    contrast = setting.contrast
    ours, theirs = (of[0].finals(), of[1].finals()) if of else contrast.ends()
    if not ours.keys() & theirs.keys():
        absent = [f"{r.name} ({r.state})" for r in setting.runs if r.state != "finished"]
        lacking = ", ".join(absent) or f"a seed both arms finished, with {setting.metric}"
        raise Lacking(what, f"missing: {lacking}")
    if not contrast.learned:
        raise Lacking(what, f"both arms end under {setting.limits.least_ap:g} AP: train longer")
    return ours, theirs


def _common(
    setting: Setting, metric: str | None = None, what: str = ""
) -> tuple[tuple[Curves, Curves], ...]:
    common = setting.contrast_of(metric or setting.metric).common()
    if not common:
        raise Lacking(what, "no schedule that both arms have finished")
    return common


def _fits_as_well(setting: Setting) -> tuple[float, str]:
    """Tests that scratch fits its training data as well as the other arm, by its final loss."""
    ours, theirs = (setting.final_losses(arm) for arm in setting.arms)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        if setting.runs[0].converged and end_gate(setting.contrast) is OPEN:
            return 0.0, "training losses assumed alike"
        return 1.0, "the final training loss is not known of both arms"
    ratio = np.array([math.log(ours[seed] / theirs[seed]) for seed in seeds])
    limit = math.log1p(setting.limits.loss_excess)
    mean = [float(np.mean([arm[seed] for seed in seeds])) for arm in (ours, theirs)]
    text = f"final training loss {mean[0]:.3f} against {mean[1]:.3f}"
    if len(seeds) < LEAST_SEEDS:
        p = 0.0 if setting.sd is not None and ratio.mean() <= limit else 1.0
    else:
        error = max(float(ratio.std(ddof=1)), 1e-3) / math.sqrt(len(seeds))
        p = float(
            Spread(ratio.mean(), np.asarray(error), len(seeds) - 1, len(seeds)).p_below(limit)
        )
    if ratio.mean() > limit:
        text += ": scratch does not fit its training data as well yet"
    elif p > ALPHA:
        text += ": not shown that scratch fits its training data as well"
    return p, text
