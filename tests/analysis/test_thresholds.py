from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.thresholds import Thresholds, thresholds_from
from scratch_vs_pretrain.errors import UserError


def test_given_ones_replace_defaults():
    assert thresholds_from({}, Path("run.json")) == Thresholds()
    assert thresholds_from({"margin": 2}, Path("run.json")) == Thresholds(margin=2)


@pytest.mark.parametrize(
    "bad",
    [{"margins": 1}, {"margin": "x"}, {"margin": -1}, {"noise": True}, {"noise": None},
     {"least_ap": float("nan")}, {"few_images": float("inf")}],
)  # fmt: skip
def test_bad_ones_are_named(bad):
    with pytest.raises(UserError, match=rf"run\.json: .*{next(iter(bad))}"):
        thresholds_from(bad, Path("run.json"))
