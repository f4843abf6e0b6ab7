"""The public functions; each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.analysis.runs import records
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from detectron2.config import CfgNode
    from matplotlib.figure import Figure

    from scratch_vs_pretrain.analysis.stats.answer import Answer
    from scratch_vs_pretrain.analysis.stats.conclusions import Conclusion
    from scratch_vs_pretrain.analysis.tables.table import Table
    from scratch_vs_pretrain.study.plan import Plan
    from scratch_vs_pretrain.study.spec import Study


class Runs(tuple[records.RunRecord, ...]):
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
        from scratch_vs_pretrain.analysis.stats.comparison import by_study

        yield from map(Runs, by_study(self).values())

    def _repr_html_(self) -> str:
        """Shows in a notebook which runs there are, and how far."""
        from scratch_vs_pretrain.analysis.tables.runs import runs_table

        return "".join(runs_table(members)._repr_html_() for members in self.studies())


def load_study(path: Path | str, weights: Mapping[str, str] | None = None) -> Study:
    """Reads a study file.

    Args:
        path: the file; paths in it are relative to its folder.
        weights: checkpoints by arm, in place of the file's; relative to the current folder.

    Raises:
        UserError: whatever is wrong with the file, in one sentence that names file and key.
    """
    from scratch_vs_pretrain.study import parse

    return parse.load_study(path, weights)


def plan(study: Study) -> Plan:
    """Returns every run of a study and what its arms differ in; `.text()` shows it.

    Raises:
        UserError: a config that cannot be read, or arms that differ in what they must not.
    """
    from scratch_vs_pretrain.study.plan import plan as planned

    return planned(study)


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
    return Runs(records.find_runs([Path(folder) for folder in folders]))


def answer(runs: Runs, metric: str | None = None) -> Answer:
    """Answers whether pre-training helps; `.text()` shows it.

    Args:
        runs: of one study.
        metric: that decides, in place of the study's own; more of it must be better.

    Raises:
        UserError: runs of several studies, or of one arm only, or without the metric.
    """
    from scratch_vs_pretrain.analysis.stats import answer as answers

    return answers.answer(runs, metric=metric)


def table(
    runs: Runs, kind: str = "schedules", *, against: str | None = None, best: bool = False
) -> Table:
    """Returns a table of one study, or of several where its kind is of several.

    Args:
        runs: what to compare.
        kind: as ``svp table --kind``.
        against: "paper" or "zoo": our numbers beside those published.
        best: of each run's best evaluation instead of its final one; too high, and says so.

    Raises:
        UserError: an unknown kind, runs that do not belong in one table, or no arm to compare.
    """
    from scratch_vs_pretrain.analysis.registry import tables

    found = tables(runs, kind, against=against, best=best)
    if len(found) > 1:
        raise UserError(
            f"these are runs of {len(found)} studies, and a table of kind {kind} is of one; take "
            "each of runs.studies()"
        )
    return found[0]


def figure(runs: Runs, name: str = "ap", **options: Any) -> Figure:
    """Draws a figure.

    Args:
        runs: what to draw.
        name: as ``svp plot --figure``.
        options: of the figure: x, metrics, band, schedule, labels.

    Raises:
        UserError: an unknown name or option, or what cannot be drawn of these runs.
    """
    from scratch_vs_pretrain.analysis import registry

    return registry.figure(runs, name, **options)


def conclude(runs: Runs) -> tuple[Conclusion, ...]:
    """Judges the paper's six conclusions by runs of any number of studies."""
    from scratch_vs_pretrain.analysis.stats import conclusions

    return conclusions.conclude(runs)


def report(folder: Path | str, output: Path | str = "report.html") -> Path:
    """Writes one HTML file about all runs below a folder; it needs no network and no scripts.

    Raises:
        UserError: no runs there, a damaged run folder, or an output that cannot be written.
    """
    from scratch_vs_pretrain.analysis.report import write_report

    write_report(Path(folder), Path(output))
    return Path(output)


def add_svp_config(cfg: CfgNode) -> None:
    """Adds this package's keys to a Detectron2 config, as its projects' ``add_*_config`` do."""
    from scratch_vs_pretrain import config

    config.add_svp_config(cfg)


def register_all(cfg: CfgNode) -> None:
    """Registers this package's backbones, and a config's own data sets and subsets.

    Raises:
        UserError: a data set's files cannot be used, or its name is taken.
    """
    from scratch_vs_pretrain import modeling as _registers_networks  # noqa: F401
    from scratch_vs_pretrain.data import datasets

    datasets.register(cfg)
