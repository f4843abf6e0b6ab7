"""The proof of exact resuming: a real training process, killed again and again.

A process that has paid for the imports forks each attempt, so that a start costs a second.
"""

import os
import random
import signal
import threading
import time

import pytest
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import JSONWriter

from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker

KILLS = 12


@pytest.fixture
def plan_run(write_study, tmp_path):
    def plan(output, iterations, **fields):
        study = write_study(
            schedules=[{"iterations": iterations, "name": "short"}],
            evaluation={"period": 5},
            overrides={"SVP.LOG_PERIOD": 1, **fields},
        )
        return prepare(load_study(study), tmp_path / output)[0]

    return plan


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(seconds):
    """At an arbitrary moment of whatever the main thread does then."""

    def wait():
        time.sleep(seconds)
        kill_me()

    threading.Thread(target=wait, daemon=True).start()


def kill_in(function, calls_before):
    """Instead of a later call of a function."""
    calls = iter(range(calls_before))

    def called(*arguments, **keywords):
        if next(calls, None) is None:
            kill_me()
        return function(*arguments, **keywords)

    return called


def kill_in_metrics(calls_before):
    """When half a line of metrics.json is on the disk."""
    write = JSONWriter.write
    calls = iter(range(calls_before))

    def called(writer):
        if next(calls, None) is None:
            file = writer._file_handle
            whole = file.write

            def half(text):
                whole(text[: len(text) // 2])
                file.flush()
                kill_me()

            file.write = half
        write(writer)

    JSONWriter.write = called


def train_and_die(folder, plan):
    """Trains a run until its planned death, which is armed when training begins."""
    how, iterations, more = plan
    step = SimpleTrainer.run_step
    steps = iter(range(iterations))

    def armed(trainer):
        if next(steps, None) is None:
            SimpleTrainer.run_step = step
            if how == "any moment":
                kill_after(more * 0.2)
            elif how == "half a line of metrics":
                kill_in_metrics(round(more))
            else:
                setattr(os, how, kill_in(getattr(os, how), round(more * 4)))
        step(trainer)

    SimpleTrainer.run_step = armed
    return worker.main([str(folder.path)])


def newest_checkpoint(folder):
    files = sorted(folder.checkpoints.glob("[0-9]*.pth"))
    return int(files[-1].stem) if files else None


def test_killed_a_dozen_times_and_nothing_is_lost(
    plan_run, fork, ended, content_of_run, assert_equal
):
    """Weights, optimizer, random states, metrics and evaluations are those of a run left alone.

    A dozen deaths at seeded moments: anywhere, with a file written but not yet on the disk
    (fsync), complete but not yet in place (replace), and with half a line of metrics.json written.
    The files that are replaced are checkpoints, evaluations and run.json.
    """
    draw = random.Random(5)
    alone, killed = plan_run("alone", 30), plan_run("killed", 30)
    reference = fork(worker.main, [str(alone.path)])
    ways = ["any moment", "fsync", "replace", "half a line of metrics"] * (KILLS // 4)
    resumed_from = []
    for way in ways:
        plan = way, draw.choice([0, 1, 2, 3]), draw.random()
        resumed_from.append(newest_checkpoint(killed))
        (code,) = ended(fork(train_and_die, killed, plan))
        assert code == -signal.SIGKILL, plan
        assert killed.state() == "interrupted"
    resumed_from.append(newest_checkpoint(killed))
    assert ended(fork(worker.main, [str(killed.path)]), reference) == [0, 0]

    assert_equal(content_of_run(killed), content_of_run(alone))
    rows = [row["iteration"] for row in content_of_run(killed)["metrics"]]
    assert rows == list(range(30))
    noted = [resume.iteration for resume in killed.read().resumes]
    assert noted == [iteration for iteration in resumed_from if iteration is not None]
    assert len(noted) > KILLS // 2
    assert all(resume.exact for resume in killed.read().resumes)
    assert killed.read().samples == alone.read().samples
    assert [file for file in killed.path.rglob("*") if file.suffix == ".tmp"] == []
