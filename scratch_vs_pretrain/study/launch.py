"""Starts, skips, resumes and refuses the runs of a study; one process per run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scratch_vs_pretrain.analysis.tables.live import live_table, status_text
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.cluster import Cluster
from scratch_vs_pretrain.study.prepare import prepare
from scratch_vs_pretrain.study.run_queue import RunQueue, Slot
from scratch_vs_pretrain.study.slurm import Submission, queue_on
from scratch_vs_pretrain.study.spec import Study
from scratch_vs_pretrain.study.tune import pick_winner, search_study, with_recipe
from scratch_vs_pretrain.training.branch import ENDED
from scratch_vs_pretrain.training.processes import signals_to


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its state, why unless it finished, and what was wrong with its data.

    Attributes:
        unreadable_images: those that others replaced.
        repaired: how many entries were dropped or mended, by what was wrong.
    """

    folder: RunFolder
    state: str
    reason: str | None
    unreadable_images: tuple[str, ...] = ()
    repaired: Mapping[str, int] = field(default_factory=dict)


def run_study(
    study: Study,
    output: Path,
    slots: Sequence[Slot] = ((),),
    verbose: bool = False,
    sharing: bool = True,
    cluster: Cluster | None = None,
) -> list[Outcome]:
    """Trains every run of a study that is not finished, and returns how each ended.

    Finished runs are skipped, interrupted and failed ones resumed from their newest checkpoint,
    diverged ones left alone. One run's failure does not stop the others. Ctrl-C and SIGTERM let
    the runs save a checkpoint first.

    A recipe that has to be searched is searched first; unless the search is complete, its
    outcomes are returned and nothing else trains.

    Args:
        study: what to train.
        output: below which the run folders lie.
        slots: see :func:`scratch_vs_pretrain.study.run_queue.make_slots`.
        verbose: show Detectron2's log.
        sharing: schedules of one arm and seed share their trunk.
        cluster: runs are its jobs, and not started in `slots`; SLURM's are submitted only.

    Raises:
        UserError: as :func:`prepare`; or jobs that cannot be submitted.
    """
    if study.tune is not None:
        outcomes = run_study(search_study(study), output, slots, verbose, sharing, cluster)
        if any(outcome.state not in ENDED for outcome in outcomes):
            return outcomes
        winner = pick_winner(study, [outcome.folder for outcome in outcomes], output)
        study = with_recipe(study, winner)
    folders = prepare(study, output, sharing)
    # Seed by seed, so that the first pair is complete as early as possible.
    runs = sorted(zip(study.runs(), folders, strict=True), key=lambda pair: pair[0].seed)
    waiting = [folder for _, folder in runs if folder.state() not in ENDED]
    queue: RunQueue | Submission
    if cluster is None:
        queue = RunQueue(waiting, list(slots)[: max(1, len(waiting))], verbose)
    else:
        queue = queue_on(cluster, output / "jobs", waiting)
    wanted = bool(waiting) and isinstance(queue, RunQueue)
    with signals_to(queue.stop), _progress(output / study.name, wanted, verbose) as show:
        if isinstance(queue, RunQueue):
            queue.show = show
        queue.work()
    return [_outcome(folder, queue.blocked.get(folder)) for folder in folders]


def _outcome(folder: RunFolder, blocked: str | None) -> Outcome:
    run = folder.read()
    unreadable = tuple(run.get("unreadable_images", ()))
    reason = blocked or run.get("reason")
    return Outcome(folder, folder.state(), reason, unreadable, run.get("repaired", {}))


@contextmanager
def _progress(folder: Path, wanted: bool, verbose: bool) -> Iterator[Callable[[], None] | None]:
    """Yields what shows a table of all runs, on a terminal; None where the runs' bars are better.

    Those are lines in a log file, or stand between lines of one.
    """
    if verbose or not wanted or not sys.stderr.isatty():
        yield None
        return
    with live_table(lambda: status_text(folder), error_output=True) as show:
        yield show
