import json

import pytest

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.conclusions import conclude
from scratch_vs_pretrain.analysis.stats.contest import CONTRADICTED, NOT_ENOUGH, SUPPORTED

LENGTH = 600


def data(images, instances=7):
    train = {"names": ["t"], "images": images, "annotations": images * instances, "sha256": "a"}
    return {"train": train, "test": {"names": ["val"], "images": 300, "sha256": "b"}}


def study(folders, scratch, pretrained, *, images=20_000, instances=7, name="s", **changes):
    """Writes a run per curve; a curve is (AP early, AP at the end)."""
    for arm, curves in (("scratch", scratch), ("pretrained", pretrained)):
        for seed, (early, end) in enumerate(curves):
            curve = {LENGTH // 4: early, LENGTH: end}
            folders.run(arm, seed, curve=curve, study=name, data=data(images, instances), **changes)


def scores(folder, end, fine):
    """Rewrites the final evaluation: AP50 as it is, AP75 moved by `fine`."""
    file = folder / "evaluations" / f"{end:07d}.json"
    content = json.loads(file.read_text())
    content["tasks"]["bbox"]["AP75"] += fine
    file.write_text(json.dumps(content))


def verdict(folders, number):
    return conclude(load_runs(folders.root))[number - 1].verdict


@pytest.mark.parametrize(
    ("number", "scratch", "pretrained", "expected"),
    [
        (1, [(5, 30)], [(20, 31)], SUPPORTED),
        (1, [(5, 9)], [(20, 31)], CONTRADICTED),
        (1, [(0, 2)], [(1, 3)], NOT_ENOUGH),
        (2, [(5, 28)], [(20, 31)], SUPPORTED),
        (2, [(5, 31)], [(20, 31)], CONTRADICTED),
        (2, [(5, 30.4)], [(20, 31)], NOT_ENOUGH),
        (3, [(5, 31.2)], [(20, 31)], SUPPORTED),
        (3, [(5, 29)], [(20, 31)], CONTRADICTED),
        (3, [(5, 30.6)], [(20, 31)], NOT_ENOUGH),
        (4, [(5, 30)], [(20, 31)], SUPPORTED),
        (4, [(20, 30)], [(20, 31)], CONTRADICTED),
        (4, [(19.4, 30)], [(20, 31)], NOT_ENOUGH),
    ],
)
def test_one_seed(folders, number, scratch, pretrained, expected):
    study(folders, scratch, pretrained)
    assert verdict(folders, number) == expected


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((31.0, 31.1, 31.2), SUPPORTED), ((29.9, 30.0, 30.1), CONTRADICTED),
     ((29.0, 30.5, 32.0), NOT_ENOUGH)],
)  # fmt: skip
def test_three_seeds_decide_by_their_interval(folders, ends, expected):
    study(folders, [(5, end) for end in ends], [(20, 31)] * 3)
    assert verdict(folders, 3) == expected


@pytest.mark.parametrize(
    ("fine", "expected"), [(1.0, SUPPORTED), (-1.0, CONTRADICTED), (0.1, NOT_ENOUGH)]
)
def test_localization(folders, fine, expected):
    study(folders, [], [(20, 31)])
    scores(folders.run("scratch", curve={LENGTH: 31.0}, study="s", data=data(20_000)), LENGTH, fine)
    assert verdict(folders, 6) == expected


def test_regularization_is_contradicted_by_either_side(folders):
    study(folders, [(5, 16)], [(20, 16)], images=1000, name="little")
    assert verdict(folders, 5) == CONTRADICTED


def test_regularization_with_much_data_and_an_equal_loss(folders):
    study(folders, [(5, 25)], [(20, 31)], name="much")
    assert verdict(folders, 5) == CONTRADICTED


def test_few_instances_make_little_data(folders):
    study(folders, [(5, 25)], [(20, 31)], instances=2)
    finding = conclude(load_runs(folders.root))[4].findings[0]
    assert (finding.kind, finding.verdict) == ("little data", SUPPORTED)


