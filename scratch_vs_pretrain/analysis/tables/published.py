"""Our final numbers beside the published ones: the paper's (arXiv 1811.08883), or the zoo's."""

import csv
import functools
import importlib.resources
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scratch_vs_pretrain.analysis.runs import Records
from scratch_vs_pretrain.analysis.stats.results import Results, final_results, metric_name, notes
from scratch_vs_pretrain.analysis.tables import Cell, Estimate, Table
from scratch_vs_pretrain.analysis.tables.studies import within_noise
from scratch_vs_pretrain.errors import UserError

# The zoo's numbers are from Detectron2 v0.6. Its pairs differ in more than their initial weights:
# pixel std, STRIDE_IN_1X1, FREEZE_AT, batch size and rate.
FILES = {"paper": "paper_results.csv", "zoo": "zoo_results.csv"}
ZOO_NOTE = (
    "The zoo's own arms differ in pixel std, STRIDE_IN_1X1, FREEZE_AT, batch size and rate, "
    "and its recipe is not the paper's."
)
PAPER_EVAL_IMAGES = {"coco_2017_val": 5000, "keypoints_coco_2017_val": 5000}

# The same data under another name.
TRAIN_SETS = {"coco_2014_valminusminival": "coco_35k"}


class PublishedNumber(NamedTuple):
    """One number with where it stands, as the CSV files have it."""

    experiment: str
    source: str
    detector: str
    backbone: str
    norm: str
    init: str  # "scratch" or "pretrained"
    schedule: str  # "2x" to "11x", "best" or empty
    iterations: str
    train_set: str
    eval_set: str
    metric: str  # Detectron2's key
    value: float  # percent
    note: str  # what else was done ("train aug")


@functools.cache
def all_published(by: str = "paper") -> tuple[PublishedNumber, ...]:
    """Returns every number that the "paper" or Detectron2's model "zoo" published, in order."""
    text = (importlib.resources.files(__package__) / FILES[by]).read_text()
    rows = csv.DictReader(text.splitlines())
    return tuple(PublishedNumber(**{**row, "value": float(row["value"])}) for row in rows)  # type: ignore[arg-type]


def published(by: str = "paper", **fields: str | None) -> tuple[PublishedNumber, ...]:
    """Returns the numbers whose fields are these; None asks for nothing.

    Example: ``published(experiment="baseline", backbone="R50", init="scratch", schedule="2x")``.
    """
    return tuple(
        number
        for number in all_published(by)
        if all(value in (None, getattr(number, name)) for name, value in fields.items())
    )


