import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.runs.metrics import read_metrics
from scratch_vs_pretrain.analysis.runs.row_cache import RowCache
from scratch_vs_pretrain.errors import UserError


def row(iteration, **values):
    return json.dumps({"iteration": iteration, "lr": 0.02, **values}) + "\n"


def assert_same(one, other):
    for mine, theirs in ((one.scores, other.scores), (one.training, other.training)):
        assert mine.keys() == theirs.keys()
        for key, curve in mine.items():
            np.testing.assert_array_equal(curve.iterations, theirs[key].iterations)
            np.testing.assert_array_equal(curve.values, theirs[key].values)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.dictionaries(st.sampled_from("abé"), st.floats())),
        max_size=20,
    ),
    st.lists(st.integers(0, 3000), max_size=3),
)
def test_reading_as_a_file_grows_is_reading_it_whole(tmp_path_factory, rows, cuts):
    folder = tmp_path_factory.mktemp("cache")
    text = "".join(row(iteration, **values) for iteration, values in rows).encode()
    file, cache = folder / "metrics.json", RowCache(folder / "kept")
    for cut in [*sorted(cuts), len(text)]:
        file.write_bytes(text[:cut])
        assert_same(cache.read(file, True), read_metrics(file, own=True))


def test_only_the_end_is_parsed(tmp_path):
    file, cache = tmp_path / "metrics.json", RowCache(tmp_path / "kept")
    first = "".join(row(i) for i in range(1000))
    file.write_text(first)
    cache.read(file, True)
    # What lies between the compared edges is not looked at again.
    file.write_text(first.replace('"iteration": 500,', '"iteration": 501,') + row(1000))
    assert 501 in cache.read(file, True).training["lr"].iterations


@pytest.mark.parametrize("text", [row(5), row(1) + row(2) + row(3, a=1.0), ""])
def test_rewritten_file_is_read_again(tmp_path, text):
    file, cache = tmp_path / "metrics.json", RowCache(tmp_path / "kept")
    file.write_text(row(0) + row(1))
    cache.read(file, True)
    file.write_text(text)
    assert_same(cache.read(file, True), read_metrics(file, own=True))


def test_second_run_that_is_appended_is_refused(tmp_path):
    file, cache = tmp_path / "metrics.json", RowCache(tmp_path / "kept")
    file.write_text(row(19) + row(39))
    cache.read(file, False)
    file.write_text(row(19) + row(39) + row(59) + "\n" + row(19))
    with pytest.raises(UserError, match=r"line 5: .*second run"):
        cache.read(file, False)


def test_damaged_line_is_named_by_its_number_in_the_file(tmp_path):
    file, cache = tmp_path / "metrics.json", RowCache(tmp_path / "kept")
    file.write_text(row(19) + row(39))
    cache.read(file, True)
    file.write_text(row(19) + row(39) + row(59) + "x\n")
    with pytest.raises(UserError, match=r"line 4: .*damaged"):
        cache.read(file, True)


def test_unusable_places(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(row(0))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        RowCache(tmp_path / "taken").read(file, True)
    with pytest.raises(UserError, match=r"none\.json"):
        RowCache(tmp_path / "kept").read(tmp_path / "none.json", True)
