import pytest

from scratch_vs_pretrain.analysis.figures.named import FROM_FRAME, FROM_RUNS, make
from scratch_vs_pretrain.errors import UserError


@pytest.mark.parametrize("name", [*FROM_FRAME, *FROM_RUNS])
def test_each_figure(folders, name):
    for arm in ("scratch", "pretrained"):
        folders.run(arm, samples={"images": 1, "instances": 2, "pixels": 3})
    assert make([folders.root], name, {"x": None}).axes


def test_options_reach_the_figure(three_pairs):
    figure = make([three_pairs.root], "ap", {"metrics": ["bbox/AP75"], "x": "epochs"})
    (ax,) = figure.axes
    assert (ax.get_title("left"), ax.get_xlabel()) == ("Box AP75 (%)", "epochs")


@pytest.mark.parametrize(
    ("name", "option"), [("iou", "x"), ("bars", "band"), ("ap", "labels"), ("overlay", "schedule")]
)
def test_option_that_a_figure_does_not_have(three_pairs, name, option):
    with pytest.raises(UserError, match=rf"--{option.removesuffix('s')}: figure {name} has no"):
        make([three_pairs.root], name, {option: "a"})


def test_figures_of_one_study_refuse_several(folders):
    folders.run("scratch", study="a")
    folders.run("scratch", study="b")
    with pytest.raises(UserError, match=r"2 studies \(a, b\); name the folder of one"):
        make([folders.root], "ap", {})
    assert len(make([folders.root], "loss", {}).axes) == 4


def test_bars_stand_in_the_order_of_the_folders(folders):
    for study in ("a", "b"):
        for arm in ("scratch", "pretrained"):
            folders.run(arm, study=study)
    roots = [folders.root / "output" / name for name in ("b", "a")]
    labels = make(roots, "bars", {}).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["b", "a"]
