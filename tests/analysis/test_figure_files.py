import re
import xml.etree.ElementTree as ET

import pytest

from scratch_vs_pretrain.analysis.figures.curves import ap_figure
from scratch_vs_pretrain.analysis.figures.files import save_figure
from scratch_vs_pretrain.analysis.runs.records import collect
from scratch_vs_pretrain.errors import UserError


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_equal_figures_give_equal_bytes(three_pairs, tmp_path, suffix):
    for name in ("a", "b"):
        save_figure(ap_figure(collect(three_pairs.root)), tmp_path / f"{name}.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    assert content == (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert not re.search(rb"CreationDate|<dc:date>", content)


def test_names_from_files_are_drawn_and_not_interpreted(folders, tmp_path):
    folders.run("<b>$x_1$&amp", arm_order=["<b>$x_1$&amp"])
    save_figure(ap_figure(collect(folders.root)), tmp_path / "a.svg")
    ET.parse(tmp_path / "a.svg")


def test_figure_that_cannot_be_saved(three_pairs, tmp_path):
    figure = ap_figure(collect(three_pairs.root), metrics=["bbox/AP"])
    with pytest.raises(UserError, match=r"\.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(UserError, match="cannot be written"):
        save_figure(figure, tmp_path / "none" / "a.png")
