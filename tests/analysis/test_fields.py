from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.runs.fields import field
from scratch_vs_pretrain.errors import UserError

FILE = Path("run.json")


def test_values_of_the_kind_pass():
    content = {"n": 3, "x": 2.5, "s": "a"}
    assert field(content, "n", int, FILE) == 3
    assert field(content, "n", float, FILE) == 3
    assert field(content, "x", float, FILE) == 2.5
    assert field(content, "s", str, FILE) == "a"


def test_default_stands_for_missing_and_null():
    assert field({}, "n", int, FILE, 7) == 7
    assert field({"n": None}, "n", int, FILE, None) is None


@pytest.mark.parametrize("content", [{}, {"n": None}, {"n": "3"}, {"n": True}, {"n": 2.5}])
def test_anything_else_is_named(content):
    with pytest.raises(UserError, match=r"run\.json: 'n' is .*an integer is expected"):
        field(content, "n", int, FILE)
    if content.get("n") is not None:
        with pytest.raises(UserError):
            field(content, "n", int, FILE, 7)