def paper_study(name: str) -> dict[str, str | None]:
    """Reads from a study's name, like "baseline-r50-gn" or "less_data_10k", what it repeats.

    Returns:
        fields of published numbers: experiment, backbone and norm, None where it does not tell.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    experiments = sorted({number.experiment for number in all_published()})
    experiment = next((e for e in experiments if re.match(rf"{e}(_|\d|$)", plain)), None)
    if experiment is None:
        raise UserError(
            f"study {name!r} is none of the paper's by its name; "
            "a name such as baseline-r50-gn tells which experiment a study repeats "
            f"({', '.join(experiments)})"
        )
    parts = plain.split("_")

    def named(field: str) -> str | None:
        """Returns the choice that the name holds ("x152" is X152-8x32d), or the only one."""
        choices = {getattr(number, field) for number in published(experiment=experiment)}
        found = [c for c in choices if {c.lower(), c.lower().split("-")[0]} & set(parts)]
        found = found or list(choices)
        return found[0] if len(found) == 1 else None

    # The zoo also has SyncBN, and a study of it must not be compared with GN's numbers.
    zoo = {number.norm for number in all_published("zoo")}
    norm = next((other for other in zoo if other.lower() in parts), named("norm"))
    return {"experiment": experiment, "backbone": named("backbone"), "norm": norm}


def published_table(runs: Records, by: str = "paper", kind: str = "schedules") -> Table:
    """Returns a study's numbers beside those published, which its name tells.

    A published number is compared with ours of the same training and evaluation data, cascade and
    test augmentation. "Pretrained" is the arm of that name, else the first pretrained one; the
    schedule "best", or none, is the arm's longest. Within noise is a difference inside the
    prediction interval of one more run of ours; below three seeds, one under 0.39 AP on full COCO,
    and an open question elsewhere. A baseline's "metrics" are Table 2's; for other kinds the
    study's name says which table is meant.
    """
    fields = paper_study(runs[0].study)
    if kind == "metrics" and by == "paper" and fields["experiment"] == "baseline":
        fields["experiment"] = "metrics"
    results = final_results(runs)
    whose = f"the {by}'s {fields['experiment']} numbers"
    ours = _of_our_data(results, published(by, **fields), whose)
    cascade = "cascade" in results.study.lower() or fields["experiment"] == "enhanced"
    on_scratch = any(run.tuned_on == results.scratch for run in results.runs)
    recipe = (cascade, on_scratch)
    numbers = [n for n in ours if ("cascade" in n.note, "scratch arm" in n.note) == recipe]
    rows = tuple(row for number in numbers for row in _beside(results, number))
    theirs = sorted({f"{_our_metric(n)} at {n.schedule or 'best'}" for n in numbers})
    nothing = f"Nothing to compare: no finished run here has the {by}'s {', '.join(theirs)}."
    reach = (
        f"The ± of ours - {by} is half the 95 % prediction interval of one more run of ours, since "
        "the published run varies too; it decides what is within noise."
    )
    return Table(
        f"{results.study}: ours and the {by}'s",
        ("arm", "schedule", "metric", "ours", by, f"ours - {by}", "within noise", "source"),
        rows,
        (
            *([nothing] if numbers and not rows else []),
            *notes(results, gaps=False),
            *([reach] if any("±" in str(row[5]) for row in rows) else []),
            *([ZOO_NOTE] if by == "zoo" else []),
        ),
    )


def _of_our_data(
    results: Results, numbers: Sequence[PublishedNumber], whose: str
) -> list[PublishedNumber]:
    """Returns the numbers of our training and evaluation sets; none while nothing is finished.

    Where there are none, the error says `whose` numbers they would be.
    """
    if not results.finals:
        return []
    run, evaluation = results.finals[0]
    ours = evaluation.dataset
    images, whole = run.data.test.images, PAPER_EVAL_IMAGES.get(ours)
    # As published numbers name them: "coco_10k".
    names = (TRAIN_SETS.get(name, name) for name in run.data.train.names)
    trained = "+".join(re.sub("^coco_2017_train_", "coco_", name) for name in names)
    found = [number for number in numbers if number.eval_set == ours]
    alike = [number for number in found if number.train_set == trained]
    there, theirs = f"evaluated on {ours}", {number.eval_set for number in numbers}
    if found and whole and images != whole:
        there, theirs = f"{there} of {images} images", {f"the {whole} of the whole"}
    elif alike:
        return alike
    elif found:
        there = f"trained on {trained or 'unknown data'}"
        theirs = {number.train_set for number in numbers}
    raise UserError(
        f"study {results.study} is {there}, {whose} on "
        f"{', '.join(sorted(theirs)) or 'nothing that fits'}; they cannot be compared"
    )


def _beside(results: Results, number: PublishedNumber) -> Iterator[tuple[Cell, ...]]:
    pretrained = "pretrained" if "pretrained" in results.others else results.others[0]
    run = results.longest(results.scratch if number.init == "scratch" else pretrained)
    if number.schedule not in ("", "best"):
        mine = [r for r in results.runs if (r.arm, r.schedule) == (run.arm, number.schedule)]
        if not mine:
            return
        run = mine[0]
    finals, metric = results.of(run.arm, run.schedule), _our_metric(number)
    (mean,) = finals.means([metric])
    if not math.isnan(mean.value):
        # The published run varies too: a prediction interval for one more run of ours.
        root = math.sqrt(len(finals.of(metric)) + 1)
        reach = None if mean.half_width is None else mean.half_width * root
        gap = Estimate(mean.value - number.value, reach, signed=True)
        source = f"{number.source}, {number.note}" if number.note else number.source
        cells = (run.arm, run.schedule, metric_name(number.metric), mean, number.value, gap)
        yield (*cells, within_noise(gap, run), source)


def _our_metric(number: PublishedNumber) -> str:
    """Returns the metric of ours that a published number is compared with."""
    if number.experiment == "voc":
        return number.metric.replace("bbox/", "voc/")  # Pascal VOC's own AP.
    augmented = "test aug" in number.note
    return number.metric.replace("/", "_TTA/") if augmented else number.metric
