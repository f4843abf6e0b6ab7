import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from scratch_vs_pretrain.cli import main


@pytest.fixture
def pair(tmp_path):
    """A finished pair of one seed."""
    for arm, ap in (("scratch", 30.0), ("pretrained", 32.0)):
        folder = tmp_path / "output" / "demo" / arm / "600it" / "seed0"
        (folder / "evaluations").mkdir(parents=True)
        run = {
            "format": 1, "study": "demo", "arm": arm, "schedule": "600it", "seed": 0,
            "state": "finished", "iterations": 600, "iteration": 600, "images_per_batch": 8,
            "samples": {"images": 4800, "instances": 9600, "pixels": 10_000_000},
            "init": {"name": arm}, "arm_order": ["scratch", "pretrained"],
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(run))
        scores = {"AP": ap, "AP50": ap + 20, "AP75": ap}
        evaluation = {"iteration": 600, "dataset": "val", "tasks": {"bbox": scores}}
        (folder / "evaluations" / "0000600.json").write_text(json.dumps(evaluation))
    return tmp_path / "output"


def test_samples_as_table_and_figure(pair, tmp_path, capsys):
    assert main(["table", str(pair), "--kind", "samples"]) == 0
    assert "10,000,000" in capsys.readouterr().out
    file = tmp_path / "samples.svg"
    assert main(["plot", str(pair), "--figure", "samples", "-o", str(file)]) == 0
    assert "</svg>" in file.read_text()


