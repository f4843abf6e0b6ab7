import json
import re
import shutil
from pathlib import Path

import numpy as np
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
    assert "add a schedule of 2,400 iterations for 3 seeds, 0.7 CPU hours" in lines["end"]
    curves = answer.parts[0].curves
    assert list(curves) == ["scratch", "pretrained"]
    assert curves["scratch"].mean[-1] == pytest.approx(47.7, abs=0.05)


def test_one_seed_decides_nothing_however_far_apart():
    found = answers(load_runs(RECORDED / "demo_regimes"))
    assert len(found) == 4
    assert all(verdicts(answer) == (UNDECIDED,) * 3 for answer in found)
    assert "1 seed, a verdict needs 3 or a stated noise" in said(found[0])["at"]
    assert "add 2 seeds" in said(found[0])["at"]
    # More seeds alone would not show that one schedule is long enough.
    assert said(found[0])["end"] == (
        "undecided, training too short: no schedule half as long shows that 400it is enough; add "
        "2 seeds and a schedule of 800 iterations for 3 seeds, 2.3 CPU hours, thanks to the shared "
        "trunk"
    )


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
        r"nothing undecided; mask AP needs about \d more seeds?, \d+.0 hours",
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

    expected = "one run to 30.0 AP: scratch 2.0 hours (600it), pretrained 0.6 hours (600it) + {}"
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
    # Student's quantile for two degrees of freedom times the least error, at 0.0475 / 3 families /
    # 2 sides: of the second of 3 pairs, at half of it, 0.26; of the third 0.18.
    expected = "moco > imagenet (+2.0 [+1.7, +2.3]) ~ scratch (+0.0 [-0.2, +0.2])"
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


@pytest.mark.parametrize(
    "content",
    [
        '{"looks": [{"look": 1, "loo',
        "",
        '[{"study": "demo"}]',
        '{"looks": [{"look": 1}]}',
        '{"looks": [{"look": 1, "looks": 1e999}]}',
        '{"looks": [{"look": 1, "looks": 100000000000000000}]}',
        '{"looks": [{"look": 1, "looks": 0}]}',
        '{"looks": ' + "[" * 100_000,
    ],
)
def test_damaged_looks_change_no_verdict(folders, content):
    pair(folders, [{600: 30.0}] * 3, [{600: 31.0}] * 3)
    file = folders.root / "output/demo/answer.json"
    file.write_text(content)
    for judge in (lambda runs: answers(runs), conclude):
        with pytest.raises(UserError, match="start `svp run --until answered` again") as raised:
            judge(load_runs(folders.root))
        assert str(raised.value).startswith(f"{file}: ")


def test_a_folder_in_the_place_of_the_looks_is_none(folders):
    pair(folders, [{600: 30.0}] * 3, [{600: 31.0}] * 3)
    (folders.root / "output/demo/answer.json").mkdir()
    assert verdicts(answers(load_runs(folders.root))[0])[1] == YES


def differing(folders, allowed=(), **of):
    """Writes two arms, of which the pretrained one differs in training data or batch."""
    keys = {key: {"scratch": 1, "pretrained": 2} for key in allowed}
    for seed in range(3):
        folders.run("scratch", seed, allowed_differences=keys)
        folders.run("pretrained", seed, curve={600: 35.0}, allowed_differences=keys, **of)
    return load_runs(folders.root)


@pytest.mark.parametrize(
    ("changes", "what", "key"),
    [
        ({"data": {"train": {"images": 9000}}}, "number of training images", "DATASETS.TRAIN"),
        ({"data": {"train": {"sha256": "c"}}}, "content of training data", "SVP.DATASETS"),
        ({"images_per_batch": 16}, "images per batch", "SOLVER.IMS_PER_BATCH"),
    ],
)
def test_arms_trained_on_different_data_are_not_compared(folders, changes, what, key):
    runs = differing(folders, **changes)
    for make in (lambda: answers(runs), lambda: tables(runs, "schedules"), lambda: conclude(runs)):
        with pytest.raises(UserError, match=f"differ in {what} .*allow_differences") as raised:
            make()
        for arm in ("scratch", "pretrained"):
            assert str(folders.root / f"output/demo/{arm}/600it/seed0") in str(raised.value)
    shutil.rmtree(folders.root / "output")
    (allowed,) = answers(differing(folders, [key], **changes))
    assert said(allowed)["at"].startswith("yes: +5.0")


