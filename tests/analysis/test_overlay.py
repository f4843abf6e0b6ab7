import pytest

from scratch_vs_pretrain.analysis.figures.overlay import overlay_figure
from scratch_vs_pretrain.analysis.runs.records import collect
from scratch_vs_pretrain.errors import UserError


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


def test_what_a_branch_has_from_its_trunk_is_drawn_once(folders):
    trunk = {100: 5.0, 200: 9.0, 400: 12.0}
    branch = {"of": "900it", "at": 300, "taken": None}
    for arm in ("scratch", "pretrained"):
        folders.run(arm, iterations=900, curve={**trunk, 900: 30.0})
        folders.run(arm, iterations=600, curve={100: 5.0, 200: 9.0, 600: 25.0}, branch=branch)
    figure = overlay_figure(collect(folders.root))
    curves = [line.get_xdata().tolist() for line in figure.axes[0].lines if line._x.size > 1]
    assert curves == [[200, 600], [100, 200, 400, 900]] * 2
    assert "leaves the constant-rate trunk" in " ".join(figure.get_supxlabel().split())


def test_a_branch_is_drawn_whole_while_its_trunk_is_not_finished(folders):
    branch = {"of": "900it", "at": 300, "taken": None}
    folders.run("scratch", iterations=900, curve={100: 5.0}, state="running", iteration=300)
    folders.run("scratch", iterations=600, curve={100: 5.0, 600: 25.0}, branch=branch)
    figure = overlay_figure(collect(folders.root))
    assert figure.axes[0].lines[0].get_xdata().tolist() == [100, 600]


def test_one_panel_for_each_metric(folders):
    folders.run("scratch")
    figure = overlay_figure(collect(folders.root), metrics=["bbox/AP50", "segm/AP"])
    assert [ax.get_title("left") for ax in figure.axes] == ["Box AP50 (%)", "Mask AP (%)"]
