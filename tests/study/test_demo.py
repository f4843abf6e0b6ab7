"""The demo at its smallest; its default and quick sizes run in CI and in docs/demo.md."""

import pytest

from scratch_vs_pretrain.data.shapes import ClassificationSpec, ShapesSpec, make_shapes
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.run_folder import find_run_folders
from scratch_vs_pretrain.study import demo
from scratch_vs_pretrain.study.sections import Evaluation, short_schedule

TINY = demo.DemoSize(
    ShapesSpec(train=12, test=4),
    ClassificationSpec(train=16, test=8),
    PretrainSpec(epochs=1, image_size=32, batch_size=8, learning_rate=0.01),
    short_schedule(4),
    Evaluation(period=2),
)


def test_makes_everything_and_a_second_call_repeats_nothing(
    tmp_path, monkeypatch, capsys, quick_starts
):
    monkeypatch.setattr(demo, "QUICK", TINY)
    output = tmp_path / "demo"
    assert demo.run_demo(output, quick=True) == 0
    table = capsys.readouterr().out
    assert "scratch - pretrained" in table
    for name in ("table.md", "table.csv", "curves.png", "curves.svg", "backbone.pth"):
        assert (output / name).stat().st_size > 100
    folders = find_run_folders(output)
    assert [folder.state() for folder in folders] == ["finished", "finished"]
    evaluated = [sorted(int(f.stem) for f in folder.evaluations.iterdir()) for folder in folders]
    assert evaluated == [[2, 4], [2, 4]]
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*.pth")}
    assert demo.run_demo(output, quick=True) == 0
    assert capsys.readouterr().out == table
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*.pth")} == before


def test_another_demo_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    make_shapes(tmp_path / "shapes", ShapesSpec(train=1, test=1), progress=False)
    monkeypatch.setattr(demo, "QUICK", TINY)
    with pytest.raises(UserError, match="shapes"):
        demo.run_demo(tmp_path, quick=True)


def test_sizes_differ_in_size_alone():
    assert demo.QUICK.shapes.image_size == demo.FULL.shapes.image_size
    assert demo.QUICK.pretraining.learning_rate == demo.FULL.pretraining.learning_rate
    assert demo.FULL.schedule is None
