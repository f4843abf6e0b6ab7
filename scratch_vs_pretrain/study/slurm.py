"""Runs of a study as jobs, through submitit: ``svp run STUDY --launcher slurm``.

A job is one run. When its time is nearly over or it is preempted, submitit asks it for a checkpoint
and puts it back into the cluster's queue, where it goes on exactly.

A job imports this module for each of its processes, which is why torch is not imported here.
"""

import functools
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.run_folder import PARENT, SAME_REQUEST, RunFolder
from scratch_vs_pretrain.training import start_training

# A time-out is no failure: a run of several days is put back as often as it takes.
MOST_REQUEUES = 1000
# How long before its end a job is told.
NOTICE_SECONDS = 180
# Of the notice, what putting a job back may take.
REQUEUE_SECONDS = 30
POLL_SECONDS = 0.2
# Exit status of `python -m scratch_vs_pretrain.training` after a request to stop.
INTERRUPTED = 130


@dataclass(frozen=True)
class Cluster:
    """What every job of a study asks for."""

    gpus_per_run: int = 1  # that train one run together, one process each, over all its nodes
    nodes: int = 1  # machines that train one run together
    minutes: int = 24 * 60  # after which a job is stopped and put back
    partition: str | None = None  # of the cluster; None for its default one
    max_parallel: int | None = None  # jobs at the same time; None for as many as the cluster admits
    # Further options of sbatch, such as ``account`` or ``mem``.
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def executor(self, folder: Path, name: str = "svp", after: Sequence[str] = ()) -> Any:
        """Returns submitit's executor, which keeps its files in `folder`.

        The job waits for `after`, as SLURM's ``--dependency`` names it.
        """
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--launcher slurm needs submitit; run: pip install 'scratch-vs-pretrain[slurm]'"
            ) from None
        if self.gpus_per_run % self.nodes:
            raise UserError(
                f"--gpus-per-run {self.gpus_per_run} does not divide over --nodes {self.nodes}; "
                "change one of them"
            )
        on_each = self.gpus_per_run // self.nodes
        try:
            executor = submitit.AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=MOST_REQUEUES
            )
            executor.update_parameters(
                name=name,
                nodes=self.nodes,
                tasks_per_node=on_each,
                gpus_per_node=on_each,
                timeout_min=self.minutes,
                slurm_partition=self.partition,
                slurm_signal_delay_s=NOTICE_SECONDS,
                slurm_dependency=",".join(after) or None,
                slurm_additional_parameters={"kill-on-invalid-dep": "yes", **self.parameters},
            )
        except (NameError, ValueError, RuntimeError) as error:
            raise UserError(f"--launcher slurm: {' '.join(str(error).split())}") from None
        return executor


def parameter(text: str) -> tuple[str, Any]:
    """Returns name and value of ``KEY=VALUE``; ``KEY`` alone is a flag."""
    name, given, value = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not name:
        raise UserError(f"--slurm {text}: is not of the form KEY=VALUE")
    if not given:
        return name, True
    return name, int(value) if value.isdecimal() else value


def minutes_of(text: str) -> int:
    """Returns the minutes of a time limit as SLURM writes it, rounded up.

    That is minutes, minutes:seconds, hours:minutes:seconds or days-hours[:minutes[:seconds]].
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time {text}: is no time limit such as 24:00:00, 90 or 2-12")
    days, *clock = match.groups()
    if days is None and clock[2] is None:
        clock = [None, *clock]
    hours, minutes, seconds = (int(number or 0) for number in clock[:3])
    total = (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total == 0:
        raise UserError(f"--time {text}: is no time at all")
    return total


@dataclass
class TrainRun:
    """One run as submitit's job: it can be called, and be asked for a checkpoint."""

    folder: RunFolder
    tasks: int = 1  # that the cluster starts together, each of which makes this call
    _training: subprocess.Popen | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_training": None}

    def __call__(self) -> str:
        """Trains the run to its end."""
        if self.tasks > 1:
            from submitit.helpers import TorchDistributedEnvironment

            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        # A cluster may signal every process of a job. The training stops when this one tells it.
        told = {PARENT: str(os.getpid()), SAME_REQUEST: str(NOTICE_SECONDS)}
        deaf = functools.partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
        self._training = start_training(self.folder, (), told, deaf)
        # Not Popen.wait, whose lock the signal handler that calls `checkpoint` would find taken.
        while not self._has_ended():
            time.sleep(POLL_SECONDS)
        status = self._training.wait()
        main = self.tasks == 1 or os.environ["RANK"] == "0"
        if status == INTERRUPTED and not main:
            return "interrupted"
        if status == INTERRUPTED:
            # A preemption may reach the training before it reaches submitit, which ends this.
            time.sleep(REQUEUE_SECONDS)
        if status != 0:
            why = f"{self.folder.state()}: {self.folder.read().reason or 'see its log.txt'}"
            raise RuntimeError(f"{self.folder.path}: {why}")
        return "finished"

    def checkpoint(self) -> Any:
        """Lets the run save and stop, and returns what to call when the job is back."""
        from submitit.helpers import DelayedSubmission

        end = time.monotonic() + NOTICE_SECONDS - REQUEUE_SECONDS
        if self._training is not None and not self._has_ended():
            self._training.send_signal(signal.SIGTERM)
            while not self._has_ended() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        return DelayedSubmission(TrainRun(self.folder, self.tasks))

    def _has_ended(self) -> bool:
        assert self._training is not None
        try:
            ended = os.waitid(os.P_PID, self._training.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return ended is not None


def submit(cluster: Cluster, files: Path, waiting: Sequence[RunFolder]) -> dict[RunFolder, str]:
    """Hands runs to SLURM, and returns those that were not submitted, and why.

    A branch waits for its trunk. No more than `max_parallel` jobs are active, because each waits
    for the end of an earlier one. `files` is the folder of submitit's files.
    """
    from scratch_vs_pretrain.training.checkpoint import is_ready, trunk_of

    blocked: dict[RunFolder, str] = {}
    jobs: dict[RunFolder, str] = {}
    for folder in sorted(waiting, key=lambda folder: trunk_of(folder) in waiting):
        run, trunk, after = folder.read(), trunk_of(folder), []
        if run.job and _is_active(run.job):
            say(f"{folder.path}: already submitted as job {run.job}")
            jobs[folder] = run.job
            continue
        if trunk is not None and not is_ready(folder):
            if trunk not in jobs:
                blocked[folder] = f"its trunk, {trunk.path.parent.name}, is {trunk.state()}"
                continue
            after.append(f"afterok:{jobs[trunk]}")
        limit, before = cluster.max_parallel, list(jobs.values())
        if limit and len(before) >= limit:
            after.append(f"afterany:{before[-limit]}")
        name = f"{run.study}-{run.arm}-{run.schedule}-{run.seed}"
        executor = cluster.executor(files, name, after)
        try:
            job = executor.submit(TrainRun(folder, cluster.gpus_per_run)).job_id
        except Exception as error:  # submitit's, of several kinds, with sbatch's message
            raise UserError(f"{folder.path}: cannot be submitted: {error}") from None
        jobs[folder] = job
        folder.update(job=job)
        say(f"{folder.path}: job {job}" + (f" after {', '.join(after)}" if after else ""))
    return blocked


def _is_active(job: str) -> bool:
    """Tells whether SLURM's queue has a job, waiting or running.

    Not submitit's way, sacct, which knows nothing where the cluster keeps no accounts.
    """
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True
    )
    return done.returncode == 0 and bool(done.stdout.strip())
