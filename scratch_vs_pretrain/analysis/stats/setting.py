"""Run folders to the arrays that verdicts rest on: finished runs only, one setting at a time."""

import contextlib
import functools
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from scratch_vs_pretrain.analysis.runs.metrics import is_score
from scratch_vs_pretrain.analysis.runs.numbers import curve, evaluations
from scratch_vs_pretrain.analysis.runs.records import RunRecord
from scratch_vs_pretrain.analysis.stats.comparison import Results, final_results, scratch_arm
from scratch_vs_pretrain.analysis.stats.contrast import Contrast, Curves, Limits, end_gate
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, LEVEL, OPEN
from scratch_vs_pretrain.errors import UserError, nearest
from scratch_vs_pretrain.run_folder import ADAPTIVE_FILE
from scratch_vs_pretrain.run_info import Noise

MUCH, LITTLE = "much data", "little data"
MASKS = "segm/AP"
# The first that both arms have; VOC is scored at one IoU threshold alone.
METRICS = ("keypoints/AP", "bbox/AP", "bbox/AP50", MASKS)
# The share of the losses that a run logged, from its end, that stands for the final one.
FINAL_LOSSES = 0.1
NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}

LIMITS = tuple(field.name for field in fields(Limits))
JUDGED_BY = ("thresholds", "margin", "level", "noise", "converged", "metric")

# Box AP by which two runs of one config on full COCO differ, as a standard deviation. Maintainers
# say "usually less than 0.2" (github.com/open-mmlab/mmdetection/issues/3624) and +/- 0.2
# (github.com/facebookresearch/Mask2Former/issues/46, where two runs gave 43.5 and 43.2).
COCO_SD = 0.2
COCO_TESTS = ("coco_2017_val", "keypoints_coco_2017_val")
COCO_IMAGES = 56_000  # The training images of keypoints; those of boxes are 117,266.


@dataclass(frozen=True)
class Setting:
    """Scratch against one other arm in one setting: data, size, model, length."""

    results: Results  # of the study, with these training data
    other: str  # the arm that scratch is compared with
    size: int | None  # training images, where the study varies them
    alone: bool  # the study has one other arm and one size
    limits: Limits  # by which it is judged
    level: float  # how often all verdicts of the study together are right
    sd: float | None  # noise that is assumed below three seeds; None if none is
    because: str  # why
    converged: str  # why the study says that its training is long enough; empty where it does not
    metric: str  # that decides
    without: tuple[str, ...]  # metrics that would decide before it, had any run a number

    @property
    def study(self) -> str:
        return self.results.study

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
        parts = [self.study]
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
            said.append(f"training that was long enough ({self.converged})")
        return said

    def final_losses(self, arm: str) -> dict[int, float]:
        """Returns the training loss at the end of the arm's longest schedule, by seed."""
        runs = [run for run in self.of(arm) if run.state == "finished"]
        longest = max((run.iterations for run in runs), default=0)
        found = {run.seed or 0: _final_loss(run) for run in runs if run.iterations == longest}
        return {seed: loss for seed, loss in found.items() if loss > 0}

    @functools.cached_property
    def contrast(self) -> Contrast:
        """The curves of the metric that decides."""
        return self.contrast_of(self.metric)

    def contrast_of(self, metric: str) -> Contrast:
        """Returns the curves of a metric."""
        ours, theirs = (_arm(self.of(arm), metric) for arm in self.arms)
        return Contrast(ours, theirs, self.limits, self.sd, bool(self.converged))


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
        UserError: no arm from scratch, none beside it, other test data, limits that differ, or a
            metric that no finished run has.
    """
    arms = {run.size or 0: set[str]() for run in runs}
    for run in runs:
        arms[run.size or 0].add(run.arm)
    # A size at which an arm is missing is left out, if there is another one.
    whole = [size for size, there in arms.items() if len(there) > 1 and scratch_arm(runs) in there]
    sizes = sorted(whole or arms, reverse=True)
    found = []
    for size in sizes:
        members = tuple(run for run in runs if (run.size or 0) == size)
        results, first = final_results(members), members[0]
        _refuse_different_rules(members)
        for other in results.others:
            decides, without = _metric(results, other, metric or first.metric)
            found.append(
                Setting(
                    results,
                    other,
                    size or None,
                    len(sizes) == len(results.others) == 1,
                    _limits(first, decides),
                    first.level or LEVEL,
                    *_noise(first.noise, members),
                    first.converged or "",
                    decides,
                    without,
                )
            )
    known = {name for one in found for name in one.results.scored()}
    if metric and metric not in known:
        raise no_metric([metric], known, "finished run")
    return tuple(sorted(found, key=lambda one: (-(one.size or 0), one.both_random)))


def looks_at(runs: Sequence[RunRecord]) -> int:
    """Returns over how many looks a study's error is divided; 1 if it was trained as planned."""
    level = 2 if runs[0].size is None else 3
    for study in runs[0].folder.absolute().parents[level : level + 1]:
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            told = json.loads((study / ADAPTIVE_FILE).read_bytes())
            return max(1, *(int(look["looks"]) for look in told["looks"]))
    return 1


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


def _refuse_different_rules(runs: Sequence[RunRecord]) -> None:
    for run in runs:
        if any(getattr(run, name) != getattr(runs[0], name) for name in JUDGED_BY):
            raise UserError(
                f"study {run.study}: {runs[0].folder} and {run.folder} are to be judged by "
                "different margins, noises or metrics; start the study with `svp run` again, which "
                "writes its own into every run.json"
            )


def _limits(run: RunRecord, metric: str) -> Limits:
    stated = run.thresholds | ({} if run.margin is None else {"margin": run.margin})
    known = {n: stated[n] for n in LIMITS if isinstance(stated.get(n), (int, float))}
    if not is_score(metric):  # Other numbers have other scales.
        known["least_ap"] = -math.inf
    return Limits(**known)


def _noise(stated: Noise | None, runs: Sequence[RunRecord]) -> tuple[float | None, str]:
    if stated is not None:
        return stated.sd, stated.because
    images = runs[0].train_images or 0
    tests = {name for run in runs for name in run.data.test.names}
    if images >= COCO_IMAGES and tests and tests <= set(COCO_TESTS):
        return COCO_SD, "two runs on full COCO usually differ by less (mmdetection issue 3624)"
    return None, ""


def _arm(runs: Iterable[RunRecord], metric: str) -> tuple[Curves, ...]:
    """Returns the curves of an arm's finished runs by schedule, shortest first."""
    groups: dict[tuple[int, str], list[RunRecord]] = {}
    for run in runs:
        if run.state == "finished":
            groups.setdefault((run.iterations, run.schedule), []).append(run)
    return tuple(_curves(groups[key], metric) for key in sorted(groups))


def _curves(runs: Sequence[RunRecord], metric: str) -> Curves:
    scores = [
        {e.iteration: e.scores.get(metric, math.nan) for e in evaluations(run.folder)}
        for run in runs
    ]
    at = sorted({iteration for one in scores for iteration in one})
    values = np.array([[one.get(i, math.nan) for i in at] for one in scores])
    return Curves(
        runs[0].schedule,
        runs[0].iterations,
        tuple(run.seed or 0 for run in runs),
        np.array(at, int),
        values.reshape(len(runs), len(at)),
        runs[0].steps,
    )


def _final_loss(run: RunRecord) -> float:
    losses = curve(run, "total_loss").values
    last = losses[-max(1, round(FINAL_LOSSES * len(losses))) :]
    return float(np.median(last)) if len(last) else math.nan
