import pytest

from scratch_vs_pretrain.analysis.stats.thresholds import Thresholds, read_thresholds
from scratch_vs_pretrain.errors import UserError


def test_given_ones_replace_defaults():
    assert read_thresholds({}, "run.json") == Thresholds()
    assert read_thresholds({"margin": 2}, "run.json") == Thresholds(margin=2)


@pytest.mark.parametrize(
    "bad",
    [{"margins": 1}, {"margin": 10**400}, {"margin": "x"}, {"margin": -1}, {"noise": True},
     {"noise": None}, {"least_ap": float("nan")}, {"few_images": float("inf")}],
)  # fmt: skip
def test_bad_ones_are_named(bad):
    with pytest.raises(UserError, match=rf"run\.json: .*{next(iter(bad))}"):
        read_thresholds(bad, "run.json")
