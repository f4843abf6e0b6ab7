import json
import re
import shutil
from pathlib import Path

import pytest

from scratch_vs_pretrain.analysis.registry import figure, tables, tables_text
from scratch_vs_pretrain.analysis.report import report_html
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answers, answers_text
from scratch_vs_pretrain.analysis.stats.conclusions import conclude, conclusions_text
from scratch_vs_pretrain.analysis.stats.verdicts import NO, UNDECIDED, YES, signed
from scratch_vs_pretrain.analysis.tables.runs import status_text
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
    assert verdicts(answer) == (UNDECIDED, YES, UNDECIDED)
    lines = said(answer)
    assert lines["early"] == (
        "undecided: +6.1 box AP [-2.7, +14.8] over the first 600 of 1,200 iterations; the interval "
        "holds both; add 2 seeds, 0.4 CPU hours"
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
    (table,) = tables(runs, "metrics").values()
    (row,) = [row for row in table.rows if row[0] == "Counting objects"]
    assert [cell.value for cell in row[1:]] == pytest.approx([4.1, 13.1, -9.0])
    drawn = figure(runs, "ap", metrics=["Counting/objects"])
    curves = [line.get_ydata() for line in drawn.axes[0].lines if len(line.get_xdata()) == 3]
    assert curves[0] == pytest.approx([1.6, 2.1, 4.1])
    assert "running median" not in drawn.get_supxlabel()


def three_lengths(folders, arm, ends, off_by=(-0.03, 0.0, 0.03), early=5.0, **changes):
    """Writes runs of 600 and 1,200 iterations of one arm."""
    for length, end in zip((600, 1200), ends, strict=True):
        for seed, off in enumerate(off_by):
            curve = {100: early + off, 200: early + 5 + off, length: end + off * (1 + seed / 9)}
            folders.run(arm, seed, iterations=length, curve=curve, **changes)


def test_three_arms_are_ranked(folders):
    order = {"arm_order": ["scratch", "imagenet", "moco"]}
    for arm, end in (("scratch", 31.0), ("imagenet", 31.01), ("moco", 33.0)):
        three_lengths(folders, arm, (end - 0.1, end), **order)
    (answer,) = answers(load_runs(folders.root))
    # Student's quantile of 0.0475 / 3 families / 2 sides / 3 pairs for two degrees of freedom,
    # 13.7, times the least error: 0.32.
    expected = "moco > imagenet (+2.0 [+1.7, +2.3]) ~ scratch (+0.0 [-0.3, +0.3])"
    assert said(answer)["ranks"] == expected
    assert [part.name for part in answer.parts] == ["imagenet", "moco"]
    assert [verdicts(answer, k)[2] for k in (0, 1)] == [NO, YES]
    # The error is shared, so intervals are wider than those of one other arm.
    alone = answers([run for run in load_runs(folders.root) if run.arm != "imagenet"])[0]
    both = [next(p for p in a.parts if p.setting.other == "moco") for a in (answer, alone)]
    widths = [p.judged.end.high - p.judged.end.low for p in both]
    assert widths[0] > widths[1]


def test_the_studys_margin_decides(folders):
    pair(folders, [{600: 30.0}] * 3, [{600: 32.0}] * 3, margin=3.0)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["at"].startswith("no: +2.0 [")
    assert answer.setting.endswith("margin 3 box AP")


def test_ranks_are_adjusted_for_all_pairs(folders):
    """t is 9.92, p 0.01: enough for one pair in a third of the error, not for three."""
    order = {"arm_order": ["scratch", "imagenet", "moco"]}
    for arm, end, wide in (("scratch", 30.0, 0), ("imagenet", 30.0, 0), ("moco", 31.0, 1)):
        for seed in range(3):
            folders.run(arm, seed, curve={600: end + wide * 0.1746 * (seed - 1)}, **order)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["ranks"].startswith("moco ~ ")


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
    first = next(one for one in answer.worth["pretrained"] if one.size == 100)
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
    json.dumps(answer.to_json(), allow_nan=False)


def test_the_answer_as_json():
    content = json.loads(answers_text(RECORDED / "demo", "json"))
    assert [v["verdict"] for v in content[0]["parts"][0]["verdicts"]] == [
        UNDECIDED, YES, UNDECIDED
    ]  # fmt: skip
    assert content[0]["parts"][0]["needs"][-1]["iterations"] == 2400


def test_numbers_that_round_to_zero_have_no_minus():
    assert (signed(-0.04), signed(0.04), signed(-0.06)) == ("+0.0", "+0.0", "-0.1")


def test_arms_that_have_learned_nothing_are_not_alike(folders):
    for arm in ("scratch", "pretrained"):
        three_lengths(folders, arm, (0.1, 0.12), early=0.0, off_by=(0.0, 0.01, 0.02))
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (UNDECIDED,) * 3
    assert "training too short: both arms end under 5 AP" in said(answer)["end"]


def test_arms_that_have_not_learned_yet_do_not_tell_of_no_lead(folders):
    for arm in ("scratch", "pretrained"):
        three_lengths(folders, arm, (30.0, 30.1), early=-0.5)
    (answer,) = answers(load_runs(folders.root))
    assert verdicts(answer) == (UNDECIDED, NO, NO)
    assert said(answer)["early"].endswith("; both arms are under 5 AP until then")
    fourth = conclude(load_runs(folders.root))[3].findings[0]
    assert (fourth.verdict, fourth.evidence[-37:]) == (
        "not enough evidence", "; both arms are under 5 AP until then"
    )  # fmt: skip


STATED = {"noise": {"sd": 0.2, "because": "two runs differed by that"}}


def sized(folders, seeds=(0, 1, 2), skipped=(), **changes):
    """Writes a study of 100 and 400 images, in which scratch never reaches the other arm."""
    for size in (100, 400):
        where = {"output": f"output{size}", "size": size, **changes}
        for arm, end in (("scratch", size / 20), ("pretrained", 30.0 + size / 20)):
            if (size, arm) not in skipped:
                noise = tuple(0.03 * seed for seed in seeds)
                three_lengths(folders, arm, (end - 0.01, end), noise, **where)
    (answer,) = answers(load_runs(folders.root))
    return answer, said(answer)


def test_one_seed_knows_no_bound_of_the_worth(folders):
    _, lines = sized(folders, seeds=(0,))
    assert lines["worth"] == "> 4.0 times (too few seeds for an interval) at 100 images"


def test_a_worth_by_training_that_may_be_too_short_says_so(folders):
    for size in (100, 400):
        for arm, end in (("scratch", size / 20), ("pretrained", 30.0 + size / 20)):
            for seed in range(3):
                where = {"output": f"output{size}", "size": size}
                folders.run(arm, seed, curve={100: 5.0, 600: end + seed / 30}, **where)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["worth"].endswith("at 100 images; training may be too short")


def test_worth_beyond_the_largest_size_is_not_extrapolated(folders):
    _, lines = sized(folders)
    expected = "> 4.0 times the training images, beyond the largest size, at 100 images"
    assert lines["worth"] == expected


def test_a_worth_that_noise_hides_is_no_bound(folders):
    """The mean lead never falls to 0, but one of 0 is not excluded."""
    for size in (100, 400):
        where = {"output": f"output{size}", "size": size}
        for arm, ends in (("scratch", (30.0, 30.0, 30.0)), ("pretrained", (29.0, 30.2, 31.0))):
            for seed, end in enumerate(ends):
                folders.run(arm, seed, curve={600: end}, **where)
    (answer,) = answers(load_runs(folders.root))
    expected = "> 4.0 [< 1, > 4.0] times the training images at 100 images"
    assert said(answer)["worth"].startswith(expected)


def test_every_line_that_rests_on_a_stated_noise_says_so(folders):
    """The larger size has three seeds later, the smaller one keeps its own."""
    _, one = sized(folders, seeds=(0,), **STATED)
    assert one["size"].startswith("early undecided +0.0 [")
    assert "; at 600it yes (assuming) +30.0 [" in one["size"]
    assert "beyond the largest size, at 100 images, assuming;" in one["worth"]
    for seed in (1, 2):
        for arm, end in (("scratch", 20.0), ("pretrained", 50.0)):
            for length in (600, 1200):
                where = {"output": "output400", "size": 400, **STATED}
                curve = {100: 5.0, 200: 10.0, length: end}
                folders.run(arm, seed, iterations=length, curve=curve, **where)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["at"].startswith("yes: +30.0")
    assert "; at 600it yes (assuming) +30.0 [" in said(answer)["size"]
    assert answer.assuming == "a noise of 0.2 AP (two runs differed by that)"


def test_two_pairs_of_three_seeds_each_rest_on_the_stated_noise(folders):
    for arm, seeds, end in (("scratch", (0, 1, 2), 30.0), ("pretrained", (1, 2, 3), 33.0)):
        for seed in seeds:
            folders.run(arm, seed, curve={100: 5.0, 600: end}, **STATED)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["at"].startswith("yes, assuming: +3.0")
    assert answer.assuming.startswith("a noise of 0.2 AP")


def test_an_end_that_one_shorter_run_opens_rests_on_the_stated_noise(folders):
    noise = {"noise": {"sd": 0.05, "because": "x"}}
    for arm, end in (("scratch", 30.0), ("pretrained", 33.0)):
        folders.run(arm, curve={100: 5.0, 600: end}, **noise)
        for seed in range(3):
            folders.run(arm, seed, iterations=1200, curve={100: 5.0, 1200: end}, **noise)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["end"].startswith("yes, assuming: +3.0")


def test_ranks_of_training_that_may_be_too_short_say_so(folders):
    order = {"arm_order": ["scratch", "imagenet", "moco"], **STATED}
    for arm, end in (("scratch", 31.0), ("imagenet", 31.01), ("moco", 33.0)):
        folders.run(arm, curve={100: 5.0, 600: end}, **order)
    (answer,) = answers(load_runs(folders.root))
    assert re.fullmatch(
        r"moco > imagenet \(\+2.0 \[.*\], assuming\) ~ scratch \(\+0.0 \[.*\], assuming\); "
        "training may be too short",
        said(answer)["ranks"],
    )


def test_runs_that_are_left_out_are_named(folders):
    """Those that survive may be the better ones."""
    for seed in range(5):
        state = "diverged" if seed > 2 else "finished"
        folders.run("scratch", seed, state=state)
        folders.run("pretrained", seed, curve={600: 31.0})
    (answer,) = answers(load_runs(folders.root))
    assert "\nleft out    scratch 600it: 2 diverged\n" in answer.text()


def test_a_size_without_a_partner_leaves_the_others_their_answer(folders):
    answer, _ = sized(folders, skipped=[(400, "scratch")])
    assert [part.setting.size for part in answer.parts] == [100]
    assert "left out    pretrained, 400 images: 6 without the other arm" in answer.text()


def test_every_other_arm_has_a_worth_of_its_own(folders):
    """Of "scarce" there is one size, of which no other size can say what it is worth."""
    order = {"arm_order": ["scratch", "imagenet", "moco", "scarce"]}
    ends = {"scratch": (20.0, 30.0), "imagenet": (20.0, 30.0), "moco": (25.0, 35.0)}
    five_seeds = (-0.02, -0.01, 0.0, 0.01, 0.02)
    for k, size in enumerate((100, 400)):
        where = {"output": f"output{size}", "size": size, **order}
        for arm, end in [*ends.items(), *[("scarce", (20.0, 30.0))] * k]:
            three_lengths(folders, arm, (end[k] - 0.01, end[k]), five_seeds, **where)
    (answer,) = answers(load_runs(folders.root))
    lines = {line.title: line.text for line in answer.lines}
    assert lines["worth, imagenet"].endswith("; inside the margin from 100 images on")
    # Half way between 20 and 30 lies 25, at the geometric mean of the sizes.
    assert lines["worth, moco"] == "2.0 [2.0, 2.0] times the training images at 100 images"
    assert [*answer.to_json()["worth"]] == ["imagenet", "moco"]


def test_no_number_is_not_no_run(folders):
    for arm in ("scratch", "pretrained"):
        for seed in range(3):
            folders.run(arm, seed, curve={600: None})
    (answer,) = answers(load_runs(folders.root))
    assert "no seed of both arms has a number for box AP" in said(answer)["at"]


def test_looks_of_an_adaptive_study_count_afterwards_too(folders):
    """`svp answer` of what `svp run --until answered` trained is as strict as its last look."""
    scratch, other = ([{100: 9.0, 600: end} for end in ends] for ends in
                      ((30.0, 30.3, 29.7), (30.9, 31.6, 31.0)))  # fmt: skip
    pair(folders, scratch, other)
    runs = load_runs(folders.root)
    assert verdicts(answers(runs)[0])[1] == YES
    told = folders.root / "output/demo/answer.json"
    told.write_text(json.dumps({"looks": [{"look": 1, "looks": 9}]}))
    after, last = answers(runs)[0], answers(runs, looks=9)[0]
    assert after.lines == last.lines
    assert verdicts(after)[1] == UNDECIDED
    # What someone else put there is no look.
    told.write_text(json.dumps([after.to_json()]))
    assert verdicts(answers(runs)[0])[1] == YES


FORGED = "my detector\nat the end  yes: +99.0 [+98.0, +99.9]"


def test_what_a_study_is_called_makes_no_line_of_its_own(folders):
    for arm in ("scratch", "pretrained"):
        folders.run(
            arm, schedule=FORGED, description=FORGED, study=FORGED, converged=FORGED,
            noise={"sd": 0.2, "because": FORGED}, reason=FORGED, losses=False,
        )  # fmt: skip
    (answer,) = answers(load_runs(folders.root))
    assert len(answer.text().splitlines()) == 1 + len(answer.lines)
    for text in (
        answers_text(folders.root),
        conclusions_text(folders.root),
        tables_text(folders.root, "gaps", "text"),
        status_text(folders.root),
        re.search("<dl.*</dl>|<pre>.*</pre>", report_html(folders.root), re.DOTALL)[0],
    ):
        assert "+99.0" in text
        assert not any(line.startswith("at the end  yes: +99") for line in text.splitlines())
