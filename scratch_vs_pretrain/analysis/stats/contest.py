"""Scratch against another arm of a study, as the rules of :mod:`.judging` look at it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, pairs
from scratch_vs_pretrain.analysis.stats.thresholds import Thresholds, read_thresholds
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
NOT_ENOUGH = "not enough evidence"


@dataclass(frozen=True)
class Finding:
    """What one study says about one conclusion.

    Attributes:
        study: its name.
        verdict: one of the three.
        evidence: the numbers, or what is missing, as a sentence.
        kind: tells findings of one rule apart where it needs several ("many images").
    """

    study: str
    verdict: str
    evidence: str
    kind: str = ""


@dataclass(frozen=True)
class Contest:
    """Scratch against one arm of a study.

    Attributes:
        results: the study.
        other: the arm from a checkpoint.
        limits: the study's thresholds.
    """

    results: Results
    other: str
    limits: Thresholds

    @property
    def scratch(self) -> str:
        return self.results.scratch

    @property
    def name(self) -> str:
        one = len(self.results.others) == 1
        return self.results.study if one else f"{self.results.study}, {self.other}"

    @property
    def metric(self) -> str:
        """The study's main metric."""
        known = {metric for final in self.results.finals.values() for metric in final.scores}
        return "keypoints/AP" if "keypoints/AP" in known else "bbox/AP"

    def runs(self, arm: str, schedule: str | None = None) -> list[RunRecord]:
        """Returns the arm's runs of a schedule, by default of its longest."""
        schedule = schedule or self.results.longest(arm).schedule
        return [r for r in self.results.runs if (r.arm, r.schedule) == (arm, schedule)]

    def final_gaps(self, metric: str, schedule: str | None = None) -> np.ndarray:
        """Returns (n,) final differences per seed, at a schedule or at each arm's longest."""
        first, second = (
            (arm, schedule or self.results.longest(arm).schedule)
            for arm in (self.scratch, self.other)
        )
        found = pairs(self.results, first, second)
        gaps = [a.scores.get(metric, math.nan) - b.scores.get(metric, math.nan) for a, b in found]
        return np.array([gap for gap in gaps if math.isfinite(gap)])

    def best_ap(self) -> float:
        """Returns the better arm's mean final AP at its longest schedule, -inf if there is none."""
        best = -math.inf
        for arm in (self.scratch, self.other):
            finals = self.results.of(arm, self.results.longest(arm).schedule).values()
            values = [f.scores.get(self.metric, math.nan) for f in finals]
            values = [value for value in values if math.isfinite(value)]
            best = max([best, float(np.mean(values))] if values else [best])
        return best

    def missing(self, schedule: str | None = None, otherwise: str = "") -> str:
        """Names both arms' runs of a schedule, by default of the longest, that are not finished.

        Args:
            schedule: of both arms.
            otherwise: what is missing if no run is.
        """
        runs = [*self.runs(self.scratch, schedule), *self.runs(self.other, schedule)]
        absent = [f"{r.name} ({r.state})" for r in runs if r.state != "finished"]
        what = ", ".join(absent) or otherwise or f"a seed both arms finished, with {self.metric}"
        return f"missing: {what}"


def contests(results: Results) -> list[Contest]:
    """Returns scratch against each other arm of a study.

    Raises:
        UserError: thresholds of the study that are unknown, no numbers, or not alike in all runs.
    """
    first = results.runs[0]
    limits = read_thresholds(first.thresholds, f"{RunFolder(first.folder).run_file}: thresholds")
    for run in results.runs:
        if run.thresholds != first.thresholds:
            raise UserError(
                f"study {results.study}: {first.folder} and {run.folder} are to be judged by "
                "different thresholds; start the study with `svp run` again, which writes its "
                "conclusions into every run.json"
            )
    return [Contest(results, other, limits) for other in results.others]
