"""Runs as jobs: a real one through submitit's local executor, and what SLURM would be given."""

import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import submitit
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain import cli
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.slurm import Cluster, TrainRun, minutes_of, parameter
from scratch_vs_pretrain.study.spec import load_study
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


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("24:00:00", 24 * 60),
        ("1:30:30", 91),
        ("2-12", 60 * 60),
        ("2-12:30", 60 * 60 + 30),
        ("1-0:0:1", 24 * 60 + 1),
    ],
)
def test_time_limits_as_slurm_writes_them(text, minutes):
    """The forms of sbatch's --time (https://slurm.schedmd.com/sbatch.html)."""
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "day", "24h", "1:2:3:4", "-3", "0", "0:00"])
def test_what_is_no_time_limit(text):
    with pytest.raises(UserError, match="no time"):
        minutes_of(text)


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_the_longest_form_is_the_sum_of_its_parts(days, hours, minutes, seconds):
    total = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    text = f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
    if total:
        assert minutes_of(text) == total


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("account=A", ("account", "A")),
        ("cpus-per-task=8", ("cpus_per_task", 8)),
        ("--mem=64GB", ("mem", "64GB")),
        ("comment=a=b", ("comment", "a=b")),
        ("exclusive", ("exclusive", True)),
    ],
)
def test_parameters(text, found):
    assert parameter(text) == found


def test_a_parameter_without_a_name():
    with pytest.raises(UserError, match="KEY=VALUE"):
        parameter("=3")


def test_gpus_that_do_not_divide_over_the_nodes(tmp_path):
    with pytest.raises(UserError, match="--gpus-per-run 3 does not divide over --nodes 2"):
        Cluster(gpus_per_run=3, nodes=2).executor(tmp_path)


def test_slurm_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--launcher slurm: .*srun"):
        Cluster().executor(tmp_path)


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install .*\[slurm\]"):
        Cluster().executor(tmp_path)


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
    write_study, tmp_path, ranks, ended, content_of_run, assert_equal
):
    """A run of two tasks gets SLURM's signal, saves, is put back, and goes on exactly."""
    study = load_study(write_study(schedules=[{"iterations": 20, "name": "short"}]))
    (alone,), (run,) = (prepare(study, tmp_path / name) for name in ("alone", "out"))
    executor = submitit.LocalExecutor(tmp_path / "out" / "jobs", max_num_timeout=5)
    executor.update_parameters(tasks_per_node=2, timeout_min=60)
    job = executor.submit(TrainRun(run, tasks=2))
    end = time.monotonic() + 300
    while not list(run.checkpoints.glob("0*.pth")):
        assert time.monotonic() < end
        time.sleep(0.05)
    tasks = tasks_of(tmp_path / "out" / "jobs")
    assert sorted(tasks) == [0, 1]
    for task in tasks.values():
        os.kill(task, signal.SIGUSR2)
    assert job.results() == ["finished", "finished"]
    assert run.read().state == "finished"
    (resume,) = run.read().resumes
    assert 0 < resume.iteration < 20
    assert resume.exact
    assert tasks_of(tmp_path / "out" / "jobs") == {}
    assert ended(*ranks(lambda: worker.main([str(alone.path)]))) == [0, 0]
    assert_equal(content_of_run(run), content_of_run(alone))
    (log,) = (tmp_path / "out" / "jobs").glob("*_0_log.out")
    assert "Requeued job" in log.read_text()
