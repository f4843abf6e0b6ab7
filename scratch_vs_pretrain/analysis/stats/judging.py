"""What one study says about each of the paper's conclusions.

A rule compares one number per seed with a bound. From three seeds on the 95 % t interval must lie
on one side of the bound; below, the mean decides and the evidence says how few seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from scratch_vs_pretrain.analysis.runs.evaluations import evaluations
from scratch_vs_pretrain.analysis.runs.metrics import read_metrics
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import pairs
from scratch_vs_pretrain.analysis.stats.contest import (
    CONTRADICTED,
    NOT_ENOUGH,
    SUPPORTED,
    Contest,
    Finding,
)
from scratch_vs_pretrain.analysis.stats.paired import SEEDS_FOR_INTERVAL, t_interval
from scratch_vs_pretrain.run_folder import RunFolder

# The share of metrics.json's lines, from its end, whose losses stand for the final one.
FINAL_LOSSES = 0.1


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
        what = f"{contest.metric} that scratch lacks at {common[0]}"
        return _judge(contest, -gaps, margin, what, missing=contest.missing(common[0]))
    end = min(both[1].values())
    lags = _lags(contest, lambda iteration: iteration <= end, last=True)
    what = f"{contest.metric} that scratch lacks when {contest.other} ends its shortest schedule"
    needed = f"an evaluation of both arms at or before iteration {end:,}"
    return _judge(contest, lags, margin, what, missing=contest.missing(otherwise=needed))


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
    missing = contest.missing(otherwise="evaluations of both arms at the same iterations up to it")
    return _judge(contest, lags, contest.limits.margin, what, missing=missing)


def regularizes_little_data(contest: Contest) -> Finding:
    """5: with much data no final gap at an equal training loss; with very little, a gap."""
    run, limits = contest.results.runs[0], contest.limits
    images, boxes = run.train_images, run.train_set.annotations
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
    missing: str = "",
) -> Finding:
    """Supported from `bound` on, contradicted below.

    Values are in AP, for which the study's noise counts, unless they are not `noisy`.
    """
    if len(values) == 0:
        return Finding(contest.name, NOT_ENOUGH, f"{what}: {missing or contest.missing()}", kind)
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
            # The last lines of a short run may hold AP alone.
            for share in (FINAL_LOSSES, 1.0):
                curve = read_metrics(file, own=True, share=share).training.get("total_loss")
                if curve is not None:
                    finals.append(float(np.median(curve.values)))
                    break
    return float(np.mean(finals)) if finals else math.nan
