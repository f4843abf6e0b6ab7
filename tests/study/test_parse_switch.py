import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.parse import parse_study
from scratch_vs_pretrain.study.schedule import Switch

CONTENT = {
    "name": "tiny",
    "base": "cascade.yaml",
    "arms": {"scratch": {"init": "scratch"}},
    "schedules": ["9x"],
}


@pytest.fixture
def read_switch(tmp_path):
    (tmp_path / "cascade.yaml").write_text("VERSION: 2\n")
    return lambda value: (
        parse_study({**CONTENT, "switch": value}, tmp_path / "study.yaml", {}).switch
    )


def test_file_is_relative_to_the_study(read_switch, tmp_path):
    switch = read_switch({"config": "sub/../cascade.yaml", "last": 270000})
    assert switch == Switch(tmp_path / "cascade.yaml", 270_000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"switch: has no value"),
        ({"config": "cascade.yaml"}, r"switch: .*last"),
        ({"last": 3}, r"switch: .*config"),
        ({"config": "none.yaml", "last": 3}, r"switch\.config: .*none\.yaml: no such file"),
        ({"config": 3, "last": 3}, r"switch\.config"),
        ({"config": "cascade.yaml", "last": 0}, r"switch\.last"),
        ({"config": "cascade.yaml", "last": "3x"}, r"switch\.last"),
        ({"config": "cascade.yaml", "last": True}, r"switch\.last"),
        ({"config": "cascade.yaml", "last": 3, "at": 5}, r"switch.*at"),
    ],
)
def test_all_else_is_refused(read_switch, value, message):
    with pytest.raises(UserError, match=rf"study\.yaml: .*{message}"):
        read_switch(value)