def test_what_is_not_known_is_no_difference(folders):
    runs = differing(folders, data={"train": {"names": ["other"]}}, images_per_batch=None)
    assert said(answers(runs)[0])["at"].startswith("yes: +5.0")


def test_an_allowed_difference_shows_in_the_number_of_images(folders):
    runs = differing(folders, ["DATASETS.TRAIN"], data={"train": {"images": 9000}})
    assert ", 2,000 and 9,000 training images," in answers(runs)[0].setting
    # It is one of arms: the seeds of one arm share their data all the same.
    folders.run("pretrained", 3, allowed_differences={"DATASETS.TRAIN": {}})
    with pytest.raises(UserError, match=r"seed0 and .*seed3 differ in number of training images"):
        answers(load_runs(folders.root))


def weights(folders, digests):
    for seed, digest in enumerate(digests):
        folders.run("scratch", seed)
        init = {"name": "checkpoint", "weights": "w.pth", "sha256": digest}
        folders.run("pretrained", seed, curve={600: 35.0}, init=init)
    return load_runs(folders.root)


def test_seeds_may_start_from_weights_of_their_own(folders):
    """As with init: run://STUDY/ARM/SCHEDULE/seed; one seed starts all its runs from the same."""
    note = "Seeds of pretrained start from weights of their own, so its noise is also that of "
    runs = weights(folders, ["a", "b", "c"])
    assert note in answers(runs)[0].text()
    assert any(one.startswith(note) for one in tables(runs, "schedules")["demo"].notes)
    init = {"name": "checkpoint", "weights": "w.pth", "sha256": "b"}
    folders.run("pretrained", 0, iterations=1200, init=init)
    with pytest.raises(UserError, match=r"1200it/seed0 differ in initial weights .a and b."):
        answers(load_runs(folders.root))


def test_seeds_of_one_checkpoint_need_no_note(folders):
    assert "weights of their own" not in answers(weights(folders, ["a", "a", None]))[0].text()


def test_an_arm_whose_runs_disagree_on_their_init_is_refused(folders):
    pair(folders, [{600: 30.0}] * 3, [{600: 35.0}] * 3)
    file = folders.root / "output/demo/pretrained/600it/seed1/run.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "init": {"name": "scratch"}}))
    for make in (answers, lambda runs: tables(runs, "schedules"), conclude):
        with pytest.raises(UserError, match=r"pretrained starts from random weights in .*seed1"):
            make(load_runs(folders.root))


def test_a_worth_below_one_is_no_interval(folders):
    """The other arm is 8 AP behind everywhere: scratch reaches its AP with far fewer images."""
    for size, end in ((100, 30.0), (300, 40.0), (1000, 50.0)):
        where = {"output": f"output{size}", "size": size}
        for arm, end_of_arm in (("scratch", end), ("pretrained", end - 8)):
            three_lengths(folders, arm, (end_of_arm - 0.01, end_of_arm), **where)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["worth"].startswith(
        "< 1 times the training images at 100 images; < 1 times the training images at 300 images"
    )


def test_sizes_of_other_test_sets_have_no_worth(folders):
    for size, digest in ((100, "b"), (400, "c")):
        data = {"train": {"images": size}, "test": {"names": ["val"], "sha256": digest}}
        where = {"output": f"output{size}", "size": size, "data": data}
        for arm, end in (("scratch", size / 20), ("pretrained", 30.0 + size / 20)):
            three_lengths(folders, arm, (end - 0.01, end), **where)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["worth"].startswith("not known: no seed has both arms at every size, by")
    assert [verdicts(answer, k)[2] for k in (0, 1)] == [YES, YES]


def ends(folders, scratch, other):
    """Writes runs that end so after 600 and 1,200 iterations, and answers."""
    three_lengths(folders, "scratch", scratch)
    three_lengths(folders, "pretrained", other, (0.03, 0.0, -0.03))
    (answer,) = answers(load_runs(folders.root))
    return said(answer)["end"]


