import numpy as np
import pytest

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.comparison import final_results
from scratch_vs_pretrain.analysis.stats.contest import contests
from scratch_vs_pretrain.analysis.stats.thresholds import Thresholds
from scratch_vs_pretrain.errors import UserError


def read(folders):
    return contests(final_results(load_runs(folders.root)))


def test_each_other_arm_is_a_contest(folders):
    order = ["scratch", "imagenet", "moco"]
    for arm in order:
        folders.run(arm, arm_order=order)
    assert [contest.name for contest in read(folders)] == ["demo, imagenet", "demo, moco"]


def test_gaps_are_paired_by_seed(folders):
    for seed, (ours, theirs) in enumerate([(30, 31), (28, 31), (25, None)]):
        folders.run("scratch", seed, curve={600: ours})
        folders.run("pretrained", seed, curve={600: theirs})
    (contest,) = read(folders)
    np.testing.assert_allclose(contest.final_gaps("bbox/AP"), [-1, -3])
    assert contest.best_ap() == 31


def test_missing_runs_are_those_of_the_schedule(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={600: 30.0})
        folders.run(arm, iterations=60, curve={}, state="failed", iteration=7, losses=False)
    (contest,) = read(folders)
    assert contest.missing("60it") == (
        "missing: scratch 60it seed 0 (failed), pretrained 60it seed 0 (failed)"
    )
    assert contest.missing() == "missing: a seed both arms finished, with bbox/AP"
    assert contest.missing(otherwise="patience") == "missing: patience"


def test_thresholds_are_the_studys(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, thresholds={"margin": 3})
    assert read(folders)[0].limits == Thresholds(margin=3)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [({}, "different thresholds"), ({"margn": 1}, r"run\.json: thresholds: .*margn.*mean margin")],
)
def test_thresholds_that_cannot_be_used(folders, thresholds, message):
    folders.run("scratch", thresholds=thresholds)
    folders.run("pretrained", thresholds=thresholds or {"margin": 3})
    with pytest.raises(UserError, match=message):
        read(folders)
