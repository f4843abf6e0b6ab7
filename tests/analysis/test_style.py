import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.analysis.figures.curves import ap_figure
from scratch_vs_pretrain.analysis.figures.panels import (
    SCRATCH_COLOR,
    SMALL_TEXT_SIZE,
    TEXT_SIZE,
    add_caption,
    arm_styles,
    move_apart,
    new_figure,
    save_figure,
    short_number,
    spread,
    write_right,
)
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.errors import UserError

labels = st.lists(st.tuples(st.floats(-300, 300), st.floats(1, 60)), max_size=12)


def apart(places, heights):
    order = sorted(range(len(places)), key=lambda k: places[k])
    return all(
        places[b] - places[a] >= (heights[a] + heights[b]) / 2 - 1e-6
        for a, b in itertools.pairwise(order)
    )


@settings(deadline=None)
@given(labels)
def test_spread_labels_keep_their_order_and_do_not_overlap(labels):
    places, heights = [p for p, _ in labels], [h for _, h in labels]
    moved = spread(places, heights)
    assert apart(moved, heights)
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)
    for a in range(len(places)):
        for b in range(len(places)):
            assert places[a] >= places[b] or moved[a] < moved[b]


def test_labels_that_fit_stay_where_they_are():
    assert spread([0, 50, 20], [10, 10, 10]) == [0, 50, 20]


def test_labels_that_collide_move_by_hand_computed_amounts():
    assert spread([10, 10], [12, 12]) == [4, 16]
    assert spread([10, 10], [20, 10]) == [2.5, 17.5]
    assert spread([], []) == []


def test_scratch_has_one_colour_in_every_figure():
    styles = arm_styles(["moco", "scratch", "imagenet"])
    assert styles["scratch"].color == SCRATCH_COLOR
    assert arm_styles(["scratch", "moco"])["moco"] == styles["moco"]
    assert len({style.color for style in styles.values()}) == 3
    assert len({style.marker for style in styles.values()}) == 3


def test_more_arms_than_colours():
    assert len(arm_styles(map(str, range(20)))) == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (600, "600"), (1200, "1200"), (540_000, "540k"), (2.88e6, "2.88M"), (0.4, "0.4"),
     (1.5e9, "1.5G")],
)  # fmt: skip
def test_short_number(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    "names",
    [
        ["scratch", "pretrained"],
        ["scratch", "pretrained_on_single_shapes_with_moco_v2_800_epochs_and_more", "b", "c"],
        ["x" * 60, "y" * 60],
    ],
)
def test_labels_and_caption_lie_inside_the_figure_and_apart(names):
    figure, axes = new_figure(2)
    for ax in axes:
        for k, _ in enumerate(names):
            ax.plot([0, 1], [0, 30 + 0.1 * k])
    add_caption(figure, ["One sentence of a caption that is long enough to be wrapped.", "$x$"] * 2)
    labels = [
        [write_right(ax, name, 30 + 0.1 * k, "black") for k, name in enumerate(names)]
        for ax in axes
    ]
    move_apart(figure, labels)
    figure.draw_without_rendering()
    for ax in axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        assert len(boxes) == len(names)
        for k, box in enumerate(boxes):
            assert box.x0 >= ax.bbox.x1
            assert box.x1 <= figure.bbox.x1 + 1
            assert not any(box.overlaps(other) for other in boxes[k + 1 :])
    assert axes[0].get_tightbbox().x1 <= axes[1].get_tightbbox().x0


@pytest.mark.parametrize(("panels", "rows", "shape"), [(1, 1, 1), (2, 3, 6), (3, 1, 3), (5, 1, 5)])
def test_figures_are_as_wide_as_a_column_or_a_page(panels, rows, shape):
    figure, axes = new_figure(panels, rows=rows)
    assert len(axes) == len(figure.axes) == shape
    assert figure.get_figwidth() == (3.44 if panels == 1 else 6.88)


def test_more_than_two_panels_are_wrapped():
    figure, axes = new_figure(3)
    figure.draw_without_rendering()
    places = [ax.get_position() for ax in axes]
    assert places[0].y0 == pytest.approx(places[1].y0)
    assert places[2].y1 < places[0].y0
    assert places[2].x0 == pytest.approx(places[0].x0, abs=0.05)


def test_all_text_is_legible_in_print():
    assert min(TEXT_SIZE, SMALL_TEXT_SIZE) >= 8


def test_colours_of_arms_differ_for_colour_blind_readers():
    """Okabe and Ito's, and no two arms with the same marker."""
    styles = arm_styles(["scratch", "a", "b", "c"])
    assert {style.color for style in styles.values()} == {
        "#D55E00",
        "#0072B2",
        "#009E73",
        "#CC79A7",
    }
    assert len({style.marker for style in styles.values()}) == 4


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_equal_figures_give_equal_bytes(three_pairs, tmp_path, suffix):
    for name in ("a", "b"):
        save_figure(
            ap_figure(load_runs(three_pairs.root, plain=True)), tmp_path / f"{name}.{suffix}"
        )
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content == (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert not re.search(rb"CreationDate|<dc:date>", content)


def test_names_from_files_are_drawn_and_not_interpreted(folders, tmp_path):
    folders.run("<b>$x_1$&amp", arm_order=["<b>$x_1$&amp"])
    save_figure(ap_figure(load_runs(folders.root, plain=True)), tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")


def test_figure_that_cannot_be_saved(three_pairs, tmp_path):
    figure = ap_figure(load_runs(three_pairs.root, plain=True), metrics=["bbox/AP"])
    with pytest.raises(UserError, match=r"\.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(UserError, match="cannot be written"):
        save_figure(figure, tmp_path / "none" / "a.png")
