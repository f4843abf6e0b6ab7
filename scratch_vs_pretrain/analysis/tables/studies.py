"""Tables of one study, both arms side by side, and of several studies together.

What their numbers are, and what is refused: :mod:`.stats.results`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from scratch_vs_pretrain.analysis.runs import Records, RunRecord
from scratch_vs_pretrain.analysis.runs.numbers import curve
from scratch_vs_pretrain.analysis.stats.contrast import region, smoothed
from scratch_vs_pretrain.analysis.stats.cost import axis_sentences, cost, on_processors, total_hours
from scratch_vs_pretrain.analysis.stats.results import (
    COCO_SD,
    NAMES,
    Results,
    Setting,
    by_study,
    final_results,
    metric_name,
    notes,
    refuse_studies_of_other_tests,
    settings,
)
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, LEVEL, half_width, t_interval
from scratch_vs_pretrain.analysis.tables import Cell, Estimate, Table, shown
from scratch_vs_pretrain.errors import UserError

AXES = ("iterations", "images", "pixels", "gpu-hours")

# The smallest two-sided p of n sign flips is 2 / 2^n: 0.0625 for n = 5, 0.031 for n = 6.
SEEDS_FOR_P = 6
# All of 16 seeds.
FLIPS = 2**16
RESAMPLES = 9999

GAP_NOTES = (
    "t and BCa: 95 % intervals of the mean gap, from three seeds on; BCa is too narrow for few "
    "seeds (docs/verdicts.md), so the t interval decides what is within noise.",
    f"p: two-sided, over all sign flips, from {SEEDS_FOR_P} seeds on; below it cannot fall under "
    "0.05.",
)

MAIN = ("AP", "AP50", "AP75")
ALL = (*MAIN, "APs", "APm", "APl")
FULL_COCO = (("coco_2017_train",), ("coco_2017_val",))

# A folder may hold part of COCO under the whole one's name; training drops unlabelled images.
FULL_COCO_IMAGES = 117_266

# What each type of error costs (``evaluation/scores.py``).
ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
COSTS = tuple(f"bbox/dAP-{kind}" for kind in ERROR_TYPES)
EXCESS = "bbox/dAP-excess"
ERROR_ROWS = {
    "box AP50": "bbox/AP50",
    **dict(zip(ERROR_TYPES, COSTS, strict=True)),
    "classification less localization": EXCESS,
}
FALLBACK = {"box AP50": "bbox/AP50", "box AP75": "bbox/AP75"}

ERROR_NOTE = (
    "Costs: by how much box AP50 rises when all errors of a type are mended (TIDE's dAP, "
    "arXiv 2008.08115). They do not add up."
)
NO_ERRORS_NOTE = (
    "These evaluations were written before they had the costs of errors. A gap that is larger at "
    "AP75 than at AP50 says that boxes lie less well."
)


def schedules_table(runs: Records, *, best: bool = False, lengths: bool = True) -> Table:
    """Table 1: every arm at every schedule, and the difference where both have that schedule."""
    results = final_results(runs, best=best)
    scratch, metrics = results.scratch, metrics_of(results, MAIN)
    counted = ("iterations", "images", "epochs") if lengths else ()
    rows: list[tuple[Cell, ...]] = []
    by_length = sorted(runs, key=lambda run: (run.iterations, run.schedule))
    planned = {(run.arm, run.schedule): run for run in reversed(runs)}
    shared = {
        (arm, schedule)
        for (arm, schedule), run in planned.items()
        if (ours := planned.get((scratch, schedule))) and _alike(ours, run)
    }
    for schedule in dict.fromkeys(run.schedule for run in by_length):
        found = {arm: results.of(arm, schedule) for arm in results.arms}
        gaps = {
            f"{scratch} - {other}": found[scratch] - found[other]
            for other in results.others
            if (other, schedule) in shared
        }
        for name, final in {**found, **gaps}.items():
            if final:
                length = [getattr(planned.get((name, schedule)), key, None) for key in counted]
                rows.append((name, schedule, *length, len(final), *final.means(metrics)))
    alone = [
        f"{scratch} and {other} have no schedule in common; "
        "the metrics table compares their longest ones."
        for other in results.others
        if not any(arm == other for arm, _ in shared)
    ]
    header = ("arm", "schedule", *counted, "seeds", *map(metric_name, metrics))
    title = f"{results.study}: AP by arm and schedule"
    return Table(title, header, tuple(rows), (*_notes(results), *alone))


def metrics_table(runs: Records, *, best: bool = False) -> Table:
    """Table 2: every metric at each arm's longest schedule, and the difference."""
    results = final_results(runs, best=best)
    # Then those of users' own evaluators, VOC's and a Panoptic FPN's.
    metrics = metrics_of(results, ALL) + sorted(
        metric
        for metric in results.scored(finite=False)
        if metric.partition("/")[0] not in NAMES and "@" not in metric and "-" not in metric
    )
    return Table(
        f"{results.study}: AP, its parts, and the difference at the longest schedule of each arm",
        *_side_by_side(results, "metric", {metric_name(m): m for m in metrics}),
        _notes(results),
    )


