import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.runs import metrics_lines
from scratch_vs_pretrain.analysis.runs.metrics_lines import CHUNK_LINES, joined, parse_lines
from scratch_vs_pretrain.errors import UserError

finite = st.floats(allow_nan=False, allow_infinity=False)
tables = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(finite, min_size=k, max_size=k), min_size=1, max_size=9)
)


def text_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@settings(deadline=None)
@given(tables)
def test_numbers_are_those_of_json_to_the_last_bit(tmp_path_factory, table):
    rows = [{"iteration": i, **{f"k{j}": v for j, v in enumerate(r)}} for i, r in enumerate(table)]
    (block,) = parse_lines(text_of(rows), tmp_path_factory.getbasetemp())
    assert block.keys == tuple(rows[0])
    expected = np.array([list(row.values()) for row in rows], float)
    assert block.table.tobytes() == expected.tobytes()


def test_common_rows_do_not_go_through_the_slow_way(tmp_path, monkeypatch):
    rows = [{"a/b": 0.1 * i, "iteration": i, "lr": float("nan")} for i in range(2 * CHUNK_LINES)]
    rows.insert(300, {"bbox/AP": -1.0, "iteration": 299})
    monkeypatch.setattr(metrics_lines, "_row", None)
    blocks = parse_lines(text_of(rows), tmp_path)
    assert [block.keys for block in blocks] == [
        ("a/b", "iteration", "lr"),
        ("bbox/AP", "iteration"),
    ]
    assert len(blocks[0].lines) == 2 * CHUNK_LINES
    assert blocks[1].lines.tolist() == [301]


@pytest.mark.parametrize(
    "line",
    ['{"iteration": 1, "lr": .5}', '{"iteration": 1, "lr": 1.}', '{"iteration": 1, "lr": +1}',
     '{"iteration": 1, "lr": nan}', '{"iteration": 1, "lr": -inf}', '{"iteration": 1, "lr": }',
     '{"iteration": 1, "lr": 0.5,7 }', '{"iteration": 1, "lr": 0.5, }', '{"iteration": 1 "lr": 2}',
     '"iteration": 1, "lr": 2}', '{"iteration": 1, "lr": 2', '{"iteration": 1, "lr": 2}}'],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_json_is_refused(tmp_path, line, place):
    lines = ['{"iteration": 0, "lr": 0.5}', '{"iteration": 2, "lr": 0.25}']
    lines.insert(place, line)
    with pytest.raises(UserError, match=f"line {place + 1}: .*damaged"):
        parse_lines(("\n".join(lines) + "\n").encode(), tmp_path)


@pytest.mark.parametrize("line", ['{"iteration":1,"lr":2}', ' {"iteration": 1, "lr": 2 }\r'])
def test_other_spacing_is_read(tmp_path, line):
    (block,) = parse_lines(f'{{"iteration": 0, "lr": 1}}\n{line}\n'.encode(), tmp_path)
    assert block.table.tolist() == [[0, 1], [1, 2]]


def test_line_numbers_go_on_and_parts_join(tmp_path):
    rows = [{"iteration": i, "lr": 1.0} for i in range(4)]
    first = parse_lines(text_of(rows[:2]), tmp_path)
    second = parse_lines(text_of([*rows[2:], {"iteration": 4, "a": 1}]), tmp_path, before=2)
    common, other = joined(first, second)
    assert common.lines.tolist() == [1, 2, 3, 4]
    assert common.iterations.tolist() == [0, 1, 2, 3]
    assert other.lines.tolist() == [5]
