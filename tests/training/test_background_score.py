"""Runs whose detections are scored by a second process end like those that score themselves."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.runs.metrics import read_metrics
from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.launch import prepare
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training import background_score, metrics_log
from scratch_vs_pretrain.training.background_score import ABOUT, BackgroundScores, in_background
from scratch_vs_pretrain.training.hooks import EvaluationHook
from scratch_vs_pretrain.training.trainer import Trainer


@pytest.fixture
def plan_run(write_study, tmp_path):
    def plan(name, background):
        study = write_study(
            evaluation={"period": 0, "at": [2]}, overrides={"SVP.EVAL_IN_BACKGROUND": background}
        )
        return prepare(load_study(study), tmp_path / name)[0]

    return plan


def scores(folder):
    """Returns the AP rows as curves read them, and the evaluations but for their seconds."""
    curves = read_metrics(folder.metrics_file, own=True).scores
    evaluations = {
        file.name: json.loads(file.read_text())["tasks"] for file in folder.evaluations.iterdir()
    }
    return {
        name: (curve.iterations.tolist(), curve.values.tolist()) for name, curve in curves.items()
    }, evaluations


def test_the_numbers_are_the_same_also_after_a_stop_while_scoring(plan_run, train_until):
    alone, beside = plan_run("alone", False), plan_run("beside", True)
    assert worker.main([str(alone.path)]) == worker.FINISHED

    # A process takes longer to start than an iteration of this model.
    train_until(beside, 3)
    assert (beside.pending(2) / ABOUT).exists()
    assert not beside.evaluation_file(2).exists()

    assert worker.main([str(beside.path)]) == worker.FINISHED
    assert scores(beside) == scores(alone)
    assert scores(beside)[0]["bbox/AP"][0] == [2, 6]
    assert list((beside.path / "pending").iterdir()) == []
    first, second = (read_metrics(run.metrics_file, own=True).training for run in (alone, beside))
    np.testing.assert_array_equal(first["total_loss"].values, second["total_loss"].values)


def kill_me(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def die(folder, where):
    """Trains a run until it is killed in one of the three states that recovery knows."""
    if where == "while scoring":
        save = Trainer._save
        Trainer._save = lambda trainer, completed: (
            kill_me() if completed == 4 else save(trainer, completed)
        )
    elif where == "scored, without a row":
        metrics_log.append = kill_me
    else:
        background_score.write_json = kill_me
    return worker.main([str(folder.path)])


@pytest.mark.slow  # each scoring process imports torch anew
def test_killed_runs_end_with_the_same_numbers(plan_run, fork, ended):
    alone, killed = plan_run("alone", False), plan_run("killed", True)
    reference = fork(worker.main, [str(alone.path)])
    for where in ("while scoring", "scored, without a row", "while detections are written"):
        assert ended(fork(die, killed, where)) == [-signal.SIGKILL], where
    assert ended(fork(worker.main, [str(killed.path)]), reference) == [0, 0]
    assert scores(killed) == scores(alone)
    rows = [json.loads(line) for line in killed.metrics_file.read_text().splitlines()]
    assert sorted(row["iteration"] for row in rows if "bbox/AP" in row) == [1, 5]
    assert list((killed.path / "pending").iterdir()) == []


def resumed(folder, completed):
    """Returns the hook of a run that goes on after `completed` iterations."""
    hook = BackgroundScores(folder, EvaluationHook(lambda iteration: {}, 0, ()))
    hook.trainer = SimpleNamespace(start_iter=completed, iter=completed, max_iter=10)
    hook.before_train()
    return hook


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.evaluations.mkdir()
    return folder


def write_ap(folder, iteration, value):
    task = dict.fromkeys(
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    )
    content = {"dataset": "some", "tasks": {"bbox": {**task, "AP": value}}}
    folder.evaluation_file(iteration).write_text(json.dumps(content))


def test_a_row_that_was_not_written_is_written(folder):
    folder.metrics_file.write_text('{"bbox/AP": 1.5, "iteration": 1}\n{"iteration": 5}\n')
    write_ap(folder, 2, 1.5)
    write_ap(folder, 4, 2.5)
    write_ap(folder, 8, 3.5)  # after the checkpoint: comes again
    resumed(folder, completed=6)
    rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert rows[2:] == [{"bbox/AP": 2.5, "iteration": 3}]
    resumed(folder, completed=6)
    assert len(folder.metrics_file.read_text().splitlines()) == 3


def test_detections_that_come_again_are_removed(folder):
    for iteration, names in {4: ["detections"], 8: ["detections", ABOUT]}.items():
        for name in names:
            folder.pending(iteration).mkdir(parents=True, exist_ok=True)
            (folder.pending(iteration) / name).write_text("{}")
    resumed(folder, completed=6)
    assert list((folder.path / "pending").iterdir()) == []


def test_what_cannot_be_scored_is_an_error_and_stays(folder):
    folder.pending(4).mkdir(parents=True)
    (folder.pending(4) / ABOUT).write_text("{}")
    hook = resumed(folder, completed=6)  # there is no config
    with pytest.raises(UserError, match=r"pending/0000004: scoring ended with status 1; see .*log"):
        hook.finish()
    assert folder.pending(4).exists()
    assert "no such config file" in folder.log_file.read_text()


def test_scoring_ends_with_the_process_that_started_it():
    code = (
        "from scratch_vs_pretrain.training.background_score import _end_with_parent as end\n"
        "import time; end(); print('ready', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"ready\n"
    child.stdin.close()
    assert child.wait(60) == 1
    child.stdout.close()


def test_voc_is_scored_in_the_foreground():
    cfg = default_config()
    assert not in_background(cfg)
    cfg.SVP.EVAL_IN_BACKGROUND = True
    cfg.DATASETS.TEST = ("demo_test",)
    assert in_background(cfg)
    cfg.DATASETS.TEST = ("voc_2012_val",)
    assert not in_background(cfg)
