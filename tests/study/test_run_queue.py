"""The queue, with processes that end at once in place of trainings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study import run_queue
from scratch_vs_pretrain.study.run_queue import BUSY, RunQueue, environment, make_slots


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
        folder.update(state="planned", iteration=0, branch=None, **fields)
        return folder

    return make


@pytest.fixture
def worker(monkeypatch):
    """Trainings end at once, as `endings` says for each schedule; returns both, and who began."""
    endings, began = {}, []

    def start(command, env):
        folder = RunFolder(Path(command[3]))
        name = folder.path.parent.name
        began.append(name)
        state, status = endings.get(name, ("finished", 0))
        if state:
            folder.update(state=state, iteration=9 if state == "finished" else 3)
            folder.checkpoints.mkdir(exist_ok=True)
            if state == "finished":
                (folder.checkpoints / "0000005.pth").touch()
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])

    monkeypatch.setattr(run_queue, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(run_queue, "start_process", start)
    return endings, began


BRANCH = {"of": "long", "at": 5, "taken": None}


def test_a_branch_waits_for_its_trunk(make, worker):
    short, other, long = make("short"), make("other"), make("long")
    short.update(branch=BRANCH)
    queue = RunQueue([short, other, long], make_slots(1))
    queue.work()
    assert worker[1] == ["other", "long", "short"]
    assert queue.blocked == {}


def test_a_branch_of_a_diverged_trunk_diverged(make, worker):
    short, long = make("short"), make("long")
    short.update(branch=BRANCH)
    worker[0]["long"] = "diverged", 3
    RunQueue([short, long], make_slots(2)).work()
    assert worker[1] == ["long"]
    assert short.state() == "diverged"
    assert short.read()["reason"] == "as its trunk, long, did"


def test_a_branch_of_a_failed_trunk_waits_for_another_day(make, worker):
    short, long = make("short"), make("long")
    short.update(branch=BRANCH)
    worker[0]["long"] = "failed", 1
    queue = RunQueue([short, long], make_slots(2))
    queue.work()
    assert short.state() == "planned"
    assert queue.blocked == {short: "its trunk, long, is failed"}


def test_a_run_that_somebody_finished_meanwhile_is_not_begun_again(make, worker):
    run = make("long")
    worker[0]["long"] = "finished", BUSY
    RunQueue([run], make_slots(1)).work()
    assert worker[1] == ["long"]
    assert json.loads(run.run_file.read_text())["state"] == "finished"


def test_what_is_shown_takes_the_place_of_bars(make, worker):
    shown = []
    queue = RunQueue([make("long")], make_slots(1), show=lambda: shown.append(1))
    queue.work()
    assert shown
