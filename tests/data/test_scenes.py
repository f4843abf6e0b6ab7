"""What the pictures of the synthetic data sets show."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.data.shapes import (
    BORDER,
    CLASSES,
    LEAST_VISIBLE,
    STREAMS,
    ClassificationSpec,
    ShapesSpec,
    draw_scene,
    silhouette,
)
from scratch_vs_pretrain.errors import UserError

CROWDED = ShapesSpec(image_size=64, objects=(6, 9), object_size=(12, 40))


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_scene_is_a_function_of_seed_stream_and_index():
    spec = ShapesSpec()
    scenes = [draw_scene(spec, stream, index) for stream in STREAMS for index in range(3)]
    for number, first in enumerate(scenes):
        for second in scenes[number + 1 :]:
            assert not np.array_equal(first[0], second[0])
    assert equal(draw_scene(spec, STREAMS[1], 2), scenes[5])
    assert equal(draw_scene(ShapesSpec(train=1, test=9), STREAMS[1], 2), scenes[5])
    assert not np.array_equal(draw_scene(ShapesSpec(seed=1), STREAMS[1], 2)[0], scenes[5][0])


def test_masks_are_disjoint_visible_parts_inside_the_image():
    for index in range(40):
        image, labels, masks, _ = draw_scene(CROWDED, "train", index)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert masks.shape == (len(labels), 64, 64)
        assert 1 <= len(labels) <= 9
        assert masks.sum(axis=0).max() <= 1
        assert masks.any(axis=(1, 2)).all()


def test_every_labelled_object_shows_a_quarter_of_itself():
    """The whole area is bounded from below by that of the smallest diameter and stretch."""
    smallest = ShapesSpec(image_size=64, objects=(6, 9), object_size=(12, 12))
    floors = [
        min(
            silhouette(name, np.array([32.0, 32.0]), 12, 0.8, angle, 64)[1]
            for angle in np.linspace(0, 2 * math.pi, 90)
        )
        for name in CLASSES
    ]
    ratios = [
        mask.sum() / floors[label]
        for index in range(60)
        for label, mask in zip(*draw_scene(smallest, "train", index)[1:3], strict=True)
    ]
    # Subpixel positions change a 12-pixel object's area by a few pixels; hence 0.9.
    assert min(ratios) > 0.9 * LEAST_VISIBLE
    assert min(ratios) < 0.6, "nothing is occluded in these crowded images"


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(CLASSES),
    diameter=st.floats(6, 60),
    stretch=st.floats(0.8, 1),
    angle=st.floats(0, 2 * math.pi),
    corner=st.tuples(st.booleans(), st.booleans()),
)
def test_the_foremost_object_is_always_visible_enough(name, diameter, stretch, angle, corner):
    keep = BORDER * diameter
    centre = np.array([64 - keep if far else keep for far in corner])
    mask, area = silhouette(name, centre, diameter, stretch, angle, 64)
    assert mask.sum() >= LEAST_VISIBLE * area


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(CLASSES), angle=st.floats(0, 2 * math.pi))
def test_an_outline_lies_in_its_circle(name, angle):
    mask, area = silhouette(name, np.array([32.0, 32.0]), 40, 1.0, angle, 64)
    rows, columns = np.nonzero(mask)
    # A pixel whose corner is touched counts: sqrt(2) beyond the radius of 20.
    assert np.hypot(rows - 32, columns - 32).max() <= 20 + math.sqrt(2)
    assert mask.sum() == area


def test_areas_of_outlines():
    """Against geometry, for a unit circle of 100 pixels; the perimeter adds at most 3 %."""
    area = {
        name: silhouette(name, np.array([110.0, 110.0]), 200, 1.0, 0.3, 220)[1] / 100**2
        for name in CLASSES
    }
    assert area["disc"] == pytest.approx(math.pi, rel=0.03)
    assert area["square"] == pytest.approx(2, rel=0.03)
    assert area["triangle"] == pytest.approx(3 * math.sqrt(3) / 4, rel=0.03)
    assert area["bar"] == pytest.approx(4 * 0.95 * 0.31, rel=0.03)
    assert area["ring"] == pytest.approx(math.pi * (1 - 0.55**2), rel=0.03)
    assert area["cross"] == pytest.approx(4 * 0.6 * 0.65 + 0.6**2, rel=0.03)
    assert area["star"] == pytest.approx(10 * 0.42 * math.sin(math.pi / 5) / 2, rel=0.03)


def test_colour_does_not_tell_the_class():
    """Nearest class mean of objects' mean colours does as well as guessing, on other images."""
    colours, labels = [], []
    for index in range(400):
        image, found, masks, _ = draw_scene(
            ShapesSpec(image_size=64, object_size=(12, 40)), "train", index
        )
        colours += [image[mask].mean(axis=0) for mask in masks]
        labels += found
    colour, label = np.array(colours), np.array(labels)
    half = len(label) // 2
    means = np.stack([colour[:half][label[:half] == k].mean(axis=0) for k in range(len(CLASSES))])
    guesses = np.linalg.norm(colour[half:, None] - means, axis=2).argmin(axis=1)
    chance = 1 / len(CLASSES)
    # Four standard deviations of the hit rate of guessing.
    tolerance = 4 * math.sqrt(chance * (1 - chance) / (len(label) - half))
    assert (guesses == label[half:]).mean() == pytest.approx(chance, abs=tolerance)


