import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from scratch_vs_pretrain.data import masks
from scratch_vs_pretrain.data.masks import Unfit, surely_filled, trainable_mask

SIZE = (64, 48)
CORNER = st.floats(-3, 70, width=32)


def star(centre, radii):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.array(centre) + np.array(radii)[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    return points.ravel().tolist()


STARS = st.builds(
    star,
    st.tuples(st.floats(0, 64), st.floats(0, 48)),
    st.lists(st.floats(0.01, 40), min_size=3, max_size=12),
)


@settings(max_examples=500, deadline=None)
@given(polygon=STARS | st.lists(CORNER, min_size=6, max_size=12).filter(lambda p: not len(p) % 2))
def test_what_is_surely_filled_covers_pixels(polygon):
    if surely_filled([[polygon]], [SIZE])[0]:
        (code,) = mask_api.frPyObjects([polygon], SIZE[1], SIZE[0])
        assert mask_api.area(code) > 0
        assert trainable_mask([polygon], *SIZE) == ([polygon], False)


def test_large_polygons_need_no_rasterizing():
    square = [4, 4, 40, 4, 40, 40, 4, 40]
    tiny = [4, 4, 6, 4, 6, 6, 4, 6]
    outside = [value + 60 for value in square]
    given_masks = [[square], [tiny], [outside], [square, tiny], None, {"size": []}, [["a"] * 6]]
    found = surely_filled(given_masks, [SIZE] * len(given_masks))
    # One that holds text has no numbers to compute with, and all are looked at.
    assert not found.any()
    found = surely_filled(given_masks[:-1], [SIZE] * 6)
    assert found.tolist() == [True, False, False, False, False, False]


def test_parts_are_as_the_whole(monkeypatch):
    many = [[star((30, 24), [size] * 8)] for size in range(1, 20)]
    whole = surely_filled(many, [SIZE] * 19)
    monkeypatch.setattr(masks, "_CHUNK", 4)
    assert surely_filled(many, [SIZE] * 19).tolist() == whole.tolist()
    assert 0 < whole.sum() < 19


def test_run_lengths_are_compressed_as_detectron2_does():
    runs = {"size": [48, 64], "counts": [1000, 72, 2000]}
    found, shortened = trainable_mask(runs, *SIZE)
    assert found == mask_api.frPyObjects(runs, 48, 64)
    assert not shortened
    assert trainable_mask({**found, "counts": found["counts"].decode()}, *SIZE)[0]["size"] == [
        48,
        64,
    ]


@pytest.mark.parametrize("counts", ["", "0", "abc", "\x7f" * 20, "1" * 50])
def test_broken_run_lengths_are_unfit(counts):
    with pytest.raises(Unfit):
        trainable_mask({"size": [48, 64], "counts": counts}, *SIZE)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=40
        )
    )
)
def test_compressed_run_lengths_of_any_mask(rows):
    mask = np.asfortranarray(np.array(rows, dtype=np.uint8))
    code = mask_api.encode(mask)
    height, width = mask.shape
    if not mask.any():
        with pytest.raises(Unfit, match="empty mask"):
            trainable_mask(code, width, height)
        return
    assert trainable_mask(code, width, height) == (code, False)
    with pytest.raises(Unfit, match="invalid mask"):
        trainable_mask({**code, "counts": code["counts"] + b"1"}, width, height)


SQUARE = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]


@pytest.mark.parametrize("side", [5, 6, 10])
@pytest.mark.parametrize("shift", [0, 0.25, 0.5])
def test_most_need_no_rasterizing(side, shift):
    corners = np.array([0, 0, side, 0, side, side, 0, side]) + 3 + shift
    assert surely_filled([[corners.tolist()]], [SIZE]).tolist() == [True]


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        {"size": [30, 40], "counts": [1200]},
        [SQUARE, SQUARE],
        [SQUARE[:4]],
        [SQUARE[:7]],
        [[5.0, 5.0, 15.0, 5.0, 15.0, None]],
        [[5.0, 5.0, 15.0, 5.0, 15.0, "15"]],
        [[5.0, 5.0, 15.0, 5.0, 15.0, float("nan")]],
        [[5, 5, 15, 5, 15, 10**400]],
        [[-5.0, 5.0, 15.0, 5.0, 15.0, 15.0]],
        [[5.0, 5.0, 65.0, 5.0, 65.0, 15.0]],
        [[5.0, 5.0, 5.5, 5.0, 5.5, 20.0, 5.0, 20.0]],
        [5, 5],
        "mask",
    ],
)
def test_whatever_is_not_clear_has_to_be_looked_at(mask):
    assert not surely_filled([mask], [SIZE]).any()
    # One odd mask does not make others be taken for filled.
    assert not surely_filled([[SQUARE[:4]], mask, [[0.0] * 6]], [SIZE] * 3).any()


@pytest.mark.parametrize("corner", [None, "15", float("inf")])
def test_a_corner_that_is_no_number_is_invalid(corner):
    with pytest.raises(Unfit, match="invalid mask"):
        trainable_mask([[5.0, 5.0, 15.0, 5.0, 15.0, corner]], *SIZE)