def test_the_arm_that_is_behind_may_need_longer_training(folders):
    """Scratch is ready and ahead; what more training could change is the other arm."""
    assert re.fullmatch(
        "undecided, training too short: pretrained still gains 4.8 AP from 600it to 1200it; add a "
        "schedule of 2,400 iterations for 3 seeds",
        ends(folders, (40.0, 40.1), (35.0, 39.8)).partition(", thanks")[0],
    )


def test_an_arm_ahead_that_still_gains_keeps_nothing_open(folders):
    assert ends(folders, (39.0, 40.0), (35.0, 35.1)).startswith("no: scratch ends no worse")


def test_a_gain_too_near_to_the_margin_is_said_to_be_that(folders):
    end = ends(folders, (30.0, 30.499), (34.9, 35.0))
    assert end == (
        "undecided, not shown that training is long enough: scratch gains 0.5 AP from 600it to "
        "1200it; not by 100 seeds: the gain is too near to the margin"
    )


def test_runs_that_have_begun_are_to_be_finished(folders):
    for arm in ("scratch", "pretrained"):
        for seed in range(2):
            folders.run(arm, seed, curve={}, state="planned", iteration=0, seconds=None)
        folders.run(arm, 2, curve={}, state="interrupted", iteration=300)
    (answer,) = answers(load_runs(folders.root))
    nothing = "undecided; no seed of both arms is finished; finish 3 seeds in both arms"
    assert said(answer)["early"] == nothing
    assert said(answer)["end"].startswith(f"{nothing} and add a schedule of 1,200 iterations for 3")
    masks = {need.text("needs about") for need in answer.parts[0].needs if need.kind == "seeds"}
    assert masks == {"needs about 3 more seeds"}


def test_a_seed_that_one_arm_lacks_is_half_there(folders):
    for arm, seeds in (("scratch", (0, 1, 2)), ("pretrained", (2, 3))):
        for seed in seeds:
            folders.run(arm, seed, curve={100: 5.0, 600: 30.0}, seconds=3600.0)
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["at"].endswith("; finish 2 seeds in both arms, 2.0 hours")


def test_a_longer_schedule_that_is_planned_is_to_be_finished(folders):
    pair(folders, [{600: 30.0}] * 3, [{600: 35.0}] * 3)
    pair(folders, [{}] * 3, [{}] * 3, iterations=1500, state="planned", iteration=0)
    (answer,) = answers(load_runs(folders.root))
    assert "; finish a schedule of 1,500 iterations for 3 seeds" in said(answer)["end"]


def test_a_metric_that_was_not_evaluated_needs_no_runs(folders):
    for arm in ("scratch", "pretrained"):
        for seed in range(3):
            folder = folders.run(arm, seed, curve={}, metric="segm/AP")
            folders.evaluation(folder, 600, 0.0, tasks={"bbox": {"AP": 30.0}})
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["at"] == "undecided; no seed of both arms has a number for mask AP"
    assert said(answer)["next"] == "3 undecided, which more runs of the same kind cannot decide"


def test_lengths_that_differ_are_both_named(folders):
    three_lengths(folders, "scratch", (40.0, 40.1))
    for seed in range(3):
        folders.run("pretrained", seed, curve={100: 5.0, 600: 45.0})
    (answer,) = answers(load_runs(folders.root))
    assert said(answer)["end"].endswith("at 1,200 iterations (pretrained: 600)")


@pytest.mark.parametrize("seed", range(20))
def test_ranks_agree_with_their_intervals(folders, seed):
    rng = np.random.default_rng(seed)
    arms = ["scratch", "a", "b", "c", "d"]
    for arm, end in zip(arms, rng.choice([40.0, 40.5, 42.0, 47.0], 5), strict=True):
        for number in range(3 if seed % 2 else int(rng.integers(3, 6))):
            folders.run(arm, number, curve={600: end + 0.3 * rng.standard_normal()})
    (answer,) = answers(load_runs(folders.root))
    found = re.findall(r" ([<~>]) \S+ \(\S+ \[(\S+), (\S+)\]\)", said(answer)["ranks"])
    assert len(found) == 4
    for sign, *interval in found:
        low, high = map(float, interval)
        assert {">": low >= 0, "<": high <= 0, "~": low <= 0 <= high}[sign]
