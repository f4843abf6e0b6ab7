import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.stats.cost import (
    Annotated,
    expected_instances,
    expected_pixels,
    resized_area,
)

SIDES = st.integers(1, 3000)


def rule_of(shorter, sampling, longest, crop="relative", size=(0.9, 0.9), enabled=False):
    """Keys of a config's INPUT."""
    return SimpleNamespace(
        MIN_SIZE_TRAIN=shorter,
        MIN_SIZE_TRAIN_SAMPLING=sampling,
        MAX_SIZE_TRAIN=longest,
        CROP=SimpleNamespace(ENABLED=enabled, TYPE=crop, SIZE=size),
    )


def data(sizes, boxes=()):
    """Images of these (height, width) and instances of these (owner, box)."""
    return Annotated(
        heights=np.array([height for height, _ in sizes]),
        widths=np.array([width for _, width in sizes]),
        owners=np.array([owner for owner, _ in boxes], dtype=int),
        boxes=np.array([box for _, box in boxes], dtype=float).reshape(-1, 4),
    )


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.integers(1, 1500), st.integers(1, 2000))
def test_areas_are_detectron2s_to_the_pixel(height, width, shorter, longest):
    expected = T.ResizeShortestEdge.get_output_shape(height, width, shorter, longest)
    (found,) = resized_area(np.array([height]), np.array([width]), shorter, longest)
    assert found == np.prod(expected)


def test_side_0_leaves_images_as_they_are():
    assert expected_pixels(data([(30, 50)]), rule_of((0,), "choice", 1333)) == 1500


def test_a_choice_weighs_its_lengths_by_how_often_they_are_named():
    # 100 x 200 becomes 50 x 100, or 100 x 200 twice as often.
    rule = rule_of((50, 100, 100), "choice", 1000)
    assert expected_pixels(data([(100, 200)]), rule) == pytest.approx((5_000 + 2 * 20_000) / 3)


def test_a_range_includes_both_ends():
    rule = rule_of((640, 800), "range", 10_000)
    sides = np.arange(640, 801)
    assert expected_pixels(data([(10, 10)]), rule) == pytest.approx((sides**2).mean())


def test_the_longer_side_is_bounded():
    rule = rule_of((800,), "choice", 1333)
    # 800 x 2400 is too long: it shrinks to 444 x 1333.
    assert expected_pixels(data([(100, 300)]), rule) == 444 * 1333


def test_the_mean_is_over_images():
    rule = rule_of((100,), "choice", 1000)
    found = expected_pixels(data([(50, 50), (50, 50), (50, 100)]), rule)
    assert found == pytest.approx((10_000 + 10_000 + 20_000) / 3)


def test_instances_without_area_in_the_image_do_not_count():
    boxes = [
        (0, (1, 1, 5, 5)),
        (0, (-3, -3, 2, 2)),
        (0, (4, 4, 4, 9)),
        (1, (20, 0, 25, 5)),
        (1, (0, -9, 5, -1)),
    ]
    rule = rule_of((10,), "choice", 100)
    assert expected_instances(data([(10, 10), (10, 20)], boxes), rule) == 2 / 2


CROPS = [
    ("relative", (0.5, 0.7)),
    ("relative_range", (0.4, 0.6)),
    ("absolute", (13, 60)),
    ("absolute_range", (9, 25)),
]


@pytest.mark.parametrize(("kind", "size"), CROPS)
def test_crops_agree_with_detectron2s_augmentation(kind, size):
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 50, (6, 2)).tolist()
    corners = rng.uniform(0, 30, (40, 2))
    owners = rng.integers(6, size=40)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 15, (40, 2))], 1)
    rule = rule_of((24, 48), "range", 64, kind, size, enabled=True)
    pixels, instances, draws = 0, 0, 500
    augmentation = T.AugmentationList(
        [T.RandomCrop(kind, size), T.ResizeShortestEdge((24, 48), 64, "range"), T.RandomFlip()]
    )
    np.random.seed(0)
    for _, (owner, (height, width)) in itertools.product(range(draws), enumerate(sizes)):
        image = T.AugInput(np.zeros((height, width, 1), np.uint8))
        moved = augmentation(image).apply_box(boxes[owners == owner].clip(0, [width, height] * 2))
        tall, wide = image.image.shape[:2]
        moved = moved.clip(0, [wide, tall, wide, tall])
        pixels += tall * wide
        instances += (moved[:, 2:] - moved[:, :2] > 1e-5).all(1).sum()
    found = data(sizes, list(zip(owners, boxes, strict=True)))
    count = draws * len(sizes)
    # 3,000 draws: the means scatter by about 0.6 % (one standard deviation).
    assert expected_pixels(found, rule) == pytest.approx(pixels / count, rel=0.02)
    assert expected_instances(found, rule) == pytest.approx(instances / count, rel=0.02)
