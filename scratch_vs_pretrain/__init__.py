"""Paired scratch/pretrained detection experiments over Detectron2; see docs/api.md.

Everything is imported when it is first used: neither this import nor that of a name needs torch,
and reading runs never does.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2  # noqa: F401  # prepares Detectron2's import

if TYPE_CHECKING:
    import pandas as pd
    from detectron2.config import CfgNode

    from scratch_vs_pretrain.analysis.registry import figure as figure
    from scratch_vs_pretrain.analysis.registry import table as table
    from scratch_vs_pretrain.analysis.report import report as report
    from scratch_vs_pretrain.analysis.runs import RunRecord
    from scratch_vs_pretrain.analysis.stats.answer import answer as answer
    from scratch_vs_pretrain.analysis.stats.conclusions import conclude as conclude
    from scratch_vs_pretrain.config import add_svp_config as add_svp_config
    from scratch_vs_pretrain.errors import UserError as UserError
    from scratch_vs_pretrain.study.plan import plan as plan
    from scratch_vs_pretrain.study.spec import Study
    from scratch_vs_pretrain.study.spec import load_study as load_study

__version__ = "0.2.0"

# Where those are that this module does not hold itself.
_ELSEWHERE = {
    "UserError": "errors",
    "add_svp_config": "config",
    "answer": "analysis.stats.answer",
    "conclude": "analysis.stats.conclusions",
    "figure": "analysis.registry",
    "load_study": "study.spec",
    "plan": "study.plan",
    "report": "analysis.report",
    "table": "analysis.registry",
}

__all__ = [*_ELSEWHERE, "load_runs", "register_all", "run"]


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"{__name__}.{_ELSEWHERE[name]}:{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ELSEWHERE])


class Runs(tuple["RunRecord", ...]):
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
        study: of ``load_study``.
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
    from scratch_vs_pretrain.study.plan import check_evaluations

    slots = launch.make_slots(jobs, map(str, gpus), gpus_per_run)
    check_evaluations(study)
    launch.run_study(study, Path(output), slots)
    return load_runs(Path(output) / study.name)


def load_runs(*folders: Path | str) -> Runs:
    """Reads the runs at or below folders, those of plain Detectron2 too.

    Raises:
        UserError: no runs there, a damaged one, one run found twice, or two studies of one name.
    """
    from scratch_vs_pretrain.analysis import runs

    return Runs(runs.load_runs([Path(folder) for folder in folders], plain=True))


def register_all(cfg: CfgNode) -> None:
    """Registers this package's backbones, and a config's own data sets and subsets.

    Raises:
        UserError: a data set's files cannot be used, or its name is taken.
    """
    from scratch_vs_pretrain import modeling as _registers_networks  # noqa: F401
    from scratch_vs_pretrain.data import datasets

    datasets.register(cfg)
