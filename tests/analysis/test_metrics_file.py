import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.runs.numbers import curves, is_score, read_metrics, read_rows
from scratch_vs_pretrain.errors import UserError


def row(iteration, **values):
    return {"iteration": iteration, "total_loss": 1.0, "lr": 0.02, **values}


@pytest.fixture
def write(tmp_path):
    def write(*lines, end="\n"):
        file = tmp_path / "metrics.json"
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(text) + end)
        return file

    return write


def points(curve):
    return dict(zip(curve.iterations.tolist(), curve.values.tolist(), strict=True))


@pytest.mark.parametrize(
    "key",
    ["bbox/AP", "segm/AP75", "keypoints/APm", "bbox/AP-person", "box_proposals/AR@100",
     "coco_2017_val/bbox/AP50", "bbox/AR100", "bbox/AP-tv/monitor", "bbox/AP-T-shirt"],
)  # fmt: skip
def test_scores_are_recognized(key):
    assert is_score(key)


@pytest.mark.parametrize(
    "key", ["total_loss", "lr", "fast_rcnn/cls_accuracy", "samples/images", "AP", "a/APPLE/loss"]
)
def test_what_training_logs_is_no_score(key):
    assert not is_score(key)


def test_iterations_are_completed_ones_and_scores_apart(write):
    file = write(row(19, **{"bbox/AP": 1.5}), row(39))
    metrics = read_metrics(file)
    assert points(metrics["bbox/AP"]) == {20: 1.5}
    assert points(metrics["total_loss"]) == {20: 1.0, 40: 1.0}
    assert list(metrics) == ["bbox/AP", "total_loss", "lr"]


def test_bare_nan_and_infinities(write):
    file = write('{"iteration": 0, "lr": NaN, "total_loss": Infinity, "x": -Infinity, "y": null}')
    training = read_metrics(file)
    assert math.isnan(training["lr"].values[0])
    assert training["total_loss"].values[0] == math.inf
    assert training["x"].values[0] == -math.inf
    assert math.isnan(training["y"].values[0])


def test_no_ground_truth_is_missing(write):
    scores = read_metrics(write({"iteration": 9, "bbox/APs": -1.0, "bbox/AP": 0.0}))
    assert math.isnan(scores["bbox/APs"].values[0])
    assert scores["bbox/AP"].values[0] == 0


def test_after_a_resume_the_last_value_of_a_key_counts(write):
    file = write(row(19, a=1), row(39, a=2, b=3), row(59, a=4), row(39, a=5), row(59, a=6))
    training = read_metrics(file)
    assert points(training["a"]) == {20: 1, 40: 5, 60: 6}
    assert points(training["b"]) == {40: 3}


@pytest.mark.parametrize("cut", [1, 5, 25, 60])
def test_unfinished_last_line_is_left_out(write, cut):
    last = json.dumps(row(39, a=0.25, b=0.125))
    assert cut < len(last)
    metrics = read_metrics(write(row(19), last[:cut], end=""))
    assert points(metrics["lr"]) == {20: 0.02}


def test_finished_last_line_without_line_end_counts(write):
    assert points(read_metrics(write(row(19), row(39), end=""))["lr"]).keys() == {20, 40}


@pytest.mark.parametrize(
    "bad",
    ['{"iteration": 39, "lr": 0.0', "[1, 2]", "39", '{"iteration": 39}{"iteration": 59}',
     '{"iteration": 39},{"iteration": 59}', "\x00\x00", "[" * 20000],
)  # fmt: skip
def test_damaged_line_is_named(write, bad):
    file = write(row(19), "", bad, row(59))
    with pytest.raises(UserError, match=rf"{file}, line 3: .*damaged"):
        read_metrics(file)


def test_line_that_is_not_utf8_is_named(write):
    file = write(row(19), row(39), row(59))
    content = file.read_bytes().split(b"\n")
    content[1] = b'{"iteration": 39, "\xff": 1}'
    file.write_bytes(b"\n".join(content))
    with pytest.raises(UserError, match="line 2"):
        read_metrics(file)


@pytest.mark.parametrize("iteration", ["x", -1, 1.5, None, True, 10**30])
def test_iteration_that_is_no_count_is_named(write, iteration):
    with pytest.raises(UserError, match="line 2: 'iteration'"):
        read_metrics(write(row(19), {"iteration": iteration, "lr": 1}))


