"""What the jobs of a study ask of a cluster, as ``svp run --launcher`` is told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError

LAUNCHERS = ("slurm", "local", "debug")

# A time-out is no failure: a run of several days is put back as often as it takes.
MOST_REQUEUES = 1000

# How long before its end a job is told.
NOTICE_SECONDS = 180


@dataclass(frozen=True)
class Cluster:
    """What every job of a study asks for.

    Attributes:
        launcher: one of :data:`LAUNCHERS`.
        gpus_per_run: that train one run together, one process each, over all its nodes.
        nodes: machines that train one run together.
        minutes: after which a job is stopped and put back.
        partition: of the cluster; None for its default one.
        max_parallel: jobs at the same time; None for as many as the cluster admits.
        parameters: further options of sbatch, such as ``account`` or ``mem``.
    """

    launcher: str = "slurm"
    gpus_per_run: int = 1
    nodes: int = 1
    minutes: int = 24 * 60
    partition: str | None = None
    max_parallel: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def executor(self, folder: Path, name: str = "svp", after: Sequence[str] = ()) -> Any:
        """Returns submitit's executor, which keeps its files in `folder`.

        Args:
            folder: is made.
            name: of the job.
            after: what it waits for, as SLURM's ``--dependency`` names it.

        Raises:
            UserError: submitit is missing, or nothing can be submitted from here, or parameters
                that it does not know.
        """
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--launcher needs submitit; run: pip install 'scratch-vs-pretrain[slurm]'"
            ) from None
        if self.gpus_per_run % self.nodes:
            raise UserError(
                f"--gpus-per-run {self.gpus_per_run} does not divide over --nodes {self.nodes}; "
                "change one of them"
            )
        on_each = self.gpus_per_run // self.nodes
        further: dict[str, Any] = {"kill-on-invalid-dep": "yes"}
        try:
            executor = submitit.AutoExecutor(
                folder,
                cluster=self.launcher,
                slurm_max_num_timeout=MOST_REQUEUES,
                local_max_num_timeout=MOST_REQUEUES,
            )
            known = submitit.SlurmExecutor._valid_parameters()
            further |= {key: v for key, v in self.parameters.items() if key not in known}
            executor.update_parameters(
                name=name,
                nodes=self.nodes,
                tasks_per_node=on_each,
                gpus_per_node=on_each,
                timeout_min=self.minutes,
                slurm_partition=self.partition,
                slurm_signal_delay_s=NOTICE_SECONDS,
                slurm_dependency=",".join(after) or None,
                slurm_additional_parameters=further,
                **{f"slurm_{key}": v for key, v in self.parameters.items() if key in known},
            )
        except (NameError, ValueError, RuntimeError) as error:
            raise UserError(f"--launcher {self.launcher}: {' '.join(str(error).split())}") from None
        return executor


def parameter(text: str) -> tuple[str, Any]:
    """Returns name and value of ``KEY=VALUE``; ``KEY`` alone is a flag.

    Raises:
        ValueError: there is no name.
    """
    name, given, value = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not name:
        raise ValueError(f"{text!r} is not of the form KEY=VALUE")
    if not given:
        return name, True
    return name, int(value) if value.isdecimal() else value


# SLURM's --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def minutes_of(text: str) -> int:
    """Returns the minutes of a time limit as SLURM writes it, rounded up.

    Raises:
        ValueError: it is none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time limit such as 24:00:00, 90 or 2-12")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    total = int(days or 0) * 24 * 60 + hours * 60 + minutes + (seconds > 0)
    if total == 0:
        raise ValueError(f"{text!r} is no time at all")
    return total
