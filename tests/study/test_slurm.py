"""Runs as jobs: real ones through submitit's local executors, and what SLURM would be given."""

import os
import re
import signal
import stat
import time
from pathlib import Path

import pytest

from scratch_vs_pretrain import cli
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.cluster import Cluster
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.study.prepare import prepare
from scratch_vs_pretrain.study.slurm import TrainRun
from scratch_vs_pretrain.training import __main__ as worker

SCHEDULES = [
    {"iterations": iterations, "name": f"{iterations}it", "drops_before_end": [4, 2]}
    for iterations in (12, 16, 20)
]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """SLURM's commands as scripts; returns the submitted files' texts when called."""
    commands = tmp_path / "commands"
    commands.mkdir()
    scripts = {
        "sbatch": f"cp $1 {commands}/job$(ls {commands} | grep -c job).sh\n"
        f"echo Submitted batch job $((99 + $(ls {commands} | grep -c job)))",
        "srun": "true",
        # Of no job is anything known but of the first.
        "squeue": 'case "$*" in *--jobs=100) echo PENDING;; *) exit 1;; esac',
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return lambda: [
        (commands / f"job{number}.sh").read_text()
        for number in range(len(list(commands.glob("job*.sh"))))
    ]


def options_of(text):
    return dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))


class TestSlurm:
    def test_what_is_submitted(self, write_study, tmp_path, sbatch, capsys):
        """The trunk first, its branches after it, and never more than two at a time."""
        study = write_study(schedules=SCHEDULES)
        arguments = ["--launcher", "slurm", "--partition", "P", "--gpus-per-run", "8"]
        arguments += ["--nodes", "2", "--time", "1-00:00:00", "--max-parallel", "2"]
        arguments += ["--slurm", "account=A", "--slurm", "reservation=R"]
        assert cli.main(["run", str(study), "-o", str(tmp_path / "out"), *arguments]) == 0
        jobs = [options_of(text) for text in sbatch()]
        assert [job["job-name"] for job in jobs] == [
            f"tiny-scratch-{name}-0" for name in ("20it", "12it", "16it")
        ]
        assert [job.get("dependency") for job in jobs] == [
            None,
            "afterok:100",
            "afterok:100,afterany:100",
        ]
        expected = {
            "partition": "P",
            "nodes": "2",
            "ntasks-per-node": "4",
            "gpus-per-node": "4",
            "time": "1440",
            "signal": "USR2@180",
            "account": "A",
            "reservation": "R",
            "kill-on-invalid-dep": "yes",
        }
        for job in jobs:
            assert expected.items() <= job.items()
        assert "svp status" in capsys.readouterr().out

    def test_what_is_submitted_or_finished_is_not_submitted_again(
        self, write_study, tmp_path, sbatch, capsys
    ):
        study = load_study(write_study(schedules=SCHEDULES[:2]))
        branch, trunk = prepare(study, tmp_path / "out")
        run_study(study, tmp_path / "out", cluster=Cluster())
        assert len(sbatch()) == 2
        run_study(study, tmp_path / "out", cluster=Cluster())
        # The trunk's job waits, the branch's is gone.
        assert "already submitted as job 100" in capsys.readouterr().err
        assert [options_of(text)["job-name"] for text in sbatch()[2:]] == ["tiny-scratch-12it-0"]
        assert options_of(sbatch()[2])["dependency"] == "afterok:100"
        branch.update(state="finished")
        trunk.update(state="finished")
        run_study(study, tmp_path / "out", cluster=Cluster())
        assert len(sbatch()) == 3

    def test_a_refusal_is_told(self, write_study, tmp_path, sbatch):
        (tmp_path / "commands" / "sbatch").write_text(
            "#!/bin/sh\necho no such partition >&2\nexit 1"
        )
        with pytest.raises(UserError, match=r"cannot be submitted: .*no such partition"):
            run_study(load_study(write_study()), tmp_path / "out", cluster=Cluster())


def test_a_branch_whose_trunk_failed_does_not_begin(write_study, tmp_path):
    branch, trunk = prepare(load_study(write_study(schedules=SCHEDULES[:2])), tmp_path)
    trunk.update(state="failed", reason="no more room")
    with pytest.raises(RuntimeError, match=r"its trunk, .*16it.* is failed"):
        TrainRun(branch)()


def test_the_debug_launcher_trains_here(write_study, tmp_path, capsys):
    study = write_study(schedules=[{"iterations": 2, "name": "short"}])
    command = ["run", str(study), "-o", str(tmp_path / "out"), "--launcher", "debug"]
    assert cli.main(command) == 0
    (run,) = prepare(load_study(study), tmp_path / "out")
    assert run.state() == "finished"


def tasks_of(folder):
    """Process ids of the jobs' tasks by rank, found by what submitit starts."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in command and str(folder).encode() in command:
            rank = next(v for v in variables if v.startswith(b"SUBMITIT_LOCAL_GLOBALID="))
            found[int(rank.partition(b"=")[2])] = int(entry.name)
    return found


def test_preempted_jobs_come_back_and_end_as_if_left_alone(
    write_study, tmp_path, fork, ranks, ended, content_of_run, assert_equal
):
    """A run of two tasks gets SLURM's signal, saves, is put back, and goes on exactly."""
    study = load_study(write_study(schedules=[{"iterations": 30, "name": "short"}]))
    (alone,), (run,) = (prepare(study, tmp_path / name) for name in ("alone", "out"))
    cluster = Cluster("local", gpus_per_run=2, minutes=60)
    launcher = fork(lambda: run_study(study, tmp_path / "out", cluster=cluster) and None)
    end = time.monotonic() + 300
    while not list(run.checkpoints.glob("0*.pth")):
        assert time.monotonic() < end
        time.sleep(0.05)
    tasks = tasks_of(tmp_path / "out" / "jobs")
    assert sorted(tasks) == [0, 1]
    for task in tasks.values():
        os.kill(task, signal.SIGUSR2)
    ended(launcher)
    assert run.read()["state"] == "finished", (tmp_path / "forks.log").read_text()
    (resume,) = run.read()["resumes"]
    assert 0 < resume["iteration"] < 30
    assert resume["exact"]
    assert tasks_of(tmp_path / "out" / "jobs") == {}
    assert ended(*ranks(lambda: worker.main([str(alone.path)]))) == [0, 0]
    assert_equal(content_of_run(run), content_of_run(alone))
    (log,) = (tmp_path / "out" / "jobs").glob("*_0_log.out")
    assert "Requeued job" in log.read_text()
