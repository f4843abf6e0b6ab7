from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_info import Branch
from scratch_vs_pretrain.study.sections import (
    Schedule,
    Switch,
    branches_of,
    own_start,
    paper_schedule,
    short_schedule,
)


@pytest.fixture
def cfg():
    return default_config()


class TestSchedule:
    # Section 3 of the paper: 90k iterations per 1x, a tenth of the rate for the last 60k, a
    # hundredth for the last 20k.
    @pytest.mark.parametrize(
        ("multiple", "iterations", "steps"),
        [
            (2, 180_000, (120_000, 160_000)),
            (3, 270_000, (210_000, 250_000)),
            (4, 360_000, (300_000, 340_000)),
            (5, 450_000, (390_000, 430_000)),
            (6, 540_000, (480_000, 520_000)),
            (9, 810_000, (750_000, 790_000)),
            (11, 990_000, (930_000, 970_000)),
        ],
    )
    def test_is_the_papers(self, cfg, multiple, iterations, steps):
        cfg.SOLVER.BASE_LR = 0.02
        schedule = paper_schedule(multiple)
        schedule.apply(cfg)
        solver = dict(cfg.SOLVER)
        assert solver["MAX_ITER"] == iterations
        assert solver["STEPS"] == steps
        assert (solver["BASE_LR"], solver["WARMUP_ITERS"]) == (0.02, 1000)
        assert schedule.drops_before_end[0] == 60_000

    def test_is_the_zoos_at_four_times_the_batch(self, cfg):
        # Detectron2's configs/Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml
        cfg.SOLVER.BASE_LR = 0.02
        paper_schedule(9).resolve(64, 16).apply(cfg)
        assert cfg.SOLVER.MAX_ITER == 202_500
        assert cfg.SOLVER.STEPS == (187_500, 197_500)
        assert cfg.SOLVER.BASE_LR == 0.08
        assert cfg.SOLVER.WARMUP_ITERS == 250

    @given(multiple=st.integers(1, 20), log_batch=st.integers(0, 8))
    def test_sees_as_many_images_at_any_batch(self, multiple, log_batch):
        batch = 2**log_batch
        schedule = paper_schedule(multiple).resolve(batch, 16)
        assert schedule.iterations * batch == pytest.approx(90_000 * multiple * 16, abs=batch)
        assert list(schedule.steps) == sorted(schedule.steps)
        assert schedule.iterations - max(schedule.drops_before_end) <= schedule.steps[0]

    def test_short_has_the_proportions_of_2x(self):
        assert short_schedule(180_000).steps == paper_schedule(2).steps
        assert short_schedule(18_000).steps == (12_000, 16_000)
        assert short_schedule(600, "quick") == Schedule("quick", 600, (200, 67))

    @given(st.integers(1, 10**9))
    def test_short_drops_in_order_within_any_length(self, iterations):
        steps = short_schedule(iterations).steps
        assert list(steps) == sorted(set(steps))
        assert all(0 < step < iterations for step in steps)


class TestResolve:
    def test_a_multiple_follows_the_batch_size(self):
        assert paper_schedule(2).resolve(16, 16) == Schedule("2x", 180_000, (60_000, 20_000))
        assert paper_schedule(2).resolve(64, 16) == Schedule("2x", 45_000, (15_000, 5_000), 4.0)

    def test_a_literal_length_does_not(self):
        assert short_schedule(600, "short").resolve(2, 16) == Schedule("short", 600, (200, 67))
        assert Schedule("own", 600, (100,)).resolve(2, 16).steps == (500,)

    @pytest.mark.parametrize("batch", [0, -1])
    def test_refuses_an_empty_batch(self, batch):
        with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH \(.*at least 1"):
            paper_schedule(2).resolve(batch, 16)

    def test_refuses_a_batch_that_leaves_no_iterations(self):
        with pytest.raises(UserError, match=r"schedule 2x: .* choose a longer schedule"):
            paper_schedule(2).resolve(10**6, 16)


def trained(schedules):
    """Returns the iterations in all, what is shared counted once."""
    return sum(s.iterations for s in schedules) - sum(
        branch.at for branch in branches_of(schedules).values()
    )


def test_the_papers_five_schedules_share_most():
    # 1.8M iterations for 2x to 6x trained alone; the last 60k of each are its own.
    schedules = [paper_schedule(multiple) for multiple in (2, 3, 4, 5, 6)]
    assert sum(schedule.iterations for schedule in schedules) == 1_800_000
    assert trained(schedules) == 780_000
    starts = [own_start(schedule) for schedule in schedules]
    assert starts == [120_000, 210_000, 300_000, 390_000, 480_000]


def test_one_schedule_shares_nothing():
    assert trained([paper_schedule(2)]) == 180_000


def test_schedules_at_different_rates_have_their_own_trunks():
    slow, fast = paper_schedule(2), paper_schedule(2).resolve(32, 16)
    assert branches_of([fast, slow]) == {}


def test_no_schedules_share_no_trunk():
    assert branches_of([]) == {}


@given(st.sets(st.integers(1, 10**6), min_size=1, max_size=6))
def test_every_schedule_leaves_before_its_rate_drops(lengths):
    schedules = [short_schedule(length) for length in lengths]
    for schedule in schedules:
        assert own_start(schedule) <= min((*schedule.steps, schedule.iterations - 1))
    for branch in branches_of(schedules).values():
        assert 0 < branch.at <= max(map(own_start, schedules))
    assert max(lengths) <= trained(schedules) <= sum(lengths)


def test_a_constant_rate_schedule_keeps_its_last_iteration():
    # After which it is evaluated.
    schedules = [Schedule("a", 100, ()), Schedule("b", 60, ())]
    assert branches_of(schedules) == {"b": Branch(of="a", at=59)}
    assert trained(schedules) == 101


def test_branches_leave_the_longest():
    assert branches_of(paper_schedule(multiple) for multiple in (3, 2, 6)) == {
        "2x": Branch(of="6x", at=120_000),
        "3x": Branch(of="6x", at=210_000),
    }


def test_the_trunk_is_what_stays_longest_at_the_constant_rate():
    early, late = Schedule("early", 100, (90,)), Schedule("late", 80, (10,))
    assert branches_of([early, late]) == {"early": Branch(of="late", at=10)}


def test_a_schedule_without_a_constant_part_begins_alone():
    assert branches_of([Schedule("a", 100, (10,)), Schedule("b", 1)]) == {}


def test_a_run_that_has_begun_is_the_trunk_of_later_ones():
    schedules = [paper_schedule(multiple) for multiple in (2, 3, 6)]
    assert branches_of(schedules, begun=["2x", "3x"]) == {
        "2x": Branch(of="3x", at=120_000),
        "6x": Branch(of="3x", at=210_000),
    }


def test_what_goes_beyond_a_run_that_has_begun_shares_that_way_too():
    schedules = [paper_schedule(multiple) for multiple in (2, 3, 6)]
    assert branches_of(schedules, begun=["2x"]) == {
        "3x": Branch(of="6x", at=210_000),
        "6x": Branch(of="2x", at=120_000),
    }


def test_a_switch_ends_what_is_shared():
    # The 6x run switches after 270k iterations, the 9x run after 540k.
    schedules = [paper_schedule(multiple) for multiple in (6, 9)]
    switch = Switch(Path("cascade.yaml"), 270_000)
    assert branches_of(schedules, switch) == {"6x": Branch(of="9x", at=270_000)}
