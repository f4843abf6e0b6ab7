import json
import re
import shutil
from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.conclusions import (
    CONTRADICTED,
    IN_PART,
    NOT_ENOUGH,
    SUPPORTED,
    Test,
    conclude,
    conclusions_text,
)
from scratch_vs_pretrain.analysis.stats.verdicts import spread
from scratch_vs_pretrain.errors import UserError

RECORDED = Path(__file__).parents[2] / "notebooks/data"
NOISE = (-0.03, 0.0, 0.03)


def data(images, instances=7):
    train = {"names": ["t"], "images": images, "annotations": images * instances, "sha256": "a"}
    return {"train": train, "test": {"names": ["val"], "images": 300, "sha256": "b"}}


def arm(folders, name, ends, *, early=5.0, noise=NOISE, images=20_000, instances=7, **changes):
    """Writes runs of an arm that ends at `ends[k]` after 600 * (k + 1) iterations."""
    for doubled, end in enumerate(ends):
        length = 600 * (1 + doubled)
        for seed, off in enumerate(noise):
            curve = {100: early + off, 200: early + 5 + off, length: end + off * (1 + 0.1 * seed)}
            folders.run(
                name, seed, iterations=length, curve=curve, data=data(images, instances), **changes
            )


def study(folders, scratch, other, **changes):
    arm(folders, "scratch", scratch, **changes)
    arm(folders, "pretrained", other, early=12.0, **{**changes, "noise": NOISE[::-1]})


def verdicts(folders):
    return [conclusion.verdict for conclusion in conclude(load_runs(folders.root))]


def test_a_lead_inside_the_margin_is_no_worse(folders):
    """As in the answer: scratch is behind for sure, and for sure by less than the margin."""
    study(folders, (30.9, 31.0), (31.15, 31.25), noise=(-0.01, 0.0, 0.01))
    found = [conclusion.findings[0].verdict for conclusion in conclude(load_runs(folders.root))]
    assert (found[2], found[4]) == (SUPPORTED, SUPPORTED)


def finding(folders, number):
    return conclude(load_runs(folders.root))[number - 1].findings[0]


def test_all_rules_on_a_study_like_the_papers(folders):
    study(folders, (28.0, 31.0), (31.0, 31.0))
    assert verdicts(folders)[:4] == [SUPPORTED] * 4
    assert finding(folders, 5).verdict == SUPPORTED  # With much data.
    assert verdicts(folders)[4] == NOT_ENOUGH
    assert conclude(load_runs(folders.root))[4].missing == "needed: a study with little data"
    study(folders, (20.0, 20.1), (31.0, 31.1), images=1000, study="little")
    assert verdicts(folders)[2:5] == [IN_PART, SUPPORTED, SUPPORTED]
    third = conclude(load_runs(folders.root))[2].reading
    assert third == "supported in 1 of 2 settings; not for little (1,000 images)"


def test_sparse_data_are_a_setting_of_their_own(folders):
    study(folders, (25.0, 25.1), (31.0, 31.1), instances=2)
    third, fifth = (conclude(load_runs(folders.root))[k] for k in (2, 4))
    assert third.reading == "contradicted in 1 of 1 setting; for demo (20,000 images, " + (
        "2.0 instances an image)"
    )
    assert (fifth.findings[0].kind, fifth.findings[0].verdict) == ("little data", SUPPORTED)


