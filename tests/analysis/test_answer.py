from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answers
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
    assert lines["early"].startswith("yes: +6.1 box AP [+0.1, +12.0] over the first half of 1,200")
    assert lines["at"].startswith("yes: +4.1 [+0.3, +7.9]")
    assert lines["end"].startswith("undecided, training too short: no schedule at most half")
    assert "add 2,400 iterations for 3 seeds, 0.7 CPU hours" in lines["end"]
    picture = answer.parts[0].picture
    assert list(picture.curves) == ["scratch", "pretrained"]
    assert picture.curves["scratch"].mean[-1] == pytest.approx(47.7, abs=0.05)


def test_one_seed_decides_nothing_however_far_apart():
    found = answers(load_runs(RECORDED / "demo_regimes"))
    assert len(found) == 4
    assert all(verdicts(answer) == (UNDECIDED,) * 3 for answer in found)
    assert "a verdict needs 3 seeds" in said(found[0])["at"]
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
