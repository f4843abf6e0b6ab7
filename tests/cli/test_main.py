"""The command line's frame: help, bad input, exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.cli.options import build_parser


def commands():
    (choices,) = (a.choices for a in build_parser()._actions if a.dest == "command")
    return choices


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"svp {name}" in text.partition("examples:")[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("a: [", "line"),
        ("name: !!python/object:os.system {}", "python/object"),
        ("name: x\nbase: b.yaml\narms: {scratch: {init: scratch}}\nschedule: [2x]", "schedules"),
        ("name: x\nbase: b.yaml\narms: {scratch: {init: scratch}}\nschedules: [2x]", "b.yaml"),
    ],
)
def test_a_bad_study_file_is_one_sentence(tmp_path, capsys, content, message):
    file = tmp_path / "study.yaml"
    (tmp_path / "b.yaml").write_text("VERSION: 2\n")
    if content is not None:
        file.write_text(content)
    for command in ("plan", "run"):
        assert main([command, str(file)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("svp: error: ")
        assert str(file) in printed.err
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["table", "plot", "status"])
def test_a_folder_without_runs_is_one_sentence(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"svp: error: {tmp_path}")


@pytest.mark.parametrize("command", ["status", "table", "plot", "collect", "plan", "report"])
def test_a_name_longer_than_files_may_have_is_one_sentence(tmp_path, capsys, command):
    name = str(tmp_path / (300 * "n"))
    more = {"plot": ["-o", "x.svg"], "collect": ["-o", "x.csv"]}.get(command, [])
    assert main([command, name, *more]) == 2
    assert "nnn: " in capsys.readouterr().err
    if command == "collect":
        recorded = str(Path(__file__).parents[2] / "notebooks/data/demo")
        assert main(["collect", recorded, "-o", f"{name}.svg"]) == 2
        assert "file name too long; choose a shorter name" in capsys.readouterr().err


def test_a_study_is_planned_trained_tabled_and_drawn(
    write_study, tiny_backbone, tmp_path, monkeypatch, capsys, quick_starts
):
    monkeypatch.chdir(tmp_path)
    study = str(
        write_study(arms={"scratch": {"init": "scratch"}, "pretrained": {"init": "required"}})
    )
    assert main(["plan", study]) == 0
    planned = capsys.readouterr().out
    assert "arms differ in: MODEL.WEIGHTS" in planned
    assert not (tmp_path / "output").exists()

    assert main(["run", study]) == 2
    assert "--weights pretrained=PATH" in capsys.readouterr().err

    weights = ["--weights", f"pretrained={tiny_backbone}"]
    assert main(["run", study, *weights, "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "scratch - pretrained" in said

    # Its last words are those of the table and the answer.
    assert main(["table", "output"]) == 0
    assert main(["answer", "output"]) == 0
    assert capsys.readouterr().out == said
    assert main(["status", "output"]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    for suffix in ("png", "svg", "pdf"):
        assert main(["plot", "output", "-o", f"curves.{suffix}"]) == 0
        assert (tmp_path / f"curves.{suffix}").stat().st_size > 1000


def test_reading_needs_no_torch(tmp_path):
    """`svp table` starts without torch, Detectron2 and pandas' plotting."""
    code = (
        "import sys; sys.modules.update(torch=None, detectron2=None)\n"
        "from scratch_vs_pretrain.cli import main\n"
        f"assert main(['table', {str(tmp_path)!r}]) == 2\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_one_sentence(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "scratch_vs_pretrain.cli", "power", "--gap=1", "--noise=1"]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2
    said = "svp: error: standard output cannot be written (No space left on device)\n"
    assert process.stderr == said


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_traceback(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "scratch_vs_pretrain.cli", "power", "--gap=1", "--noise=1"]
    process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert process.returncode == 1
    assert process.stderr == ""
