"""The paper's six conclusions, judged setting by setting; docs/verdicts.md tells the rules."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats import rules
from scratch_vs_pretrain.analysis.stats.answer import plain
from scratch_vs_pretrain.analysis.stats.results import (
    LITTLE,
    MUCH,
    Setting,
    by_study,
    looks_at,
    settings,
)
from scratch_vs_pretrain.analysis.stats.rules import Rule
from scratch_vs_pretrain.analysis.stats.verdicts import LEVEL, alpha_of, holm
from scratch_vs_pretrain.errors import UserError

SUPPORTED = "supported"
IN_PART = "supported in part"
CONTRADICTED = "contradicted"
NOT_ENOUGH = "not enough evidence"

CONCLUSIONS: dict[str, Rule] = {
    "Training from scratch works without changing the architecture.": rules.works,
    "It needs more iterations to converge.": rules.needs_longer,
    "It ends no worse than pre-trained, down to 10k training images.": rules.ends_no_worse,
    "Pre-training speeds up convergence.": rules.speeds_up,
    "Pre-training does not by itself regularize, except with very little data.": (
        rules.regularizes_little_data
    ),
    "Pre-training helps less where localization matters more.": rules.helps_localization_less,
}
# A conclusion needs the support of a setting of each kind.
KINDS: dict[Rule, tuple[str, ...]] = {rules.regularizes_little_data: (MUCH, LITTLE)}


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


def conclude(runs: Sequence[RunRecord]) -> tuple[Conclusion, ...]:
    """Judges all six.

    Of each conclusion, all settings that are said to support it do so with a probability of
    the studies' strictest ``answer.level``, and all that are said to contradict it likewise
    (Holm's method over the settings of one regime: much data, little, and what is between).
    """
    found: list[Setting] = []
    unpaired: list[Finding] = []
    for study, members in by_study(runs).items():
        try:
            pairs = settings(members)
        except UserError as error:
            unpaired.append(Finding(study, NOT_ENOUGH, str(error)))
            continue
        pretrained = [s for s in pairs if not s.both_random]
        found += pretrained
        if not pretrained:
            unpaired.append(Finding(study, NOT_ENOUGH, "all its arms start from random weights"))
    level = max((run.level or LEVEL for run in runs), default=LEVEL)
    alpha = alpha_of(level, looks=max((looks_at(s.runs) for s in found), default=1))
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
    tests = [rules.applied(rule, setting) for setting in found]
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
    return "\n".join([*lines, "", *level_notes(runs), "The rules: docs/verdicts.md"])


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
