"""Runs and studies from Python; each function imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain.analysis import runs

if TYPE_CHECKING:
    import pandas as pd
    from detectron2.config import CfgNode

    from scratch_vs_pretrain.study.spec import Study


class Runs(tuple[runs.RunRecord, ...]):
    """Runs that were read, sorted by study, arm, schedule and seed."""

    __slots__ = ()

    def frame(self) -> pd.DataFrame:
        """Returns every number of the runs: one row per run, metric and iteration.

        Raises:
            UserError: a damaged file; names it and the key or line.
        """
        from scratch_vs_pretrain.analysis.runs.frame import tidy

        return tidy(self)

    def studies(self) -> Iterator[Runs]:
        """Yields the runs of each study."""
        from scratch_vs_pretrain.analysis.stats.results import by_study

        yield from map(Runs, by_study(self).values())

    def _repr_html_(self) -> str:
        """Shows in a notebook which runs there are, and how far."""
        from scratch_vs_pretrain.analysis.tables.runs import runs_table

        return "".join(runs_table(members)._repr_html_() for members in self.studies())


def run(
    study: Study,
    output: Path | str = "output",
    *,
    jobs: int = 1,
    gpus: Iterable[str | int] = (),
    gpus_per_run: int = 1,
) -> Runs:
    """Trains a study's runs below `output`: finished ones are skipped, interrupted ones resumed.

    Args:
        study: of :func:`load_study`.
        output: below which the run folders lie.
        jobs: runs that train at the same time, sharing the processor.
        gpus: to train on, each run on its own; default: every run on the first.
        gpus_per_run: how many of them train one run together.

    Returns:
        the study's runs, also those that did not finish.

    Raises:
        UserError: a checkpoint or data that are missing, or runs that cannot be prepared.
    """
    from scratch_vs_pretrain.study import launch

    slots = launch.make_slots(jobs, map(str, gpus), gpus_per_run)
    launch.run_study(study, Path(output), slots)
    return load_runs(Path(output) / study.name)


def load_runs(*folders: Path | str) -> Runs:
    """Reads the runs at or below folders, those of plain Detectron2 too.

    Raises:
        UserError: no runs there, a damaged one, one run found twice, or two studies of one name.
    """
    return Runs(runs.load_runs([Path(folder) for folder in folders], plain=True))


def register_all(cfg: CfgNode) -> None:
    """Registers this package's backbones, and a config's own data sets and subsets.

    Raises:
        UserError: a data set's files cannot be used, or its name is taken.
    """
    from scratch_vs_pretrain import modeling as _registers_networks  # noqa: F401
    from scratch_vs_pretrain.data import datasets

    datasets.register(cfg)
