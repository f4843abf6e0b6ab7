import dataclasses

import pytest
import torch
import torchvision

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, write_backbone
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.rehearsal import check_trainable
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training.__main__ import config_of
from scratch_vs_pretrain.training.trainer import build_run_model

SCRATCH = {"scratch": {"init": "scratch"}}


@pytest.mark.filterwarnings("error")
def test_weights_that_fill_the_backbone_pass(write_study, tiny_backbone):
    check_trainable(load_study(write_study(arms=SCRATCH)))
    study = write_study(arms=SCRATCH | {"pretrained": {"init": str(tiny_backbone)}})
    check_trainable(load_study(study))


def test_weights_of_another_network_stop_the_study_before_it_writes(write_study, tmp_path, capsys):
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
    affine = {"SVP.NORM_WEIGHTS": "affine_only"}
    for overrides, message in (
        ({}, "trained with BatchNorm, but this backbone has GroupNorm"),
        (affine, "of another shape (stem.conv1.weight (64, 3, 7, 7), not (32, 3, 7, 7)"),
    ):
        study = write_study(
            arms=SCRATCH | {"pretrained": {"init": str(weights)}}, overrides=overrides
        )
        assert main(["run", str(study), "-o", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"svp: error: {study}: arms.pretrained: {weights}: ")
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_weights_of_other_pixels_are_refused(write_study, tiny_backbone, tmp_path):
    weights = tmp_path / "bgr.pth"
    write_backbone(weights, read_checkpoint(tiny_backbone), {"input": {"INPUT.FORMAT": "BGR"}})
    study = load_study(write_study(arms={"pretrained": {"init": str(weights)}}))
    with pytest.raises(UserError, match=r"arms\.pretrained: .*bgr\.pth: pre-trained with INPUT"):
        check_trainable(study)


def named(study_file):
    """Reads a study that has its file's name."""
    return dataclasses.replace(load_study(study_file), name=study_file.stem)


class TestOriginsInTheOutputFolder:
    """``init: run://STUDY/ARM/SCHEDULE/seed``."""

    ORIGIN = "run://first/scratch/short/seed"

    @pytest.fixture
    def finish(self, write_study, tmp_path):
        """Writes the runs of a study as if they had been trained, with weights of their seeds."""

        def write(seeds=(0, 1), state="finished", **fields):
            study = named(write_study("first.yaml", seeds=list(seeds), **fields))
            folders = prepare(study, tmp_path / "out")
            for folder in folders:
                cfg = config_of(folder.config_file)
                model, _ = build_run_model(cfg)
                folder.checkpoints.mkdir()
                torch.save({"model": model.state_dict()}, folder.checkpoints / "0000006.pth")
                folder.update(state=state)
            return folders

        return write

    def staged(self, write_study, init=ORIGIN, **fields):
        arms = {"scratch": {"init": "scratch"}, "staged": {"init": init, "load": "detector"}}
        return named(write_study("second.yaml", arms=arms, **fields))

    def test_each_seed_starts_from_the_same_seeds_weights(self, finish, write_study, tmp_path):
        origins = finish()
        study = self.staged(write_study, seeds=[0, 1])
        folders = [f for f in prepare(study, tmp_path / "out") if "staged" in f.path.parts]
        for folder, origin in zip(folders, origins, strict=True):
            cfg, init = config_of(folder.config_file), folder.read().init
            assert cfg.MODEL.WEIGHTS == str(origin.checkpoints / "0000006.pth") == init.weights
            assert (cfg.SVP.LOAD, init.load) == ("detector", "detector")
            model, described = build_run_model(cfg)
            trained = torch.load(cfg.MODEL.WEIGHTS)["model"]
            assert all(torch.equal(t, trained[n]) for n, t in model.state_dict().items())
            assert described["init_report"].reinitialized == ()
        assert len({folder.read().init.sha256 for folder in folders}) == 2
        assert prepare(study, tmp_path / "out")[2:] == folders

    def test_one_run_may_serve_all_seeds(self, finish, write_study, tmp_path):
        finish()
        study = self.staged(write_study, f"{self.ORIGIN}0", seeds=[0, 1])
        weights = {f.read().init.weights for f in prepare(study, tmp_path / "out")[2:]}
        assert weights == {str(tmp_path / "out/first/scratch/short/seed0/checkpoints/0000006.pth")}

    @pytest.mark.parametrize(
        ("state", "seeds", "message"),
        [
            ("interrupted", [0], r"first/scratch/short/seed0 is interrupted; train it to its end"),
            ("finished", [0, 7], r"first/scratch/short/seed7 is not there; train it to its end"),
        ],
    )
    def test_an_origin_that_is_not_finished(
        self, state, seeds, message, finish, write_study, tmp_path
    ):
        finish(state=state)
        study = self.staged(write_study, seeds=seeds)
        with pytest.raises(UserError, match=rf"second\.yaml: arms\.staged\.init: .*{message}"):
            prepare(study, tmp_path / "out")
        assert not (tmp_path / "out/second").exists()

    def test_an_origin_whose_checkpoint_is_gone(self, finish, write_study, tmp_path):
        for folder in finish():
            (folder.checkpoints / "0000006.pth").unlink()
        with pytest.raises(UserError, match="checkpoints has no checkpoint left; train it again"):
            prepare(self.staged(write_study), tmp_path / "out")

    def test_a_circle(self, write_study, tmp_path):
        arms = {
            "a": {"init": "run://ring/b/short/seed"},
            "b": {"init": "run://ring/a/short/seed"},
        }
        study = named(write_study("ring.yaml", arms=arms))
        with pytest.raises(UserError, match=r"arms\.a\.init: .*circle \(a from b from a\)"):
            prepare(study, tmp_path / "out")
        arms = {"a": {"init": "run://self/a/short/seed"}, "b": {"init": "scratch"}}
        study = named(write_study("self.yaml", arms=arms))
        with pytest.raises(UserError, match=r"circle \(a from a\)"):
            prepare(study, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_other_pixels_than_the_origin_had(self, finish, write_study, tmp_path):
        finish()
        study = self.staged(write_study, overrides={"MODEL.PIXEL_STD": [57.0, 57.0, 58.0]})
        with pytest.raises(UserError, match=r"pre-trained with MODEL\.PIXEL_STD \["):
            prepare(study, tmp_path / "out")


def test_layers_of_another_number_of_classes_are_said_to_be_random(write_study, tmp_path, capfd):
    study = load_study(write_study())
    cfg = arm_config(study, study.arms[0], study.arms[0].schedules[0]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.SEED = "cpu", 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES += 2
    torch.save({"model": build_run_model(cfg)[0].state_dict()}, tmp_path / "detector.pth")
    arms = {"detector": {"init": str(tmp_path / "detector.pth"), "load": "detector"}}
    prepare(load_study(write_study(arms=arms)), tmp_path / "out")
    said = capfd.readouterr().err
    assert "arms.detector: " in said
    assert "roi_heads.box_predictor.cls_score.weight" in said
    assert "start at random, as in arms from scratch" in said


def test_scratch_is_no_detector(write_study, tmp_path):
    study = load_study(write_study(arms={"a": {"init": "scratch", "load": "detector"}}))
    with pytest.raises(UserError, match=r"arms\.a\.load: init is scratch, which is no detector"):
        prepare(study, tmp_path / "out")


def test_a_network_that_timm_lacks_is_named_with_its_arm(write_study, tmp_path, capsys):
    keys = {
        "MODEL.BACKBONE.NAME": "build_svp_timm_fpn_backbone",
        "MODEL.TIMM.NAME": "resnet5000",
    }
    study = write_study(overrides=keys)
    assert main(["run", str(study), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{study}: arms.scratch: MODEL.TIMM.NAME: timm has no network 'resnet5000'" in said
    assert not (tmp_path / "out").exists()


def test_pixels_are_those_of_timms_network_in_every_arm(write_study):
    keys = {
        "MODEL.BACKBONE.NAME": "build_svp_timm_fpn_backbone",
        "MODEL.TIMM.NAME": "convnext_tiny",
    }
    study = load_study(write_study(overrides=keys))
    cfg = arm_config(study, study.arms[0], study.arms[0].schedules[0])
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    stated = load_study(write_study(overrides=keys | {"MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0]}))
    cfg = arm_config(stated, stated.arms[0], stated.arms[0].schedules[0])
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