def _side_by_side(
    results: Results, corner: str, metrics: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Returns header and rows: for each label of `metrics` the arms at their longest schedules."""
    columns = {}
    for arm in results.arms:
        columns[f"{arm} {results.longest(arm).schedule}"] = results.of(arm)
        if arm != results.scratch:
            columns[f"{results.scratch} - {arm}"] = results.of(results.scratch) - results.of(arm)
    cells = [(len(one), *one.means(metrics.values())) for one in columns.values()]
    return (corner, *columns), tuple(zip(("seeds", *metrics), *cells, strict=True))


def within_noise(gap: Estimate, run: RunRecord) -> str:
    """Returns "yes", "no" or "unknown": inside its interval, else by the noise of full COCO."""
    if gap.half_width is not None:
        return "yes" if abs(gap.value) <= gap.half_width else "no"
    names = (run.data.train.names, run.data.test.names)
    if names == FULL_COCO and (run.train_images or 0) >= FULL_COCO_IMAGES:
        return "yes" if abs(gap.value) < 1.96 * COCO_SD else "no"
    return "unknown"


def metrics_of(results: Results, names: Iterable[str]) -> list[str]:
    """Returns the metrics that any final evaluation has, box before mask before keypoint."""
    known = results.scored(finite=False)
    wanted = [f"{task}/{name}" for task in NAMES for name in names]
    return [metric for metric in wanted if metric in known or (not known and metric[0] != "k")]


def gap_table(runs: Records, *, best: bool = False) -> Table:
    """Returns the final gap, scratch less each other arm, paired by seed, with its statistics."""
    results = final_results(runs, best=best)
    scratch = results.longest(results.scratch)
    rows: list[tuple[Cell, ...]] = []
    for other in map(results.longest, results.others):
        found = results.of(scratch.arm) - results.of(other.arm)
        for metric in filter(found.of, metrics_of(results, MAIN)):
            gaps = found.of(metric)
            enough, mean = len(gaps) >= LEAST_SEEDS, float(np.mean(gaps))
            intervals = (*t_interval(gaps), *bca_interval(gaps)) if enough else (None,) * 4
            ends = [None if end is None else Estimate(float(end), signed=True) for end in intervals]
            p = f"{sign_flip_p(gaps):.3f}" if len(gaps) >= SEEDS_FOR_P else None
            noise = within_noise(Estimate(mean, half_width(gaps)), other)
            about = (_arms(scratch, other), metric_name(metric), len(gaps))
            rows.append((*about, Estimate(mean, signed=True), *ends, p, noise))
    header = ("arms", "metric", "seeds", "gap", "t low", "t high", "BCa low", "BCa high", "p")
    return Table(
        f"{results.study}: final AP of {scratch.arm} less the other arm's, paired by seed",
        (*header, "within noise"),
        tuple(rows),
        (*_notes(results), *GAP_NOTES),
    )


def _notes(results: Results) -> tuple[str, ...]:
    """Returns the notes on a study, and where one name stands for other schedules of its arms."""
    ours = {run.schedule: run for run in results.runs if run.arm == results.scratch}
    unlike = {
        f"{run.schedule} is two schedules: {_length(ours[run.schedule])}, {_length(run)}."
        for run in results.runs
        if not _alike(ours.get(run.schedule, run), run)
    }
    return (*notes(results), *sorted(unlike))


def _length(run: RunRecord) -> str:
    drops = ", ".join(f"{step:,}" for step in run.steps) or "none"
    return f"{run.iterations:,} iterations of {run.arm} (drops of the rate: {drops})"


def _alike(one: RunRecord, other: RunRecord) -> bool:
    """Tells whether two runs have one schedule, whatever its name."""
    return (one.iterations, one.steps) == (other.iterations, other.steps)


def _arms(scratch: RunRecord, other: RunRecord) -> str:
    return f"{scratch.arm} {scratch.schedule} - {other.arm} {other.schedule}"


def bca_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Returns the BCa bootstrap interval (Efron 1987) of the mean of (n,) values.

    Values that are all equal, whose bootstrap has no width, give the t interval. Too narrow for
    few seeds: see docs/verdicts.md.
    """
    from scipy import stats

    if np.ptp(values) == 0:
        low, high = t_interval(values)
    else:
        low, high = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(low), float(high)


def sign_flip_p(differences: ArrayLike) -> float:
    """Returns the two-sided p value of a zero mean if every sign were as likely as its opposite.

    Exact, over all 2^n flips, up to 16 values; beyond, over 65,536 random ones.
    """
    from scipy import stats

    result = stats.permutation_test(
        (np.asarray(differences, float),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def catch_up_table(runs: Records) -> Table:
    """Returns between where and where scratch comes within the study's margin of the other arm.

    Both arms are taken at their longest schedule, where the rate is in the same phase, and in
    iterations, images, pixels with those of pre-training, and GPU hours, as far as known.
    """
    results = final_results(runs)
    found = settings(runs)
    margins = dict.fromkeys(f"{c.limits.margin:g} {metric_name(c.metric)}" for c in found)
    said = [
        "From, to: a 95 % region over seeds of where the other arm's mean lead falls to the margin "
        "to stay (docs/verdicts.md); 0: perhaps before the first evaluation, later: perhaps not by "
        "the end. In common is where both arms train at one rate.",
        "Pixels include those of pre-training; hours include evaluations.",
        *axis_sentences("pixels", runs),
    ]
    if on_processors(runs):
        said.append("Hours are a processor's.")
    if hours := total_hours(runs):
        together, alone = map(_hours, hours)
        shared = f", a trunk that schedules share counted once; each alone: {alone}"
        shared = "" if math.isclose(*hours) else shared
        said.append(f"All runs together: {together} hours{shared}.")
    return Table(
        f"{results.study}: where {results.scratch} comes within {', '.join(margins)}",
        ("arms", "in", "seeds", "from", "to"),
        tuple(row for setting in found for row in _catch_up_rows(setting, results)),
        (*_notes(results), *said),
    )


def _catch_up_rows(setting: Setting, results: Results) -> Iterator[tuple[Cell, ...]]:
    longest = [results.longest(arm) for arm in setting.arms]
    finished = [run for run in setting.runs if run.state == "finished"]
    ours, theirs = (
        {run.seed: run for run in finished if (run.arm, run.schedule) == (one.arm, one.schedule)}
        for one in longest
    )
    both = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    for axis in AXES if both else ():
        found = _leads(both, axis, setting.metric)
        if found is None:
            continue
        end: Cell = None
        if not setting.contrast.learned:
            start: Cell = f"nothing: both end under {setting.limits.least_ap:g} AP"
        elif len(both) < LEAST_SEEDS and setting.sd is None:
            start = f"needs {LEAST_SEEDS} seeds"
        elif len(found[0]) < 2:
            start = f"no {axis} in common"
        else:
            where = region(*smoothed(*found), setting.limits.margin, sd=setting.sd)
            amount = _hours if axis == "gpu-hours" else round
            if math.isinf(where.low):
                start = f"not by {shown(amount(where.end))}"
            else:
                start = amount(where.low)
                end = "later" if math.isinf(where.high) else amount(where.high)
        yield (_arms(*longest), axis, len(both), start, end)


def _leads(
    both: Sequence[tuple[RunRecord, RunRecord]], axis: str, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns an axis, as far as all rates are in one phase, the other's lead by seed, and drops.

    Straight lines join evaluations of one phase; beyond its end the other arm keeps its last value.
    Of one schedule only the evaluations that all runs have count, as for the answer. None where the
    axis is not known of every run.
    """
    runs = list(itertools.chain(*both))
    curves = [curve(run, metric) for run in runs]
    shared = functools.reduce(np.intersect1d, [c.iterations for c in curves])
    if len(shared) < 2 or not _alike(*both[0]):
        shared = np.concatenate([c.iterations for c in curves])
    found = []
    for run, one in zip(runs, curves, strict=True):
        kept = np.isin(one.iterations, shared)
        at = one.iterations[kept]
        found.append((cost(run, axis, at), one.values[kept], np.searchsorted(run.steps, at)))
    if any(np.isnan(at).any() or not len(at) for at, *_ in found):
        return None
    grid = np.unique(np.concatenate([at for at, *_ in found]))
    begin, end = max(at[0] for at, *_ in found), min(at[-1] for at, *_ in found[::2])
    grid = grid[(begin <= grid) & (grid <= end) & (grid > 0)]
    # Between evaluations to both sides of a drop, it is no whole number.
    phases = np.array([np.interp(grid, at, phase) for at, _, phase in found])
    grid = grid[(phases == phases[0].astype(int)).all(axis=0)]
    scores = np.array([np.interp(grid, at, values) for at, values, _ in found])
    return grid, scores[1::2] - scores[::2], cost(runs[0], axis, np.array(runs[0].steps))


def _hours(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def errors_table(runs: Records) -> Table:
    """Returns what each type of error costs each arm of a study at its longest schedule.

    Evaluations without error costs are compared by what they have, AP at two thresholds.
    """
    results = final_results(runs)
    finals = []
    for run, final in results.finals:
        cost, other = (final.scores.get(name, math.nan) for name in COSTS[:2])
        scores = {**final.scores, EXCESS: cost - other}
        finals.append((run, dataclasses.replace(final, scores=scores)))
    results = dataclasses.replace(results, finals=tuple(finals))
    told = any(cost in final.scores for _, final in finals for cost in COSTS)
    said = [line for arm in results.others for line in _error_sentence(results, arm)]
    return Table(
        f"{results.study}: AP50 that each type of error costs at the longest schedule of each arm",
        *_side_by_side(results, "cost of errors", ERROR_ROWS if told else FALLBACK),
        (*said, ERROR_NOTE if told else NO_ERRORS_NOTE, *_notes(results)),
    )


def _error_sentence(results: Results, arm: str) -> Iterator[str]:
    gap = results.of(results.scratch) - results.of(arm)
    classification, localization, excess = gap.means([*COSTS[:2], EXCESS])
    if math.isnan(excess.value):
        return
    helper = f"arm {arm}" if results.longest(arm).from_scratch else "pre-training"
    pairs = [("classification", classification), ("localization", localization)]
    (more, above), (less, below) = pairs if excess.value > 0 else pairs[::-1]
    helps = above.value > (above.half_width or 0)
    harms = -below.value > (below.half_width or 0)
    if excess.half_width is None:
        verdict = "too few seeds to tell them apart"
    elif abs(excess.value) <= excess.half_width:
        verdict = "their difference is within noise"
    elif helps:
        verdict = f"{helper} helps {more} {'and harms' if harms else 'more than'} {less}"
    elif harms:
        verdict = f"{helper} harms {less} more than {more}"
    else:
        verdict = f"{helper} favours {more}, but is not shown to help it or to harm {less}"
    yield (
        f"Beyond {arm}, {results.scratch} loses {classification} AP50 to classification "
        f"and {localization} to localization: {verdict}."
    )


def large_table(runs: Records, *, best: bool = False) -> Table:
    """Table 3: every arm of every study at its longest schedule, with all six main metrics."""
    rows: list[tuple[Cell, ...]] = []
    studies, said = _studies(runs, best, alike=True)
    metrics = [f"{task}/{name}" for task in ("bbox", "segm") for name in MAIN]
    for results in studies:
        for arm in results.arms:
            finals, schedule = results.of(arm), results.longest(arm).schedule
            for augmented, mark in (("no", "/"), ("yes", "_TTA/")):
                numbers = finals.means(metric.replace("/", mark) for metric in metrics)
                if not all(math.isnan(number.value) for number in numbers):
                    rows.append((results.study, arm, schedule, augmented, len(finals), *numbers))
    header = ("study", "arm", "schedule", "test aug", "seeds", *map(metric_name, metrics))
    return Table("Final AP of every arm at its longest schedule", header, tuple(rows), said)


def less_data_table(runs: Records, *, best: bool = False) -> Table:
    """Section 5.2: box AP of both arms by the number of training images."""
    found = _studies(runs, best, alike=True)
    return _beside(*found, ("bbox/AP",), "Box AP by the size of the training set")


def voc_table(runs: Records, *, best: bool = False) -> Table:
    """Section 5.2: AP at IoU 0.5 of both arms, by PASCAL VOC's metric where that was evaluated."""
    studies, said = _studies(runs, best, alike=True)
    own = any("voc/AP50" in study.scored(finite=False) for study in studies)
    return _beside(studies, said, ("voc/AP50" if own else "bbox/AP50",), "Box AP at IoU 0.5")


def summary_table(runs: Records, *, best: bool = False) -> Table:
    """Every study's arms side by side with the gap, for each task's AP."""
    metrics = [f"{task}/AP" for task in NAMES]
    return _beside(*_studies(runs, best), metrics, "Every study at its longest")


def _beside(
    studies: Sequence[Results], said: tuple[str, ...], metrics: Sequence[str], title: str
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for results in studies:
        ours, known = results.of(results.scratch), results.scored(finite=False)
        run = results.longest(results.scratch)
        for other in map(results.longest, results.others):
            theirs = results.of(other.arm)
            gap = ours - theirs
            for metric in (m for m in metrics if m in known):
                first = (results.study, run.train_images, metric, len(gap))
                left, right = (f"{one.arm} {one.schedule}" for one in (run, other))
                (a,), (b,), (less,) = (some.means([metric]) for some in (ours, theirs, gap))
                rows.append((*first, left, a, right, b, less))
    header = ("study", "training images", "metric", "seeds", "scratch", "scratch value")
    return Table(title, (*header, "pretrained", "pretrained value", "gap"), tuple(rows), said)


def _studies(
    runs: Records, best: bool, *, alike: bool = False
) -> tuple[list[Results], tuple[str, ...]]:
    """Returns each study's results, fewest training images first, and the notes on them.

    A note that does not hold for all names its studies; what has no results is left out. Studies
    that must be `alike` are evaluated on the same data. Raises what :func:`.final_results` raises
    for all studies.
    """
    found, refused = [], []
    for members in by_study(runs).values():
        try:
            found.append(final_results(members, best=best))
        except UserError as error:
            refused.append(str(error))
    if not found:
        raise UserError(refused[0])
    if alike:
        refuse_studies_of_other_tests(found, "this table, but --kind summary")
    found.sort(key=lambda results: results.runs[0].train_images or 0)
    held: dict[str, list[str]] = {}
    for results in found:
        for note in _notes(results):
            held.setdefault(note, []).append(results.study)
    common = [note for note, names in held.items() if len(names) == len(found)]
    others = [f"{', '.join(names)}: {note}" for note, names in held.items() if note not in common]
    return found, (*common, *others, *(f"Left out: {reason}." for reason in refused))
