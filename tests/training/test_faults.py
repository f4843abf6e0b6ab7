"""What happens to a real training process when its surroundings fail."""

import multiprocessing
import os
import resource
import shutil
import signal
import time

import psutil
import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker


@pytest.fixture
def plan_run(write_study, tmp_path):
    def plan(output="output", **overrides) -> RunFolder:
        return prepare(load_study(write_study(overrides=overrides)), tmp_path / output)[0]

    return plan


@pytest.fixture
def train(fork, ended):
    """Trains a run in a fork, in which `before` is called first; returns the exit status."""

    def start(folder, before=lambda: None):
        def child():
            before()
            return worker.main([str(folder.path)])

        return ended(fork(child))[0]

    return start


def die():
    os.kill(os.getpid(), signal.SIGKILL)


ALONE = []


@pytest.fixture
def alone(plan_run, train):
    """A run that nothing happened to; trained once, and read by several tests."""
    if not ALONE:
        ALONE.append(plan_run("alone"))
        assert train(ALONE[0]) == worker.FINISHED
    return ALONE[0]


def checkpoint_names(folder):
    return sorted(file.name for file in folder.checkpoints.iterdir())


def test_a_full_disk_in_the_middle_of_a_checkpoint(
    at_iteration, plan_run, train, alone, content_of_run, assert_equal
):
    """The write fails half way; the checkpoint before is intact, and the run goes on from there."""
    folder = plan_run()
    half = next(alone.checkpoints.glob("*4.pth")).stat().st_size // 2

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))

    assert train(folder, lambda: at_iteration(2, fill)) == worker.FAILED
    assert folder.read().state == "failed"
    assert "File too large" in folder.read().reason
    assert checkpoint_names(folder) == ["0000002.pth"]
    assert train(folder) == worker.FINISHED
    assert_equal(content_of_run(folder), content_of_run(alone))


@pytest.mark.parametrize("overrides", [{}, {"SVP.TENSORBOARD": True}])
def test_a_full_disk_when_metrics_are_written(
    at_iteration, plan_run, train, alone, content_of_run, assert_equal, tmp_path, capfd, overrides
):
    folder = plan_run(**overrides)

    def fill():
        # The largest file by far but for checkpoints, so that it is the first to find no room.
        with folder.metrics_file.open("a") as file:
            file.write("\n" * 50_000)
        size = folder.metrics_file.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))

    assert train(folder, lambda: at_iteration(3, fill)) == worker.FAILED
    assert folder.read().state == "failed"
    printed = capfd.readouterr().err + (tmp_path / "forks.log").read_text()
    assert "failed: " in printed
    assert "File too large; make room" in printed
    assert "Traceback" not in printed + folder.log_file.read_text()
    assert train(folder) == worker.FINISHED
    assert_equal(content_of_run(folder), content_of_run(alone))


def test_a_data_loader_worker_dies(at_iteration, plan_run, train):
    def kill():
        # Of this process: a fork also lists its parent's.
        children = [child.pid for child in multiprocessing.active_children()]
        (loader,) = [pid for pid in children if psutil.Process(pid).ppid() == os.getpid()]
        os.kill(loader, signal.SIGKILL)
        time.sleep(0.5)

    folder = plan_run(**{"DATALOADER.NUM_WORKERS": 1})
    assert train(folder, lambda: at_iteration(3, kill)) == worker.FAILED
    assert folder.read().state == "failed"
    assert "DataLoader worker" in folder.read().reason
    assert train(folder) == worker.FINISHED


def test_a_truncated_checkpoint_costs_the_iterations_since_the_one_before(
    at_iteration, plan_run, train, alone, content_of_run, assert_equal
):
    folder = plan_run()
    assert train(folder, lambda: at_iteration(5, die)) == -signal.SIGKILL
    newest = folder.checkpoints / "0000004.pth"
    os.truncate(newest, newest.stat().st_size // 2)
    assert train(folder) == worker.FINISHED
    assert [resume.iteration for resume in folder.read().resumes] == [2]
    assert "0000004.pth is skipped" in folder.log_file.read_text()
    assert_equal(content_of_run(folder), content_of_run(alone))


def test_the_clock_jumps(at_iteration, plan_run, train):
    """Back by a day in the middle: elapsed times are measured on a clock that cannot."""

    def turn_back():
        now = time.time
        time.time = lambda: now() - 86400

    folder = plan_run()
    assert train(folder, lambda: at_iteration(3, turn_back)) == worker.FINISHED
    assert 0 < folder.read().seconds < 600


def test_a_moved_run_goes_on_and_is_read(
    at_iteration, plan_run, train, alone, content_of_run, assert_equal, tmp_path
):
    folder = plan_run()
    assert train(folder, lambda: at_iteration(5, die)) == -signal.SIGKILL
    shutil.move(tmp_path / "output", tmp_path / "elsewhere")
    moved = RunFolder(tmp_path / "elsewhere" / folder.path.relative_to(tmp_path / "output"))
    assert moved.state() == "interrupted"
    assert train(moved) == worker.FINISHED
    assert not folder.path.exists()
    assert_equal(content_of_run(moved), content_of_run(alone))
    (run,) = load_runs([tmp_path / "elsewhere"])
    assert run.state == "finished"


def test_a_killed_launcher_leaves_its_run_to_the_next(
    write_study, tmp_path, fork, ended, quick_starts
):
    """The run that it started goes on; the next launcher waits for it and does nothing twice."""
    study = load_study(write_study(schedules=[{"iterations": 30, "name": "short"}]))
    (folder,) = prepare(study, tmp_path / "output")
    launcher = fork(lambda: run_study(study, tmp_path / "output") and None)
    end = time.monotonic() + 300
    while not folder.is_locked():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(launcher, signal.SIGKILL)
    assert ended(launcher) == [-signal.SIGKILL]
    assert folder.is_locked()
    assert ended(fork(lambda: run_study(study, tmp_path / "output") and None)) == [0]
    assert folder.read().state == "finished"
    assert folder.read().resumes == ()
    assert folder.read().samples.images == 60
