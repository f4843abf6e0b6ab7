"""A study's results: final numbers, what must be said with them, and curves for verdicts.

Final numbers are those of the evaluation after the last planned iteration, never the best one. Runs
that did not get there are listed in the notes and enter no mean. Reads run folders only, and
without pandas: a table of a finished demo takes less time than that import.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from scratch_vs_pretrain.analysis.runs import RunRecord, grouped
from scratch_vs_pretrain.analysis.runs.numbers import (
    Evaluation,
    curve,
    evaluations,
    is_score,
    read_evaluation,
    refuse_other_test_sets,
)
from scratch_vs_pretrain.analysis.stats.comparable import (
    Unpaired,
    refuse_different_rules,
    refuse_other_training,
    scratch_arm,
    weights_of_seeds,
)
from scratch_vs_pretrain.analysis.stats.contrast import Contrast, Curves, Limits, end_gate
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, OPEN, half_width
from scratch_vs_pretrain.analysis.tables import Estimate
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.text import nearest

MUCH, LITTLE = "much data", "little data"
MASKS = "segm/AP"
# The first that both arms have; VOC is scored at one IoU threshold alone.
METRICS = ("keypoints/AP", "bbox/AP", "bbox/AP50", MASKS)
NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}

# Box AP by which two runs of one config on full COCO differ, as a standard deviation. Maintainers
# say "usually less than 0.2" (github.com/open-mmlab/mmdetection/issues/3624) and +/- 0.2
# (github.com/facebookresearch/Mask2Former/issues/46, where two runs gave 43.5 and 43.2).
COCO_SD = 0.2
COCO_TESTS = ("coco_2017_val", "keypoints_coco_2017_val")
COCO_IMAGES = 56_000  # The training images of keypoints; those of boxes are 117,266.


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
    return grouped(runs, lambda run: run.study)


def by_setting(runs: Iterable[RunRecord]) -> dict[str, tuple[RunRecord, ...]]:
    """Groups runs by study and, where that varies it, size of the training data; names both."""
    named = [
        run.model_copy(update={"study": run.setting, "size": None})
        for members in by_study(runs).values()
        for run in sorted(members, key=lambda run: run.size or 0)
    ]
    return by_study(named)


def only_study(runs: Sequence[RunRecord]) -> str:
    """Returns the name of the study that all the runs are of."""
    studies = by_study(runs)
    if len(studies) != 1:
        found = ", ".join(studies) or "none"
        raise UserError(f"one study is expected, these are {found}; name the folder of one")
    return runs[0].study


def final_results(runs: Sequence[RunRecord], *, best: bool = False) -> Results:
    """Reads the final evaluations of one study's runs.

    Args:
        runs: of one study.
        best: take each finished run's evaluation with the highest box AP (keypoint AP where there
            is one) instead. It is chosen by the data it is reported on, so it is too high.

    Raises:
        UserError: runs of several studies, no arm from scratch, an arm without a partner, or runs
            trained or evaluated on different data.
    """
    study = only_study(runs)
    arms = list(dict.fromkeys(run.arm for run in runs))
    scratch = scratch_arm(runs)
    if scratch is None:
        raise Unpaired(
            f"study {study}: no run of an arm that starts from scratch, only {', '.join(arms)}; "
            "give its folder too"
        )
    others = tuple(arm for arm in arms if arm != scratch)
    if not others:
        absent = [arm for arm in runs[0].arm_order if arm != scratch]
        raise Unpaired(
            f"study {study}: arm {scratch} has no partner here; give the folder of "
            f"{' or '.join(absent) or 'a pretrained arm'} too"
        )
    refuse_other_training(runs)
    finals = []
    for run in runs:
        file = RunFolder(run.folder).evaluation_file(run.iterations)
        if run.state == "finished" and file in RunFolder(run.folder).evaluation_files():
            final = max(evaluations(run.folder), key=_main) if best else read_evaluation(file)
            finals.append((run, final))
    told = (
        (kind, value, str(run.folder))
        for run, evaluation in finals
        for kind, value in (("name", evaluation.dataset), ("content", run.data.test.sha256))
        if value is not None
    )
    refuse_other_test_sets(told, f"study {study}:", "a table")
    return Results(study, tuple(runs), tuple(finals), scratch, others, best)


def _main(evaluation: Evaluation) -> float:
    """Returns the number by which the best evaluation is the best."""
    scores = evaluation.scores
    value = scores.get("keypoints/AP", scores.get("bbox/AP", math.nan))
    return value if math.isfinite(value) else -math.inf


def refuse_studies_of_other_tests(found: Iterable[Results], shared: str) -> None:
    """Raises UserError where studies, which cannot be `shared` then, differ in their test data."""
    # A data set of a study's own has the study's name: names count where contents do not.
    told = (
        ("content", digest, results.study)
        if (digest := run.data.test.sha256)
        else ("name", evaluation.dataset, results.study)
        for results in found
        for run, evaluation in results.finals
    )
    refuse_other_test_sets(told, "studies", shared)


def notes(results: Results, *, gaps: bool = True) -> tuple[str, ...]:
    """Returns what a reader of its numbers, and of the arms' `gaps`, must know, a sentence each."""
    source = "the evaluation after the last planned iteration."
    if results.best:
        source = (
            "each run's BEST evaluation, not its final one: chosen by the data that it is reported "
            "on, so too high."
        )
    return (
        f"Numbers: percent, from {source}",
        *_notes_on_seeds(results, gaps),
        *_notes_on_recipes(results),
        *_notes_on_missing_runs(results),
    )