@pytest.mark.parametrize("value", ["1.5", [1, 2], {"a": 1}])
def test_value_that_is_no_number_is_named(write, value):
    with pytest.raises(UserError, match="line 2: the value of 'lr'"):
        read_metrics(write(row(19), row(39, lr=value)))


def test_huge_integers_become_infinite(write):
    training = read_metrics(write(row(0, big=10**400, small=-(10**400))))
    assert training["big"].values[0] == math.inf
    assert training["small"].values[0] == -math.inf


def test_missing_and_empty_files(tmp_path, write):
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "none" / "metrics.json")
    empty = read_metrics(write(end=""))
    assert empty == {}


def test_second_run_in_one_folder_is_refused(write):
    file = write(row(19), row(39), row(59), row(19), row(39))
    with pytest.raises(UserError, match=rf"{file}, line 4: .*second run"):
        read_metrics(file)


@pytest.mark.parametrize("iteration", [19, 39])
def test_iterations_of_our_own_run_are_there_once(write, iteration):
    """Training drops what a resume repeats, so somebody else repeated or moved a line."""
    file = write(row(19), row(39), row(iteration), row(59))
    message = rf"line 3: iteration {iteration} comes after 39, but training writes each once"
    with pytest.raises(UserError, match=message):
        read_metrics(file, own=True)


def test_late_row_of_an_early_evaluation_is_no_second_run(write):
    # Detectron2's writer may put the scores of iteration 9 after the losses of iteration 19.
    file = write(row(19), {"iteration": 9, "bbox/AP": 1.0}, row(39))
    assert points(read_metrics(file)["bbox/AP"]) == {10: 1.0}


@pytest.mark.parametrize("own", [True, False])
def test_scores_that_come_long_after_their_iteration(write, own):
    late = [{"iteration": i, "bbox/AP": float(i)} for i in (9, 29)]
    file = write(row(19), row(39), row(59), late[0], row(79), late[1], row(99))
    metrics = read_metrics(file, own=own)
    assert points(metrics["bbox/AP"]) == {10: 9.0, 30: 29.0}
    assert list(points(metrics["lr"])) == [20, 40, 60, 80, 100]
    again = write(row(19), row(39), row(59), late[0], row(19), late[1], row(39))
    if not own:
        with pytest.raises(UserError, match=r"line 5: .*second run"):
            read_metrics(again)


def test_evaluation_after_the_last_iteration(write):
    # engine/train_loop.py sets storage.iter to max_iter before the hooks' after_train.
    lines = [row(19), {"iteration": 29, "bbox/AP": 1.0}, row(39), {"iteration": 40, "bbox/AP": 2.0}]
    file = write(*lines)
    assert points(read_metrics(file)["bbox/AP"]) == {30: 1.0, 40: 2.0}
    assert points(read_metrics(file, own=True)["bbox/AP"]) == {30: 1.0, 41: 2.0}


values = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**25), 10**25)
rows = st.lists(
    st.fixed_dictionaries(
        {"iteration": st.integers(0, 50)},
        optional={"total_loss": values, "lr": values, "a b": values, "é": values},
    ),
    max_size=30,
)


@settings(deadline=None)
@given(rows=rows, cut=st.integers(1, 30), resumed=st.booleans())
def test_any_rows_read_as_written(tmp_path_factory, rows, cut, resumed):
    """Compared with a plain dictionary filled line by line, with and without a truncated end."""
    expected: dict[str, dict[int, float]] = {}
    for line in rows:
        for key, value in line.items():
            if key != "iteration":
                expected.setdefault(key, {})[line["iteration"] + 1] = float(value)
    text = "".join(json.dumps(line) + "\n" for line in rows)
    if resumed:
        text += json.dumps({"iteration": 999, "total_loss": 0.123456789, "lr": 1})[:cut]
    file = tmp_path_factory.mktemp("metrics") / "metrics.json"
    file.write_text(text)
    training = curves(read_rows(file), own=True)
    assert training.keys() == expected.keys()
    for key, curve in training.items():
        assert curve.iterations.tolist() == sorted(expected[key])
        np.testing.assert_array_equal(
            curve.values, [expected[key][i] for i in curve.iterations.tolist()]
        )


@settings(deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, after_a_row):
    file = tmp_path_factory.mktemp("metrics") / "metrics.json"
    file.write_bytes(b'{"iteration": 3, "lr": 1}\n' * after_a_row + content)
    try:
        metrics = read_metrics(file)
    except UserError as error:
        refused = str(error)
    else:
        assert not after_a_row or metrics
        return
    assert str(file) in refused
