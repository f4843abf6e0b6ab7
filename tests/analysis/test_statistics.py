import math

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.stats.verdicts import (
    half_width,
    paired_power,
    seeds_needed,
    t_interval,
)
from scratch_vs_pretrain.analysis.tables.studies import bca_interval, sign_flip_p
from scratch_vs_pretrain.errors import UserError


def test_intervals_of_three_seeds_by_hand():
    # sd 1, standard error 1/sqrt(3), t quantile of 2 degrees of freedom 4.3027.
    reach = 4.302652729911275 / math.sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2 - reach, 2 + reach), rel=1e-9)
    low, high = bca_interval([1, 2, 3])
    assert 1 <= low < 2 < high <= 3


def test_one_or_two_seeds_have_no_interval():
    for n in (1, 2):
        assert np.isnan(t_interval([1.5] * n)).all()


def test_half_width():
    assert half_width([1.0, 2.0]) is None
    assert half_width([1, 2, 3]) == pytest.approx(4.302652729911275 / math.sqrt(3))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_interval_covers_in_95_of_100_simulated_studies(n):
    """2,000 studies: the share itself has a standard error of 0.5 points."""
    rng = np.random.default_rng(n)
    scratch, pretrained = 30 + rng.standard_normal((2, 2000, n)) * 0.3
    shared = rng.standard_normal((2000, n))
    low, high = t_interval((scratch + shared) - (pretrained + shared))
    assert 0.92 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_bca_interval_narrows_to_the_t_interval_with_many_values():
    values = np.random.default_rng(0).standard_normal(400)
    np.testing.assert_allclose(bca_interval(values), t_interval(values), atol=0.01)


def test_bca_interval_is_repeatable():
    values = np.random.default_rng(0).standard_normal(5)
    assert bca_interval(values, seed=3) == bca_interval(values, seed=3)
    assert bca_interval(values, seed=3) != bca_interval(values, seed=4)


@pytest.mark.parametrize("interval", [bca_interval, t_interval])
def test_equal_values_are_no_certainty(interval):
    low, high = interval([2.0, 2.0, 2.0])
    assert low < 2 < high


def test_sign_flips_counted_by_hand():
    # |mean| at least 4/6: all equal signs, or one differing: 2 * (1 + 6) of 64.
    assert sign_flip_p([1, 1, 1, 1, 1, -1]) == 14 / 64
    # Sums of +-1 +-2 +-4: only +7 and -7 reach 7.
    assert sign_flip_p([1, 2, 4]) == 2 / 8
    assert sign_flip_p([1, -1]) == 1
    assert sign_flip_p(range(1, 7)) == 2 / 64


def test_sign_flips_of_many_seeds_are_sampled():
    differences = np.random.default_rng(0).standard_normal(30) + 0.5
    p = sign_flip_p(differences)
    assert 0 < p < 0.05
    assert p == sign_flip_p(differences)


@pytest.mark.parametrize(("gap", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (-0.2, 199)])
def test_seeds_needed_agree_with_a_reference(gap, seeds):
    """R's power.t.test(delta = gap, sd = 1, power = 0.8, type = "paired"), rounded up."""
    assert seeds_needed(gap, 1.0) == seeds
    assert paired_power(seeds, gap, 1.0) >= 0.8 > paired_power(seeds - 1, gap, 1.0)


def test_power_agrees_with_simulation():
    rng = np.random.default_rng(0)
    low, high = t_interval(0.5 + 0.4 * rng.standard_normal((20_000, 6)))
    found = np.mean((low > 0) | (high < 0))
    assert paired_power(6, 0.5, 0.4) == pytest.approx(found, abs=0.015)


@pytest.mark.parametrize("gap", [5, 20, 50, 1e6])
def test_power_of_large_gaps_is_a_number(gap):
    assert [paired_power(n, gap, 1.0) for n in (5, 10)] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("gap", "noise", "options"),
    [
        (0, 1, {}),
        (0.5, 0, {}),
        (0.5, -1, {}),
        (math.nan, 1, {}),
        (0.5, 1, {"power": 1}),
        (0.5, 1, {"level": 0}),
        (1e-9, 1, {}),
    ],
)
def test_seeds_needed_refuses_what_has_no_answer(gap, noise, options):
    with pytest.raises(UserError):
        seeds_needed(gap, noise, **options)
