"""The launcher: its queue with processes that only seem to train, and then with real ones."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain import cli
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import RunInfo
from scratch_vs_pretrain.study import launch
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.launch import (
    BUSY,
    RunQueue,
    environment,
    in_order,
    make_slots,
    run_study,
)
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training.checkpoint import trunk_of


class TestSlots:
    def test_jobs_share_the_processor(self):
        assert make_slots(2) == [(), ()]

    @given(st.integers(1, 9), st.integers(1, 9))
    def test_every_gpu_has_one_slot_at_most(self, count, per_run):
        gpus = [str(number) for number in range(count)]
        if count < per_run:
            with pytest.raises(UserError, match=f"names {count}, fewer than --gpus-per-run"):
                make_slots(1, gpus, per_run)
            return
        slots = make_slots(1, gpus, per_run)
        assert len(slots) == count // per_run
        assert all(len(slot) == per_run for slot in slots)
        used = [gpu for slot in slots for gpu in slot]
        assert used == gpus[: len(used)]

    def test_a_gpu_named_twice(self):
        with pytest.raises(UserError, match="--gpus: 1 is named twice"):
            make_slots(1, ["0", "1", "1"])

    def test_a_run_sees_its_gpus_alone(self, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
        told = environment({}, number=1, slot=("2", "3"), slots=2)
        assert told == {
            "CUDA_VISIBLE_DEVICES": "2,3",
            "OMP_NUM_THREADS": "4",
            "SVP_BAR_POSITION": "1",
        }
        assert environment({"OMP_NUM_THREADS": "1"}, 0, (), 1)["OMP_NUM_THREADS"] == "1"
        assert "CUDA_VISIBLE_DEVICES" not in environment({}, 0, (), 1)


@pytest.fixture
def make(tmp_path):
    """Writes a run folder."""

    def make(schedule, **fields):
        folder = RunFolder(tmp_path / "study/scratch" / schedule / "seed0")
        folder.path.mkdir(parents=True)
        info = {"study": "study", "arm": "scratch", "schedule": schedule, "seed": 0}
        folder.write(RunInfo(**info, iterations=9).with_changes(**fields))
        return folder

    return make


class Pretended:
    """A training of three looks, which leaves a checkpoint at every branch point."""

    def __init__(self, folder, state="finished", status=0):
        self.folder, self.state, self.status, self.looks = folder, state, status, 0

    @property
    def returncode(self):
        return self.status

    def poll(self):
        self.looks += 1
        if self.looks < 3:
            return None
        run = self.folder.read()
        done = self.state == "finished"
        self.folder.update(state=self.state, iteration=run.iterations if done else 3)
        self.folder.checkpoints.mkdir(exist_ok=True)
        for at in (run.branch_points or [5]) if done else ():
            (self.folder.checkpoints / f"{at:07d}.pth").touch()
        return self.status


@pytest.fixture
def worker(monkeypatch):
    """Trainings end as `endings` says for each schedule; returns both, and who began."""
    endings, began = {}, []

    def start(command, **options):
        folder = RunFolder(Path(command[3]))
        began.append(folder)
        return Pretended(folder, *endings.get(folder.path.parent.name, ()))

    monkeypatch.setattr(launch, "POLL_SECONDS", 0)
    monkeypatch.setattr(launch.subprocess, "Popen", start)
    return endings, began


def schedules(began):
    return [folder.path.parent.name for folder in began]


BRANCH = {"of": "long", "at": 5, "taken": None}


class TestQueue:
    def test_a_branch_waits_for_its_trunk(self, make, worker):
        short, other, long = make("short"), make("other"), make("long")
        short.update(branch=BRANCH)
        queue = RunQueue([short, other, long], make_slots(1))
        queue.work()
        assert schedules(worker[1]) == ["other", "long", "short"]
        assert queue.blocked == {}

    def test_a_branch_of_a_diverged_trunk_diverged(self, make, worker):
        short, long = make("short"), make("long")
        short.update(branch=BRANCH)
        worker[0]["long"] = "diverged", 3
        RunQueue([short, long], make_slots(2)).work()
        assert schedules(worker[1]) == ["long"]
        assert short.state() == "diverged"
        assert short.read().reason == "as its trunk, long, did"

    def test_a_branch_of_a_failed_trunk_waits_for_another_day(self, make, worker):
        short, long = make("short"), make("long")
        short.update(branch=BRANCH)
        worker[0]["long"] = "failed", 1
        queue = RunQueue([short, long], make_slots(2))
        queue.work()
        assert short.state() == "planned"
        assert queue.blocked == {short: "its trunk, long, is failed"}

    def test_a_run_that_another_process_has_is_waited_for_and_not_begun_again(
        self, make, worker, capsys
    ):
        run = make("long")
        worker[0]["long"] = "finished", BUSY
        RunQueue([run], make_slots(1)).work()
        assert schedules(worker[1]) == ["long"]
        assert run.state() == "finished"
        said = f"svp: {run.path}: another process trains this run; waiting for it\n"
        assert capsys.readouterr().err == said

    def test_what_is_shown_takes_the_place_of_bars(self, make, worker):
        shown = []
        queue = RunQueue([make("long")], make_slots(1), show=lambda: shown.append(1))
        queue.work()
        assert shown


class TestOrder:
    @pytest.fixture
    def study(self, write_study, tiny_backbone):
        arms = {"scratch": {"init": "scratch"}, "pretrained": {"init": str(tiny_backbone)}}
        lengths = [{"iterations": length, "name": f"{length}it"} for length in (12, 24)]
        return load_study(write_study(arms=arms, schedules=lengths, seeds=[0, 1]))

    @pytest.mark.parametrize("slots", [1, 2, 3])
    @pytest.mark.parametrize("sharing", [True, False])
    def test_pairs_come_first(self, study, tmp_path, worker, slots, sharing):
        """Both arms of a schedule and seed begin before anything that could begin later."""
        queue = in_order(study, prepare(replace(study, sharing=sharing), tmp_path))
        RunQueue(list(queue), make_slots(slots)).work()
        runs = [folder.read() for folder in worker[1]]
        began = [(run.schedule, run.seed, run.arm) for run in runs]
        first, second = ("24it", "12it") if sharing else ("12it", "24it")
        pairs = [(first, 0), (second, 0), (first, 1), (second, 1)]
        if slots == 3 and sharing:
            # A third slot goes to the next seed while the first one's branches have to wait.
            pairs = [(first, 0), (first, 1), (second, 0), (second, 1)]
            assert {began[2], began[3]} <= {(first, 1, "scratch"), (second, 0, "scratch")}
        assert sorted(began) == sorted((*pair, arm) for pair in pairs for arm in ARMS)
        if slots < 3:
            assert began == [(*pair, arm) for pair in pairs for arm in ARMS]
        assert all(folder.state() == "finished" for folder in worker[1])

    def test_a_trunk_is_before_its_branches_and_a_seed_before_the_next(self, study, tmp_path):
        order = in_order(study, prepare(study, tmp_path))
        for place, folder in enumerate(order):
            trunk = trunk_of(folder)
            assert trunk is None or order.index(trunk) < place
        assert [folder.read().seed for folder in order] == [0] * 4 + [1] * 4


ARMS = ("scratch", "pretrained")


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


class TestRunStudy:
    def test_one_arm_diverges_and_the_other_still_runs(
        self, write_study, tiny_backbone, tmp_path, quick_starts
    ):
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

    def test_a_run_outlives_its_launcher_and_the_next_one_waits_for_it_and_takes_over(
        self, write_study, tmp_path, fork, ended
    ):
        """SIGKILL of a launcher, and then of a training, loses nothing."""
        study = write_study(
            schedules=[{"iterations": 40, "name": "short"}],
            overrides={"SVP.KEEP_CHECKPOINTS": 30},
        )
        (folder,) = prepare(load_study(study), tmp_path)
        log = tmp_path / "forks.log"

        def svp_run():
            with contextlib.redirect_stderr(sys.__stderr__):
                return cli.main(["run", str(study), "-o", str(tmp_path)])

        first = fork(svp_run)
        wait_for(folder.is_locked)
        os.kill(first, signal.SIGKILL)
        assert ended(first) == [-signal.SIGKILL]
        second = fork(svp_run)
        wait_for(lambda: "another process trains this run; waiting for it" in log.read_text())
        wait_for(lambda: list(folder.checkpoints.glob("0*.pth")))
        os.kill(training_of(folder), signal.SIGKILL)
        assert ended(second) == [0], log.read_text()
        run = folder.read().model_dump(mode="json")
        assert run["state"] == "finished"
        assert len(run["resumes"]) == 1
        rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        iterations = [row["iteration"] for row in rows]
        assert iterations == sorted(set(iterations))
        assert run["samples"]["images"] == 80


def training_of(folder):
    """Process id of the training of a run."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"scratch_vs_pretrain.training" in words and str(folder.path).encode() in words:
                return int(entry.name)
    raise AssertionError(f"nothing trains {folder.path}")


def test_folder_of_a_run(tmp_path, write_study):
    run = load_study(write_study()).runs()[0]
    assert run.folder(Path("x")) == RunFolder(Path("x/tiny/scratch/short/seed0"))


def test_an_unreadable_image_is_named_and_counted(write_study, tiny_shapes, tmp_path, quick_starts):
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
    assert len(outcome.info.unreadable_images) == 1
    assert str(broken) in outcome.info.unreadable_images[0]
