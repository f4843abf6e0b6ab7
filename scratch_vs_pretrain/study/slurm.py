"""Runs of a study as jobs, through submitit: ``svp run STUDY --launcher slurm``.

A job is one run. When its time is nearly over or it is preempted, submitit asks it for a checkpoint
and puts it back into the cluster's queue, where it goes on exactly. submitit's `local` and `debug`
executors stand in for a cluster on one machine.

A job imports this module for each of its processes, which is why torch is not imported here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import PARENT, SAME_REQUEST, RunFolder
from scratch_vs_pretrain.study.cluster import NOTICE_SECONDS, Cluster
from scratch_vs_pretrain.study.messages import say

if TYPE_CHECKING:
    from scratch_vs_pretrain.study.run_queue import RunQueue

# Of the notice, what putting a job back may take.
REQUEUE_SECONDS = 30

POLL_SECONDS = 0.2

# Exit status of `python -m scratch_vs_pretrain.training` after a request to stop.
INTERRUPTED = 130


class TrainRun:
    """One run as submitit's job: it can be called, and be asked for a checkpoint."""

    def __init__(self, folder: RunFolder, tasks: int = 1, processes: int = 1) -> None:
        """
        Args:
            folder: the run.
            tasks: that the cluster starts together, each of which makes this call.
            processes: that each of them starts.
        """
        self.folder = folder
        self.tasks = tasks
        self.processes = processes
        self._training: subprocess.Popen | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_training": None}

    def __call__(self) -> str:
        """Trains the run to its end.

        Raises:
            RuntimeError: it did not finish; the message says why.
        """
        self._check_trunk()
        if self.tasks > 1:
            from submitit.helpers import TorchDistributedEnvironment

            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        self._training = self._start()
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
            raise RuntimeError(f"{self.folder.path}: {_why(self.folder)}")
        return "finished"

    def checkpoint(self) -> Any:
        """Lets the run save and stop, and returns what to call when the job is back."""
        from submitit.helpers import DelayedSubmission

        end = time.monotonic() + NOTICE_SECONDS - REQUEUE_SECONDS
        if self._training is not None and not self._has_ended():
            self._training.send_signal(signal.SIGTERM)
            while not self._has_ended() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        return DelayedSubmission(TrainRun(self.folder, self.tasks, self.processes))

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "scratch_vs_pretrain.training", str(self.folder.path)]
        if self.processes > 1:
            command += ["--processes", str(self.processes)]
        # A cluster may signal every process of a job. The training stops when this one tells it.
        told = {PARENT: str(os.getpid()), SAME_REQUEST: str(NOTICE_SECONDS)}
        return subprocess.Popen(
            command,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )

    def _has_ended(self) -> bool:
        assert self._training is not None
        try:
            ended = os.waitid(os.P_PID, self._training.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return ended is not None

    def _check_trunk(self) -> None:
        if not self.folder.read().get("branch"):
            return
        from scratch_vs_pretrain.training.branch import is_ready, trunk_of

        trunk = trunk_of(self.folder)
        if trunk is not None and not is_ready(self.folder):
            raise RuntimeError(f"{self.folder.path}: its trunk, {trunk.path}, is {trunk.state()}")


def _why(folder: RunFolder) -> str:
    return f"{folder.state()}: {folder.read().get('reason') or 'see its log.txt'}"


def queue_on(cluster: Cluster, files: Path, waiting: Sequence[RunFolder]) -> RunQueue | Submission:
    """Returns a queue that trains runs as jobs.

    Args:
        cluster: what each job asks for.
        files: folder for submitit's files, which the cluster's machines can see.
        waiting: the runs.

    Raises:
        UserError: as :meth:`Cluster.executor`.
    """
    if cluster.launcher == "slurm":
        return Submission(cluster, files, list(waiting))
    from scratch_vs_pretrain.study.run_queue import RunQueue

    executor = cluster.executor(files)
    debug = cluster.launcher == "debug"
    counts = {"processes" if debug else "tasks": cluster.gpus_per_run}

    def start(folder: RunFolder, _: int) -> LocalJob:
        return LocalJob(executor.submit(TrainRun(folder, **counts)), debug)

    slots = cluster.max_parallel or max(1, len(waiting))
    return RunQueue(list(waiting), [()] * slots, starter=start)


class LocalJob:
    """A job of submitit's local or debug executor, as the queue handles processes."""

    returncode = 0

    def __init__(self, job: Any, debug: bool) -> None:
        self._job = job
        self._debug = debug

    def poll(self) -> int | None:
        """Returns None as long as the job runs; a debug job runs here, and now."""
        if self._debug:
            return 0 if self._job.exception() is None else 1
        return 0 if self._job.done() else None

    def send_signal(self, number: int) -> None:
        """Ends the job, whatever the signal; its training saves and stops."""
        self._job.cancel()


@dataclass
class Submission:
    """Runs handed to SLURM, which keeps their order: a branch waits for its trunk.

    No more than `max_parallel` jobs are active, because each waits for the end of an earlier one.

    Attributes:
        cluster: what each job asks for.
        files: folder for submitit's files.
        waiting: the runs.
        blocked: runs that were not submitted, and why.
    """

    cluster: Cluster
    files: Path
    waiting: list[RunFolder]
    blocked: dict[RunFolder, str] = field(default_factory=dict)
    jobs: dict[RunFolder, str] = field(default_factory=dict)

    def work(self) -> None:
        """Submits what is not submitted yet."""
        from scratch_vs_pretrain.training.branch import trunk_of

        for folder in sorted(self.waiting, key=lambda folder: trunk_of(folder) in self.waiting):
            self._submit(folder)

    def stop(self, number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def _submit(self, folder: RunFolder) -> None:
        from scratch_vs_pretrain.training.branch import is_ready, trunk_of

        there = folder.read().get("job")
        if there and _is_active(there):
            say(f"{folder.path}: already submitted as job {there}")
            self.jobs[folder] = there
            return
        trunk, after = trunk_of(folder), []
        if trunk is not None and not is_ready(folder):
            if trunk not in self.jobs:
                self.blocked[folder] = f"its trunk, {trunk.path.parent.name}, is {trunk.state()}"
                return
            after.append(f"afterok:{self.jobs[trunk]}")
        limit, before = self.cluster.max_parallel, list(self.jobs.values())
        if limit and len(before) >= limit:
            after.append(f"afterany:{before[-limit]}")
        executor = self.cluster.executor(self.files, _name(folder), after)
        try:
            job = executor.submit(TrainRun(folder, tasks=self.cluster.gpus_per_run))
        except Exception as error:  # submitit's, of several kinds, with sbatch's message
            raise UserError(f"{folder.path}: cannot be submitted: {error}") from None
        self.jobs[folder] = job.job_id
        folder.update(job=job.job_id)
        say(f"{folder.path}: job {job.job_id}" + (f" after {', '.join(after)}" if after else ""))


def _is_active(job: str) -> bool:
    """Tells whether SLURM's queue has a job, waiting or running.

    Not submitit's way, sacct, which knows nothing where the cluster keeps no accounts.
    """
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True
    )
    return done.returncode == 0 and bool(done.stdout.strip())


def _name(folder: RunFolder) -> str:
    run = folder.read()
    return f"{run['study']}-{run['arm']}-{run['schedule']}-{run['seed']}"
