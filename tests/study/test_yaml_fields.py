import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.yaml_fields import (
    Place,
    read_integer,
    read_integers,
    read_list,
    read_mapping,
    read_name,
    read_plain_yaml,
    read_text,
    read_texts,
    shorten,
)

TAGS = ("int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "map")
PLACE = Place(Path("study.yaml"), "field")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.yaml"


class TestReadPlainYaml:
    def test_returns_plain_values(self, file):
        file.write_text("a: [1, x, 2.5, true]\nb: {c: null}\n")
        assert read_plain_yaml(file) == {"a": [1, "x", 2.5, True], "b": {"c": None}}

    @pytest.mark.parametrize(
        "tag",
        ["!!python/object/apply:os.mkdir ['{}']", "!!python/object/new:os.mkdir ['{}']"],
    )
    def test_executes_nothing(self, file, tag):
        proof = file.parent / "executed"
        file.write_text(f"a: {tag.format(proof)}\n")
        with pytest.raises(UserError, match=r"not plain YAML .*python/object.*line 1"):
            read_plain_yaml(file)
        assert not proof.exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: 1\nb: 2\na: 3\n", "a appears twice .*line 3"),
            ("a:\n  b: 1\n  b: 2\n", "b appears twice .*line 3"),
            ("a: &x [1]\nb: *x\n", "aliases are not supported .*line 2"),
            ("a: &x [*x]\n", "aliases are not supported .*line 1"),
            ("[1]: 2\n", "a key is not text .*line 1"),
            ("a: [1\nb: 2\n", "not plain YAML .*line 2"),
            ("a: 1\n\tb: 2\n", "not plain YAML .*line 2"),
            ("a: 2020-13-45\n", "not plain YAML before line"),
            ("a: !!int x\n", "not plain YAML before line"),
            ("a: 1\n---\nb: 2\n", "not plain YAML .*document"),
            ("[" * 5000, "nested too deeply"),
            ("a: \x00", "control characters"),
        ],
    )
    def test_names_file_and_line(self, file, text, message):
        file.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            read_plain_yaml(file)
        assert str(error.value).startswith(f"{file}: ")
        assert "\n" not in str(error.value)

    def test_names_a_missing_file(self, file):
        with pytest.raises(UserError, match=r"study.yaml: no such file"):
            read_plain_yaml(file)

    def test_names_what_is_no_file(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_plain_yaml(tmp_path)

    def test_names_what_is_no_text(self, file):
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="not a text file"):
            read_plain_yaml(file)

    @settings(deadline=None)
    @given(
        st.binary(max_size=60)
        | st.text("ab:-[]{}!&*#'\"|>%@`\n\t 01.,?=<~", max_size=60).map(str.encode)
        | st.builds("!!{} {}".format, st.sampled_from(TAGS), st.text("a0:-[]{}. \n", max_size=9))
        .map(str.encode)
    )  # fmt: skip
    def test_lets_nothing_but_user_errors_out(self, tmp_path_factory, content):
        file = tmp_path_factory.getbasetemp() / "random.yaml"
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            read_plain_yaml(file)


def test_places_are_dotted():
    assert (Place(Path("f")) / "arms" / "a").key == "arms.a"
    assert str((Place(Path("f")) / "arms" / "a").error("wrong")) == "f: arms.a: wrong"
    assert str(Place(Path("f")).error("wrong")) == "f: wrong"


def test_readers_return_what_fits():
    assert read_mapping({"a": 1}, PLACE, ("a", "b"), required=("a",)) == {"a": 1}
    assert read_list([1], PLACE, least=1) == [1]
    assert read_text("Größe 2", PLACE) == "Größe 2"
    assert read_text("", PLACE, empty=True) == ""
    assert read_name("R50-gn_v2.1", PLACE) == "R50-gn_v2.1"
    assert read_integer(3, PLACE, 0, 3) == 3
    assert read_integers([3, 1], PLACE, 0, 3) == (3, 1)
    assert read_texts(["a", "b"], PLACE) == ("a", "b")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: read_mapping([], PLACE), "must be a mapping of keys to values, not "),
        (lambda: read_mapping({1: 2}, PLACE), "key 1 is not text; put it in quotes"),
        (
            lambda: read_mapping({"cba": 2}, PLACE, ("abc", "cbb")),
            "field.cba; did you mean cbb",
        ),
        (
            lambda: read_mapping({"zzz": 2}, PLACE, ("a", "b")),
            "field.zzz; known are a, b",
        ),
        (lambda: read_mapping({}, PLACE, ("a",), required=("a",)), "field.a is missing"),
        (lambda: read_list("ab", PLACE), "must be a list in brackets, not 'ab'"),
        (lambda: read_list([], PLACE, least=1), "the list is empty"),
        (lambda: read_text(2020, PLACE), "must be text, not 2020; put it in quotes"),
        (lambda: read_text("", PLACE), "must not be empty"),
        (lambda: read_text("a\x00b", PLACE), "control characters"),
        (lambda: read_name("..", PLACE), "cannot name a folder"),
        (lambda: read_name("a/b", PLACE), "cannot name a folder"),
        (lambda: read_name("-a", PLACE), "cannot name a folder"),
        (lambda: read_name("a" * 101, PLACE), "cannot name a folder"),
        (lambda: read_name("é", PLACE), "cannot name a folder"),
        (lambda: read_integer(True, PLACE, 0, 9), "must be a whole number, not True"),
        (lambda: read_integer(1.0, PLACE, 0, 9), "must be a whole number, not 1.0"),
        (lambda: read_integer(10, PLACE, 0, 9), "must be from 0 to 9, not 10"),
        (lambda: read_integers([1, 1], PLACE, 0, 9), "1 appears twice"),
        (lambda: read_integers([1, -1], PLACE, 0, 9), "field.1: must be from 0 to 9, not -1"),
        (lambda: read_texts(["a", "a"], PLACE), "a appears twice"),
        (lambda: read_texts("ab", PLACE), "must be a list"),
    ],
)
def test_readers_say_what_does_not_fit(read, message):
    with pytest.raises(UserError, match=message) as error:
        read()
    assert str(error.value).startswith("study.yaml: field")


@given(st.text(min_size=1, max_size=20))
def test_every_name_that_is_read_stays_in_its_folder(text):
    try:
        name = read_name(text, PLACE)
    except UserError:
        return
    assert (Path("/folder") / name).resolve().parent == Path("/folder")


def test_long_values_are_shortened():
    assert len(shorten("x" * 10_000)) < 100