def test_plot_passes_its_options_on(pair, tmp_path, capsys):
    file = tmp_path / "a.svg"
    options = ["--figure", "bars", "--label", "demo=my demo", "--metric", "bbox/AP75"]
    assert main(["plot", str(pair), *options, "-o", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert "Box AP75 (%)" in file.read_text()
    assert "my demo" in file.read_text()
    assert main(["plot", str(pair), "--x", "pixels", "--band", "std", "-o", str(file)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figure", "bars", "--label", "demo"], "--label demo: write --label STUDY=TEXT"),
        (["--figure", "iou", "--x", "images"], "--x: figure iou has no such option"),
        (["--x", "gpu-hours"], "does not say how many gpu-hours"),
        (["-o", "a.gif"], "figures are written as .png, .svg, .pdf"),
    ],
)
def test_plot_that_cannot_be_drawn_writes_nothing(
    pair, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(pair), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["output"]


def test_table_of_several_folders_and_of_the_best(pair, capsys):
    arms = [str(pair / "demo" / arm) for arm in ("scratch", "pretrained")]
    assert main(["table", *arms, "--kind", "gaps"]) == 0
    assert "-2.0" in capsys.readouterr().out
    assert main(["table", str(pair), "--best"]) == 0
    assert "BEST" in capsys.readouterr().out
    assert main(["table", str(pair), "--kind", "catch-up"]) == 0
    assert "where scratch comes within" in capsys.readouterr().out
    assert main(["table", str(pair), "--kind", "catch-up", "--best"]) == 2


def test_collect(pair, tmp_path, capsys):
    command = ["collect", str(pair), "-o", str(tmp_path / "runs.csv")]
    assert main(command) == 0
    assert "2 runs, 2 of them new or changed" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 runs, up to date" in capsys.readouterr().out


def test_conclude(pair, capsys):
    assert main(["conclude", str(pair)]) == 0
    out = capsys.readouterr().out
    first = "1. Training from scratch works without changing the architecture.\n"
    assert f"{first}   NOT ENOUGH EVIDENCE: no setting decides\n" in out
    assert "a verdict needs 3 seeds" in out


def test_answer(pair, capsys):
    assert main(["answer", str(pair)]) == 0
    assert capsys.readouterr().out.startswith("Does pre-training help?   demo: scratch and")


@pytest.mark.parametrize("command", ["answer", "conclude"])
def test_programs_read_json(pair, capsys, command):
    assert main([command, str(pair), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_report(pair, tmp_path):
    assert main(["report", str(pair), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_report_replaces_no_file_of_another_kind(pair, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text("name: demo")
    assert main(["report", str(pair), "-o", str(study)]) == 2
    assert f"{study}: a report is written into an .html file" in capsys.readouterr().err
    assert study.read_text() == "name: demo"


def test_one_run_is_one_run(pair, tmp_path, capsys):
    run = str(pair / "demo/scratch/600it/seed0")
    assert main(["status", run]) == 0
    assert capsys.readouterr().out.startswith(f"1 run in {run}\n")
    assert main(["collect", run, "-o", str(tmp_path / "runs.csv")]) == 0
    assert ": 1 run, 1 of them new or changed" in capsys.readouterr().out
    assert main(["report", run, "-o", str(tmp_path / "report.html")]) == 0
    assert " 1 run, 1 of them finished." in (tmp_path / "report.html").read_text()


# The right of root to read whatever it likes.
RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] * (os.geteuid() == 0)


def as_a_user(*arguments):
    command = [*RIGHTS, sys.executable, "-m", "scratch_vs_pretrain.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("part", ["", "evaluations"])
def test_a_folder_that_cannot_be_read_is_named_and_left_out(pair, tmp_path, part):
    shutil.copytree(pair / "demo/scratch/600it/seed0", pair / "demo/scratch/600it/seed1")
    hidden = pair / "demo/scratch/600it/seed1" / part
    change(pair / "demo/scratch/600it/seed1/run.json", seed=1)
    hidden.chmod(0)
    try:
        collected, said = as_a_user("collect", pair, "-o", tmp_path / "runs.csv")
        assert collected == 1
        assert f"left out: {hidden}: permission denied; change its permissions" in said
        assert "runs.csv: 2 runs," in said
        assert f"Cannot be read: {hidden}: permission denied" in as_a_user("status", pair)[1]
        for command in ("answer", "table"):
            status, said = as_a_user(command, pair)
            assert status == 2
            assert said == f"svp: error: {hidden}: permission denied; change its permissions\n"
    finally:
        hidden.chmod(0o755)


def test_a_top_folder_that_cannot_be_read_is_named(pair):
    pair.chmod(0)
    try:
        for command in ("answer", "status", "collect", "prune"):
            status, said = as_a_user(command, pair)
            assert status == 2
            assert said == f"svp: error: {pair}: permission denied; change its permissions\n"
        assert f"{pair / 'demo'}: permission denied" in as_a_user("answer", pair / "demo")[1]
    finally:
        pair.chmod(0o755)


def test_errors(pair, capsys):
    costs = {"classification": 9.0, "localization": 3.0}
    for file in pair.rglob("0000600.json"):
        content = json.loads(file.read_text())
        content["tasks"]["bbox"]["errors"] = costs
        file.write_text(json.dumps(content))
    assert main(["errors", str(pair)]) == 0
    assert "classification less localization" in capsys.readouterr().out
    assert main(["errors", str(pair / "demo"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0] == ["seeds", 1, 1, 1]


def test_power(capsys):
    assert main(["power", "--gap", "0.5", "--noise", "0.2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 seeds per arm")
    assert "with a chance of 89.9 %" in out  # Not 90.
    assert "svp answer, which judges several claims together, with 5 seeds" in out
    assert main(["power", "--gap", "1e300", "--noise", "1e-300"]) == 0
    assert "2 seeds per arm" in (out := capsys.readouterr().out)
    assert "with a chance of 100.0 %" in out


@pytest.mark.parametrize(
    ("command", "said"),
    [(["power", "--gap", "0", "--noise", "0.2"], "--gap 0: must be a finite number other than 0"),
     (["power", "--gap", "inf", "--noise", "1"], "--gap inf: must be a finite number other than"),
     (["power", "--gap", "1", "--noise", "-1"], "--noise -1: must be a finite number above 0"),
     (["conclude", "none"], "no such folder"),
     (["answer", "none"], "no such folder"),
     (["collect", "none"], "no such folder"), (["table", "none"], "no such folder")],
)  # fmt: skip
def test_bad_input_is_one_sentence(command, said, capsys):
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("svp: error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["table", "plot", "collect", "answer", "conclude", "power", "report", "errors"]
)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"examples:\n  svp {command}" in capsys.readouterr().out


def change(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def no_runs(output):
    for file in output.rglob("run.json"):
        file.unlink()


def two_studies_of_one_name(output):
    shutil.copytree(output / "demo/scratch", output / "other/demo/moco")
    file = output / "other/demo/moco/600it/seed0/run.json"
    change(file, arm="moco", arm_order=["scratch", "moco"])


def no_partner(output):
    shutil.rmtree(output / "demo/pretrained")


def other_test_set(output):
    change(output / "demo/scratch/600it/seed0/evaluations/0000600.json", dataset="other_val")


def other_test_images(output):
    for arm in ("scratch", "pretrained"):
        data = {"test": {"names": ["val"], "images": 9, "sha256": arm}}
        change(output / f"demo/{arm}/600it/seed0/run.json", data=data)


ALL = ("table", "plot", "errors", "collect", "conclude", "report")


@pytest.mark.parametrize(
    ("spoil", "commands", "said"),
    [
        (no_runs, ALL, "no run.json"),
        (two_studies_of_one_name, ALL, "belong to two studies named demo"),
        (no_partner, ("table", "errors"), "arm scratch has no partner here; give the folder of"),
        (other_test_set, ("table", "errors"), "data of different name"),
        (other_test_images, ("table", "errors"), "data of different content"),
    ],
)
def test_runs_that_do_not_belong_in_one_table(pair, tmp_path, capsys, spoil, commands, said):
    spoil(pair)
    for command in commands:
        output = tmp_path / {"plot": "new.svg", "collect": "new.csv"}.get(command, "new.html")
        writes = command in ("plot", "collect", "report")
        options = [*(["-o", str(output)] * writes), *(["--strict"] * (command == "collect"))]
        assert main([command, str(pair), *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("svp: error: ")
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert not output.exists()


def test_metric_that_nobody_logged(pair, tmp_path, capsys):
    output = tmp_path / "a.svg"
    assert main(["plot", str(pair), "--metric", "bbox/APx", "-o", str(output)]) == 2
    assert "no run here has bbox/APx; did you mean bbox/AP" in capsys.readouterr().err
    assert not output.exists()


def test_no_ground_truth_is_missing_and_enters_no_mean(pair, tmp_path, capsys):
    for seed, ap in ((1, -1), (2, 34.0)):
        for arm in ("scratch", "pretrained"):
            folder = pair / f"demo/{arm}/600it/seed{seed}"
            shutil.copytree(pair / f"demo/{arm}/600it/seed0", folder)
            change(folder / "run.json", seed=seed)
            file = folder / "evaluations/0000600.json"
            change(file, tasks={"bbox": {"AP": ap if arm == "scratch" else 32.0}})
    assert main(["table", str(pair), "--format", "json"]) == 0
    table = json.loads(capsys.readouterr().out)
    (scratch,) = [row for row in table["rows"] if row[0] == "scratch"]
    ap = scratch[table["columns"].index("box AP")]
    assert (ap["value"], ap["half_width"]) == (32.0, None)
    assert main(["collect", str(pair), "-o", str(tmp_path / "runs.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert sum((row["metric"], row["value"]) == ("bbox/AP", "") for row in rows) == 1
    assert not any("-1" in row.values() for row in rows)
