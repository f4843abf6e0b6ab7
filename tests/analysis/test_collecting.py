import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from scratch_vs_pretrain.analysis.report import report
from scratch_vs_pretrain.analysis.runs import load_runs, numbers
from scratch_vs_pretrain.analysis.runs.frame import collect_into, tidy
from scratch_vs_pretrain.errors import UserError


def collect(roots):
    return tidy(load_runs(roots, plain=True))


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


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_file_that_grew_equals_one_made_at_once(study, tmp_path, ending):
    root = study.root / "output"
    collect_into(root, tmp_path / f"grown{ending}")
    study.metrics(root / "demo" / "pretrained" / "600it" / "seed0", [599])
    study.run("scratch", 1)
    assert collect_into(root, tmp_path / f"grown{ending}").read == 2
    collect_into(root, tmp_path / f"new{ending}")
    grown, new = (tmp_path / f"{name}{ending}" for name in ("grown", "new"))
    assert grown.read_bytes() == new.read_bytes()


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
    monkeypatch.setattr(numbers, "read_rows", None)
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


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("damage", ["output", "index", "parts", "numbers", "gone"])
def test_damaged_output_or_index_is_made_again(study, tmp_path, damage, ending):
    output, root = tmp_path / f"runs{ending}", study.root / "output"
    collect_into(root, output)
    whole = output.read_bytes()
    index = tmp_path / f"runs{ending}.index"
    if damage == "output":
        output.write_text("study\n")
    elif damage == "gone":
        output.unlink()
    elif damage == "numbers":
        content = json.loads(index.read_text())
        content["parts"][0][2] = float("inf")
        content["parts"][1][1:] = [9, -1]
        index.write_text(json.dumps(content))
    else:
        index.write_text("[1" if damage == "index" else '{"format": 3, "parts": [[1]]}')
    assert collect_into(root, output).read == 2
    assert output.read_bytes() == whole


def test_refused_outputs(study, tmp_path):
    with pytest.raises(UserError, match=r"runs.xlsx.*\.csv or \.parquet"):
        collect_into(study.root, tmp_path / "runs.xlsx")
    with pytest.raises(UserError, match="cannot be written"):
        collect_into(study.root / "output", tmp_path / "none" / "runs.csv")
    with pytest.raises(UserError, match=r"no run\.json"):
        collect_into(tmp_path / "output" / "demo" / "scratch" / "600it" / "seed0" / "evaluations",
                     tmp_path / "runs.csv")  # fmt: skip
    assert not (tmp_path / "runs.csv").exists()


def damage(study, arm):
    """Spoils a run's last line but one; returns the file."""
    file = study.root / "output" / "demo" / arm / "600it" / "seed0" / "metrics.json"
    with file.open("a") as lines:
        lines.write("damaged\n")
    study.metrics(file.parent, [599])
    return file


def test_strict_refuses_all_and_leaves_the_old_output(study, tmp_path):
    output, root = tmp_path / "runs.csv", study.root / "output"
    collect_into(root, output)
    before = output.read_bytes()
    damage(study, "scratch")
    with pytest.raises(UserError, match="line 30"):
        collect_into(root, output, strict=True)
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["output", "runs.csv", "runs.csv.index"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_folders_that_cannot_be_read_are_left_out_and_named(study, tmp_path, ending):
    output, root = tmp_path / f"runs{ending}", study.root / "output"
    file = damage(study, "scratch")
    (study.run("scratch", 1) / "run.json").write_text('{"format": 2}')
    study.run("pretrained", 0, output="output/copy")
    done = collect_into(root, output)
    assert (done.runs, done.read) == (1, 1)
    assert len(done.skipped) == 3
    for said in (f"{file}, line 30: ", "seed1/run.json: 'study' is missing", "hold the same run"):
        assert any(said in line for line in done.skipped), said
    read = pd.read_csv if ending == ".csv" else pd.read_parquet
    assert set(read(output).arm) == {"pretrained"}
    assert len(collect_into(root, output).skipped) == 3


def test_a_table_is_not_replaced_where_nothing_can_be_read(study, tmp_path):
    output = tmp_path / "runs.csv"
    collect_into(study.root / "output", output)
    before = output.read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    for file in (output, tmp_path / "new.csv"):
        with pytest.raises(
            UserError, match=rf"{file}: not written, as no run .*bad/run\.json: not"
        ):
            collect_into(tmp_path / "bad", file)
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bad", "output", "runs.csv", "runs.csv.index"]


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "evaluations/0000600.json"])
def test_pipes_and_devices_are_not_waited_for(study, tmp_path, name):
    for number, make in enumerate((os.mkfifo, lambda file: file.symlink_to("/dev/zero")), 1):
        file = study.run("scratch", number, losses=False) / name
        file.unlink(missing_ok=True)
        make(file)
    done = collect_into(study.root / "output", tmp_path / "runs.csv")
    assert done.runs == 2
    assert len(done.skipped) == 2
    assert all(f"{name}: a pipe or a device, not a file" in said for said in done.skipped)


def restarted(folders):
    """A plain Detectron2 folder whose training was resumed, and then begun anew."""
    folder = folders.root / "output" / "theirs"
    folders.metrics(folder, range(19, 100, 20), **{"bbox/AP": 1.0})
    folders.metrics(folder, range(79, 140, 20), **{"bbox/AP": 2.0})
    return folders.metrics(folder, range(19, 60, 20), **{"bbox/AP": 3.0})


