import dataclasses
import typing
from pathlib import Path

import pytest

from scratch_vs_pretrain.study.resolve import PRESETS
from scratch_vs_pretrain.study.sections import paper_schedule
from scratch_vs_pretrain.study.spec import Arm, Preset, Run, Study

TWICE = paper_schedule(2)


def test_a_run_has_its_own_folder():
    run = Run("study", Arm("scratch", "scratch", (TWICE,)), TWICE, seed=3)
    assert run.folder(Path("out")).path == Path("out/study/scratch/2x/seed3")


def test_runs_go_by_arm_schedule_and_seed():
    thrice = paper_schedule(3)
    arms = (Arm("a", "scratch", (TWICE, thrice)), Arm("b", "/b.pth", (TWICE,)))
    study = Study("s", Path("s.yaml"), Path("b.yaml"), arms, seeds=(5, 0))
    assert [(run.arm.name, run.schedule.name, run.seed) for run in study.runs()] == [
        ("a", "2x", 5),
        ("a", "2x", 0),
        ("a", "3x", 5),
        ("a", "3x", 0),
        ("b", "2x", 5),
        ("b", "2x", 0),
    ]


def test_scratch_has_no_weights():
    assert Arm("a", "scratch", (TWICE,)).weights == ""
    assert Arm("a", "/w.pth", (TWICE,)).weights == "/w.pth"


def test_a_study_cannot_be_changed():
    study = Study("s", Path("s.yaml"), Path("b.yaml"), ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.name = "other"


class TestPresets:
    def test_all_set_the_same_keys(self):
        keys = {frozenset(preset) for preset in PRESETS.values()}
        assert len(keys) == 1
        assert tuple(PRESETS) == typing.get_args(Preset)

    def test_torchvision_is_its_normalization_of_255_levels(self):
        # torchvision's ImageNet weights: transforms.Normalize((0.485, 0.456, 0.406), (0.229, ...)).
        preset = PRESETS["torchvision"]
        assert preset["MODEL.PIXEL_MEAN"] == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
        assert preset["MODEL.PIXEL_STD"] == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])
        assert preset["INPUT.FORMAT"] == "RGB"

    def test_detectron2_is_its_default(self):
        from scratch_vs_pretrain.config import default_config, flatten

        default = flatten(default_config())
        assert {key: default[key] for key in PRESETS["detectron2"]} == PRESETS["detectron2"]