def test_scratch_that_fits_its_training_data_worse_needs_longer(folders):
    study(folders, [(5, 25)], [(20, 31)])
    file = next(folders.root.rglob("scratch/**/metrics.json"))
    file.write_text(file.read_text().replace('"total_loss": ', '"total_loss": 9'))
    finding = conclude(load_runs(folders.root))[4].findings[0]
    assert finding.verdict == NOT_ENOUGH
    assert "longer schedule" in finding.evidence


def test_a_last_line_without_a_loss_hides_no_final_loss(folders):
    """The AP that a second process scored is the last line, which may be a tenth of all."""
    study(folders, [(5, 25)], [(20, 31)], name="much")
    expected = conclude(load_runs(folders.root))[4].findings[0].evidence
    for file in folders.root.rglob("metrics.json"):
        losses = file.read_text().splitlines(keepends=True)[-9:]
        file.write_text("".join(losses) + '{"iteration": 599, "bbox/AP": 25.0}\n')
    finding = conclude(load_runs(folders.root))[4].findings[0]
    assert "not known" not in finding.evidence
    assert finding.verdict == CONTRADICTED
    assert expected.startswith("final training loss")
    assert finding.evidence.startswith("final training loss")


def test_divergence_contradicts_that_scratch_works(folders):
    study(folders, [], [(20, 31)])
    folders.run("scratch", curve={}, study="s", state="diverged", iteration=40, data=data(20_000))
    assert verdict(folders, 1) == CONTRADICTED


def test_unlike_models_say_nothing_about_the_architecture(folders):
    differing = {"MODEL.FPN.NORM": {"scratch": "GN", "pretrained": ""}}
    study(folders, [(5, 30)], [(20, 31)], allowed_differences=differing)
    assert verdict(folders, 1) == NOT_ENOUGH


def test_lengths_that_differ_are_compared_by_their_curves(folders):
    folders.run("scratch", iterations=1200, curve={600: 20.0, 1200: 31.0}, data=data(20_000))
    folders.run("pretrained", iterations=600, curve={600: 31.0}, data=data(20_000))
    assert verdict(folders, 2) == SUPPORTED


CURVE = {LENGTH // 4: 20.0, LENGTH: 31.0}


@pytest.mark.parametrize("images", [20_000, 1000])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_missing_runs_are_named_by_every_rule(folders, number, images):
    folders.run("scratch", curve=CURVE, data=data(images))
    folders.run("pretrained", curve={}, state="failed", iteration=0, data=data(images))
    finding = conclude(load_runs(folders.root))[number - 1].findings[0]
    assert finding.verdict == NOT_ENOUGH
    if (number, images) == (3, 1000):
        assert "needed: a study of at least 10,000 training images" in finding.evidence
    else:
        assert "missing: pretrained 600it seed 0 (failed)" in finding.evidence


def test_missing_run_of_the_schedule_that_is_compared(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve=CURVE)
        folders.run(arm, iterations=60, curve={}, state="interrupted", iteration=9)
    evidence = conclude(load_runs(folders.root))[1].findings[0].evidence
    assert "missing: scratch 60it seed 0 (interrupted), pretrained 60it" in evidence


def test_early_evaluations_that_are_missing(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={LENGTH: 31.0}, data=data(20_000))
    finding = conclude(load_runs(folders.root))[3].findings[0]
    assert finding.verdict == NOT_ENOUGH
    assert "up to iteration 300: missing: evaluations of both arms" in finding.evidence


@pytest.mark.parametrize(
    ("images", "scratch", "expected"),
    [(20_000, 31.2, SUPPORTED), (20_000, 29.0, CONTRADICTED), (20_000, 30.6, NOT_ENOUGH),
     (1000, 25.0, SUPPORTED), (1000, 31.0, CONTRADICTED), (1000, 30.4, NOT_ENOUGH),
     (5000, 31.0, NOT_ENOUGH)],
)  # fmt: skip
def test_regularization_on_either_side(folders, images, scratch, expected):
    study(folders, [(5, scratch)], [(20, 31)], images=images)
    assert conclude(load_runs(folders.root))[4].findings[0].verdict == expected