def test_the_last_start_of_a_log_counts_and_each_is_reported(folders, tmp_path):
    file = restarted(folders)
    done = collect_into(folders.root / "output", tmp_path / "runs.csv")
    rows = pd.read_csv(tmp_path / "runs.csv").query("metric == 'bbox/AP'")
    assert dict(zip(rows.iteration, rows.value, strict=True)) == {20: 3, 40: 3, 60: 3}
    assert done.restarted == (
        f"{file}, line 6: training began again at iteration 79 after 99",
        f"{file}, line 10: training began again at iteration 19 after 139",
    )
    assert done.skipped == ()


def test_a_resume_keeps_what_was_before_it(folders, tmp_path):
    folder = folders.root / "output" / "theirs"
    folders.metrics(folder, range(19, 100, 20), **{"bbox/AP": 1.0})
    folders.metrics(folder, [59, 99], **{"bbox/AP": 2.0})
    collect_into(folders.root / "output", tmp_path / "runs.csv")
    rows = pd.read_csv(tmp_path / "runs.csv").query("metric == 'bbox/AP'")
    # The resumed training logged other iterations: what the first one had at 79 is not its own.
    assert dict(zip(rows.iteration, rows.value, strict=True)) == {20: 1, 40: 1, 60: 2, 100: 2}


def test_each_start_of_a_log_can_be_a_run(folders, tmp_path):
    restarted(folders)
    done = collect_into(folders.root / "output", tmp_path / "runs.csv", restarts="split")
    rows = pd.read_csv(tmp_path / "runs.csv").query("metric == 'bbox/AP'")
    parts = {name: list(part.iteration) for name, part in rows.groupby("study")}
    assert parts == {
        "theirs, start 1": [20, 40, 60, 80, 100],
        "theirs, start 2": [80, 100, 120, 140],
        "theirs, start 3": [20, 40, 60],
    }
    assert len(done.restarted) == 2


def test_restarted_logs_can_be_refused(folders, tmp_path):
    restarted(folders)
    folders.metrics(folders.root / "output" / "other", [19, 39])
    done = collect_into(folders.root / "output", tmp_path / "runs.csv", restarts="refuse")
    assert done.runs == 1
    assert "line 10: iterations start again at 19" in done.skipped[0]
    with pytest.raises(UserError, match="line 10"):
        collect_into(folders.root / "output", tmp_path / "b.csv", restarts="refuse", strict=True)


def test_names_are_harmless_in_a_spreadsheet(folders, tmp_path):
    study = "demo\n=1+1"
    folders.run(curve={600: 30.0}, study="demo", arm_order=["=cmd|' /C calc'!A0"])
    file = folders.root / "output/demo/scratch/600it/seed0/run.json"
    file.write_text(file.read_text().replace('"study": "demo"', f'"study": {json.dumps(study)}'))
    folders.metrics(folders.root / "output" / "@SUM(A1)", [19], **{"=HYPERLINK()": 1.0})
    collect_into(folders.root / "output", tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as lines:
        rows = list(csv.reader(lines))
    assert {row[0] for row in rows[1:]} == {"demo =1+1", "'@SUM(A1)"}
    assert "'=HYPERLINK()" in {row[8] for row in rows}
    assert not any(cell.startswith(("=", "+", "@", "-")) for row in rows for cell in row)
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == len(rows)


def test_pipes_and_devices_are_written_to(study, tmp_path):
    root, pipe = study.root / "output", tmp_path / "pipe"
    collect_into(root, tmp_path / "runs.csv")
    expected = (tmp_path / "runs.csv").read_bytes()
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    collect_into(root, pipe)
    reader.join(10)
    assert got == [expected]
    assert pipe.is_fifo()
    command = [
        sys.executable,
        "-m",
        "scratch_vs_pretrain.cli",
        "collect",
        root,
        "-o",
        "/dev/stdout",
    ]
    with (tmp_path / "redirected").open("wb") as target:
        done = subprocess.run(command, stdout=target, stderr=subprocess.PIPE, check=True)
    assert b"2 runs, 2 of them new" in done.stderr
    assert (tmp_path / "redirected").read_bytes() == expected


def test_parquet_holds_the_tidy_frame(study, tmp_path):
    output, root = tmp_path / "runs.parquet", study.root / "output"
    study.run("scratch", 1, iterations=60, branch={"of": "600it", "at": 20})
    assert collect_into(root, output).read == 3
    text = dict.fromkeys(("study", "arm", "schedule", "trunk", "metric", "state", "source"), "str")
    written, frame = pd.read_parquet(output), collect(root)
    assert all(isinstance(written[name].dtype, pd.CategoricalDtype) for name in text)
    assert_frame_equal(written.astype(text), frame.astype(text), check_exact=True)
    assert collect_into(root, output).read == 0


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
        lines.write('{"iteration": 619, "lr": 1e-300, "total_loss": NaN, "time": Infinity}\n')
    collect_into(root, tmp_path / "runs.csv")
    assert_holds(tmp_path / "runs.csv", root)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_folder_whose_name_is_no_text_is_left_out_and_named(study, tmp_path, ending):
    odd = os.fsdecode(bytes(tmp_path / "output") + b"/odd\xff")
    shutil.move(study.run("scratch", 1), odd)
    done = collect_into(study.root / "output", tmp_path / f"runs{ending}")
    assert done.runs == 2
    assert done.skipped == (f"{odd}: its path is no UTF-8 text; rename the folder",)
    report(study.root / "output", tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()
