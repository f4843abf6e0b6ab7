"""Final numbers of a study's runs, and what must be said with them.

Numbers are those of the evaluation after the last planned iteration, never the best one. Runs
that did not get there are listed in the notes and enter no mean. Reads run folders only, and
without pandas: a table of a finished demo takes less time than that import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scratch_vs_pretrain.analysis.runs.numbers import Evaluation, evaluations, read_evaluation
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, half_width
from scratch_vs_pretrain.analysis.tables import Estimate
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder


class Scores(dict[int | None, Mapping[str, float]]):
    """Final scores by seed, or the differences of two arms' scores, paired by seed."""

    signed = False  # they are differences

    def of(self, metric: str) -> list[float]:
        """Returns the numbers that seeds have of a metric."""
        found = (one.get(metric, math.nan) for one in self.values())
        return [value for value in found if math.isfinite(value)]

    def means(self, metrics: Iterable[str]) -> list[Estimate]:
        """Returns each metric's mean over seeds; a missing value enters no mean."""
        columns = [self.of(metric) for metric in metrics]
        means = [math.fsum(known) / len(known) if known else math.nan for known in columns]
        return [
            Estimate(m, half_width(c), self.signed) for m, c in zip(means, columns, strict=True)
        ]

    def __sub__(self, other: Scores) -> Scores:
        paired = Scores()
        paired.signed = True
        for seed in (seed for seed in self if seed in other):
            paired[seed] = {m: v - other[seed].get(m, math.nan) for m, v in self[seed].items()}
        return paired


@dataclass(frozen=True)
class Results:
    """Final numbers of one study."""

    study: str
    runs: tuple[RunRecord, ...]  # every run, in the study's order
    finals: tuple[tuple[RunRecord, Evaluation], ...]  # the finished ones' final evaluations
    scratch: str  # the arm that starts from random weights
    others: tuple[str, ...]  # the arms compared with it, in the study's order
    best: bool = False  # they are not final but the best evaluation of each run

    @property
    def arms(self) -> tuple[str, ...]:
        """Scratch, and those compared with it."""
        return (self.scratch, *self.others)

    def of(self, arm: str, schedule: str | None = None) -> Scores:
        """Returns an arm's final scores, by default those of its longest schedule."""
        schedule = schedule or self.longest(arm).schedule
        return Scores(
            (run.seed, final.scores)
            for run, final in self.finals
            if (run.arm, run.schedule) == (arm, schedule)
        )

    def scored(self, arm: str | None = None, *, finite: bool = True) -> set[str]:
        """Returns the metrics of final evaluations, of an arm or of all, that have a number."""
        return {
            name
            for run, final in self.finals
            if arm in (None, run.arm)
            for name, value in final.scores.items()
            if math.isfinite(value) or not finite
        }

    def longest(self, arm: str) -> RunRecord:
        """Returns a run of the arm's longest planned schedule."""
        return max((r for r in self.runs if r.arm == arm), key=lambda run: run.iterations)


def by_study(runs: Iterable[RunRecord]) -> dict[str, tuple[RunRecord, ...]]:
    """Groups runs by study; each table is of one study."""
    groups: dict[str, tuple[RunRecord, ...]] = {}
    for run in runs:
        groups[run.study] = (*groups.get(run.study, ()), run)
    return groups


def by_setting(runs: Iterable[RunRecord]) -> dict[str, tuple[RunRecord, ...]]:
    """Groups runs by study and, where that varies it, size of the training data; names both."""
    named = [
        run.model_copy(update={"study": run.setting, "size": None})
        for members in by_study(runs).values()
        for run in sorted(members, key=lambda run: run.size or 0)
    ]
    return by_study(named)


def scratch_arm(runs: Iterable[RunRecord]) -> str | None:
    """Returns the arm that starts from random weights, whatever its name."""
    return next((run.arm for run in runs if run.from_scratch), None)


