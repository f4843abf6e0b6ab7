import json
import math

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.runs.numbers import (
    curve,
    evaluations,
    read_evaluation,
)
from scratch_vs_pretrain.errors import UserError


def test_every_number_has_a_flat_name(folders):
    folder = folders.run(curve={600: 30.0})
    (evaluation,) = evaluations(folder)
    assert (evaluation.iteration, evaluation.dataset) == (600, "val")
    assert evaluation.scores["bbox/AP"] == 30
    assert evaluation.scores["bbox/AP@0.75"] == 30
    assert evaluation.scores["bbox/AP@0.95"] == 14
    assert evaluation.scores["bbox/AP-disc"] == 33
    assert evaluation.scores["segm/ARl"] == 40
    assert len(evaluation.scores) == 2 * (12 + 10 + 2)


def test_no_ground_truth_is_missing(folders):
    file = folders.evaluation(folders.run(), 50, None)
    assert math.isnan(read_evaluation(file).scores["bbox/AP"])
    file.write_text(json.dumps({"iteration": 50, "tasks": {"bbox": {"APs": -1, "AP": 0}}}))
    scores = read_evaluation(file).scores
    assert math.isnan(scores["bbox/APs"])
    assert scores["bbox/AP"] == 0


def test_evaluations_come_in_order_and_temporary_files_do_not_count(folders):
    folder = folders.run(curve={600: 3.0, 50: 1.0, 1000000: 4.0, 99: 2.0})
    (folder / "evaluations" / ".0000700.json.x.tmp").write_text("{")
    assert [e.iteration for e in evaluations(folder)] == [50, 99, 600, 1000000]


def test_a_copied_evaluation_counts_once(folders):
    """Two of one iteration have no place in a curve, and no figure of several seeds could align."""
    folder = folders.run(curve={300: 10.0, 600: 20.0})
    file = folder / "evaluations/0000600.json"
    (folder / "evaluations/copy.json").write_bytes(file.read_bytes())
    (run,) = load_runs(folders.root)
    one = curve(run, "bbox/AP")
    assert (one.iterations.tolist(), one.values.tolist()) == ([300, 600], [10, 20])


def test_an_evaluation_under_the_name_of_another_iteration_is_refused(folders):
    folder = folders.run(curve={300: 10.0, 600: 20.0})
    file = folder / "evaluations/0000600.json"
    file.write_bytes((folder / "evaluations/0000300.json").read_bytes())
    with pytest.raises(UserError, match="the evaluation after 300 iterations, which its name"):
        read_evaluation(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "an object is expected"),
        ('{"iteration": 600}', "'tasks' is missing"),
        ('{"iteration": "600", "tasks": {}}', "'iteration'"),
        ('{"iteration": 600, "tasks": {"bbox": 3}}', "'tasks.bbox'"),
        ('{"iteration": 600, "tasks": {"bbox": {"AP": "high"}}}', "'tasks.bbox.AP"),
        ('{"iteration": 600, "tasks": {"bbox": {"per_class": [1]}}}', "'tasks.bbox.per_class"),
        ('{"iteration": 600, "tasks": {"bbox": {"per_iou": {"x": 1}}}}', "'tasks.bbox.per_iou.x"),
        ('{"iteration": 600, "tasks": {"bb', "not valid JSON"),
    ],
)
def test_damaged_evaluation_is_named(folders, content, message):
    file = folders.evaluation(folders.run(), 600, 30.0)
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_evaluation(file)
    assert str(file) in str(error.value)
    assert str(error.value).endswith("; restore it, or delete it and do without this evaluation")
