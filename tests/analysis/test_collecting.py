import importlib.util
import os
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from scratch_vs_pretrain.analysis.runs import row_cache
from scratch_vs_pretrain.analysis.runs.collect import collect_into
from scratch_vs_pretrain.analysis.runs.records import collect
from scratch_vs_pretrain.errors import UserError


def assert_holds(output, roots):
    """The file holds what reading the folders from scratch gives."""
    frame = collect(roots)
    text = dict.fromkeys(("study", "arm", "schedule", "trunk", "metric", "state", "source"), str)
    written = pd.read_csv(output, dtype={**text, "seed": "Int64", "images": "Int64"})
    plain = frame.astype(dict.fromkeys(text, "str"))
    assert_frame_equal(written.astype(dict.fromkeys(text, "str")), plain, check_exact=True)


@pytest.fixture
def study(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={100: 10.0, 600: None}, state="running", iteration=580)
    return folders


def test_file_holds_the_tidy_frame(study, tmp_path):
    done = collect_into(study.root / "output", tmp_path / "runs.csv")
    assert (done.runs, done.read) == (2, 2)
    assert_holds(tmp_path / "runs.csv", study.root / "output")


@pytest.mark.parametrize("endings", [(".csv", ".parquet"), (".parquet", ".csv")])
def test_recorded_study(tmp_path, endings):
    """The help's own example: every AP is in evaluations/ and again in metrics.json."""
    root = Path(__file__).parents[2] / "notebooks" / "data" / "demo"
    for ending in endings:
        assert collect_into(root, tmp_path / f"runs{ending}").read == 6
    assert_holds(tmp_path / "runs.csv", root)
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == len(collect(root))


def test_plain_detectron2_folders(folders, tmp_path):
    file = folders.metrics(folders.root / "output" / "=a, b", range(19, 100, 20), **{"bbox/AP": 3})
    collect_into(folders.root / "output", tmp_path / "runs.csv")
    written = pd.read_csv(tmp_path / "runs.csv")
    assert set(written.study) == {"'=a, b"}
    assert set(written.source) == {str(file)}
    assert written.images.isna().all()


def test_second_collect_reads_nothing(study, tmp_path, monkeypatch):
    output = tmp_path / "runs.csv"
    collect_into(study.root / "output", output)
    before = output.stat()
    monkeypatch.setattr(row_cache.RowCache, "read", None)
    assert collect_into(study.root / "output", output).read == 0
    assert output.stat() == before


def test_only_the_run_that_grew_is_read(study, tmp_path):
    output, root = tmp_path / "runs.csv", study.root / "output"
    collect_into(root, output)
    study.metrics(root / "demo" / "pretrained" / "600it" / "seed0", [599])
    assert collect_into(root, output).read == 1
    assert_holds(output, root)
    study.run("scratch", 1)
    assert collect_into(root, output).read == 1
    assert_holds(output, root)


def test_state_change_is_noticed(study, tmp_path):
    output, root = tmp_path / "runs.csv", study.root / "output"
    collect_into(root, output)
    file = root / "demo" / "scratch" / "600it" / "seed0" / "run.json"
    file.write_text(file.read_text().replace('"running"', '"failed"'))
    assert collect_into(root, output).read == 1
    assert_holds(output, root)


@pytest.mark.parametrize("damage", ["output", "index", "rows", "gone"])
def test_damaged_output_or_cache_is_made_again(study, tmp_path, damage):
    output, root = tmp_path / "runs.csv", study.root / "output"
    collect_into(root, output)
    cache = tmp_path / "runs.csv.cache"
    if damage == "output":
        output.write_text("study\n")
    elif damage == "gone":
        output.unlink()
    elif damage == "index":
        (cache / "index.json").write_text("[1")
    else:
        for file in cache.glob("*.npz"):
            file.write_bytes(b"no")
        study.metrics(root / "demo" / "scratch" / "600it" / "seed0", [599])
    collect_into(root, output)
    assert_holds(output, root)


def test_refused_outputs(study, tmp_path):
    with pytest.raises(UserError, match=r"runs.xlsx.*\.csv or \.parquet"):
        collect_into(study.root, tmp_path / "runs.xlsx")
    with pytest.raises(UserError, match="cannot be written"):
        collect_into(study.root / "output", tmp_path / "none" / "runs.csv")
    with pytest.raises(UserError, match=r"no run\.json"):
        collect_into(tmp_path / "output" / "demo" / "scratch" / "600it" / "seed0" / "evaluations",
                     tmp_path / "runs.csv")  # fmt: skip
    assert not (tmp_path / "runs.csv").exists()


def test_failing_leaves_the_old_output(study, tmp_path):
    output, root = tmp_path / "runs.csv", study.root / "output"
    collect_into(root, output)
    before = output.read_bytes()
    with (root / "demo" / "scratch" / "600it" / "seed0" / "metrics.json").open("a") as file:
        file.write("damaged\n")
    with pytest.raises(UserError, match="line 30"):
        collect_into(root, output)
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["output", "runs.csv", "runs.csv.cache"]


def test_parquet_holds_the_tidy_frame(study, tmp_path):
    output, root = tmp_path / "runs.parquet", study.root / "output"
    study.run("scratch", 1, iterations=60, branch={"of": "600it", "at": 20})
    assert collect_into(root, output).read == 3
    text = dict.fromkeys(("study", "arm", "schedule", "trunk", "metric", "state", "source"), "str")
    written, frame = pd.read_parquet(output), collect(root)
    assert all(isinstance(written[name].dtype, pd.CategoricalDtype) for name in text)
    assert_frame_equal(written.astype(text), frame.astype(text), check_exact=True)
    assert collect_into(root, output).read == 0


def test_parquet_without_pyarrow(study, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs pyarrow; pip install pyarrow, or"):
        collect_into(study.root / "output", tmp_path / "runs.parquet")
    assert not (tmp_path / "runs.parquet").exists()


def test_rows_of_a_trunk_are_told_apart(folders, tmp_path):
    output, root = tmp_path / "runs.csv", folders.root / "output"
    folders.run("scratch", iterations=120, curve={40: 9.0, 120: 30.0})
    branch = {"of": "120it", "at": 40}
    folders.run("scratch", iterations=60, curve={40: 9.0, 60: 20.0}, branch=branch)
    collect_into(root, output)
    assert_holds(output, root)
    rows = pd.read_csv(output)
    rows = rows[rows.metric.isin(["bbox/AP", "total_loss"]) & (rows.schedule == "60it")]
    assert rows[rows.trunk == "120it"].iteration.tolist() == [40, 20, 40]
    assert rows[rows.trunk.isna()].iteration.tolist() == [60, 60]


def test_not_a_number_and_infinity_are_kept(folders, tmp_path):
    root = folders.root / "output"
    file = folders.run("scratch", curve={}) / "metrics.json"
    with file.open("a") as lines:
        lines.write('{"iteration": 599, "lr": 1e-300, "total_loss": NaN, "time": Infinity}\n')
    collect_into(root, tmp_path / "runs.csv")
    assert_holds(tmp_path / "runs.csv", root)
