import math

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answer
from scratch_vs_pretrain.analysis.tables.studies import (
    _leads,
    catch_up_table,
    errors_table,
    gap_table,
    metrics_table,
    schedules_table,
    summary_table,
)


def records(table):
    """Rows as dictionaries, estimates as their values."""
    return [
        {name: getattr(cell, "value", cell) for name, cell in zip(table.header, row, strict=True)}
        for row in table.rows
    ]


def test_schedules_table(folders):
    for iterations, scratch, pretrained in [(900, 33.0, 32.5), (600, 30.0, 32.0)]:
        folders.run("scratch", iterations=iterations, curve={iterations: scratch})
        folders.run("pretrained", iterations=iterations, curve={iterations: pretrained})
    table = schedules_table(load_runs(folders.root))
    rows = records(table)
    assert [(row["arm"], row["schedule"]) for row in rows] == [
        ("scratch", "600it"),
        ("pretrained", "600it"),
        ("scratch - pretrained", "600it"),
        ("scratch", "900it"),
        ("pretrained", "900it"),
        ("scratch - pretrained", "900it"),
    ]
    assert rows[0] == {
        "arm": "scratch", "schedule": "600it", "iterations": 600, "images": 4800, "epochs": 2.4,
        "seeds": 1, "box AP": 30, "box AP50": 50, "box AP75": 28,
        "mask AP": 29, "mask AP50": 49, "mask AP75": 27,
    }  # fmt: skip
    assert [row["box AP"] for row in rows] == [30, 32, -2, 33, 32.5, 0.5]


def test_each_pretrained_arm_is_compared_with_scratch(folders):
    order = ["scratch", "imagenet", "moco"]
    for arm, ap in zip(order, (30.0, 31.0, 29.0), strict=True):
        folders.run(arm, curve={600: ap}, arm_order=order)
    rows = records(schedules_table(load_runs(folders.root)))
    assert [(row["arm"], row["box AP"]) for row in rows] == [
        ("scratch", 30), ("imagenet", 31), ("moco", 29),
        ("scratch - imagenet", -1), ("scratch - moco", 1),
    ]  # fmt: skip


def test_unfinished_study_has_rows_for_what_is_there(folders):
    folders.run("scratch")
    folders.run("pretrained", state="planned", curve={}, iteration=0, losses=False)
    table = schedules_table(load_runs(folders.root))
    assert [row["arm"] for row in records(table)] == ["scratch"]
    assert any("pretrained 600it seed 0 (planned" in note for note in table.notes)

    folders.run("scratch", study="b", state="planned", curve={}, iteration=0, losses=False)
    folders.run("pretrained", study="b", state="planned", curve={}, iteration=0, losses=False)
    empty = schedules_table(load_runs(folders.root / "output" / "b"))
    assert empty.rows == ()


def test_arms_without_a_common_schedule_are_compared_in_the_metrics_table(folders):
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=600, curve={600: 32.0})
    runs = load_runs(folders.root)
    assert any("no schedule in common" in note for note in schedules_table(runs).notes)
    table = metrics_table(runs)
    assert table.header == ("metric", "scratch 900it", "pretrained 600it", "scratch - pretrained")
    row = next(row for row in records(table) if row["metric"] == "box AP")
    assert [*row.values()][1:] == [33, 32, 1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iterations": 1200}, "1,200 iterations of pretrained (drops of the rate: 400, 533)"),
        ({"steps": [500]}, "600 iterations of pretrained (drops of the rate: 500)"),
    ],
)
def test_two_schedules_of_one_name_are_not_one(folders, changes, told):
    """What the arms share is still compared; the tables of the longest ones say what these are."""
    steps = [400, 533]
    for seed in range(3):
        folders.run("scratch", seed, schedule="long", steps=steps)
        folders.run("pretrained", seed, schedule="long", **{"steps": steps, **changes},
                    curve={changes.get("iterations", 600): 35.0})  # fmt: skip
    note = (
        f"long is two schedules: 600 iterations of scratch (drops of the rate: 400, 533), {told}."
    )
    runs = load_runs(folders.root)
    table = schedules_table(runs)
    assert [row["arm"] for row in records(table)] == ["scratch", "pretrained"]
    assert "scratch and pretrained have no schedule in common" in table.notes[-1]
    for make in (schedules_table, metrics_table, gap_table, errors_table, summary_table):
        assert make(runs).notes.count(note) == 1
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=300, steps=[200], schedule="short")
    table = schedules_table(load_runs(folders.root))
    gaps = [row["schedule"] for row in records(table) if row["arm"] == "scratch - pretrained"]
    assert gaps == ["short"]
    assert not any("no schedule in common" in one for one in table.notes)


