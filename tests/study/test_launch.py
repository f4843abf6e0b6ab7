"""Preparing run folders, and the launcher with real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.launch import prepare, run_study
from scratch_vs_pretrain.study.parse import load_study

ONE = {"scratch": {"init": "scratch"}}


def prepared(study_file, output):
    return prepare(load_study(study_file), output)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with status {process.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


class TestPrepare:
    def test_writes_what_a_run_needs(self, write_study, tmp_path):
        folders = prepared(write_study(seeds=[0, 3]), tmp_path / "out")
        paths = [folder.path.relative_to(tmp_path) for folder in folders]
        assert [str(path) for path in paths] == [
            "out/tiny/scratch/short/seed0",
            "out/tiny/scratch/short/seed3",
        ]
        run = folders[1].read()
        assert (run["state"], run["seed"], run["iterations"]) == ("planned", 3, 6)
        assert run["init"]["name"] == "scratch"
        assert folders[1].config_file.is_file()

    def test_again_changes_nothing(self, write_study, tmp_path):
        study = write_study()
        folder = prepared(study, tmp_path)[0]
        before = folder.run_file.read_bytes(), folder.config_file.read_bytes()
        assert prepared(study, tmp_path)[0] == folder
        assert (folder.run_file.read_bytes(), folder.config_file.read_bytes()) == before

    def test_new_seeds_and_another_description_are_accepted(self, write_study, tmp_path):
        first = prepared(write_study(), tmp_path)[0]
        first.update(state="finished")
        study = write_study(seeds=[0, 1], description="with another seed")
        assert [folder.state() for folder in prepared(study, tmp_path)] == ["finished", "planned"]

    def test_conclusions_are_written_and_brought_up_to_date(self, write_study, tmp_path):
        folder = prepared(write_study(conclusions={"margin": 1}), tmp_path)[0]
        assert folder.read()["thresholds"] == {"margin": 1}
        folder.update(state="finished")
        changed = write_study(conclusions={"margin": 2})
        with folder.lock():
            prepared(changed, tmp_path)
        assert folder.read()["thresholds"] == {"margin": 1}
        prepared(changed, tmp_path)
        assert folder.read()["thresholds"] == {"margin": 2}
        assert folder.state() == "finished"

    def test_another_config_is_refused_and_named(self, write_study, tmp_path):
        folder = prepared(write_study(), tmp_path)[0]
        before = folder.config_file.read_bytes()
        changed = write_study(overrides={"SOLVER.MOMENTUM": 0.8})
        with pytest.raises(UserError, match=r"SOLVER.MOMENTUM \(0.9 there, 0.8 now\)"):
            prepared(changed, tmp_path)
        assert folder.config_file.read_bytes() == before

    def test_other_weights_are_refused(self, write_study, tiny_backbone, tmp_path):
        weights = tmp_path / "weights.pth"
        weights.write_bytes(tiny_backbone.read_bytes())
        study = write_study(arms={"pretrained": {"init": str(weights)}})
        prepared(study, tmp_path / "out")
        from scratch_vs_pretrain.modeling.weights import read_checkpoint, write_backbone

        state = {name: tensor + 1 for name, tensor in read_checkpoint(weights).items()}
        write_backbone(weights, state, {})
        with pytest.raises(UserError, match="started from other weights"):
            prepared(study, tmp_path / "out")

    def test_the_same_weights_may_lie_elsewhere(self, write_study, tiny_backbone, tmp_path):
        prepared(write_study(arms={"pretrained": {"init": str(tiny_backbone)}}), tmp_path / "out")
        copy = tmp_path / "copy.pth"
        copy.write_bytes(tiny_backbone.read_bytes())
        prepared(write_study(arms={"pretrained": {"init": str(copy)}}), tmp_path / "out")

    def test_an_output_that_cannot_be_written(self, write_study, tmp_path):
        (tmp_path / "out").write_text("a file, not a folder")
        with pytest.raises(UserError, match=r"out.*cannot write there"):
            prepared(write_study(), tmp_path / "out")

    def test_a_full_disk(self, write_study, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write there \(No space left"):
            prepared(write_study(), tmp_path / "out")
        assert list(tmp_path.rglob("run.json")) == []

    def test_arms_that_differ_are_refused_before_anything_is_written(
        self, write_study, tiny_backbone, tmp_path
    ):
        arms = {
            "scratch": {"init": "scratch", "overrides": {"SOLVER.BASE_LR": 0.1}},
            "pretrained": {"init": str(tiny_backbone)},
        }
        with pytest.raises(UserError, match=r"SOLVER.BASE_LR"):
            prepared(write_study(arms=arms), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestRunStudy:
    def test_one_arm_diverges_and_the_other_still_runs(self, write_study, tiny_backbone, tmp_path):
        arms = {
            "scratch": {"init": "scratch", "overrides": {"SOLVER.BASE_LR": 1e30}},
            "pretrained": {"init": str(tiny_backbone)},
        }
        study = load_study(write_study(arms=arms, allow_differences=["SOLVER.BASE_LR"]))
        outcomes = run_study(study, tmp_path, jobs=2)
        assert [outcome.state for outcome in outcomes] == ["diverged", "finished"]
        assert "iterations" in outcomes[0].reason
        # Nothing is trained twice: a diverged run would diverge again.
        metrics = [outcome.folder.metrics_file.stat().st_mtime_ns for outcome in outcomes]
        assert [outcome.state for outcome in run_study(study, tmp_path)] == ["diverged", "finished"]
        assert [o.folder.metrics_file.stat().st_mtime_ns for o in outcomes] == metrics

    def test_two_launchers_share_a_run_and_a_killed_one_is_taken_over(self, write_study, tmp_path):
        """SIGKILL of a worker loses nothing; the launcher that waits for its run resumes it."""
        study = write_study(
            schedules=[{"iterations": 40, "name": "short"}],
            overrides={"SVP.KEEP_CHECKPOINTS": 30},
        )
        command = [sys.executable, "-m", "scratch_vs_pretrain.training"]
        folder = prepared(study, tmp_path)[0]
        worker = subprocess.Popen([*command, str(folder.path)], stderr=subprocess.DEVNULL)
        launcher = None
        try:
            wait_for(folder.is_locked, worker)
            launcher = subprocess.Popen(
                [sys.executable, "-m", "scratch_vs_pretrain.cli", "run", study, "-o", tmp_path],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            wait_for(lambda: list(folder.checkpoints.glob("0*.pth")), worker)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            assert folder.state() in ("interrupted", "running")
            _, errors = launcher.communicate(timeout=240)
        finally:
            for process in (worker, launcher):
                if process is not None and process.poll() is None:
                    process.kill()
        assert launcher.returncode == 0, errors
        run = folder.read()
        assert run["state"] == "finished"
        assert len(run["resumes"]) == 1
        rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        iterations = [row["iteration"] for row in rows]
        assert iterations == sorted(set(iterations))
        assert run["samples"]["images"] == 80


def test_folder_of_a_run(tmp_path, write_study):
    run = load_study(write_study()).runs()[0]
    assert run.folder(Path("x")) == RunFolder(Path("x/tiny/scratch/short/seed0"))


def test_an_unreadable_image_is_named_and_counted(write_study, tiny_shapes, tmp_path):
    """Training goes on with another image in its place, and says so at the end."""
    images = tmp_path / "images"
    shutil.copytree(tiny_shapes / "train", images)
    broken = sorted(images.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:200])
    test = {"annotations": str(tiny_shapes / "annotations/test.json")}
    train = {"annotations": str(tiny_shapes / "annotations/train.json"), "images": str(images)}
    study = write_study(
        data={"train": train, "test": {**test, "images": str(tiny_shapes / "test")}},
        overrides={"SVP.MAX_UNREADABLE": 0.1},
    )
    (outcome,) = run_study(load_study(study), tmp_path / "out")
    assert outcome.state == "finished"
    assert len(outcome.unreadable_images) == 1
    assert str(broken) in outcome.unreadable_images[0]
