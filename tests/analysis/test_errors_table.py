import json

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables import Estimate
from scratch_vs_pretrain.analysis.tables.studies import ERROR_TYPES, errors_table
from scratch_vs_pretrain.evaluation import scores as evaluation

BOX = [0.0, 0.0, 10.0, 10.0]
MISPLACED = [0.0, 0.0, 10.0, 4.0]


def add_costs(folder, classification, localization):
    file = folder / "evaluations/0000600.json"
    content = json.loads(file.read_text())
    costs = dict.fromkeys(ERROR_TYPES, 1.0)
    costs.update(classification=classification, localization=localization)
    content["tasks"]["bbox"]["errors"] = costs
    file.write_text(json.dumps(content))


def pair(folders, *seeds):
    """Writes a pair per seed; a seed is (classification, localization) of scratch."""
    for seed, scratch in enumerate(seeds):
        add_costs(folders.run("scratch", seed), *scratch)
        add_costs(folders.run("pretrained", seed), 5.0, 3.0)


def rows(folders):
    table = errors_table(load_runs(folders.root))
    return {row[0]: row[1:] for row in table.rows}, table


def test_costs_and_differences(folders):
    pair(folders, (7.0, 3.5), (8.0, 4.5), (9.0, 4.0))
    found, table = rows(folders)
    assert table.header[1:] == ("scratch 600it", "pretrained 600it", "scratch - pretrained")
    assert [cell.value for cell in found["classification"]] == [8.0, 5.0, 3.0]
    assert [cell.value for cell in found["localization"]] == [4.0, 3.0, 1.0]
    assert [cell.value for cell in found["missed"]] == [1.0, 1.0, 0.0]
    # Paired: (7 - 3.5, 8 - 4.5, 9 - 4) less 5 - 3.
    excess = found["classification less localization"]
    assert excess[2] == Estimate(2.0, pytest.approx(4.303 * 0.866 / 3**0.5, abs=0.01), True)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([(9.0, 3.0), (9.1, 3.1), (9.0, 3.2)], "helps classification more than localization."),
        ([(5.0, 9.0), (5.1, 9.1), (5.0, 9.2)], "helps localization more than classification."),
        ([(9.0, 1.0), (9.1, 1.1), (9.0, 1.2)], "helps classification and harms localization."),
        ([(4.0, 0.0), (4.1, 0.1), (4.0, 0.2)], "harms localization more than classification."),
        ([(2.0, 2.5), (2.1, 2.4), (2.0, 2.6)], "harms classification more than localization."),
        ([(5.0, 1.0), (7.0, 3.0), (6.0, 2.1)], "favours classification, but is not shown to help"),
        ([(5.0, 9.0), (9.0, 3.0), (6.0, 4.0)], "localization: their difference is within noise."),
        ([(9.0, 3.0)], "localization: too few seeds to tell them apart."),
    ],
)
def test_what_pre_training_helps_more(folders, seeds, said):
    """Beside an arm that loses 5 to classification and 3 to localization."""
    pair(folders, *seeds)
    note = rows(folders)[1].notes[0]
    assert said in note
    assert ("pre-training" in note) == ("within noise" not in said and "too few" not in said)


def test_an_arm_that_was_not_pre_trained_is_named(folders):
    order = ["scratch", "frozen", "pretrained"]
    for seed in range(3):
        for arm, costs in zip(order, ((9.0, 3.0), (5.0, 3.0), (4.0, 3.0)), strict=True):
            init = {"name": "checkpoint" if arm == "pretrained" else "scratch"}
            add_costs(folders.run(arm, seed, arm_order=order, init=init), *costs)
    frozen, pretrained, *_ = rows(folders)[1].notes
    assert frozen.startswith("Beyond frozen, scratch loses +4.0 ± 0.1 AP50 to classification")
    assert frozen.endswith(": arm frozen helps classification more than localization.")
    assert pretrained.endswith(": pre-training helps classification more than localization.")


def test_missing_costs_enter_no_mean(folders):
    pair(folders, (7.0, 3.0), (9.0, None))
    found, _ = rows(folders)
    assert found["localization"][0].value == 3.0
    assert found["localization"][2].value == 0.0
    assert found["classification less localization"][2].value == 2.0


def test_unfinished_runs_are_left_out_and_named(folders):
    pair(folders, (7.0, 3.0))
    folders.run("scratch", 1, curve={}, state="failed", iteration=7, reason="no more disk")
    found, table = rows(folders)
    assert found["seeds"] == (1, 1, 1)
    assert any("scratch 600it seed 1 (failed" in note for note in table.notes)


def test_evaluations_without_costs_are_compared_by_what_they_have(folders):
    folders.run("scratch", curve={600: 30.0})
    folders.run("pretrained", curve={600: 31.5})
    found, table = rows(folders)
    assert [cell.value for cell in found["box AP50"]] == [50.0, 51.5, -1.5]
    assert [cell.value for cell in found["box AP75"]] == [28.0, 29.5, -1.5]
    assert "before they had the costs of errors" in table.notes[0]


def test_the_types_are_those_of_the_evaluation():
    assert ERROR_TYPES == evaluation.ERROR_TYPES
