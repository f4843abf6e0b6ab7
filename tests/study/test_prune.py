"""What may be deleted of run folders, and what must not."""

import os

import pytest
import torch

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import Branch, RunInfo
from scratch_vs_pretrain.study.folders import find_waste


@pytest.fixture
def make(tmp_path):
    """Writes a run folder with checkpoints of these iterations."""

    def make(schedule, state, checkpoints, **fields):
        folder = RunFolder(tmp_path / "out/study/scratch" / schedule / "seed0")
        folder.checkpoints.mkdir(parents=True)
        about = {"study": "study", "arm": "scratch", "schedule": schedule, "seed": 0}
        folder.write(RunInfo(**about, state=state, iterations=40, **fields))
        for iteration in checkpoints:
            content = {"format": 1, "iteration": iteration, "model": {}}
            torch.save(content, folder.checkpoints / f"{iteration:07d}.pth")
        return folder

    return make


def iterations(found, folder):
    return [int(path.stem) for path in found if path.parent == folder.checkpoints]


def test_a_finished_run_keeps_its_final_model_and_its_branch_points(make, tmp_path):
    run = make("2x", "finished", [10, 20, 30, 40], branch_points=(20,))
    assert iterations(find_waste(tmp_path), run) == [10, 30]
    assert iterations(find_waste(tmp_path, final=True), run) == [10, 20, 30, 40]


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_a_run_that_goes_on_keeps_its_newest_two(make, tmp_path, state):
    run = make("2x", state, [10, 20, 30, 40], branch_points=(10,))
    for final in (False, True):
        assert iterations(find_waste(tmp_path, final), run) == [20]


@pytest.mark.parametrize(
    ("state", "kept"), [("finished", [10]), ("interrupted", []), ("failed", [])]
)
def test_what_can_be_read_stays_where_the_newest_cannot(make, tmp_path, state, kept):
    """One for a finished run, two for one that goes on; a user's own copies are left alone."""
    run = make("2x", state, [10, 20, 30])
    os.truncate(run.checkpoints / "0000030.pth", 300)
    for name in ("0000030 (copy).pth", "0000010.bak.pth"):
        (run.checkpoints / name).write_bytes(b"mine")
    assert iterations(find_waste(tmp_path), run) == kept


def test_a_planned_branch_keeps_what_can_be_read(make, tmp_path):
    trunk = make("6x", "finished", [10, 20, 25, 40])
    os.truncate(trunk.checkpoints / "0000025.pth", 300)
    make("2x", "planned", [], branch=Branch(of="6x", at=25))
    assert iterations(find_waste(tmp_path, final=True), trunk) == [10, 40]


def test_a_diverged_run_needs_none(make, tmp_path):
    run = make("2x", "diverged", [10, 20])
    assert iterations(find_waste(tmp_path), run) == [10, 20]


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_what_a_planned_branch_begins_from_stays(make, tmp_path, state):
    trunk = make("6x", state, [10, 20, 40])
    make("2x", "planned", [], branch=Branch(of="6x", at=25))
    assert iterations(find_waste(tmp_path, final=True), trunk) == [10, 40]


def test_a_run_in_training_is_left_alone(make, tmp_path):
    run = make("2x", "running", [10, 20, 30, 40])
    with run.lock():
        assert find_waste(tmp_path) == {}


def test_the_command_says_what_and_how_much_and_deletes_when_told(make, tmp_path, capsys):
    run = make("2x", "finished", [10, 20, 40])
    size = (run.checkpoints / "0000020.pth").stat().st_size
    (run.path / ".run.json.abcd_012.tmp").write_bytes(bytes(3000 - size))
    # A branch has the same file under another name, whose bytes stay.
    os.link(run.checkpoints / "0000010.pth", tmp_path / "elsewhere.pth")
    out = str(tmp_path / "out")
    assert main(["prune", out]) == 0
    said = capsys.readouterr().out
    for name in ("0000010.pth", "0000020.pth", ".run.json.abcd_012.tmp"):
        assert name in said
    assert "3 would be deleted, 3.0 kB; svp prune" in said.splitlines()[-1]
    assert len(list(run.checkpoints.iterdir())) == 3
    assert main(["prune", out, "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 deleted, 3.0 kB"
    assert [file.name for file in run.checkpoints.iterdir()] == ["0000040.pth"]
    assert main(["prune", out]) == 0
    assert capsys.readouterr().out == "nothing to delete\n"


@pytest.mark.parametrize(
    "name",
    [
        ".cache/index.json",
        "thesis.cache/index.json",
        "study/scratch/2x/seed0/.run.json.abcd_012.tmp/chapter",
        "study/scratch/2x/seed0/.mine.tmp",
        "study/scratch/2x/seed0/.mine.too.tmp",
        "study/scratch/2x/seed0/checkpoints/0000010.pth/chapter",
    ],
)
def test_what_is_not_of_a_run_stays(make, tmp_path, name):
    make("2x", "finished", [40])
    precious = tmp_path / "out" / name
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("precious")
    assert find_waste(tmp_path) == {}


def test_a_folder_without_runs_is_one_sentence(tmp_path, capsys):
    assert main(["prune", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"svp: error: {tmp_path}: holds no runs")
