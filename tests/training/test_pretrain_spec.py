import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pretraining.pretrain_spec import PretrainSpec


def test_cosine_rises_to_the_rate_and_falls_to_zero():
    spec = PretrainSpec(learning_rate=0.4, warmup=0.1)
    rates = [spec.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert rates[99] == pytest.approx(0.4 * (1 + math.cos(math.pi * 89 / 90)) / 2)


def test_steps_divide_by_ten_at_thirty_sixty_and_ninety_percent():
    spec = PretrainSpec(learning_rate=0.1, schedule="step", warmup=0)
    rates = [spec.rate(step, 90) for step in (0, 26, 27, 53, 54, 80, 81, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "step"]),
)
def test_rates_are_positive_and_never_above_the_largest(steps, warmup, schedule):
    spec = PretrainSpec(warmup=warmup, schedule=schedule)
    assert all(0 < spec.rate(step, steps) <= spec.largest_rate for step in range(steps))


@pytest.mark.parametrize(
    "field",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"learning_rate": math.nan},
        {"schedule": "poly"},
        {"min_area": 1.5},
        {"warmup": -0.1},
        {"validation_fraction": 2.0},
        {"workers": -1},
    ],
)
def test_values_that_make_no_training_are_refused_by_name(field):
    with pytest.raises(UserError, match=next(iter(field))):
        PretrainSpec(**field).check()


def test_the_defaults_are_a_training():
    PretrainSpec().check()


def test_the_rate_follows_the_batch_size_unless_it_is_given():
    assert PretrainSpec().largest_rate == 0.1
    assert PretrainSpec(batch_size=32).largest_rate == 0.0125
    assert PretrainSpec(batch_size=32, learning_rate=0.3).largest_rate == 0.3