def test_classes_are_balanced():
    """No class is drawn more often; hiding costs the small outlines a few per cent at most."""
    counts = np.zeros(len(CLASSES))
    for index in range(600):
        np.add.at(
            counts,
            draw_scene(ShapesSpec(image_size=64, object_size=(12, 40)), "train", index)[1],
            1,
        )
    expected = counts.sum() / len(CLASSES)
    # Four standard deviations of a binomial count, and 5 % for hiding.
    assert np.abs(counts - expected).max() < 4 * math.sqrt(expected) + 0.05 * expected


def test_sizes_and_counts_keep_to_the_spec():
    spec = ShapesSpec(objects=(3, 3), object_size=(20, 24), image_size=128)
    for index in range(20):
        _, labels, masks, _ = draw_scene(spec, "train", index)
        assert len(labels) <= 3
        sides = [np.ptp(np.nonzero(mask), axis=1).max() + 1 for mask in masks]
        assert max(sides) <= 24 + 2
    _, labels, masks, _ = draw_scene(ShapesSpec(objects=(1, 1), object_size=(60, 60)), "test", 0)
    assert len(labels) == 1
    assert masks[0].sum() > 300


def test_foremost_sets_the_class():
    for label in range(len(CLASSES)):
        _, labels, *_ = draw_scene(ClassificationSpec(objects=(2, 4)), STREAMS[2], 5, label)
        assert labels[0] == label


def test_knobs_have_their_effect():
    still = ShapesSpec(objects=(1, 1), texture=0, background=0, clutter=0, noise=0, blur=0)
    image, _, masks, _ = draw_scene(still, "train", 0)
    assert len(np.unique(image[masks[0]], axis=0)) == 1
    assert len(np.unique(image[~masks[0]], axis=0)) == 1
    noisy = draw_scene(
        ShapesSpec(objects=(1, 1), texture=0, background=0, clutter=0, noise=5, blur=0), "train", 0
    )
    residual = noisy[0].astype(float) - image
    inside = (image > 20) & (image < 235)
    # 128 x 128 pixels: the estimate's standard deviation is below 1 %; rounding adds 1/12.
    assert residual[inside].std() == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"train": -1}, "train"),
        ({"noise": -1.0}, "noise"),
        ({"texture": 1.5}, "texture"),
        ({"objects": (0, 3)}, "objects"),
        ({"objects": (4, 3)}, "objects"),
        ({"object_size": (4, 30)}, "object_size"),
        ({"object_size": (20, 200)}, "object_size"),
    ],
)
def test_a_spec_out_of_range_is_refused(knobs, named):
    with pytest.raises(UserError, match=f"shapes: {named} is"):
        ShapesSpec(**knobs)
