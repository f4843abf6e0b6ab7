import re
import xml.etree.ElementTree as ET

import pytest

from scratch_vs_pretrain.analysis.curves import (
    ap_figure,
    iou_figure,
    loss_figure,
    overlay_figure,
    save_figure,
)
from scratch_vs_pretrain.analysis.drawing import SCRATCH_COLOR
from scratch_vs_pretrain.analysis.runs import collect
from scratch_vs_pretrain.errors import UserError


@pytest.fixture
def study(folders):
    """Two arms, three seeds, 600 iterations."""
    for seed in range(3):
        folders.run("scratch", seed, curve={100: 5.0 + seed, 300: 15.0, 600: 30.0})
        folders.run("pretrained", seed, curve={100: 12.0, 300: 22.0, 600: 31.0 + seed})
    return folders


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def test_ap_figure(study):
    figure = ap_figure(collect(study.root))
    box, mask = figure.axes
    assert (box.get_title("left"), mask.get_title("left")) == ("Box AP (%)", "Mask AP (%)")
    assert [text.get_text() for text in box.texts] == ["scratch", "pretrained"]
    curves = {line.get_color(): line for line in box.lines if line.get_linestyle() == "-"}
    assert curves[SCRATCH_COLOR].get_ydata().tolist() == [6, 15, 30]
    assert len(box.collections) == 2
    dotted = [line.get_xdata()[0] for line in box.lines if line.get_linestyle() == ":"]
    assert dotted == [400, 520]
    assert "mean of 3 seeds; band: lowest to highest seed" in caption(figure)
    assert "Dotted" in caption(figure)


def test_caption_says_which_band(study):
    figure = ap_figure(collect(study.root), band="std", metrics=["bbox/AP75"])
    assert "one standard deviation" in caption(figure)
    assert len(figure.axes) == 1


def test_one_seed_has_no_band(folders):
    folders.run("scratch")
    figure = ap_figure(collect(folders.root))
    assert not figure.axes[0].collections
    assert "One run per line." in caption(figure)


def test_unfinished_runs_are_dashed_and_the_caption_says_so(study):
    study.run("scratch", 9, curve={100: 4.0, 300: 3.0}, state="diverged", iteration=320)
    figure = ap_figure(collect(study.root))
    assert "Dashed" in caption(figure)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata().tolist() for line in dashed] == [[4, 3]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["scratch", "pretrained"]


def test_study_that_has_only_begun(folders):
    folders.run("scratch", curve={100: 4.0}, state="failed", iteration=120)
    figure = ap_figure(collect(folders.root))
    assert [text.get_text() for text in figure.axes[0].texts] == ["scratch"]


def test_loss_figure(study):
    figure = loss_figure(collect(study.root), x="epochs")
    assert [ax.get_title("left") for ax in figure.axes] == ["Box AP (%)", "Training loss"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"epochs"}
    assert "running median" in caption(figure)


def test_overlay_shows_every_schedule(folders):
    for iterations in (600, 900):
        folders.run("scratch", iterations=iterations, curve={100: 5.0, iterations: 30.0})
        folders.run("pretrained", iterations=iterations, curve={100: 5.0, iterations: 31.0})
    texts = [text.get_text() for text in overlay_figure(collect(folders.root)).axes[0].texts]
    assert sorted(texts) == ["600it", "600it", "pretrained 900it", "scratch 900it"]


def test_overlay_needs_a_finished_run(folders):
    folders.run(state="failed", curve={100: 4.0}, iteration=120)
    with pytest.raises(UserError, match="finished"):
        overlay_figure(collect(folders.root))


def test_iou_figure_shows_the_final_gap_per_threshold(study):
    figure = iou_figure(collect(study.root))
    curve = figure.axes[0].lines[1]
    assert curve.get_xdata().tolist() == pytest.approx([0.5 + 0.05 * k for k in range(10)])
    assert curve.get_ydata().tolist() == pytest.approx([-2] * 10)


def test_iou_figure_compares_each_arms_longest_schedule(folders):
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=600, curve={600: 32.0})
    assert set(iou_figure(collect(folders.root)).axes[0].lines[1].get_ydata()) == {1}


def test_iou_figure_needs_a_pair(folders):
    folders.run("scratch", 0)
    folders.run("pretrained", 1)
    with pytest.raises(UserError, match="pair"):
        iou_figure(collect(folders.root))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_equal_figures_give_equal_bytes(study, tmp_path, suffix):
    for name in ("a", "b"):
        save_figure(ap_figure(collect(study.root)), tmp_path / f"{name}.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content == (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert not re.search(rb"CreationDate|<dc:date>", content)


def test_names_from_files_are_drawn_and_not_interpreted(folders, tmp_path):
    folders.run("<b>$x_1$&amp", arm_order=["<b>$x_1$&amp"])
    save_figure(ap_figure(collect(folders.root)), tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")


def test_figure_that_cannot_be_saved(study, tmp_path):
    figure = ap_figure(collect(study.root), metrics=["bbox/AP"])
    with pytest.raises(UserError, match=r"\.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(UserError, match="cannot be written"):
        save_figure(figure, tmp_path / "none" / "a.png")
