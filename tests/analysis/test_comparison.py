import math

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.results import by_study, final_results, notes
from scratch_vs_pretrain.errors import UserError


def results(folders):
    return final_results(load_runs(folders.root))


def test_final_evaluation_counts_and_not_the_best(folders):
    folders.run("scratch", curve={300: 45.0, 600: 30.0})
    folders.run("pretrained", curve={600: 32.0, 900: 50.0})
    final = results(folders)
    (scratch,) = final.of("scratch", "600it").means(["bbox/AP"])
    (pretrained,) = final.of("pretrained", "600it").means(["bbox/AP"])
    assert (scratch.value, pretrained.value) == (30, 32)


@pytest.mark.parametrize("state", ["planned", "running", "interrupted", "diverged", "failed"])
def test_run_that_did_not_finish_enters_no_mean_and_is_named(folders, state):
    """Even when its folder holds an evaluation of the last iteration."""
    folders.run("scratch", 0, curve={600: 30.0})
    folders.run("scratch", 1, curve={600: 90.0}, state=state, reason="a reason", iteration=250)
    folders.run("pretrained", 0)
    final = results(folders)
    assert final.of("scratch", "600it").means(["bbox/AP"])[0].value == 30
    shown = "interrupted" if state == "running" else state
    assert (
        f"Left out: scratch 600it seed 1 ({shown} after 250 of 600 iterations: a reason)."
        in notes(final)
    )


def test_finished_run_without_its_last_evaluation_is_named(folders):
    folders.run("scratch", curve={300: 30.0})
    folders.run("pretrained")
    final = results(folders)
    assert final.of("scratch", "600it") == {}
    assert any("0000600.json is missing" in note for note in notes(final))


def test_differences_are_paired_by_seed(folders):
    for seed, (scratch, pretrained) in enumerate([(20, 21), (30, 32), (40, 43)]):
        folders.run("scratch", seed, curve={600: scratch})
        folders.run("pretrained", seed, curve={600: pretrained})
    folders.run("scratch", 7, curve={600: 99.0})
    final = results(folders)
    (gap,) = (final.of("scratch") - final.of("pretrained", "600it")).means(["bbox/AP"])
    assert gap.value == -2
    assert gap.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert any("paired by seed" in note for note in notes(final))


def test_missing_ap_enters_no_mean(folders):
    folders.run("scratch", 0, curve={600: None})
    folders.run("scratch", 1, curve={600: 30.0})
    folders.run("pretrained", 0)
    final = results(folders)
    assert final.of("scratch", "600it").means(["bbox/AP"])[0].value == 30
    assert math.isnan(final.of("scratch", "600it").means(["bbox/XY"])[0].value)
    (gap,) = (final.of("scratch") - final.of("pretrained")).means(["bbox/AP"])
    assert math.isnan(gap.value)


@pytest.mark.parametrize(("seeds", "note"), [(1, "One seed"), (2, "too few"), (3, "t interval")])
def test_notes_say_what_the_seeds_allow(folders, seeds, note):
    for seed in range(seeds):
        folders.run("scratch", seed)
        folders.run("pretrained", seed)
    assert any(note in line for line in notes(results(folders)))


@pytest.mark.parametrize("arm", ["scratch", "pretrained"])
def test_every_table_says_on_which_arm_the_recipe_was_tuned(folders, arm):
    folders.run("scratch", tuned_on=arm)
    folders.run("pretrained", tuned_on=arm)
    note = f"The recipe was tuned on arm {arm}, which it favours."
    assert notes(results(folders)).count(note) == 1


def test_a_recipe_that_was_not_tuned_is_not_mentioned(folders):
    folders.run("scratch", tuned_on=None)
    folders.run("pretrained")
    assert not any("tuned" in note for note in notes(results(folders)))


def test_allowed_differences_are_printed(folders):
    allowed = {"SOLVER.BASE_LR": {"scratch": 0.02, "pretrained": 0.01}}
    folders.run("scratch", allowed_differences=allowed)
    folders.run("pretrained", allowed_differences=allowed)
    note = "The arms also differ in SOLVER.BASE_LR: scratch 0.02, pretrained 0.01."
    assert notes(results(folders)).count(note) == 1


def test_admitted_mistakes_are_printed(folders):
    folders.run("scratch", admitted=["no-warm-up", "small-batch-norm"])
    folders.run("pretrained")
    note = "Wrong on purpose: the study admits no-warm-up, small-batch-norm."
    assert notes(results(folders)).count(note) == 1


def test_arm_without_a_partner(folders):
    folders.run("scratch")
    with pytest.raises(UserError, match="scratch has no partner here; give the folder of pretr"):
        results(folders)


def test_no_arm_from_scratch(folders):
    folders.run("pretrained")
    with pytest.raises(UserError, match="starts from scratch"):
        results(folders)


def test_scratch_arm_is_known_by_its_weights(folders):
    folders.run("random", init={"name": "scratch"}, arm_order=["random", "moco"])
    folders.run("moco", arm_order=["random", "moco"])
    final = results(folders)
    assert (final.scratch, final.others) == ("random", ("moco",))


def test_different_validation_sets_are_refused(folders):
    folders.run("scratch")
    folder = folders.run("pretrained")
    folders.evaluation(folder, 600, 31.0, dataset="val_small")
    with pytest.raises(UserError, match="different name"):
        results(folders)


def test_validation_sets_of_different_content_are_refused(folders):
    folders.run("scratch")
    folders.run("pretrained", data={"test": {"names": ["val"], "sha256": "other"}})
    with pytest.raises(UserError, match="different content"):
        results(folders)


def test_one_table_is_of_one_study(folders):
    folders.run(study="a")
    folders.run(study="b")
    runs = load_runs(folders.root)
    assert list(by_study(runs)) == ["a", "b"]
    with pytest.raises(UserError, match="these are a, b"):
        final_results(runs)
    with pytest.raises(UserError, match="none"):
        final_results([])


def test_a_run_that_was_resumed_inexactly_is_named(folders):
    why = ["processes was 8 before and is 4 now"]
    inexact = {"iteration": 200, "exact": False, "inexact_because": why}
    folders.run("scratch", resumes=[{"iteration": 100, "exact": True}, inexact, inexact])
    folders.run("pretrained", resumes=[{"iteration": 100, "exact": True}])
    named = [note for note in notes(results(folders)) if "not exactly" in note]
    assert named == [f"Resumed, but not exactly: scratch 600it seed 0 ({why[0]})."]
