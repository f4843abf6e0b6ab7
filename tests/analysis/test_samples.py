from __future__ import annotations

from typing import Any

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.cost import Counts, budget_table, budgets, pretraining
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_info import Init


def test_random_weights_have_seen_nothing() -> None:
    found = pretraining(Init(name="scratch"))
    assert found == Counts(0, 0, 0)
    assert not found.assumed


def test_weights_that_say_how_they_were_trained() -> None:
    noted = {"samples": {"images": 100, "instances": 100, "pixels": 409_600}}
    found = pretraining(Init(weights="backbone.pth", pretraining=noted))
    assert found == Counts(100, 100, 409_600)
    assert not found.assumed


@pytest.mark.parametrize(
    "noted",
    [
        None,
        {},
        {"samples": None},
        {"samples": {"images": 100}},
        {"samples": {"images": -1, "instances": 1, "pixels": 1}},
        {"samples": {"images": True, "instances": 1, "pixels": 1}},
        {"samples": {"images": "1", "instances": 1, "pixels": 1}},
    ],
)
def test_others_count_as_imagenet_which_is_an_assumption(noted: Any) -> None:
    found = pretraining(Init(weights="catalog://ImageNetPretrained/X", pretraining=noted))
    # 1.28 million images, 100 epochs, 224 x 224 pixels.
    assert found.images == pytest.approx(1.28e8, rel=1e-2)
    assert found.instances == found.images
    assert found.pixels == found.images * 224 * 224
    assert found.assumed


def test_counts_add_up_and_unknown_stays_unknown() -> None:
    assert Counts(1, 2, 3) + Counts(10, 20, 30) == Counts(11, 22, 33)
    assert Counts(1, 2, 3) + Counts(10, None, 30) == Counts(11, None, 33)


def test_of_a_run_folder(folders: Any) -> None:
    noted = {"samples": {"images": 8, "instances": 9, "pixels": 10}}
    init = {"name": "checkpoint", "weights": "w.pth", "sha256": "0", "pretraining": noted}
    folders.run("pretrained", init=init)
    (run,) = load_runs(folders.root)
    assert pretraining(run.init) == Counts(8, 9, 10)


SEEN = {"images": 4800, "instances": 16_000, "pixels": 1_000_000}
MORE = {"images": 4800, "instances": 17_000, "pixels": 1_200_000}


def test_finished_runs_are_averaged_over_seeds_and_others_named(folders: Any) -> None:
    for seed, samples in enumerate((SEEN, MORE)):
        folders.run("scratch", seed, samples=samples)
    folders.run("scratch", 2, samples=MORE, state="diverged", reason="NaN")
    folders.run("pretrained", 0, samples=SEEN)
    found = budgets(load_runs(folders.root))
    assert [(row.arm, row.schedule) for row in found.rows] == [
        ("scratch", "600it"),
        ("pretrained", "600it"),
    ]
    scratch, pretrained = found.rows
    assert scratch.training == Counts(4800, 16_500, 1_100_000)
    assert scratch.total == scratch.training
    assert pretrained.total.images == pretrained.pretraining.images + 4800
    assert [note for note in found.notes if "scratch 600it seed 2 (diverged)" in note]


def test_table_has_pretraining_training_and_both(folders: Any) -> None:
    noted = {"samples": {"images": 100, "instances": 200, "pixels": 300}}
    folders.run("scratch", samples=SEEN, tuned_on="pretrained")
    init = {"name": "checkpoint", "weights": "w.pth", "pretraining": noted}
    folders.run("pretrained", samples=SEEN, init=init)
    table = budget_table(budgets(load_runs(folders.root)))
    assert table.rows == (
        ("scratch", "600it", "training", 4800, 16_000, 1_000_000),
        ("pretrained", "600it", "pre-training", 100, 200, 300),
        ("pretrained", "600it", "training", 4800, 16_000, 1_000_000),
        ("pretrained", "600it", "together", 4900, 16_200, 1_000_300),
    )
    note = "The search for the recipe on arm pretrained, which the recipe favours, is not counted."
    assert table.notes == (note,)


@pytest.mark.parametrize("changes", [{"state": "running", "samples": SEEN}, {"samples": {}}])
def test_nothing_finished_is_one_sentence(folders: Any, changes: Any) -> None:
    folders.run("scratch", **changes)
    with pytest.raises(UserError, match="svp budget STUDY"):
        budgets(load_runs(folders.root))


def test_two_studies_have_two_budgets(folders: Any) -> None:
    folders.run("scratch", samples=SEEN)
    folders.run("scratch", samples=SEEN, study="other")
    with pytest.raises(UserError, match="demo, other"):
        budgets(load_runs(folders.root))
