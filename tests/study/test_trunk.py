from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.config import Schedule, paper_schedule, short_schedule
from scratch_vs_pretrain.study.spec import Switch
from scratch_vs_pretrain.study.trunk import Branch, branches_of, share_trunk


def test_the_papers_five_schedules_share_most():
    # 1.8M iterations for 2x to 6x trained alone; the last 60k of each are its own.
    (trunk,) = share_trunk(paper_schedule(multiple) for multiple in (2, 3, 4, 5, 6))
    assert trunk.iterations_alone == 1_800_000
    assert trunk.iterations == 780_000
    assert trunk.iterations / trunk.iterations_alone == pytest.approx(0.433, abs=5e-4)
    assert trunk.length == 480_000
    starts = [trunk.start_of(schedule) for schedule in trunk.schedules]
    assert starts == [120_000, 210_000, 300_000, 390_000, 480_000]


def test_one_schedule_shares_nothing():
    (trunk,) = share_trunk([paper_schedule(2)])
    assert trunk.iterations == trunk.iterations_alone == 180_000


def test_schedules_at_different_rates_have_their_own_trunks():
    slow, fast = paper_schedule(2), paper_schedule(2, images_per_batch=32)
    assert [trunk.schedules for trunk in share_trunk([fast, slow])] == [(slow,), (fast,)]


def test_no_schedules_share_no_trunk():
    assert share_trunk([]) == ()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6))
def test_every_schedule_leaves_before_its_rate_drops(lengths):
    (trunk,) = share_trunk([short_schedule(length) for length in lengths])
    for schedule in trunk.schedules:
        assert trunk.start_of(schedule) <= min((*schedule.steps, schedule.iterations - 1))
        assert trunk.start_of(schedule) <= trunk.length
    for branch in trunk.branches().values():
        assert 0 < branch.at <= trunk.length
    assert max(lengths) <= trunk.iterations <= trunk.iterations_alone == sum(lengths)


def test_a_constant_rate_schedule_keeps_its_last_iteration():
    # After which it is evaluated.
    (trunk,) = share_trunk([Schedule("a", 100, ()), Schedule("b", 60, ())])
    assert trunk.branches() == {"b": Branch("a", 59)}
    assert trunk.iterations == 101


def test_branches_leave_the_longest():
    assert branches_of(paper_schedule(multiple) for multiple in (3, 2, 6)) == {
        "2x": Branch("6x", 120_000),
        "3x": Branch("6x", 210_000),
    }


def test_the_trunk_is_what_stays_longest_at_the_constant_rate():
    early, late = Schedule("early", 100, (90,)), Schedule("late", 80, (10,))
    assert branches_of([early, late]) == {"early": Branch("late", 10)}


def test_a_schedule_without_a_constant_part_begins_alone():
    assert branches_of([Schedule("a", 100, (10,)), Schedule("b", 20, (20, 5))]) == {}


def test_a_run_that_has_begun_is_the_trunk_of_later_ones():
    schedules = [paper_schedule(multiple) for multiple in (2, 3, 6)]
    assert branches_of(schedules, begun=["2x", "3x"]) == {
        "2x": Branch("3x", 120_000),
        "6x": Branch("3x", 210_000),
    }


def test_a_switch_ends_what_is_shared():
    # The 6x run switches after 270k iterations, the 9x run after 540k.
    schedules = [paper_schedule(multiple) for multiple in (6, 9)]
    switch = Switch(Path("cascade.yaml"), 270_000)
    assert branches_of(schedules, switch) == {"6x": Branch("9x", 270_000)}