def _notes_on_seeds(results: Results, gaps: bool) -> Iterator[str]:
    groups = {(run.arm, run.schedule) for run in results.runs}
    most = max(len(results.of(*group)) for group in groups)
    if most >= LEAST_SEEDS:
        yield (
            "Means over seeds; ± is half the two-sided 95 % t interval of each number alone (from "
            "three seeds on)."
        )
    elif most > 1:
        yield "Means over two seeds, too few for an interval."
    elif most == 1:
        yield "One seed, so no interval: a small difference may be noise."
    if gaps and most > 1:
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
    yield from (f"{said}." for said in weights_of_seeds(results.runs))
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


@dataclass(frozen=True)
class Setting:
    """Scratch against one other arm in one setting: data, size, model, length."""

    results: Results  # of the study, with these training data
    other: str  # the arm that scratch is compared with
    size: int | None  # training images, where the study varies them
    alone: bool  # the study has one other arm and one size
    limits: Limits  # by which it is judged
    sd: float | None  # noise that is assumed below three seeds; None if none is
    because: str  # why
    metric: str  # that decides
    without: tuple[str, ...]  # metrics that would decide before it, had any run a number

    @property
    def scratch(self) -> str:
        """The arm from random weights."""
        return self.results.scratch

    @property
    def arms(self) -> tuple[str, str]:
        return self.scratch, self.other

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Those of both arms."""
        return tuple(run for run in self.results.runs if run.arm in self.arms)

    @property
    def both_random(self) -> bool:
        """The other arm was not pre-trained either: what differs is allowed by the study."""
        return self.of(self.other)[0].from_scratch

    @property
    def name(self) -> str:
        """Names it among others: "less-data, 300 images"."""
        parts = [self.results.study]
        if not self.alone:
            parts.append(self.other)
            parts += [] if self.size is None else [f"{self.size:,} images"]
        return ", ".join(parts)

    @property
    def images(self) -> int | None:
        """Images of the training set."""
        return self.runs[0].train_images

    @property
    def instances(self) -> float | None:
        """Instances per training image that has any."""
        train = self.runs[0].data.train
        boxes, images = train.annotations, train.labelled or self.images
        return boxes / images if boxes is not None and images else None

    @property
    def sparse(self) -> bool:
        """Whether the images have few instances: little data too, however many they are (VOC)."""
        return self.instances is not None and self.instances < self.limits.few_instances

    @property
    def regime(self) -> str:
        """How much there is to learn from: much or little data; empty for what is between."""
        if self.images is None:
            return ""
        if self.images <= self.limits.few_images or self.sparse:
            return LITTLE
        return MUCH if self.images >= self.limits.many_images else ""

    @property
    def scope(self) -> str:
        """Names it by what is particular: its arm, its size, sparse data."""
        extra = [] if self.images is None else [f"{self.images:,} images"]
        if self.sparse:
            extra.append(f"{self.instances:.1f} instances an image")
        return f"{self.name} ({', '.join(extra)})" if extra else self.name

    def of(self, arm: str) -> tuple[RunRecord, ...]:
        """Returns the arm's runs."""
        return tuple(run for run in self.runs if run.arm == arm)

    def assumed(self) -> list[str]:
        """Says what verdicts rest on beside the runs."""
        contrast, said = self.contrast, []
        seeds = [{*curves.finals()} for arm in contrast.arms for curves in arm]
        if self.sd is not None and len(set().union(*seeds).intersection(*seeds)) < LEAST_SEEDS:
            said.append(f"a noise of {self.sd:g} AP ({self.because})")
        if end_gate(contrast) is OPEN:
            said.append(f"training that was long enough ({self.runs[0].converged})")
        return said

    def final_losses(self, arm: str) -> dict[int, float]:
        """Returns the training loss at the end of the arm's longest schedule, by seed."""
        runs = [run for run in self.of(arm) if run.state == "finished"]
        longest, found = max((run.iterations for run in runs), default=0), {}
        for run in (run for run in runs if run.iterations == longest):
            losses = curve(run, "total_loss").values
            # Of the losses that a run logged, the median of the last tenth is the final one.
            if len(last := losses[-max(1, round(0.1 * len(losses))) :]):
                found[run.seed or 0] = float(np.median(last))
        return {seed: loss for seed, loss in found.items() if loss > 0}

    @functools.cached_property
    def contrast(self) -> Contrast:
        """The curves of the metric that decides."""
        return self.contrast_of(self.metric)

    def contrast_of(self, metric: str) -> Contrast:
        """Returns the curves of a metric."""
        ours, theirs = (_arm(self.of(arm), metric) for arm in self.arms)
        return Contrast(ours, theirs, self.limits, self.sd, bool(self.runs[0].converged))


