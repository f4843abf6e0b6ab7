"""The paper's six conclusions, judged setting by setting; docs/verdicts.md tells the rules.

A rule says of one setting how it speaks for and against a conclusion, and in what words. "For" is
the p value of the data if the conclusion did not hold there, "against" if it did. A rule that
cannot be applied says why, and has neither.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.answer import plain
from scratch_vs_pretrain.analysis.stats.comparable import Unpaired, looks_at
from scratch_vs_pretrain.analysis.stats.contrast import (
    Curves,
    early_leads,
    end_gate,
    lead_by_seed,
    paired,
    under_least,
)
from scratch_vs_pretrain.analysis.stats.results import (
    LITTLE,
    MUCH,
    Setting,
    by_study,
    metric_name,
    settings,
)
from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    LEAST_SEEDS,
    LEVEL,
    OPEN,
    SHUT,
    Spread,
    alpha_of,
    bounds,
    holm,
    signed,
    spread,
    two_sided,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import counted, printable

SUPPORTED = "supported"
IN_PART = "supported in part"
CONTRADICTED = "contradicted"
NOT_ENOUGH = "not enough evidence"


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
        text += f" ({counted(self.value.n, 'seed')}"
        text += ", assuming)" if math.isinf(self.value.df) else ")"
        if not math.isfinite(self.value.error):
            text += f"; a verdict needs {LEAST_SEEDS} seeds, or a noise that the study states"
        long = "not shown that training is long enough" * bool(self.gate[0] <= alpha < self.gate[1])
        return "; ".join(filter(None, (text, self.lacks, long)))


class Lacking(Exception):
    """A rule cannot be applied: what it would measure, and why it cannot."""


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
    test = _behind(setting, what, value)
    if ours.length == max(run.iterations for run in setting.runs if run.state == "finished"):
        lacks = "it is the longest one too, so only being behind would tell"
        return replace(test, p_against=1.0, lacks=lacks)
    return test


def ends_no_worse(setting: Setting) -> Test:
    """3: at each arm's longest schedule, if that is long enough, scratch is within the margin."""
    return _at_the_end(setting, no_worse=True)


def _at_the_end(setting: Setting, *, no_worse: bool) -> Test:
    """Tests that scratch is within the margin at the end or, if not `no_worse`, behind."""
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


def speeds_up(setting: Setting) -> Test:
    """4: early in training scratch is behind."""
    leads, until = early_leads(setting.contrast)
    if not len(leads):
        raise Lacking("", "no evaluations of both arms at the same iterations early on")
    value = spread(leads, setting.sd)
    what = f"mean {metric_name(setting.metric)} that scratch lacks up to iteration {until:,.0f}"
    _finals(setting, what)
    return _behind(setting, what, value, until)


def _behind(setting: Setting, what: str, lead: Spread, until: float = math.inf) -> Test:
    """Tests a lead on the shortest schedule; that it is none only where it could be one."""
    p_for = float(lead.p_above(0.0))
    if under_least(setting.contrast, until):
        lacks = f"both arms are under {setting.limits.least_ap:g} AP until then"
        return Test(what, lead, p_for, 1.0, lacks)
    return Test(what, lead, p_for, float(lead.p_below(setting.limits.margin)))


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
        error = np.asarray(max(float(ratio.std(ddof=1)), 1e-3) / math.sqrt(len(seeds)))
        p = float(Spread(ratio.mean(), error, len(seeds) - 1, len(seeds)).p_below(limit))
    if ratio.mean() > limit:
        text += ": scratch does not fit its training data as well yet"
    elif p > ALPHA:
        text += ": not shown that scratch fits its training data as well"
    return p, text


Rule = Callable[[Setting], Test]
CONCLUSIONS: dict[str, Rule] = {
    "Training from scratch works without changing the architecture.": works,
    "It needs more iterations to converge.": needs_longer,
    "It ends no worse than pre-trained, down to 10k training images.": ends_no_worse,
    "Pre-training speeds up convergence.": speeds_up,
    "Pre-training does not by itself regularize, except with very little data.": (
        regularizes_little_data
    ),
    "Pre-training helps less where localization matters more.": helps_localization_less,
}
# A conclusion needs the support of a setting of each kind.
KINDS: dict[Rule, tuple[str, ...]] = {regularizes_little_data: (MUCH, LITTLE)}


@dataclass(frozen=True)
class Finding:
    """What one setting says about one conclusion."""

    study: str  # the setting: study, arm and size, as far as there are several
    verdict: str  # "supported", "contradicted" or "not enough evidence"
    evidence: str  # the numbers, or what is missing, as a sentence
    kind: str = ""  # tells findings of one rule apart where it needs several ("much data")
    # The setting with its size, as a reading names it; empty for a study without pairs.
    scope: str = ""


@dataclass(frozen=True)
class Conclusion:
    """One conclusion with its verdict."""

    number: int  # 1 to 6
    statement: str
    # "supported" or "contradicted" where every setting that decides says so, "supported in part",
    # or "not enough evidence".
    verdict: str
    reading: str  # "supported in 3 of 4 settings; not for ..."
    findings: tuple[Finding, ...]  # what each setting says
    level: float  # the strictest of the studies'
    missing: str = ""  # what more is needed; empty unless the evidence is not enough
    assuming: str = ""  # what verdicts of it assume; empty if nothing


