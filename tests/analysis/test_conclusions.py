from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.conclusions import conclude, conclusions_text
from scratch_vs_pretrain.analysis.stats.contest import CONTRADICTED, NOT_ENOUGH, SUPPORTED


def pair(folders, scratch, pretrained, study="s", images=20_000, **changes):
    """Writes one run per arm with these final APs."""
    data = {"train": {"names": ["t"], "images": images, "annotations": 7 * images}}
    for arm, end in (("scratch", scratch), ("pretrained", pretrained)):
        folders.run(arm, curve={600: end}, study=study, data=data, **changes)


def test_both_kinds_of_data_are_needed(folders):
    pair(folders, 31.0, 31.0, "much")
    conclusion = conclude(load_runs(folders.root))[4]
    assert conclusion.verdict == NOT_ENOUGH
    assert conclusion.missing == "needed: a study with little data"
    pair(folders, 9.0, 16.0, "little", images=3500)
    assert conclude(load_runs(folders.root))[4].verdict == SUPPORTED


def test_missing_runs_are_named(folders):
    folders.run("scratch")
    folders.run("pretrained", curve={}, state="planned", iteration=0, losses=False)
    text = conclusions_text(folders.root)
    assert text.count("NOT ENOUGH EVIDENCE") == 6
    assert "missing: pretrained 600it seed 0 (planned)" in text


def test_arm_without_partner_is_no_evidence(folders):
    folders.run("scratch")
    conclusions = conclude(load_runs(folders.root))
    assert [conclusion.number for conclusion in conclusions] == [1, 2, 3, 4, 5, 6]
    assert {conclusion.verdict for conclusion in conclusions} == {NOT_ENOUGH}
    assert "no partner" in conclusions[0].findings[0].evidence


def test_one_contradiction_outweighs_support(folders):
    pair(folders, 31.0, 31.0, "a")
    assert conclude(load_runs(folders.root))[2].verdict == SUPPORTED
    pair(folders, 29.0, 31.0, "b")
    assert conclude(load_runs(folders.root))[2].verdict == CONTRADICTED


def test_each_pretrained_arm_is_judged(folders):
    order = ["scratch", "imagenet", "moco"]
    for arm, end in zip(order, (30.0, 29.0, 33.0), strict=True):
        folders.run(arm, curve={600: end}, arm_order=order)
    findings = conclude(load_runs(folders.root))[1].findings
    assert [(finding.study, finding.verdict) for finding in findings] == [
        ("demo, imagenet", CONTRADICTED),
        ("demo, moco", SUPPORTED),
    ]


def test_study_sets_its_own_thresholds(folders):
    pair(folders, 29.0, 31.0, thresholds={"margin": 3})
    assert conclude(load_runs(folders.root))[2].verdict == SUPPORTED