def test_metrics_table_is_of_the_longest_planned_schedule(folders):
    """Also where a shorter one is finished and this one is not: no silent substitute."""
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=600, curve={600: 40.0})
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=900, curve={300: 20.0}, state="failed", iteration=300)
    table = metrics_table(load_runs(folders.root))
    rows = {row["metric"]: [*row.values()][1:] for row in records(table)}
    assert rows["seeds"] == [1, 0, 0]
    assert rows["box AP"][0] == 33
    assert rows["box AP75"][0] == 31
    assert rows["mask APl"][0] == 41
    assert all(str(value) == "nan" for value in rows["box AP"][1:])


def box(table):
    return next(row for row in records(table) if row["metric"] == "box AP")


def test_gap_of_three_pairs_by_hand(three_pairs):
    """The gaps are -1, -2 and -3: mean -2, standard deviation 1."""
    row = box(gap_table(load_runs(three_pairs.root)))
    assert row["arms"] == "scratch 600it - pretrained 600it"
    assert (row["seeds"], row["gap"], row["p"]) == (3, -2, None)
    reach = 4.302652729911275 / math.sqrt(3)
    assert row["t low"] == pytest.approx(-2 - reach)
    assert row["t high"] == pytest.approx(-2 + reach)
    assert -3 <= row["BCa low"] < row["BCa high"] <= -1
    assert row["within noise"] == "yes"


def test_two_seeds_have_no_interval(folders):
    for seed in range(2):
        folders.run("scratch", seed, curve={600: 30.0})
        folders.run("pretrained", seed, curve={600: 31.0})
    row = box(gap_table(load_runs(folders.root)))
    assert [row[name] for name in ("t low", "t high", "BCa low", "BCa high", "p")] == [None] * 5
    assert row["within noise"] == "unknown"


def test_p_of_six_seeds_that_agree(folders):
    """Two of 64 sign flips are as extreme."""
    for seed in range(6):
        folders.run("scratch", seed, curve={600: 30.0}, losses=False)
        folders.run("pretrained", seed, curve={600: 31.0 + 0.1 * seed}, losses=False)
    row = box(gap_table(load_runs(folders.root)))
    assert (row["seeds"], row["p"], row["within noise"]) == (6, "0.031", "no")


def test_seeds_that_one_arm_lacks_are_no_pairs(folders):
    folders.run("scratch", 0)
    folders.run("pretrained", 1)
    assert gap_table(load_runs(folders.root)).rows == ()
    assert catch_up_table(load_runs(folders.root)).rows == ()


def catching_up(folders, seeds=3, **changes):
    """The lead falls from 8 by a straight line, to 0.5 at 475, and a little apart by seed."""
    for seed in range(seeds):
        at = range(50, 601, 50)
        scratch = {k: 20 + (k - 50) * 7.5 / 425 + 0.01 * seed for k in at}
        pretrained = dict.fromkeys(at, 28.0)
        steps = {"steps": [600]}
        folders.run("scratch", seed, curve=scratch, seconds=600.0, **steps, **changes)
        folders.run("pretrained", seed, curve=pretrained, seconds=600.0, **steps, **changes)
    return load_runs(folders.root)


def test_catch_up_by_hand(folders):
    rows = {row["in"]: row for row in records(catch_up_table(catching_up(folders)))}
    row = rows["iterations"]
    assert row["seeds"] == 3
    assert 465 <= row["from"] <= 475 <= row["to"] <= 485
    # Eight images a batch; a second an iteration.
    assert rows["images"]["from"] == pytest.approx(8 * row["from"], rel=0.01)
    assert float(rows["gpu-hours"]["to"]) == pytest.approx(row["to"] / 3600, rel=0.01)


