"""What one study says about each of the paper's conclusions.

A rule compares one number per seed with a bound. From three seeds on the 95 % t interval must lie
on one side of the bound; below, the mean decides and the evidence says how few seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.evaluations import evaluations
from scratch_vs_pretrain.analysis.metrics_file import read_metrics
from scratch_vs_pretrain.analysis.results import Results, pairs
from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.analysis.statistics import SEEDS_FOR_INTERVAL, t_interval
from scratch_vs_pretrain.analysis.thresholds import Thresholds, thresholds_from
from scratch_vs_pretrain.run_folder import RunFolder

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
NOT_ENOUGH = "not enough evidence"

# The share of logged training losses, from the end, that stands for the final one.
FINAL_LOSSES = 0.1


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
            values = [f.scores[self.metric] for f in finals if self.metric in f.scores]
            best = max([best, float(np.mean(values))] if values else [best])
        return best

    def missing(self) -> str:
        """Names the runs of both arms' longest schedules that are not finished."""
        runs = [*self.runs(self.scratch), *self.runs(self.other)]
        absent = [f"{r.name} ({r.state})" for r in runs if r.state != "finished"]
        return f"missing: {', '.join(absent)}" if absent else "missing: a seed both arms finished"


def contests(results: Results) -> list[Contest]:
    """Returns scratch against each other arm of a study.

    Raises:
        UserError: thresholds of the study that are unknown or no numbers.
    """
    run = results.runs[0]
    limits = thresholds_from(run.thresholds, RunFolder(run.folder).run_file)
    return [Contest(results, other, limits) for other in results.others]


def works(contest: Contest) -> Finding:
    """1: scratch trains to a fair share of the pretrained arm's AP with the same architecture."""
    differing = {key for run in contest.results.runs for key in run.allowed_differences}
    model = sorted(key for key in differing if key.startswith("MODEL."))
    if model:
        text = f"the arms' models differ in {', '.join(model)}; needed: arms that differ in weights"
        return Finding(contest.name, NOT_ENOUGH, text)
    diverged = [run.name for run in contest.runs(contest.scratch) if run.state == "diverged"]
    if diverged:
        return Finding(contest.name, CONTRADICTED, f"diverged: {', '.join(diverged)}")
    metric, share = contest.metric, contest.limits.working_share
    schedules = [contest.results.longest(arm).schedule for arm in (contest.scratch, contest.other)]
    found = pairs(contest.results, (contest.scratch, schedules[0]), (contest.other, schedules[1]))
    values = [(a.scores.get(metric, math.nan), b.scores.get(metric, math.nan)) for a, b in found]
    ratios = np.array([a / b for a, b in values if math.isfinite(a) and b > 0])
    what = f"{metric} of scratch as a share of {contest.other}'s"
    return _judge(contest, ratios, share, what, digits=2, noisy=False)


def needs_longer(contest: Contest) -> Finding:
    """2: at the end of the shortest schedule both arms have, scratch is still behind."""
    both = [
        {r.schedule: r.iterations for r in contest.results.runs if r.arm == arm}
        for arm in (contest.scratch, contest.other)
    ]
    common = sorted(both[0].keys() & both[1].keys(), key=both[0].__getitem__)
    margin = contest.limits.margin
    if common:
        gaps = contest.final_gaps(contest.metric, common[0])
        return _judge(contest, -gaps, margin, f"{contest.metric} that scratch lacks at {common[0]}")
    end = min(both[1].values())
    lags = _lags(contest, lambda iteration: iteration <= end, last=True)
    what = f"{contest.metric} that scratch lacks when {contest.other} ends its shortest schedule"
    return _judge(contest, lags, margin, what)


def ends_no_worse(contest: Contest) -> Finding:
    """3: at each arm's longest schedule scratch is no further behind than the margin."""
    images = contest.results.runs[0].train_images
    if images is None or images < contest.limits.many_images:
        need = f"needed: a study of at least {contest.limits.many_images:,.0f} training images"
        have = "unknown" if images is None else f"{images:,}"
        return Finding(contest.name, NOT_ENOUGH, f"training images: {have}; {need}")
    gaps = contest.final_gaps(contest.metric)
    return _judge(contest, gaps, -contest.limits.margin, f"final {contest.metric} gap", signed=True)


def speeds_up(contest: Contest) -> Finding:
    """4: early in training scratch is behind by more than the margin."""
    shorter = min(contest.results.longest(a).iterations for a in (contest.scratch, contest.other))
    end = contest.limits.early_share * shorter
    lags = _lags(contest, lambda iteration: iteration <= end)
    what = f"mean {contest.metric} that scratch lacks up to iteration {end:,.0f}"
    return _judge(contest, lags, contest.limits.margin, what)


