"""Panoptic quality by hand, as the paper's Section 4.1 defines it."""

import numpy as np
import pytest
import torch

from scratch_vs_pretrain.evaluation.others import (
    STUFF,
    match,
    panoptic_quality,
    semantic_truth,
)

TRUE = {1: 0, 2: STUFF}


def picture(*rows):
    return np.array([[int(value) for value in row] for row in rows])


TRUTH = picture("1111", "1111", "2222", "2222")


def test_the_truth_itself_is_perfect():
    counts = match(TRUTH, TRUE, TRUTH, TRUE)
    assert panoptic_quality(counts, 0) == panoptic_quality(counts, STUFF) == (100, 100, 100)


def test_a_match_a_miss_and_a_false_one():
    """Six of the object's eight pixels; two objects in the background that are none."""
    found = picture("1111", "1122", "2222", "3344")
    counts = match(found, {1: 0, 2: STUFF, 3: 0, 4: 0}, TRUTH, TRUE)
    quality = panoptic_quality(counts, 0)
    # IoU 6/8; one matched of three found and one true.
    assert quality == pytest.approx((100 * 0.75 / 2, 75, 50))
    # IoU 4/(6 + 8 - 4) is no match.
    assert panoptic_quality(counts, STUFF) == (0, 0, 0)


def test_another_class_is_no_match():
    counts = match(TRUTH, {1: 5, 2: STUFF}, TRUTH, TRUE)
    assert panoptic_quality(counts, 0) == panoptic_quality(counts, 5) == (0, 0, 0)


def test_what_lies_in_the_void_is_no_error():
    truth = picture("0000", "0000", "2222", "2222")
    counts = match(TRUTH, TRUE, truth, {2: STUFF})
    assert panoptic_quality(counts, STUFF) == (100, 100, 100)
    assert np.isnan(panoptic_quality(counts, 0)).all()


def test_semantic_truth():
    masks = torch.zeros(2, 2, 3, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 1, 2] = True
    assert semantic_truth(masks, 2, 3).tolist() == [[0, 1, 1], [1, 1, 0]]
    assert semantic_truth(masks[:0], 1, 2).tolist() == [[1, 1]]
