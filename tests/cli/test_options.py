import argparse

import pytest

from scratch_vs_pretrain.cli import options
from scratch_vs_pretrain.cli.options import positive, read_labels
from scratch_vs_pretrain.errors import UserError


def test_a_commands_help_begins_with_its_summary_and_ends_in_its_examples(monkeypatch):
    monkeypatch.setattr(options, "COMMANDS", [])
    look = options.command("look", "look at it", "svp look\nsvp look x", options.option("--far"))
    look(lambda given: given.far)
    commands = argparse.ArgumentParser(prog="svp").add_subparsers()
    options.add_commands(commands)
    parser = commands.choices["look"]
    text = parser.format_help()
    assert "Look at it." in text
    assert text.endswith("examples:\n  svp look\n  svp look x\n")
    given = parser.parse_args(["--far", "3"])
    assert given.run(given) == "3"


def test_labels_are_by_study():
    assert read_labels(["a=R50 = 1", "b=R101"]) == {"a": "R50 = 1", "b": "R101"}
    assert read_labels([]) == {}


@pytest.mark.parametrize("text", ["a", "a=", "=R50", ""])
def test_a_label_without_study_or_text(text):
    with pytest.raises(UserError, match=f"--label {text}: write --label STUDY=TEXT"):
        read_labels([text])


def test_positive_numbers():
    assert positive("12") == 12
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
            positive(text)
