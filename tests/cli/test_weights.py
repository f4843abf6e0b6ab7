from pathlib import Path

import pytest
import torch
import torchvision

from scratch_vs_pretrain.cli import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "demo_mask_rcnn_R_18_FPN_gn.yaml")


@pytest.fixture
def checkpoint(tmp_path):
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file


def test_conversion_says_what_became_of_the_weights(checkpoint, tmp_path, capsys):
    output = tmp_path / "converted.pth"
    arguments = ["convert-weights", str(checkpoint), "-o", str(output), "--arch", "resnet18"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: resnet18, from torchvision names"
    assert [line.split()[0] for line in lines[1:]] == [
        "loaded", "missing", "unexpected", "mismatched",
    ]  # fmt: skip
    assert lines[2] == "missing    0"
    assert lines[3] == "unexpected 2: fc.weight, fc.bias"
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert-weights", "FILE", "-o", "OUT", "--arch", "resnet51"], "resnet51"),
        (["convert-weights", "FILE", "-o", "OUT", "--arch", "resnet50"], "resnet50"),
        (["convert-weights", "absent.pth", "-o", "OUT", "--arch", "resnet18"], "absent.pth"),
        (["pretrain", "absent.yaml", "images", "-o", "OUT"], "absent.yaml"),
        (["pretrain", CONFIG, "absent", "-o", "OUT"], "absent"),
        (["predict", "absent", "--dataset", "coco_2017_val", "-o", "OUT"], "absent"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    checkpoint, tmp_path, capsys, arguments, message
):
    places = {"FILE": str(checkpoint), "OUT": str(tmp_path / "out.pth")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("svp: error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))
