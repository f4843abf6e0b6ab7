import pickle

import numpy as np
import pytest
import torch
import torchvision

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import (
    read_checkpoint,
    read_metadata,
    weights_sha256,
)
from scratch_vs_pretrain.modeling.conversion import ARCHITECTURE_NAMES
from scratch_vs_pretrain.modeling.weights import (
    convert_file,
    input_settings,
    load_backbone,
    write_backbone,
)


def test_converted_file_fills_a_network_that_the_original_fills(make_full_cfg, tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    source, output = tmp_path / "moco.pth", tmp_path / "sub" / "r18.pth"
    prefixed = {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, source)
    report = convert_file(source, output, "resnet18")
    assert (report.missing, report.mismatched) == ((), ())
    assert report.prefix == "module.encoder_q."
    assert set(report.unexpected) == {"module.encoder_q.fc.weight", "module.encoder_q.fc.bias"}
    direct, converted = (build_bottom_up(make_full_cfg(18, NORM="BN")) for _ in range(2))
    load_backbone(direct, read_checkpoint(source))
    assert load_backbone(converted, read_checkpoint(output)).layout == "detectron2"
    expected = direct.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in converted.state_dict().items())
    assert read_metadata(output)["converted"] == {
        "architecture": "resnet18",
        "source": str(source),
        "sha256": weights_sha256(source),
    }


def test_conversion_keeps_what_pretraining_noted(make_full_cfg, tmp_path):
    source, output = tmp_path / "own.pth", tmp_path / "out.pth"
    cfg = make_full_cfg(18)
    metadata = {"input": input_settings(cfg)}
    write_backbone(source, build_bottom_up(cfg).state_dict(), metadata)
    convert_file(source, output, "resnet18")
    assert read_metadata(output)["input"] == metadata["input"]


def test_conversion_that_cannot_be_writes_nothing(make_full_cfg, tmp_path):
    source = tmp_path / "r18.pth"
    state = build_bottom_up(make_full_cfg(18)).state_dict()
    torch.save(state, source)
    for output, architecture, message in (
        ("out.pth", "resnet51", "unknown architecture; use one of resnet18"),
        ("out.pth", "resnet50", "not the weights of a resnet50 .* those of a resnet18"),
        ("out.pkl", "resnet18", r"out\.pkl: name a file that ends in \.pth"),
        ("r18.pth", "resnet18", r"r18\.pth: is the checkpoint itself"),
    ):
        with pytest.raises(UserError, match=message):
            convert_file(source, tmp_path / output, architecture)
    state["stem.conv1.weight"][0] = float("nan")
    torch.save(state, source)
    with pytest.raises(UserError, match=r"NaN or infinity in stem\.conv1\.weight"):
        convert_file(source, tmp_path / "out.pth", "resnet18")
    assert [file.name for file in tmp_path.iterdir()] == ["r18.pth"]


def test_fused_batchnorm_is_not_converted(make_full_cfg, tmp_path):
    state = build_bottom_up(make_full_cfg(50)).state_dict()
    names = {"stem.conv1.weight": "conv1_w", "res2.0.conv1.weight": "res2_0_branch2a_w"}
    blobs = {official: state[name].numpy() for name, official in names.items()}
    blobs["res_conv1_bn_s"] = np.ones(64, np.float32)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    with pytest.raises(UserError, match="fused into a fixed scale"):
        convert_file(tmp_path / "R-50.pkl", tmp_path / "out.pth", "resnet50")
    assert not (tmp_path / "out.pth").exists()


def test_command_reports_what_became_of_every_tensor(tmp_path, capsys):
    source, output = tmp_path / "tv.pth", tmp_path / "out.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), source)
    assert main(["convert-weights", str(source), "-o", str(output), "--arch", "resnet18"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: resnet18, from torchvision names",
        "loaded     120",
        "missing    0",
        "unexpected 2: fc.weight, fc.bias",
        "mismatched 0",
    ]
    wrong = tmp_path / "wrong.pth"
    assert main(["convert-weights", str(source), "-o", str(wrong), "--arch", "resnet34"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "these are not the weights of a resnet34" in message
    assert "those of a resnet18" in message
    assert main(["convert-weights", str(source), "-o", str(wrong), "--arch", "resnet51"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("svp: error: resnet51: unknown architecture; use one of resnet18,")
    assert message.count("\n") == 1
    assert not wrong.exists()


def test_help_names_every_architecture(capsys):
    with pytest.raises(SystemExit):
        main(["convert-weights", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ARCHITECTURE_NAMES)
