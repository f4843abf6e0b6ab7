"""The launcher with real processes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.parse import load_study
from scratch_vs_pretrain.study.prepare import prepare
from scratch_vs_pretrain.study.run_queue import make_slots


def prepared(study_file, output):
    return prepare(load_study(study_file), output)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with status {process.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


class TestRunStudy:
    def test_one_arm_diverges_and_the_other_still_runs(self, write_study, tiny_backbone, tmp_path):
        arms = {
            "scratch": {"init": "scratch", "overrides": {"SOLVER.BASE_LR": 1e30}},
            "pretrained": {"init": str(tiny_backbone)},
        }
        study = load_study(write_study(arms=arms, allow_differences=["SOLVER.BASE_LR"]))
        outcomes = run_study(study, tmp_path, make_slots(2))
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

    def test_runs_outlive_a_killed_launcher_and_another_one_waits_for_them(
        self, write_study, tmp_path
    ):
        study = write_study(schedules=[{"iterations": 90, "name": "short"}])
        folder = prepared(study, tmp_path)[0]
        command = [sys.executable, "-m", "scratch_vs_pretrain.cli", "run", study, "-o", tmp_path]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        first = subprocess.Popen(command, **quiet)
        try:
            wait_for(folder.is_locked, first)
            first.kill()
            first.wait()
            assert folder.is_locked()
            second = subprocess.run(command, timeout=500, check=False, **quiet)
        finally:
            first.kill()
        assert second.returncode == 0, second.stderr
        assert "being trained by another process" in second.stderr
        run = folder.read()
        assert (run["state"], run["resumes"]) == ("finished", [])
        assert run["samples"]["images"] == 180


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
