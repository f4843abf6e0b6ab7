from __future__ import annotations

from typing import Any

import pytest

from scratch_vs_pretrain.analysis.budget import Counts, pretraining
from scratch_vs_pretrain.analysis.runs import load_runs


def test_random_weights_have_seen_nothing() -> None:
    found = pretraining({"name": "scratch", "weights": None, "pretraining": None})
    assert found.counts == Counts(0, 0, 0)
    assert not found.assumed


def test_weights_that_say_how_they_were_trained() -> None:
    noted = {"samples": {"images": 100, "instances": 100, "pixels": 409_600}}
    found = pretraining({"weights": "backbone.pth", "pretraining": noted})
    assert found.counts == Counts(100, 100, 409_600)
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
    found = pretraining({"weights": "catalog://ImageNetPretrained/X", "pretraining": noted})
    # 1.28 million images, 100 epochs, 224 x 224 pixels.
    assert found.counts.images == pytest.approx(1.28e8, rel=1e-2)
    assert found.counts.instances == found.counts.images
    assert found.counts.pixels == found.counts.images * 224 * 224
    assert found.assumed


def test_counts_add_up_and_unknown_stays_unknown() -> None:
    assert Counts(1, 2, 3) + Counts(10, 20, 30) == Counts(11, 22, 33)
    assert Counts(1, 2, 3) + Counts(10, None, 30) == Counts(11, None, 33)


def test_of_a_run_folder(folders: Any) -> None:
    noted = {"samples": {"images": 8, "instances": 9, "pixels": 10}}
    init = {"name": "checkpoint", "weights": "w.pth", "sha256": "0", "pretraining": noted}
    folders.run("pretrained", init=init)
    (run,) = load_runs(folders.root)
    assert pretraining(run.init).counts == Counts(8, 9, 10)
