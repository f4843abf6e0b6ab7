"""The paper's six conclusions, judged from run folders; the rules are in :mod:`.judging`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scratch_vs_pretrain.analysis.runs.records import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats import judging
from scratch_vs_pretrain.analysis.stats.comparison import by_study, final_results
from scratch_vs_pretrain.analysis.stats.contest import (
    CONTRADICTED,
    NOT_ENOUGH,
    SUPPORTED,
    Contest,
    Finding,
    contests,
)
from scratch_vs_pretrain.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How one conclusion is judged.

    Attributes:
        statement: the conclusion.
        judge: what one study says about it.
        kinds: findings of each of these kinds are needed to support it.
    """

    statement: str
    judge: Callable[[Contest], Finding]
    kinds: tuple[str, ...] = ("",)


RULES = (
    Rule("Training from scratch works without changing the architecture.", judging.works),
    Rule("It needs more iterations to converge.", judging.needs_longer),
    Rule("It ends no worse than pre-trained, down to 10k training images.", judging.ends_no_worse),
    Rule("Pre-training speeds up convergence.", judging.speeds_up),
    Rule(
        "Pre-training does not by itself regularize, except with very little data.",
        judging.regularizes_little_data,
        ("much data", "little data"),
    ),
    Rule(
        "Pre-training helps less where localization matters more.",
        judging.helps_localization_less,
    ),
)


@dataclass(frozen=True)
class Conclusion:
    """One conclusion with its verdict.

    Attributes:
        number: 1 to 6.
        statement: the conclusion.
        verdict: "supported", "contradicted" or "not enough evidence".
        findings: what each study says.
        missing: what more is needed; empty unless the evidence is not enough.
    """

    number: int
    statement: str
    verdict: str
    findings: tuple[Finding, ...]
    missing: str = ""


def conclude(runs: Sequence[RunRecord]) -> tuple[Conclusion, ...]:
    """Judges all six; one study that contradicts outweighs others that support.

    Raises:
        UserError: a damaged run folder or unknown thresholds.
    """
    found: list[Contest] = []
    unpaired: list[Finding] = []
    for study, members in by_study(runs).items():
        try:
            results = final_results(members)
        except UserError as error:
            unpaired.append(Finding(study, NOT_ENOUGH, str(error)))
        else:
            found += contests(results)
    return tuple(
        _conclusion(number, rule, (*map(rule.judge, found), *unpaired))
        for number, rule in enumerate(RULES, start=1)
    )


def _conclusion(number: int, rule: Rule, findings: tuple[Finding, ...]) -> Conclusion:
    verdicts = {finding.verdict for finding in findings}
    supported = {finding.kind for finding in findings if finding.verdict == SUPPORTED}
    if CONTRADICTED in verdicts:
        return Conclusion(number, rule.statement, CONTRADICTED, findings)
    lacking = [kind for kind in rule.kinds if kind not in supported]
    if not lacking:
        return Conclusion(number, rule.statement, SUPPORTED, findings)
    kinds = [f"a study with {kind}" for kind in lacking if kind]
    missing = f"needed: {' and '.join(kinds)}" if kinds and supported else ""
    return Conclusion(number, rule.statement, NOT_ENOUGH, findings, missing)


def conclusions_text(roots: Path | Iterable[Path]) -> str:
    """Returns the conclusions of the runs below `roots`, for a terminal.

    Raises:
        UserError: see :func:`conclude`; or there are no runs.
    """
    lines = []
    for conclusion in conclude(load_runs(roots)):
        lines.append(f"{conclusion.number}. {conclusion.statement}")
        lines.append(f"   {conclusion.verdict.upper()}")
        lines += [f"   - {f.study}: {f.verdict}: {f.evidence}" for f in conclusion.findings]
        lines += [f"   - {conclusion.missing}"] if conclusion.missing else []
    return "\n".join([*lines, "", "The rules and their bounds: docs/conclusions.md"])