def regularizes_little_data(contest: Contest) -> Finding:
    """5: with much data no final gap at an equal training loss; with very little, a gap."""
    run, limits = contest.results.runs[0], contest.limits
    images, boxes = run.train_images, run.train_set.get("annotations")
    if images is None:
        return Finding(contest.name, NOT_ENOUGH, "the number of training images is unknown")
    sparse = boxes is not None and boxes / images < limits.few_instances
    gaps = contest.final_gaps(contest.metric)
    if images <= limits.few_images or sparse:
        what = f"final {contest.metric} that scratch lacks with {images:,} training images"
        return _judge(contest, -gaps, limits.margin, what, kind="little data")
    if images < limits.many_images:
        text = f"{images:,} training images lie between few and many; this study decides nothing"
        return Finding(contest.name, NOT_ENOUGH, text)
    losses = [_final_loss(contest.runs(arm)) for arm in (contest.scratch, contest.other)]
    if not all(math.isfinite(loss) and loss > 0 for loss in losses):
        text = f"the final training loss is not known of both arms; {contest.missing()}"
        return Finding(contest.name, NOT_ENOUGH, text, "much data")
    text = f"final training loss {losses[0]:.3f} against {losses[1]:.3f}"
    if losses[0] > losses[1] * (1 + limits.loss_excess):
        needed = "scratch does not fit its training data as well yet; needed: a longer schedule"
        return Finding(contest.name, NOT_ENOUGH, f"{text}: {needed}", "much data")
    what = f"{text}; final {contest.metric} gap"
    return _judge(contest, gaps, -limits.margin, what, signed=True, kind="much data")


def helps_localization_less(contest: Contest) -> Finding:
    """6: scratch does better at AP75 than at AP50, relative to the pretrained arm."""
    task = contest.metric.split("/")[0]
    fine, coarse = contest.final_gaps(f"{task}/AP75"), contest.final_gaps(f"{task}/AP50")
    if len(fine) != len(coarse):
        return Finding(contest.name, NOT_ENOUGH, f"not every seed has {task}/AP50 and AP75")
    what = f"gap at {task}/AP75 less that at AP50"
    return _judge(contest, fine - coarse, 0.0, what, signed=True)


def _judge(
    contest: Contest,
    values: np.ndarray,
    bound: float,
    what: str,
    *,
    digits: int = 1,
    noisy: bool = True,
    signed: bool = False,
    kind: str = "",
) -> Finding:
    """Supported from `bound` on, contradicted below.

    Values are in AP, for which the study's noise counts, unless they are not `noisy`.
    """
    if len(values) == 0:
        return Finding(contest.name, NOT_ENOUGH, f"{what}: {contest.missing()}", kind)
    text = f"{what}: {_numbers(values, signed, digits)}; bound {bound:g}"
    limits = contest.limits
    if contest.best_ap() < limits.least_ap:
        text = f"{text}; both arms end under {limits.least_ap:g} AP: train longer"
        return Finding(contest.name, NOT_ENOUGH, text, kind)
    if len(values) < SEEDS_FOR_INTERVAL:
        off = float(values.mean()) - bound
        if abs(off) < (limits.noise if noisy else 0):
            text = f"{text}, less than {limits.noise:g} away: more seeds"
            return Finding(contest.name, NOT_ENOUGH, text, kind)
        return Finding(contest.name, SUPPORTED if off >= 0 else CONTRADICTED, text, kind)
    low, high = t_interval(values)
    if low >= bound:
        return Finding(contest.name, SUPPORTED, text, kind)
    if high < bound:
        return Finding(contest.name, CONTRADICTED, text, kind)
    return Finding(contest.name, NOT_ENOUGH, f"{text}, inside the interval: more seeds", kind)


def _numbers(values: np.ndarray, signed: bool, digits: int = 1) -> str:
    form = f"{'+' if signed else ''}.{digits}f"
    if len(values) < SEEDS_FOR_INTERVAL:
        return f"{values.mean():{form}} ({len(values)} seed{'s' * (len(values) > 1)}, no interval)"
    low, high = t_interval(values)
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}] ({len(values)} seeds)"


def _lags(contest: Contest, wanted: Callable[[int], bool], *, last: bool = False) -> np.ndarray:
    """Returns per seed by how much scratch is behind, over the evaluations both arms share."""
    curves = [
        _curves(contest.runs(arm), contest.metric) for arm in (contest.scratch, contest.other)
    ]
    lags = []
    for seed in curves[0].keys() & curves[1].keys():
        ours, theirs = curves[0][seed], curves[1][seed]
        common = [i for i in sorted(ours.keys() & theirs.keys()) if wanted(i)]
        common = common[-1:] if last else common
        if common:
            lags.append(float(np.mean([theirs[i] - ours[i] for i in common])))
    return np.array(lags)


def _curves(runs: Sequence[RunRecord], metric: str) -> dict[int | None, dict[int, float]]:
    """Returns per seed the metric by completed iterations."""
    curves = {}
    for run in runs:
        values = {e.iteration: e.scores.get(metric, math.nan) for e in evaluations(run.folder)}
        curves[run.seed] = {i: value for i, value in values.items() if math.isfinite(value)}
    return curves


def _final_loss(runs: Sequence[RunRecord]) -> float:
    finals = []
    for run in runs:
        file = RunFolder(run.folder).metrics_file
        if run.state == "finished" and file.exists():
            curve = read_metrics(file, own=True).training.get("total_loss")
            if curve is not None and len(curve.values):
                count = max(1, round(FINAL_LOSSES * len(curve.values)))
                finals.append(float(np.median(curve.values[-count:])))
    return float(np.mean(finals)) if finals else math.nan
