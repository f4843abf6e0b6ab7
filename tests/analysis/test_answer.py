import json
import re
import shutil
from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.registry import figure, tables
from scratch_vs_pretrain.analysis.runs.records import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answers, answers_text
from scratch_vs_pretrain.analysis.stats.lines import signed
from scratch_vs_pretrain.analysis.stats.verdicts import NO, UNDECIDED, YES
from scratch_vs_pretrain.errors import UserError

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
    assert lines["early"] == (
        "yes: +6.1 box AP [+0.1, +12.0] over the first 600 of 1,200 iterations (3 seeds)"
    )
    assert lines["at"].startswith("yes: +4.1 [+0.3, +7.9]")
    assert lines["end"].startswith("undecided, training too short: no schedule half as long")
    assert "add 2,400 iterations for 3 seeds, 0.7 CPU hours" in lines["end"]
    curves = answer.parts[0].curves
    assert list(curves) == ["scratch", "pretrained"]
    assert curves["scratch"].mean[-1] == pytest.approx(47.7, abs=0.05)


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
    # What is still to be trained says nothing.
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=2400, curve={100: 5.0}, state="interrupted", iteration=100)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (YES, YES, NO)
    assert said(answer)["end"].startswith("no: scratch ends no worse at 1,200 iterations, +0.1 [")
    assert said(answer)["next"] == "nothing undecided"


def test_mask_ap_has_its_own_needs(folders):
    """Box AP is clear, mask AP varies too much: it needs seeds, and box AP does not."""
    for length, ends in ((600, (29.9, 31.9)), (1200, (30.0, 32.0))):
        for arm, end in zip(("scratch", "pretrained"), ends, strict=True):
            for seed, off in enumerate((-0.03, 0.0, 0.03)):
                wide = 20 * off * (1 if arm == "scratch" else -1)
                folder = folders.run(arm, seed, curve={}, iterations=length, seconds=3600)
                for at, ap in ((100, end - 20), (200, end - 15), (length, end)):
                    tasks = {"bbox": {"AP": ap + off}, "segm": {"AP": ap - 2 + wide}}
                    folders.evaluation(folder, at, ap, tasks=tasks)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (YES, YES, YES)
    assert re.fullmatch(
        r"nothing undecided; mask AP needs about \d more seeds?, \d+.0 GPU hours",
        said(answer)["next"],
    )
    (masks,) = answers(load_runs(folders.root), metric="segm/AP")
    assert UNDECIDED in verdicts(masks)
    assert masks.setting.endswith("margin 0.5 mask AP")
    assert said(masks)["next"].count("mask AP") == 0


def test_the_study_says_what_decides(folders):
    for seed in range(3):
        folders.run("scratch", seed, metric="bbox/AP75")
        folders.run("pretrained", seed, curve={600: 33.0}, metric="bbox/AP75")
    (answer,) = answers(load_runs(folders.root))
    assert answer.metric == "bbox/AP75"
    assert answers(load_runs(folders.root), metric="bbox/AP")[0].metric == "bbox/AP"
    with pytest.raises(UserError, match="no finished run here has bbox/AP60; did you mean"):
        answers(load_runs(folders.root), metric="bbox/AP60")


def test_a_metric_that_stands_in_is_named(folders):
    for arm in ("scratch", "pretrained"):
        for seed in range(3):
            folder = folders.run(arm, seed, curve={})
            tasks = {"bbox": {"AP": None, "AP50": 40.0 + seed}, "segm": {"AP": 30.0}}
            folders.evaluation(folder, 600, 0.0, tasks=tasks)
    (answer,) = answers(load_runs(folders.root))
    assert answer.metric == "bbox/AP50"
    expected = "judged by   box AP50, since no finished run has a number for box AP"
    assert expected in answer.text()


def test_what_pretraining_took(folders):
    def cost_line(pretraining):
        init = {"name": "checkpoint", "weights": "w.pth", "pretraining": pretraining}
        folders.run("scratch", seconds=7200)
        folders.run("pretrained", seconds=2160, init=init)
        return said(answers(load_runs(folders.root))[0])["cost"]

    expected = (
        "one run to 30.0 AP: scratch 2.0 GPU hours (600it), pretrained 0.6 GPU hours (600it) + {}"
    )
    for noted, what in (
        ({"cost": {"seconds": 720.0, "device": "H100"}}, "0.2 GPU hours of pre-training"),
        ({"cost": {"seconds": 90, "device": "cpu"}}, "2 CPU minutes of pre-training"),
        ({"cost": {"seconds": "long"}}, "its pre-training"),
        (None, "its pre-training"),
    ):
        assert cost_line(noted) == expected.format(what)
        shutil.rmtree(folders.root / "output")


def test_metrics_of_a_users_evaluator_reach_everything(folders):
    for arm, lead in (("scratch", 0.0), ("pretrained", 9.0)):
        for seed in range(3):
            folder = folders.run(arm, seed, curve={})
            for at in (100, 200, 600):
                tasks = {"Counting": {"objects": 1 + at / 200 + lead + seed / 10, "AP": None}}
                folders.evaluation(folder, at, 0.0, tasks=tasks)
    runs = load_runs(folders.root)
    (answer,) = answers(runs, metric="Counting/objects")
    assert verdicts(answer) == (YES, YES, UNDECIDED)
    assert said(answer)["at"].startswith("yes: +9.0 [")
    (table,) = tables(runs, "metrics")
    (row,) = [row for row in table.rows if row[0] == "Counting objects"]
    assert [cell.value for cell in row[1:]] == pytest.approx([4.1, 13.1, -9.0])
    drawn = figure(runs, "ap", metrics=["Counting/objects"])
    curves = [line.get_ydata() for line in drawn.axes[0].lines if len(line.get_xdata()) == 3]
    assert curves[0] == pytest.approx([1.6, 2.1, 4.1])
    assert "running median" not in drawn.get_supxlabel()


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


def test_the_last_line_says_level_and_sign(folders):
    pair(folders, [{600: 30.0}] * 3, [{600: 31.0}] * 3, level=0.9)
    (answer,) = answers(load_runs(folders.root))
    assert answer.text().splitlines()[-1].startswith("numbers     leads: pretrained less scratch,")
    assert answer.text().endswith("all verdicts together are right with probability 0.9")
    assert "early" in said(answer)
    # One evaluation is no early training, and more seeds would be none either.
    assert said(answer)["next"].startswith("2 undecided; ")


def test_runs_that_never_finished(folders):
    folders.run("scratch", curve={}, state="planned", iteration=0, losses=False)
    folders.run("pretrained", curve={}, state="failed", iteration=0, losses=False)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (UNDECIDED,) * 3
    assert "no seed of both arms is finished" in said(answer)["early"]
    # What has no line, as no schedule is common to both yet, is not counted.
    assert [line.key for line in answer.lines][:3] == ["early", "end", "next"]
    assert said(answer)["next"].startswith("2 undecided; cheapest is early: add 3 seeds")
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
