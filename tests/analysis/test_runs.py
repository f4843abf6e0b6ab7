import json
import subprocess
import sys

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder


def collect(roots):
    return tidy(load_runs(roots, plain=True))


def test_records_carry_what_run_json_says(folders):
    folders.run("scratch", 1, state="diverged", reason="NaN loss", iteration=120)
    (run,) = load_runs(folders.root)
    assert (run.study, run.arm, run.schedule, run.seed) == ("demo", "scratch", "600it", 1)
    assert (run.state, run.reason, run.iteration, run.iterations) == (
        "diverged", "NaN loss", 120, 600,
    )  # fmt: skip
    assert (run.images, run.epochs) == (4800, 2.4)
    assert run.from_scratch
    assert run.data.test.sha256 == "b"


def test_runs_of_a_study_come_by_size(folders):
    for size in (1000, 30, 100):
        for arm in ("pretrained", "scratch"):
            folders.run(arm, output=f"of {size}", size=size)
    runs = load_runs(folders.root)
    assert [(run.size, run.arm) for run in runs] == [
        (size, arm) for size in (30, 100, 1000) for arm in ("scratch", "pretrained")
    ]


def test_runs_come_in_the_studys_order(folders):
    for arm, seed in [("pretrained", 0), ("scratch", 1), ("scratch", 0)]:
        folders.run(arm, seed)
        folders.run(arm, seed, iterations=60)
    assert [run.name for run in load_runs(folders.root)] == [
        "scratch 60it seed 0", "scratch 60it seed 1", "scratch 600it seed 0",
        "scratch 600it seed 1", "pretrained 60it seed 0", "pretrained 600it seed 0",
    ]  # fmt: skip


def test_run_left_by_a_dead_process_is_interrupted(folders):
    folders.run(state="running", iteration=100)
    folders.run("pretrained", state="running", iteration=100)
    holding = RunFolder(folders.root / "output/demo/pretrained/600it/seed0")
    with holding.lock():
        assert [run.state for run in load_runs(folders.root)] == ["interrupted", "running"]


def test_plain_detectron2_folder(folders):
    folder = folders.root / "theirs" / "output"
    folders.metrics(folder, range(19, 100, 20))
    with (folder / "metrics.json").open("a") as file:
        file.write('{"bbox/AP": 12.5, "iteration": 100}\n')
    frame = collect(folders.root / "theirs")
    assert set(frame.study) == {"output"}
    assert set(frame.arm) == set(frame.schedule) == set(frame.state) == {"unknown"}
    assert frame.seed.isna().all()
    assert frame.images.isna().all()
    ap = frame[frame.metric == "bbox/AP"]
    assert (ap.iteration.item(), ap.value.item()) == (100, 12.5)

    (folder / "config.yaml").write_text("SOLVER:\n  IMS_PER_BATCH: 16\n")
    assert collect(folder).images.max() == 1600
    (folder / "config.yaml").write_text("SOLVER: !!python/object/apply:os.getcwd []\n")
    assert collect(folder).images.isna().all()


def test_plain_folders_of_one_name_are_told_apart(folders):
    folders.metrics(folders.root / "a/output", [19])
    folders.metrics(folders.root / "b/output", [19])
    assert set(collect(folders.root).study) == {"a/output", "b/output"}
    with pytest.raises(UserError, match="hold the same run"):
        collect([folders.root / "a/output", folders.root / "b/output"])


def test_overlapping_roots_count_once(folders):
    folder = folders.run()
    assert len(load_runs([folders.root, folder, folders.root / "output"])) == 1
    assert len(collect([folders.root, folder])) == len(collect(folder))


@pytest.mark.parametrize("read", [load_runs, collect])
def test_folder_without_a_run(tmp_path, read):
    with pytest.raises(UserError, match=rf"{tmp_path}: no run\.json"):
        read(tmp_path)
    with pytest.raises(UserError, match="none: no such folder"):
        read(tmp_path / "none")


def test_one_run_found_twice(folders):
    folders.run(output="a")
    folders.run(output="b")
    with pytest.raises(UserError, match="hold the same run"):
        load_runs(folders.root)
    with pytest.raises(UserError, match="hold the same run"):
        collect([folders.root / "a", folders.root / "b"])


def test_arms_of_one_study_from_two_machines(folders):
    folders.run("scratch", output="a")
    folders.run("pretrained", output="b")
    assert len(load_runs([folders.root / "a", folders.root / "b"])) == 2


def test_two_studies_of_one_name(folders):
    folders.run("scratch", output="a")
    folders.run("moco", output="b", arm_order=["scratch", "moco"])
    with pytest.raises(UserError, match="two studies named demo"):
        load_runs(folders.root)


def test_study_that_got_another_arm_later(folders):
    folders.run("scratch")
    folders.run("moco", arm_order=["scratch", "pretrained", "moco"])
    assert len(load_runs(folders.root)) == 2


def test_one_schedule_name_for_two_lengths(folders):
    folders.run("scratch", 0, schedule="short", iterations=600)
    folders.run("scratch", 1, schedule="short", iterations=900)
    with pytest.raises(UserError, match="two studies named demo"):
        load_runs(folders.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "not a run description of format 1 or 2"),
        ({"arm": None}, "'arm'"),
        ({"seed": "0"}, "'seed'"),
        ({"iterations": 1.5}, "'iterations'"),
        ({"data": []}, "'data'"),
        ({"state": "asleep"}, "'state'"),
    ],
)
def test_damaged_run_json_is_named(folders, change, message):
    file = folders.run() / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message) as error:
        load_runs(folders.root)
    assert str(file) in str(error.value)


def test_reading_imports_neither_torch_nor_detectron2():
    """And records are read without pandas, which alone takes most of a second."""
    script = (
        "import sys; import scratch_vs_pretrain.analysis.runs;"
        "from scratch_vs_pretrain.analysis.tables import studies;"
        "heavy = {'pandas', 'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy;"
        "from scratch_vs_pretrain.analysis.runs import frame;"
        "from scratch_vs_pretrain.analysis.figures import curves, finals;"
        "from scratch_vs_pretrain.analysis.stats import conclusions;"
        "from scratch_vs_pretrain.analysis.tables import published;"
        "wrong = {'torch', 'detectron2', 'matplotlib.pyplot'} & set(sys.modules);"
        "assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
