import itertools
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scratch_vs_pretrain.analysis.stats.contrast import (
    Contrast,
    Curves,
    growth,
    half_as_long,
    judge_contrast,
)
from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    NO,
    UNDECIDED,
    YES,
    Claim,
    adjust,
    alpha_of,
    bounds,
    decide,
    gate,
    holm,
    holm_errors,
    judge,
    possible_nulls,
    spread,
    two_sided,
)

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/verdicts.py"))
STUDIES = 400


def curves(length, finals, early=None, drops=None):
    """Curves of one arm: an early value, and a final one by seed."""
    values = np.array([[final - 10 if early is None else early[at], final]
                       for at, final in enumerate(finals)])  # fmt: skip
    drops = (2 * length // 3,) if drops is None else drops
    seeds = tuple(range(len(finals)))
    return Curves(f"{length}it", length, seeds, np.array([length // 4, length]), values, drops)


def test_bounds_are_students():
    values = [1.0, 2.0, 4.0]
    low, high = bounds(spread(values), 0.025)
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    np.testing.assert_allclose((low, high), expected)


def test_p_values_are_students():
    values = np.array([[1.0, 2.0, 4.0], [0.1, -0.2, 0.3]])
    expected = stats.ttest_1samp(values, 0.5, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(spread(values).p_above(0.5), expected)
    np.testing.assert_allclose(spread(values).p_below(0.5), 1 - expected)


def test_equal_differences_have_an_interval_all_the_same():
    low, high = bounds(spread([2.0, 2.0, 2.0]), 0.025)
    assert low < 2 < high
    # Half a step of rounding, 0.1 AP, on each side: 4.303 * 0.1 / sqrt(6) / sqrt(3) is 0.101.
    assert high - low == pytest.approx(0.203, abs=0.001)


@pytest.mark.parametrize("values", [[], [9.0], [9.0, 9.1]])
def test_fewer_than_three_seeds_decide_nothing(values):
    (verdict,) = judge([Claim("at", spread(values))], 0.5, 0.05)
    assert (verdict.verdict, verdict.low) == (UNDECIDED, None)


def test_a_stated_noise_lets_one_seed_decide_and_gives_way_to_three():
    assert judge([Claim("at", spread([0.4], 0.2))], 0.5, 0.05)[0].verdict == YES
    assert judge([Claim("at", spread([0.1], 0.2))], 0.5, 0.05)[0].verdict == NO
    assert spread([1.0, 2.0, 3.0], 0.01).df == 2


def test_a_wide_interval_is_not_equality():
    (verdict,) = judge([Claim("at", spread([-3.0, 0.0, 3.0]))], 0.5, 0.05)
    assert (verdict.verdict, verdict.reason) == (UNDECIDED, "noise")


def test_a_lead_above_zero_and_inside_the_margin_is_no_help_worth_its_name():
    (verdict,) = judge([Claim("at", spread([0.2, 0.21, 0.22]))], 0.5, 0.05)
    assert verdict.verdict == NO
    assert verdict.low > 0


def test_nulls_that_cannot_be_true_at_once():
    sets = {tuple(row) for row in possible_nulls(2, False)}
    # at most 0 early, at most 0 late, margin early, margin late
    assert (True, True, False, False) in sets
    assert (False, True, True, False) in sets
    assert (True, False, False, True) in sets  # fell behind after it was level
    assert (True, False, True, False) not in sets  # both at once
    assert (True, True, True, True) not in sets
    assert (False, True, False, True) in {tuple(row) for row in possible_nulls(2, True)}


def test_closed_test_agrees_with_a_search_through_all_sets():
    rng = np.random.default_rng(0)
    for p in rng.random((50, 6)) ** 4:
        sets = possible_nulls(3)
        by_hand = [
            max(min(1.0, row.sum() * p[row].min()) for row in sets if row[null])
            for null in range(6)
        ]
        np.testing.assert_allclose(adjust(p, sets), by_hand)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([[0.5, 0.9]]), [[1.0, 1.0]])


def test_intervals_at_holms_errors_agree_with_holm():
    rng = np.random.default_rng(3)
    for _ in range(300):
        leads = [spread(rng.choice([0.0, 1.0]) + rng.standard_normal(4) / 2) for _ in range(6)]
        p = [min(two_sided(lead, 0.0)) for lead in leads]
        errors = holm_errors(p, 0.05)
        limits = [bounds(lead, error / 2) for lead, error in zip(leads, errors, strict=True)]
        outside = [bool(low > 0 or high < 0) for low, high in limits]
        assert outside == (holm(p) <= 0.05).tolist() == (p <= errors).tolist()
    assert holm_errors([0.2, 0.01, 0.03], 0.06) == pytest.approx([0.06, 0.02, 0.03])
    assert holm_errors([0.2, 0.01, 0.04], 0.06) == pytest.approx([0.03, 0.02, 0.03])


@pytest.mark.parametrize(("look", "looks"), [(0, 1), (3, 2)])
def test_looks_are_counted(look, looks):
    with pytest.raises(ValueError, match="look"):
        alpha_of(0.95, look, looks)


def test_looks_share_the_error():
    assert sum(alpha_of(0.95, k, 8) for k in range(1, 9)) <= 0.05


NOISE = np.array([-0.03, 0.0, 0.03])


def test_the_end_needs_training_that_was_long_enough():
    """Scratch gains 3 AP from 600 to 1,200: it is behind, but not at an end."""
    scratch = (curves(600, 25 + NOISE), curves(1200, 28 + NOISE[::-1]))
    other = (curves(600, 30 + NOISE), curves(1200, 30.2 + NOISE))
    contrast = Contrast(scratch, other)
    judged = judge_contrast(contrast)
    assert (judged.verdicts[1].verdict, judged.end.verdict, judged.end.reason) == (
        YES,
        UNDECIDED,
        "short",
    )
    assert growth(contrast)[0].mean() == pytest.approx(3)


def test_converged_and_behind_is_behind():
    scratch = (curves(600, 27.9 + NOISE), curves(1200, 28 + NOISE))
    other = (curves(600, 30 + NOISE), curves(1200, 30.1 + NOISE))
    assert judge_contrast(Contrast(scratch, other)).end.verdict == YES


def test_no_shorter_schedule_no_end():
    one = Contrast((curves(600, 28 + NOISE),), (curves(600, 30 + NOISE),))
    assert judge_contrast(one).end.reason == "short"
    stated = Contrast(one.scratch, one.other, converged=True)
    assert judge_contrast(stated).end.verdict == YES
    assert judge_contrast(stated).end.assuming


def test_a_schedule_nearly_as_long_shows_no_end():
    arms = [[curves(n, end + NOISE) for n in (1000, 1200)] for end in (28, 30)]
    contrast = Contrast(*map(tuple, arms))
    assert half_as_long(contrast.scratch) is None
    assert judge_contrast(contrast).end.reason == "short"
    halved = Contrast(*((curves(600, arm[0].values[:, 1]), *arm) for arm in arms))
    assert half_as_long(halved.scratch).length == 600
    assert judge_contrast(halved).end.verdict == YES


def test_both_gain_alike_so_nothing_is_said_of_the_end():
    arms = (curves(600, 20 + NOISE), curves(1200, 30 + NOISE))
    assert judge_contrast(Contrast(arms, arms)).end.verdict == UNDECIDED


def test_scratch_that_still_closes_in_ends_no_worse():
    """The other arm falls back, so more training would not bring it ahead."""
    scratch = (curves(600, 25 + NOISE), curves(1200, 31 + NOISE))
    other = (curves(600, 30 + NOISE), curves(1200, 31 + NOISE[::-1]))
    assert judge_contrast(Contrast(scratch, other)).end.verdict == NO


def test_lengths_that_differ_share_no_schedule():
    """Identical learners, planned for other lengths: a phase of the rate is no slowness."""
    judged = judge_contrast(Contrast((curves(900, 31 + NOISE),), (curves(600, 31 + NOISE),)))
    at = judged.verdicts[1]
    assert (at.verdict, at.reason, judged.shortest) == (UNDECIDED, "unasked", "")


def test_early_stops_before_the_first_drop_and_weighs_iterations():
    at = np.array([100, 110, 300, 600])
    lead = np.array([0.0, 0.0, 10.0, 50.0])
    ours = Curves("s", 600, (0,), at, np.zeros((1, 4)), (350,))
    theirs = Curves("s", 600, (0,), at, lead[None], (350,))
    judged = judge_contrast(Contrast((ours,), (theirs,)))
    assert judged.until == 300
    assert judged.verdicts[0].mean == pytest.approx(190 * 5 / 200)
    sooner = [(replace(one, drops=(120,)),) for one in (ours, theirs)]
    judged = judge_contrast(Contrast(*sooner))
    assert (judged.until, judged.verdicts[0].mean) == (120, 0)


def test_gate_by_hand():
    closed = gate(spread([3.0, 3.1, 3.2]), spread([0.0, 0.01, 0.02]), None, 0.5)
    assert closed.yes > 0.9
    assert closed.no < 0.01


def test_two_ways_through_a_gate_share_the_error():
    gains, change = spread([0.1, 0.2, 0.0]), spread([0.3, 0.9, 0.6])
    alone, both = (gate(None, gains, one, 0.5) for one in (None, change))
    assert alone.no == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.0], 0.5).pvalue / 2)
    assert both.no == pytest.approx(2 * alone.no)


@pytest.mark.parametrize("later", [(0.5, 0.5), (0.5, 0.25), (0.5, 0.0), (0.0, 0.5)])
def test_a_lead_that_comes_or_goes_is_judged_as_well_in_simulation(later):
    """None early, where neither arm has learned; on the bound of each claim, in 5,000 studies."""
    rng, margin = np.random.default_rng(7), 0.5
    arms = rng.standard_normal((2, 5000, 10, 3)) * 0.1
    arms[1] += [0.0, *later]
    lead = arms[1] - arms[0]
    gains = [spread(arm[..., 2] - arm[..., 1]) for arm in arms]
    door = gate(*gains, spread(lead[..., 2] - lead[..., 1]), margin)
    early, at, end = (spread(lead[..., k]) for k in range(3))
    claims = [Claim("early", early), Claim("at", at), Claim("end", end, door)]
    yes, no, _ = decide(claims, margin, ALPHA)
    true = np.array([0.0, *later])
    wrong = (yes & (true <= 0)) | (no & (true >= margin))
    assert wrong.any(axis=-1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 5000)


@pytest.mark.parametrize("seeds", [1, 3, 10])
@pytest.mark.parametrize("studies", [1, 5])
def test_wrong_verdicts_are_rare_in_simulation(seeds, studies):
    """At most 5 %, within three standard errors of so few simulated studies."""
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / STUDIES)
    cell, simulate = BENCHMARK["Cell"], BENCHMARK["simulate"]
    designs = itertools.product(BENCHMARK["GAPS"], (0.2, 3.0), ("normal", "skewed"), (0.0, 0.5))
    for number, (gap, noise, shape, gain) in enumerate(designs):
        rng = np.random.default_rng([seeds, studies, number])
        rates = simulate(cell(seeds, studies, gap, noise, shape, gain), STUDIES, rng)
        assert max(rates.values()) <= (limit if seeds > 1 else 0), (gap, noise, shape, gain, rates)


def test_large_leads_are_found_in_simulation():
    rng = np.random.default_rng(0)
    lead = 1.5 + 0.2 * math.sqrt(2) * rng.standard_normal((1000, 3, 5))
    found = [judge([Claim(str(k), spread(one[k])) for k in range(3)], 0.5, 0.05) for one in lead]
    assert np.mean([all(v.verdict == YES for v in verdicts) for verdicts in found]) > 0.95


@pytest.mark.parametrize(("every", "noise"), [(5_000, 1.5), (20_000, 0.2), (60_000, 0.2)])
@pytest.mark.parametrize("seeds", [3, 10])
def test_catch_up_regions_hold_the_true_crossing(seeds, every, noise):
    rng = np.random.default_rng([seeds, every])
    held, _ = BENCHMARK["coverage"]("slow", every, noise, seeds, STUDIES, rng)
    assert 0.92 <= held <= 0.995