def final_results(runs: Sequence[RunRecord], *, best: bool = False) -> Results:
    """Reads the final evaluations of one study's runs.

    Args:
        runs: of one study.
        best: take each finished run's evaluation with the highest box AP (keypoint AP where there
            is one) instead. It is chosen by the data it is reported on, so it is too high.

    Raises:
        UserError: runs of several studies, no arm from scratch, an arm without a partner, or runs
            evaluated on different data.
    """
    studies = by_study(runs)
    if len(studies) != 1:
        raise UserError(f"one table is of one study, these are {', '.join(studies) or 'none'}")
    (study,) = studies
    arms = list(dict.fromkeys(run.arm for run in runs))
    scratch = scratch_arm(runs)
    if scratch is None:
        raise UserError(
            f"study {study}: no run of an arm that starts from scratch, only {', '.join(arms)}; "
            "give its folder too"
        )
    others = tuple(arm for arm in arms if arm != scratch)
    if not others:
        absent = [arm for arm in runs[0].arm_order if arm != scratch]
        raise UserError(
            f"study {study}: arm {scratch} has no partner here; give the folder of "
            f"{' or '.join(absent) or 'a pretrained arm'} too"
        )
    finals = []
    for run in runs:
        file = RunFolder(run.folder).evaluation_file(run.iterations)
        if run.state == "finished" and file.exists():
            finals.append((run, _best(run) if best else read_evaluation(file)))
    results = Results(study, tuple(runs), tuple(finals), scratch, others, best)
    _refuse_other_test_sets(results)
    return results


def _best(run: RunRecord) -> Evaluation:
    def score(evaluation: Evaluation) -> float:
        scores = evaluation.scores
        value = scores.get("keypoints/AP", scores.get("bbox/AP", math.nan))
        return value if math.isfinite(value) else -math.inf

    return max(evaluations(run.folder), key=score)


def _refuse_other_test_sets(results: Results) -> None:
    seen: dict[str, tuple[str, RunRecord]] = {}
    for run, evaluation in results.finals:
        content = run.data.test.sha256
        for kind, value in (("name", evaluation.dataset), ("content", content)):
            if value is None:
                continue
            first, other = seen.setdefault(kind, (value, run))
            if first != value:
                raise UserError(
                    f"study {results.study}: {other.folder} and {run.folder} are evaluated on "
                    f"data of different {kind} ({first:.40} and {value:.40}); "
                    "they cannot share a table"
                )


def notes(results: Results) -> tuple[str, ...]:
    """Returns what a reader of the study's numbers must know, a sentence each."""
    source = "the evaluation after the last planned iteration."
    if results.best:
        source = (
            "each run's BEST evaluation, not its final one: chosen by the data that it is reported "
            "on, so too high."
        )
    return (
        f"Numbers: percent, from {source}",
        *_notes_on_seeds(results),
        *_notes_on_recipes(results),
        *_notes_on_missing_runs(results),
    )


def _notes_on_seeds(results: Results) -> Iterator[str]:
    groups = {(run.arm, run.schedule) for run in results.runs}
    seeds = {group: set(results.of(*group)) for group in groups}
    most = max((len(found) for found in seeds.values()), default=0)
    if most >= LEAST_SEEDS:
        yield (
            "Means over seeds; ± is half the two-sided 95 % t interval of each number alone (from "
            "three seeds on)."
        )
    elif most > 1:
        yield "Means over two seeds, too few for an interval."
    elif most == 1:
        yield "One seed, so no interval: a small difference may be noise."
    if most > 1:
        yield (
            f"Differences are {results.scratch} less the other arm (the lead of svp answer is the "
            "other way round), over the seeds that both finished, paired by seed."
        )


def _notes_on_recipes(results: Results) -> Iterator[str]:
    differences: dict[str, dict[str, object]] = {}
    for run in results.runs:
        for key, values in run.allowed_differences.items():
            differences.setdefault(key, {}).update(values)
    for key, values in differences.items():
        each = ", ".join(f"{arm} {json.dumps(value)}" for arm, value in values.items())
        yield f"The arms also differ in {key}: {each}."
    admitted = dict.fromkeys(check for run in results.runs for check in run.admitted)
    if admitted:
        yield f"Wrong on purpose: the study admits {', '.join(admitted)}."
    for arm in dict.fromkeys(run.tuned_on for run in results.runs if run.tuned_on):
        yield f"The recipe was tuned on arm {arm}, which it favours."
    for run in results.runs:
        if run.inexact:
            yield f"Resumed, but not exactly: {run.name} ({'; '.join(run.inexact)})."


def _notes_on_missing_runs(results: Results) -> Iterator[str]:
    finished = {run.folder for run, _ in results.finals}
    for run in results.runs:
        if run.folder in finished:
            continue
        if run.state == "finished":
            file = RunFolder(run.folder).evaluation_file(run.iterations)
            what = f"finished, but {file} is missing"
        else:
            what = f"{run.state} after {run.iteration:,} of {run.iterations:,} iterations"
        reason = f": {run.reason}" if run.reason else ""
        yield f"Left out: {run.name} ({what}{reason})."