def metric_name(metric: str) -> str:
    """Returns a metric as one says it: "box AP"."""
    task, _, score = metric.partition("/")
    return f"{NAMES.get(task, task)} {score}"


def score_name(metric: str) -> str:
    """Returns a metric without its task: "AP"."""
    return metric.partition("/")[2] or metric


def settings(runs: Sequence[RunRecord], metric: str | None = None) -> tuple[Setting, ...]:
    """Returns scratch against each other arm of one study, at each of its sizes, largest first.

    Of one size, arms that were pre-trained come first.

    `metric` decides in place of the study's own.

    Raises:
        UserError: runs of several studies or none, as :func:`final_results`, limits that differ, or
            a metric that no finished run has.
    """
    only_study(runs)
    largest_first = sorted(runs, key=lambda run: -(run.size or 0))
    sizes = grouped(largest_first, lambda run: run.size or 0)
    # A size at which an arm is missing is left out, if there is another one.
    scratch = scratch_arm(runs)
    whole = {
        size: members for size, members in sizes.items() if {scratch} < {run.arm for run in members}
    }
    found = []
    for size, members in (whole or sizes).items():
        results, first = final_results(members), members[0]
        refuse_different_rules(members)
        alone = len(whole or sizes) == len(results.others) == 1
        for other in results.others:
            decides, without = _metric(results, other, metric or first.metric)
            rules = (_limits(first, decides), *_noise(members), decides, without)
            found.append(Setting(results, other, size or None, alone, *rules))
    known = {name for one in found for name in one.results.scored()}
    if metric and metric not in known:
        raise no_metric([metric], known, "finished run")
    return tuple(sorted(found, key=lambda one: (-(one.size or 0), one.both_random)))


def no_metric(unknown: Sequence[str], known: Collection[str], runs: str = "run") -> UserError:
    """Returns what is said of metrics that no run has; "" stands for any AP."""
    short = sorted(name for name in known if "-" not in name and "@" not in name)
    asked = ", ".join(unknown)
    near = nearest(asked, short) or f"; there is {', '.join(short) or 'nothing yet'}"
    return UserError(f"no {runs} here has {asked or 'an AP'}{near}")


def _metric(results: Results, other: str, stated: str | None) -> tuple[str, tuple[str, ...]]:
    """Returns the metric that decides, and those that would do so if any run had a number."""
    if stated:
        return stated, ()
    ours, theirs = results.scored(results.scratch), results.scored(other)
    known = ours & theirs or ours | theirs
    found = next((metric for metric in METRICS if metric in known), "bbox/AP")
    without = results.scored(finite=False) - known
    return found, tuple(m for m in METRICS[: METRICS.index(found)] if m in without)


def _limits(run: RunRecord, metric: str) -> Limits:
    stated = run.thresholds | ({} if run.margin is None else {"margin": run.margin})
    names = [field.name for field in fields(Limits)]
    known = {n: stated[n] for n in names if isinstance(stated.get(n), (int, float))}
    if not is_score(metric):  # Other numbers have other scales.
        known["least_ap"] = -math.inf
    return Limits(**known)


def _noise(runs: Sequence[RunRecord]) -> tuple[float | None, str]:
    """Returns the noise that is assumed below three seeds, and why; None where none is."""
    if runs[0].noise is not None:
        return runs[0].noise.sd, runs[0].noise.because
    images = runs[0].train_images or 0
    tests = {name for run in runs for name in run.data.test.names}
    if images >= COCO_IMAGES and tests and tests <= set(COCO_TESTS):
        return COCO_SD, "two runs on full COCO usually differ by less (mmdetection issue 3624)"
    return None, ""


def _arm(runs: Iterable[RunRecord], metric: str) -> tuple[Curves, ...]:
    """Returns the curves of an arm's finished runs by schedule, shortest first."""
    finished = [run for run in runs if run.state == "finished"]
    groups = grouped(finished, lambda run: (run.iterations, run.schedule))
    found = []
    for (length, schedule), group in sorted(groups.items()):
        read = [{e.iteration: e.scores for e in evaluations(run.folder)} for run in group]
        at = sorted({iteration for one in read for iteration in one})
        values = [[one.get(i, {}).get(metric, math.nan) for i in at] for one in read]
        seeds = tuple(run.seed or 0 for run in group)
        table = np.array(values, float).reshape(len(group), len(at))
        found.append(Curves(schedule, length, seeds, np.array(at, int), table, group[0].steps))
    return tuple(found)
