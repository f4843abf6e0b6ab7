"""Tables of several studies together: sizes of model (Table 3) and of data (Section 5).

Each raises UserError where :func:`.final_results` does so for all studies.
"""

import math
from collections.abc import Sequence

from scratch_vs_pretrain.analysis.runs import Records
from scratch_vs_pretrain.analysis.stats.results import (
    Results,
    by_study,
    final_results,
    metric_name,
    notes,
)
from scratch_vs_pretrain.analysis.tables.table import Cell, Table
from scratch_vs_pretrain.errors import UserError

MAIN = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")
AUGMENTED = tuple(metric.replace("/", "_TTA/") for metric in MAIN)


def large_table(runs: Records, *, best: bool = False) -> Table:
    """Table 3: every arm of every study at its longest schedule, with all six main metrics."""
    rows: list[tuple[Cell, ...]] = []
    studies, said = _studies(runs, best, alike=True)
    for results in studies:
        for arm in results.arms:
            finals = results.of(arm)
            for aug, metrics in (("no", MAIN), ("yes", AUGMENTED)):
                numbers, schedule = finals.means(metrics), results.longest(arm).schedule
                if not all(math.isnan(number.value) for number in numbers):
                    rows.append((results.study, arm, schedule, aug, len(finals), *numbers))
    return Table(
        "Final AP of every arm at its longest schedule",
        ("study", "arm", "schedule", "test aug", "seeds", *map(metric_name, MAIN)),
        tuple(rows),
        said,
    )


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
    metrics = ("bbox/AP", "segm/AP", "keypoints/AP")
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
    return Table(
        title,
        (*header, "pretrained", "pretrained value", "gap"),
        tuple(rows),
        said,
    )


def _studies(
    runs: Records, best: bool, *, alike: bool = False
) -> tuple[list[Results], tuple[str, ...]]:
    """Returns each study's results, fewest training images first, and the notes on them.

    A note that does not hold for all names its studies; what has no results is left out. Studies
    that must be `alike` are evaluated on the same data.
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
        _refuse_other_test_sets(found)
    found.sort(key=lambda results: results.runs[0].train_images or 0)
    held: dict[str, list[str]] = {}
    for results in found:
        for note in notes(results):
            held.setdefault(note, []).append(results.study)
    common = [note for note, names in held.items() if len(names) == len(found)]
    others = [f"{', '.join(names)}: {note}" for note, names in held.items() if note not in common]
    return found, (*common, *others, *(f"Left out: {reason}." for reason in refused))


def _refuse_other_test_sets(studies: Sequence[Results]) -> None:
    """A data set of a study's own has the study's name, so names count where contents do not."""
    seen: dict[str, tuple[str, str]] = {}
    for results in studies:
        for run, evaluation in results.finals:
            digest = run.data.test.sha256
            kind, value = ("content", digest) if digest else ("name", evaluation.dataset)
            first, other = seen.setdefault(kind, (value, results.study))
            if first != value:
                raise UserError(
                    f"studies {other} and {results.study} are evaluated on data of different "
                    f"{kind} ({first:.40} and {value:.40}); they cannot share this table, but "
                    "--kind summary"
                )
