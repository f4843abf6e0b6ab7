import pytest
import torch
import torchvision

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint
from scratch_vs_pretrain.modeling.weights import write_backbone
from scratch_vs_pretrain.study.initial_weights import check_models
from scratch_vs_pretrain.study.parse import load_study

SCRATCH = {"scratch": {"init": "scratch"}}


@pytest.mark.filterwarnings("error")
def test_weights_that_fill_the_backbone_pass(write_study, tiny_backbone):
    check_models(load_study(write_study(arms=SCRATCH)))
    study = write_study(arms=SCRATCH | {"pretrained": {"init": str(tiny_backbone)}})
    check_models(load_study(study))


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
        check_models(study)
