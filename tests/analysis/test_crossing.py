import math

import numpy as np
import pytest

from scratch_vs_pretrain.analysis.stats.contrast import region, smoothed
from scratch_vs_pretrain.analysis.stats.worth import worth_in_images

AT = np.arange(100, 2001, 100)
SPREAD = np.array([[-0.1], [0.0], [0.1]])


def lead(values):
    return np.asarray(values) + SPREAD


def test_smoothing_keeps_a_quadratic_of_log_iterations():
    x = np.log(AT)
    grid, smooth = smoothed(AT, 3 - x + 0.2 * x**2)
    expected = 3 - np.log(grid) + 0.2 * np.log(grid) ** 2
    np.testing.assert_allclose(smooth, expected, atol=1e-8)


def test_smoothing_does_not_cross_a_drop_of_the_rate():
    grid, smooth = smoothed(AT, np.where(AT <= 1500, 10.0, 1.0), drops=(1500,))
    np.testing.assert_allclose(smooth[grid <= 1500], 10, atol=1e-9)
    np.testing.assert_allclose(smooth[grid > 1500], 1, atol=1e-9)


def test_region_holds_a_crossing_by_hand():
    curves = lead(8 * np.exp(-AT / 400))
    found = region(*smoothed(AT, curves), 0.5)
    true = 400 * math.log(16)
    assert found.low < true < found.high < 2000
    assert found.estimate == pytest.approx(true, rel=0.05)


def test_a_lead_that_stays_is_censored():
    found = region(*smoothed(AT, lead(np.full(len(AT), 4.0))), 0.5)
    assert (found.low, found.high, found.estimate) == (math.inf, math.inf, math.inf)


def test_a_lead_that_may_stay_is_open_at_its_end():
    wide = 8 * np.exp(-AT / 400) + 20 * SPREAD
    found = region(*smoothed(AT, wide), 0.5)
    assert math.isfinite(found.low)
    assert math.isinf(found.high)


def test_a_noisy_evaluation_begins_no_region():
    noisy = 8 * np.exp(-AT / 400) + SPREAD * np.where(AT == 100, 100, 1)
    found = region(*smoothed(AT, noisy), 0.5)
    assert 900 < found.low < 400 * math.log(16) < found.high


def test_identical_arms_have_nothing_to_catch_up_with():
    found = region(*smoothed(AT, lead(np.zeros(len(AT)))), 0.5)
    assert (found.low, found.high) == (0, 100)


def test_two_seeds_give_no_region_without_a_stated_noise():
    curves = lead(8 * np.exp(-AT / 400))[:2]
    assert math.isnan(region(*smoothed(AT, curves), 0.5).low)
    assert region(*smoothed(AT, curves), 0.5, sd=0.2).high < 2000


def test_how_often_one_evaluates_does_not_matter():
    """Eight times as many evaluations of the same curves: the region is about the same."""
    rare, often = (np.arange(step, 2001, step) for step in (200, 25))
    found = [region(*smoothed(at, lead(8 * np.exp(-at / 400))), 0.5) for at in (rare, often)]
    assert found[0].low == pytest.approx(found[1].low, rel=0.05)
    assert found[0].high == pytest.approx(found[1].high, rel=0.05)


def test_worth_in_images_by_hand():
    sizes = [100, 200, 400, 800]
    scratch = np.array([10.0, 20.0, 30.0, 40.0]) + SPREAD
    other = np.array([20.0, 25.0, 30.0, 40.0]) + SPREAD
    worth = worth_in_images(sizes, scratch, other)
    assert [one.size for one in worth] == [100, 200, 400]
    assert [one.ratio for one in worth] == pytest.approx([2, math.sqrt(2), 1], rel=0.02)
    assert all(one.low <= one.ratio <= one.high for one in worth)


def test_worth_is_never_extrapolated():
    scratch, other = (np.array(row) + SPREAD for row in ([1.0, 2.0, 3.0], [9.0, 9.0, 9.0]))
    (first, second) = worth_in_images([100, 200, 400], scratch, other)
    assert math.isinf(first.low)
    assert (first.most, second.most) == (4, 2)