def test_catch_up_does_not_cross_a_drop_of_the_rate(folders):
    """The lead is 4 up to the drop at 1,600 and 1 after it; one arm is evaluated more often."""
    for seed in range(3):
        for arm, step in (("scratch", 100), ("pretrained", 50)):
            at = [step * k for k in range(1, 2400 // step + 1)]
            lead = {t: (arm != "scratch") * (4 if t <= 1600 else 1) + 0.05 * seed for t in at}
            curve = {t: 20 + t / 100 + lead[t] for t in at}
            # One seed is slower, so that its drop comes later.
            folders.run(
                arm, seed, curve=curve, iterations=2400, steps=[1600, 2133], losses=False,
                margin=3.0, seconds=2400.0 + 10 * seed,
            )  # fmt: skip
    runs = load_runs(folders.root)
    rows = {row["in"]: row for row in records(catch_up_table(runs))}
    found = answer(runs).parts[0].judged.catch_up
    assert (rows["iterations"]["from"], rows["iterations"]["to"]) == (
        round(found.low), round(found.high)
    )  # fmt: skip
    assert found.low <= 1600 <= found.high <= 1610
    assert rows["images"]["to"] == round(8 * found.high)
    hours = [float(rows["gpu-hours"][name]) * 3600 for name in ("from", "to")]
    assert hours == pytest.approx([1600, 1610], abs=15)


def test_catch_up_of_other_schedules_joins_no_evaluations_across_a_drop(folders):
    """Scratch is evaluated on both sides of its drop at 400, and between them in no phase."""
    at = {"scratch": (100, 350, 450, 600), "pretrained": (100, 200, 300, 400, 500, 600)}
    for seed in range(3):
        for arm, steps in (("scratch", [400]), ("pretrained", [400, 550])):
            curve = dict.fromkeys(at[arm], 20.0 if arm == "scratch" else 30.0)
            folders.run(arm, seed, curve=curve, steps=steps, losses=False)
    runs = load_runs(folders.root)
    pairs = [(runs[k], runs[k + 3]) for k in range(3)]
    grid, leads, drops = _leads(pairs, "iterations", "bbox/AP")
    assert grid.tolist() == [100, 200, 300, 350, 500]
    assert drops.tolist() == [400]
    assert leads.shape == (3, 5)


def test_catch_up_names_the_margin(folders):
    runs = catching_up(folders, thresholds={"margin": 2.0})
    assert "where scratch comes within 2 box AP" in catch_up_table(runs).title


def test_not_reached_is_a_result(folders):
    for seed in range(3):
        folders.run("scratch", seed, curve={100: 10.0, 600: 20.0 + seed / 10}, seconds=4320.0)
        folders.run("pretrained", seed, curve={100: 20.0, 600: 30.0}, seconds=4320.0)
    rows = {row["in"]: row for row in records(catch_up_table(load_runs(folders.root)))}
    row = rows["iterations"]
    assert (row["seeds"], row["from"], row["to"]) == (3, "not by 600", None)
    assert rows["images"]["from"] == "not by 4,800"
    assert rows["gpu-hours"]["from"] == "not by 1.2"


def test_two_seeds_give_no_region(folders):
    row = records(catch_up_table(catching_up(folders, seeds=2)))[0]
    assert (row["seeds"], row["from"]) == (2, "needs 3 seeds")


def test_pixels_include_those_of_pretraining(folders):
    noted = {"samples": {"images": 50, "instances": 50, "pixels": 5000}}
    init = {"name": "checkpoint", "weights": "w.pth", "pretraining": noted}
    seen = {"images": 1, "instances": 1, "pixels": 6000}
    for arm, more in (("scratch", {}), ("pretrained", {"init": init})):
        curve = {300: 10.0, 600: 20.0} if arm == "scratch" else {300: 12.0, 600: 13.0}
        for seed in range(3):
            folders.run(arm, seed, curve=curve, samples=seen, losses=False, **more)
    rows = {row["in"]: row for row in records(catch_up_table(load_runs(folders.root)))}
    # The other arm's first evaluation is at 8,000 pixels, after all of scratch's.
    assert rows["pixels"]["from"] == "no pixels in common"


def test_hours_of_a_shared_trunk_count_once(folders):
    taken = {"iteration": 500, "seconds": 500.0}
    catching_up(folders, seeds=1)
    folders.run(
        "scratch", iterations=900, curve={600: 20.0}, seconds=600.0,
        branch={"of": "900it", "at": 500, "taken": taken},
    )  # fmt: skip
    notes = " ".join(catch_up_table(load_runs(folders.root)).notes)
    assert f"{1300 / 3600:.3g} hours, a trunk that schedules share counted once" in notes
    assert f"each alone: {1800 / 3600:.3g}" in notes


def test_no_catch_up_of_arms_that_have_learned_nothing(folders):
    """Both at 0.0 at the first evaluation is not "reached at 20"."""
    for arm in ("scratch", "pretrained"):
        folders.run(arm, curve={20: 0.0, 600: 0.4})
    row = records(catch_up_table(load_runs(folders.root)))[0]
    assert row["from"] == "nothing: both end under 5 AP"
