import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.config import Schedule, paper_schedule, short_schedule
from scratch_vs_pretrain.study.trunk import share_trunk


def test_the_papers_five_schedules_share_most():
    # 1.8M iterations for 2x to 6x trained alone; the last 80k of each are its own.
    (trunk,) = share_trunk(paper_schedule(multiple) for multiple in (2, 3, 4, 5, 6))
    assert trunk.iterations_alone == 1_800_000
    assert trunk.iterations == 860_000
    assert trunk.iterations / trunk.iterations_alone == pytest.approx(0.478, abs=5e-4)
    assert trunk.length == 460_000
    starts = [trunk.start_of(schedule) for schedule in trunk.schedules]
    assert starts == [100_000, 190_000, 280_000, 370_000, 460_000]


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
        assert 0 <= trunk.start_of(schedule) <= min((*schedule.steps, schedule.iterations))
        assert trunk.start_of(schedule) <= trunk.length
    assert max(lengths) <= trunk.iterations <= trunk.iterations_alone == sum(lengths)


def test_a_constant_rate_schedule_is_all_trunk():
    (trunk,) = share_trunk([Schedule("a", 100, ()), Schedule("b", 60, ())])
    assert trunk.iterations == 100
