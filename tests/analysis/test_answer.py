import json
import re
from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answers, answers_text
from scratch_vs_pretrain.analysis.stats.lines import signed
from scratch_vs_pretrain.analysis.stats.verdicts import NO, UNDECIDED, YES

RECORDED = Path(__file__).parents[2] / "notebooks/data"


def said(answer):
    return {line.key: line.text for line in answer.lines}


def verdicts(answer, part=0):
    return tuple(v.verdict for v in answer.parts[part].judged.verdicts)


def pair(folders, scratch, other, **changes):
    """Writes runs of both arms from curves by seed."""
    for arm, curves in (("scratch", scratch), ("pretrained", other)):
        for seed, curve in enumerate(curves):
            folders.run(arm, seed, curve=curve, **changes)


def test_recorded_demo():
    (answer,) = answers(load_runs(RECORDED / "demo"))
    assert verdicts(answer) == (YES, YES, UNDECIDED)
    lines = said(answer)
    assert lines["early"].startswith("yes: +6.1 box AP [+0.1, +12.0] over the first 600 iterations")
    assert lines["at"].startswith("yes: +4.1 [+0.3, +7.9]")
    assert lines["end"].startswith("undecided, training too short: no schedule half as long")
    assert "add 2,400 iterations for 3 seeds, 0.7 CPU hours" in lines["end"]
    picture = answer.parts[0].picture
    assert list(picture.curves) == ["scratch", "pretrained"]
    assert picture.curves["scratch"].mean[-1] == pytest.approx(47.7, abs=0.05)


def test_one_seed_decides_nothing_however_far_apart():
    found = answers(load_runs(RECORDED / "demo_regimes"))
    assert len(found) == 4
    assert all(verdicts(answer) == (UNDECIDED,) * 3 for answer in found)
    assert "1 seed, a verdict needs 3 or a stated noise" in said(found[0])["at"]
    assert "add 2 seeds" in said(found[0])["at"]


def test_scratch_that_catches_up(folders):
    for length in (600, 1200):
        ends = (28.0, 31.0) if length == 600 else (31.0, 31.1)
        curves = [
            [{100: early + noise, 300: middle + noise, length: end + noise}
             for noise in (-0.1, 0.0, 0.15)]
            for early, middle, end in ((5.0, 15.0, ends[0]), (12.0, 22.0, ends[1]))
        ]  # fmt: skip
        pair(folders, *curves, iterations=length)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (YES, YES, NO)
    assert said(answer)["end"].startswith("no: scratch ends no worse at 1,200 iterations, +0.1 [")
    assert said(answer)["next"] == "nothing undecided"


def three_lengths(folders, arm, ends, noise=(-0.03, 0.0, 0.03), early=5.0, **changes):
    """Writes runs of 600 and 1,200 iterations of one arm."""
    for length, end in zip((600, 1200), ends, strict=True):
        for seed, off in enumerate(noise):
            curve = {100: early + off, 200: early + 5 + off, length: end + off * (1 + seed / 9)}
            folders.run(arm, seed, iterations=length, curve=curve, **changes)


def test_three_arms_are_ranked(folders):
    order = {"arm_order": ["scratch", "imagenet", "moco"]}
    for arm, end in (("scratch", 31.0), ("imagenet", 31.01), ("moco", 33.0)):
        three_lengths(folders, arm, (end - 0.1, end), **order)
    (answer,) = answers(load_runs(folders.root))
    assert re.fullmatch(
        r"moco > imagenet \(\+2.0 \[\+1.., \+2..\]\) ~ scratch \(\+0.0 \[-.*, \+.*\]\)",
        said(answer)["ranks"],
    )
    assert [part.name for part in answer.parts] == ["imagenet", "moco"]
    assert [verdicts(answer, k)[2] for k in (0, 1)] == [NO, YES]
    # The error is shared, so intervals are wider than those of one other arm.
    alone = answers([run for run in load_runs(folders.root) if run.arm != "imagenet"])[0]
    both = [next(p for p in a.parts if p.setting.other == "moco") for a in (answer, alone)]
    widths = [p.judged.end.high - p.judged.end.low for p in both]
    assert widths[0] > widths[1]


def test_sizes_of_one_study(folders):
    """Scratch with 400 images reaches what the other arm does with 100."""
    at = {100: (10.0, 20.0), 200: (15.0, 22.0), 400: (20.0, 24.0), 800: (25.0, 25.0)}
    for size, ends in at.items():
        data = {"train": {"names": ["t"], "images": size, "annotations": 7 * size}}
        where = {"output": f"output{size}", "size": size, "data": data}
        for arm, end in zip(("scratch", "pretrained"), ends, strict=True):
            three_lengths(folders, arm, (end - 0.01, end), **where)
    (answer,) = answers(load_runs(folders.root))
    assert [part.setting.size for part in answer.parts] == [800, 400, 200, 100]
    assert [verdicts(answer, k)[2] for k in range(4)] == [NO, YES, YES, YES]
    first = next(one for one in answer.worth if one.size == 100)
    assert first.low <= 4 <= first.high
    assert first.ratio == pytest.approx(4, rel=0.03)
    lines = said(answer)
    assert "4.0 [3.9, 4.1] times the training images at 100 images" in lines["worth"]
    assert lines["worth"].endswith("inside the margin from 800 images on")
    assert sum(line.key == "size" for line in answer.lines) == 3


def test_more_looks_need_more_evidence(folders):
    scratch, other = ([{100: 9.0, 600: end} for end in ends] for ends in
                      ((30.0, 30.3, 29.7), (30.9, 31.6, 31.0)))  # fmt: skip
    pair(folders, scratch, other)
    runs = load_runs(folders.root)
    once, often = (answers(runs, look=1, looks=looks)[0] for looks in (1, 9))
    assert (verdicts(once)[1], verdicts(often)[1]) == (YES, UNDECIDED)
    assert "the interval holds both; add" in said(often)["at"]


def test_runs_that_never_finished(folders):
    folders.run("scratch", curve={}, state="planned", iteration=0, losses=False)
    folders.run("pretrained", curve={}, state="failed", iteration=0, losses=False)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (UNDECIDED,) * 3
    assert "no seed of both arms is finished" in said(answer)["early"]
    assert not answer.decided
    json.dumps(answer.to_json(), allow_nan=False)


def test_the_answer_as_json():
    content = json.loads(answers_text(RECORDED / "demo", "json"))
    assert [v["verdict"] for v in content[0]["parts"][0]["verdicts"]] == [YES, YES, UNDECIDED]
    assert content[0]["parts"][0]["needs"][0]["iterations"] == 2400


def test_numbers_that_round_to_zero_have_no_minus():
    assert (signed(-0.04), signed(0.04), signed(-0.06)) == ("+0.0", "+0.0", "-0.1")


def test_arms_that_have_learned_nothing_are_not_alike(folders):
    for arm in ("scratch", "pretrained"):
        three_lengths(folders, arm, (0.1, 0.12), early=0.0, noise=(0.0, 0.01, 0.02))
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (UNDECIDED,) * 3
    assert "training too short: both arms end under 5 AP" in said(answer)["end"]