def conclude(runs: Sequence[RunRecord], *, strict: bool = True) -> tuple[Conclusion, ...]:
    """Judges all six.

    Of each conclusion, all settings that are said to support it do so with a probability of
    the studies' strictest ``answer.level``, and all that are said to contradict it likewise
    (Holm's method over the settings of one regime: much data, little, and what is between).

    Raises:
        UserError: damaged runs, or runs that cannot be compared, see :func:`.settings`; findings
            say it if not `strict`, as far as it shows in the ends of runs.
    """
    found: list[Setting] = []
    looks = 1
    unpaired: list[Finding] = []
    for study, members in by_study(runs).items():
        try:
            pairs, looks = settings(members), max(looks, looks_at(members))
        except UserError as error:
            if strict and not isinstance(error, Unpaired):
                raise
            unpaired.append(Finding(study, NOT_ENOUGH, str(error)))
            continue
        pretrained = [s for s in pairs if not s.both_random]
        found += pretrained
        if not pretrained:
            unpaired.append(Finding(study, NOT_ENOUGH, "all its arms start from random weights"))
    level = max((run.level or LEVEL for run in runs), default=LEVEL)
    alpha = alpha_of(level, looks=looks)
    conclusions = []
    for number, (statement, rule) in enumerate(CONCLUSIONS.items(), start=1):
        findings = (*_findings(rule, found, alpha), *unpaired)
        supported = [f for f in findings if f.verdict == SUPPORTED]
        against = [f for f in findings if f.verdict == CONTRADICTED]
        kinds = {f.kind for f in supported}
        lacking = [kind for kind in KINDS.get(rule, ("",)) if kind not in kinds]
        if against:
            verdict = IN_PART if supported else CONTRADICTED
        else:
            verdict = NOT_ENOUGH if lacking else SUPPORTED
        needed = " and ".join(f"a study with {kind}" for kind in lacking if kind)
        missing = f"needed: {needed}" if verdict == NOT_ENOUGH and supported and needed else ""
        reading = _reading(supported, against, findings)
        used = [s for s, f in zip(found, findings, strict=False) if f.verdict != NOT_ENOUGH]
        assuming = "; ".join(dict.fromkeys(text for setting in used for text in setting.assumed()))
        conclusions.append(
            Conclusion(number, statement, verdict, reading, findings, level, missing, assuming)
        )
    return tuple(conclusions)


def _findings(rule: Rule, found: Sequence[Setting], alpha: float) -> list[Finding]:
    tests = []
    for setting in found:
        try:
            tests.append(rule(setting))
        except Lacking as lacking:
            what, why = lacking.args
            tests.append(Test(what, lacks=why))
    kinds = [setting.regime for setting in found]
    decided: dict[int, tuple[str, float]] = {}
    for kind in set(kinds):
        family = [k for k, test in enumerate(tests) if test.judged and kinds[k] == kind]
        for side, verdict in (("for", SUPPORTED), ("against", CONTRADICTED)):
            single = [float(getattr(tests[k], f"p_{side}")) for k in family]
            for k, p, adjusted in zip(family, single, holm(single), strict=True):
                if adjusted <= alpha and (k not in decided or tests[k].within == side):
                    decided[k] = verdict, alpha * p / adjusted if adjusted else alpha / len(family)
    open_ = NOT_ENOUGH, alpha / max(1, len(tests))
    findings = []
    for k, (setting, test) in enumerate(zip(found, tests, strict=True)):
        verdict, tested = decided.get(k, open_)
        kind = kinds[k] if rule in KINDS else ""
        findings.append(Finding(setting.name, verdict, test.evidence(tested), kind, setting.scope))
    return findings


def _reading(
    supported: Sequence[Finding], against: Sequence[Finding], findings: Sequence[Finding]
) -> str:
    decided = len(supported) + len(against)
    if not decided:
        return "no setting decides"
    side = SUPPORTED if supported else CONTRADICTED
    text = f"{side} in {len(supported or against)} of {decided} setting{'s' * (decided != 1)}"
    if against:
        text += f"; {'not for' if supported else 'for'} {', '.join(f.scope for f in against)}"
    open_ = sum(bool(f.scope) for f in findings) - decided
    return text + (f"; {open_} undecided" if open_ else "")


def conclusions_text(roots: Path | Iterable[Path], form: str = "text") -> str:
    """Returns the conclusions of the runs below `roots`, for a terminal or as JSON."""
    runs = load_runs(roots)
    found = conclude(runs)
    if form == "json":
        return json.dumps([plain(conclusion) for conclusion in found], indent=1, allow_nan=False)
    lines = []
    for one in found:
        said, _, rest = one.reading.partition(" ")
        if one.verdict == NOT_ENOUGH:
            said, rest = f"{NOT_ENOUGH}:", one.reading
        lines.append(f"{one.number}. {one.statement}")
        lines.append(f"   {said.upper()} {rest}{', assuming' if one.assuming else ''}")
        for f in one.findings:
            other = f"{f.verdict}: " if f.verdict != one.verdict else ""
            lines.append(f"   - {f.study}: {other}{f.evidence}")
        lines += [f"   - {one.missing}"] if one.missing else []
        lines += [f"   assuming {one.assuming}"] if one.assuming else []
    lines += ["", *level_notes(runs), "The rules: docs/verdicts.md"]
    return "\n".join(map(printable, lines))


def level_notes(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Returns what the level of conclusions is, and how their numbers read."""
    levels = {run.study: run.level or LEVEL for run in runs}
    of = ", ".join(f"{study} {level:g}" for study, level in levels.items())
    strictest = f", the strictest answer.level ({of})" * (len({*levels.values()}) > 1)
    return (
        f"Level {max(levels.values()):g}{strictest}: the probability that all support of one "
        "conclusion in one regime of data (much, little, between) is right, and likewise all "
        "contradiction.",
        "A number is what its line says before it, with a minus the opposite; in brackets are "
        "one-sided bounds at this level, wider where several settings are judged.",
    )
