import argparse
import os
import re

import pytest

from scratch_vs_pretrain.cli import main, options
from scratch_vs_pretrain.cli.options import positive
from scratch_vs_pretrain.errors import UserError


def test_a_commands_help_begins_with_its_summary_and_ends_in_its_examples(monkeypatch, capsys):
    monkeypatch.setattr(options, "COMMANDS", [])
    far = options.option("--far HOW  how far", default="1")

    @options.command("look at it", "svp look-at\nsvp look-at x", far)
    def _look_at(given):
        return given.far

    parser = options.build_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["look-at", "--help"])
    text = capsys.readouterr().out
    assert "Look at it." in text
    assert "--far HOW        how far (default: 1)" in text
    assert text.endswith("examples:\n  svp look-at\n  svp look-at x\n")
    given = parser.parse_args(["look-at", "--far", "3"])
    assert given.run(given) == "3"


@pytest.fixture
def labels():
    parser = argparse.ArgumentParser(prog="svp")
    options.pairs("--label STUDY=TEXT  a label")(parser)
    return lambda *texts: parser.parse_args([f"--label={text}" for text in texts]).label


def test_pairs_are_split_at_the_first_equals_sign(labels):
    assert labels("a=R50 = 1", "b=s3://w") == {"a": "R50 = 1", "b": "s3://w"}
    assert labels() == {}


@pytest.mark.parametrize("text", ["a", "a=", "=R50", "", "="])
def test_a_pair_without_key_or_text(labels, text):
    with pytest.raises(UserError, match=f"--label {text}: write --label STUDY=TEXT"):
        labels(text)


def test_a_key_given_twice(labels):
    with pytest.raises(UserError, match="--label a=y: a is given twice"):
        labels("a=x", "a=y")


def test_positive_numbers():
    assert positive("12") == 12
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
            positive(text)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["answer", ""], "DIR"),
        (["table", "output", ""], "DIR"),
        (["plan", ""], "STUDY"),
        (["check-data", ""], "NAME-or-STUDY"),
        (["collect", "output", "-o", ""], "-o/--output"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(capsys, command, name):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert f"argument {name}: is empty; was a shell variable not set?" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["study", "output", "link"])
def test_a_path_that_run_folders_cannot_tell_is_refused(write_study, tmp_path, capsys, place):
    odd, file = tmp_path / os.fsdecode(b"d\xff"), write_study()
    odd.mkdir()
    output = tmp_path / "output"
    if place == "study":
        file = file.rename(odd / "tiny.yaml")
    elif place == "output":
        output = odd / "runs"
    else:
        (odd / "base.yaml").write_text("VERSION: 2\n")
        (tmp_path / "link.yaml").symlink_to(odd / "base.yaml")
        file.write_text(re.sub("base: .*", "base: link.yaml", file.read_text()))
    for command in ("plan", "run"):
        assert main([command, str(file), "-o", str(output)]) == 2
        said = capsys.readouterr().err
        assert "is not UTF-8, which run folders are; rename it" in said
        assert said.count("\n") == 1
    assert not output.exists()