@pytest.mark.parametrize("dropped", ["failed", "diverged"])
def test_fewer_seeds_never_decide_more(folders, dropped):
    """One of three runs marked as lost takes verdicts away and gives none."""
    study(folders, (28.0, 31.0), (31.0, 31.0))
    before = verdicts(folders)
    for file in folders.root.rglob("scratch/*/seed2/run.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "state": dropped}))
    assert SUPPORTED in before
    assert set(verdicts(folders)) == {NOT_ENOUGH}


def test_diverged_runs_enter_no_conclusion(folders):
    """Nor the fourth, which looks at their curves."""
    study(folders, (31.0,), (31.0,))
    for seed in (3, 4):
        for name, early in (("scratch", 90.0), ("pretrained", 1.0)):
            folders.run(
                name, seed, curve={100: early, 200: early}, state="diverged", data=data(20_000)
            )
    assert "+7.0" in finding(folders, 4).evidence
    assert finding(folders, 4).verdict == SUPPORTED
    assert "diverged, so not counted: scratch 600it seed 3" in finding(folders, 1).evidence


def test_one_seed_decides_nothing(folders):
    study(folders, (20.0, 20.0), (31.0, 31.0), noise=(0.0,))
    assert verdicts(folders) == [NOT_ENOUGH] * 6


def test_identical_learners_of_other_lengths_need_no_longer(folders):
    """9x and 6x are in other phases of the rate; only a common schedule compares them."""
    arm(folders, "scratch", (), images=20_000)
    for seed in range(3):
        folders.run("scratch", seed, iterations=900, curve={600: 24.9, 900: 31.0})
        folders.run("pretrained", seed, iterations=600, curve={600: 31.0})
    assert finding(folders, 2).verdict == NOT_ENOUGH
    assert "no schedule that both arms" in finding(folders, 2).evidence


@pytest.mark.parametrize(("images", "verdict"), [(1000, SUPPORTED), (20_000, CONTRADICTED)])
def test_training_losses_are_compared_on_both_sides(folders, images, verdict):
    study(folders, (20.0, 20.1), (31.0, 31.1), images=images)
    assert finding(folders, 5).verdict == verdict
    for file in folders.root.rglob("scratch/**/metrics.json"):
        file.write_text(file.read_text().replace('"total_loss": ', '"total_loss": 9'))
    assert finding(folders, 5).verdict == NOT_ENOUGH
    assert "does not fit its training data as well" in finding(folders, 5).evidence


def test_training_too_short_contradicts_nothing(folders):
    study(folders, (20.0, 25.0), (30.0, 31.0))
    assert verdicts(folders)[2] == NOT_ENOUGH
    assert verdicts(folders)[4] == NOT_ENOUGH


def test_training_too_short_supports_nothing_about_the_end(folders):
    """Both arms are level and still gain 11, so more training may bring the other one ahead."""
    study(folders, (20.0, 31.0), (20.0, 31.0))
    assert finding(folders, 3).verdict == NOT_ENOUGH
    assert finding(folders, 5).verdict == NOT_ENOUGH
    assert "not shown that training is long enough" in finding(folders, 3).evidence


def test_the_longest_schedule_alone_shows_no_need_of_less(folders):
    """Level at the only length, which may be a long one; with a longer one it would tell."""
    study(folders, (31.0,), (31.0,))
    assert finding(folders, 2).verdict == NOT_ENOUGH
    assert "it is the longest one too" in finding(folders, 2).evidence
    study(folders, (31.0, 31.1), (31.0, 31.1), study="longer")
    assert conclude(load_runs(folders.root))[1].findings[1].verdict == CONTRADICTED


def test_scratch_at_a_third_does_not_work(folders):
    study(folders, (9.9, 10.0), (31.0, 31.0))
    assert verdicts(folders)[0] == CONTRADICTED


def test_both_arms_near_zero_say_nothing(folders):
    study(folders, (1.0, 1.1), (3.0, 3.1))
    assert verdicts(folders)[:3] == [NOT_ENOUGH] * 3
    assert "both arms end under 5 AP" in finding(folders, 1).evidence


def test_unlike_models_say_nothing_about_the_architecture(folders):
    differing = {"MODEL.FPN.NORM": {"scratch": "GN", "pretrained": ""}}
    study(folders, (28.0, 31.0), (31.0, 31.0), allowed_differences=differing)
    assert "models differ in MODEL.FPN.NORM" in finding(folders, 1).evidence


def test_an_arm_from_random_weights_is_not_pre_training(folders):
    """It differs in its model: the paper's conclusions are about the arm with a checkpoint."""
    differing = {"MODEL.BACKBONE.NAME": {"scratch": "a", "plain": "b", "pretrained": "a"}}
    study(folders, (28.0, 31.0), (31.0, 31.0), allowed_differences=differing)
    before = verdicts(folders)
    random = {"name": "scratch", "weights": None}
    arm(folders, "plain", (0.5, 0.6), allowed_differences=differing, init=random)
    assert verdicts(folders) == before
    assert before[0] == SUPPORTED
    for folder in folders.root.glob("output/demo/pretrained"):
        shutil.rmtree(folder)
    assert verdicts(folders) == [NOT_ENOUGH] * 6
    assert finding(folders, 1).evidence == "all its arms start from random weights"


def test_missing_runs_are_named(folders):
    folders.run("scratch")
    folders.run("pretrained", curve={}, state="planned", iteration=0, losses=False)
    text = conclusions_text(folders.root)
    assert text.count("NOT ENOUGH EVIDENCE") == 6
    assert "missing: pretrained 600it seed 0 (planned)" in text


def test_arm_without_partner_is_no_evidence(folders):
    folders.run("scratch")
    conclusions = conclude(load_runs(folders.root))
    assert {conclusion.verdict for conclusion in conclusions} == {NOT_ENOUGH}
    assert "no partner" in conclusions[0].findings[0].evidence


def test_each_pretrained_arm_is_a_setting(folders):
    order = ["scratch", "imagenet", "moco"]
    for name, end in zip(order, (30.0, 30.0, 33.0), strict=True):
        for doubled in (1, 2):
            for seed, off in enumerate(NOISE):
                length = 600 * doubled
                folders.run(
                    name, seed, iterations=length, curve={length: end + off}, arm_order=order
                )
    second = conclude(load_runs(folders.root))[1]
    assert [(f.study, f.verdict) for f in second.findings] == [
        ("demo, imagenet", CONTRADICTED), ("demo, moco", SUPPORTED)
    ]  # fmt: skip
    assert second.reading.startswith("supported in 1 of 2 settings; not for demo, imagenet")


def localization(folders, scratch, other, lengths=(600, 600)):
    """Writes curves of AP50 whose AP75 is AP50 ** 2 / 100, and scratch's `ahead` of that."""
    for name, values, length in zip(
        ("scratch", "pretrained"), (scratch, other), lengths, strict=True
    ):
        for seed, off in enumerate(NOISE):
            folder = folders.run(name, seed, iterations=length, curve={}, data=data(20_000))
            for iteration, (coarse, ahead) in values.items():
                ap50 = coarse + off
                tasks = {"bbox": {"AP": ap50 / 2, "AP50": ap50, "AP75": ap50**2 / 100 + ahead}}
                folders.evaluation(folder, iteration, None, tasks=tasks)


def test_an_arm_compared_with_itself_localizes_alike(folders):
    """At another stage of training: AP75 rises later than AP50, in both arms alike."""
    grown = {100: (20.0, 0.0), 200: (40.0, 0.0), 300: (50.0, 0.0), 600: (60.0, 0.0)}
    later = {100: (30.0, 0.0), 200: (50.0, 0.0), 300: (60.0, 0.0), 600: (70.0, 0.0)}
    localization(folders, grown, later)
    assert finding(folders, 6).verdict == NOT_ENOUGH


def test_no_difference_is_no_support(folders):
    same = {100: (20.0, 0.0), 200: (40.0, 0.0), 600: (60.0, 0.0)}
    localization(folders, same, same)
    assert finding(folders, 6).verdict == NOT_ENOUGH


def test_scratch_ahead_at_equal_ap50_localizes_better(folders):
    ours = {100: (20.0, 2.0), 200: (40.0, 2.0), 300: (50.0, 2.0), 600: (60.0, 2.0)}
    theirs = {100: (25.0, 0.0), 200: (40.0, 0.0), 300: (55.0, 0.0), 600: (60.0, 0.0)}
    localization(folders, ours, theirs)
    assert finding(folders, 6).verdict == SUPPORTED
    assert "at equal AP50" in finding(folders, 6).evidence


@pytest.mark.parametrize(("coarse", "verdict"), [(0.0, SUPPORTED), (5.0, NOT_ENOUGH)])
def test_ends_are_compared_where_their_ap50_is_alike(folders, coarse, verdict):
    """Pre-training leads by 2 less at AP75; that may be its stage where it leads at AP50."""
    for name, lead in (("scratch", 0.0), ("pretrained", 1.0)):
        for length in (600, 1200):
            for seed, off in enumerate(NOISE):
                folder = folders.run(name, seed, iterations=length, curve={}, data=data(20_000))
                scores = {"AP50": 60 + lead * coarse, "AP75": 40 + lead * (coarse - 2)}
                scores = {key: value + off * lead for key, value in scores.items()}
                tasks = {"bbox": {"AP": 40.0 + off, **scores}}
                folders.evaluation(folder, length, None, tasks=tasks)
    assert finding(folders, 6).verdict == verdict
    assert f"at AP50 the lead is +{coarse:.1f}" in finding(folders, 6).evidence


def test_recorded_runs_contradict_nothing():
    """Half an epoch of one seed did, and supported that little data leave a gap."""
    found = conclude(load_runs([RECORDED / "demo", RECORDED / "demo_regimes"]))
    assert [c.verdict for c in found] == [
        SUPPORTED, SUPPORTED, NOT_ENOUGH, SUPPORTED, NOT_ENOUGH, NOT_ENOUGH
    ]  # fmt: skip
    regimes = [f for c in found for f in c.findings if f.study.startswith("less-shapes")]
    assert {f.verdict for f in regimes} == {NOT_ENOUGH}
    assert "a verdict needs 3 seeds" in regimes[0].evidence


def test_the_studies_level_is_kept_and_the_strictest_counts(folders):
    """Of two studies, whose evidence 0.95 would take."""
    noise = (-1.2, 0.0, 1.2)
    study(folders, (28.0, 31.0), (34.0, 34.0), noise=noise, level=0.8)
    assert verdicts(folders)[1] == SUPPORTED
    assert "Level 0.8: the probability" in conclusions_text(folders.root)
    study(folders, (28.0, 31.0), (34.0, 34.0), noise=noise, level=0.999, study="strict")
    assert verdicts(folders)[1] == NOT_ENOUGH
    text = conclusions_text(folders.root)
    assert "Level 0.999, the strictest answer.level (demo 0.8, strict 0.999)" in text
    assert {one["level"] for one in json.loads(conclusions_text(folders.root, "json"))} == {0.999}


def test_a_verdict_is_said_once(folders):
    study(folders, (28.0, 31.0), (31.0, 31.0))
    study(folders, (28.0, 31.0), (31.0, 31.0), noise=(0.0,), study="one")
    lines = conclusions_text(folders.root).splitlines()
    assert lines[1] == "   SUPPORTED in 1 of 1 setting; 1 undecided"
    assert lines[2].startswith("   - demo: final box AP of scratch less 0.5 of pretrained's: +15.5")
    assert lines[3].startswith("   - one: not enough evidence: final box AP of scratch less")


def test_json_holds_what_the_text_says(folders):
    study(folders, (28.0, 31.0), (31.0, 31.0))
    content = json.loads(conclusions_text(folders.root, "json"))
    assert [one["number"] for one in content] == [1, 2, 3, 4, 5, 6]
    assert content[2]["reading"] == "supported in 1 of 1 setting"


def test_an_interval_that_tells_has_a_verdict(folders):
    """Rules that could be wrong on both sides divide the error, and so do their intervals."""
    for seed, off in enumerate((-0.5, 0.0, 0.5)):
        for name, end in (("scratch", 15.9 + off), ("pretrained", 30.0)):
            folders.run(name, seed, curve={600: end}, data=data(20_000))
    (low, high) = re.search(r"\[(.*), (.*)\]", finding(folders, 1).evidence).groups()
    assert float(low) < 0 < 0.9 < float(high)
    assert finding(folders, 1).verdict == NOT_ENOUGH


def test_why_an_interval_off_zero_decides_nothing_is_said(folders):
    study(folders, (30.0, 31.0), (33.0, 34.0), images=1000)
    for number in (3, 5):
        assert finding(folders, number).verdict == NOT_ENOUGH
        assert "not shown that training is long enough" in finding(folders, number).evidence
    for file in folders.root.rglob("scratch/1200it/seed0/metrics.json"):
        file.write_text(file.read_text().replace('"total_loss": 0.', '"total_loss": 0.00'))
    assert "not shown that scratch fits" in finding(folders, 5).evidence


def test_looks_of_an_adaptive_study_count(folders):
    study(folders, (28.0, 31.0), (34.0, 34.0), noise=(-3.0, 0.0, 3.0))
    assert finding(folders, 2).verdict == SUPPORTED
    told = folders.root / "output/demo/answer.json"
    told.write_text(json.dumps({"looks": [{"look": 1, "looks": 9}]}))
    assert finding(folders, 2).verdict == NOT_ENOUGH


def test_a_damaged_evaluation_is_no_finding(folders):
    """Which a study without a partner is: the others are judged all the same."""
    study(folders, (28.0, 31.0), (31.0, 31.0))
    folders.run("scratch", study="alone")
    assert "has no partner here" in conclude(load_runs(folders.root))[0].findings[1].evidence
    file = folders.root / "output/demo/scratch/600it/seed0/evaluations/0000600.json"
    file.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(file))):
        conclude(load_runs(folders.root))


def test_an_interval_that_decides_nothing_says_that_training_may_be_too_short():
    test = Test("lead", spread([0.5, 0.8, 1.1]), gate=(0.001, 0.013))
    assert test.evidence(0.007).endswith("; not shown that training is long enough")
    for alpha in (0.0005, 0.02):  # it decides; it would not decide either way
        assert "long enough" not in test.evidence(alpha)
