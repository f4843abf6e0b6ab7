import hashlib
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import (
    read_checkpoint,
    read_metadata,
    weights_sha256,
    write_backbone,
)
from scratch_vs_pretrain.modeling.conversion import ARCHITECTURE_NAMES, convert_file
from scratch_vs_pretrain.modeling.initial import check_input, input_settings
from scratch_vs_pretrain.run_info import PretrainingCost


def random_state(model):
    """Values that no initialization gives, under the model's names."""
    return {
        name: torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


def caffe2_name(name):
    """The official name of a Detectron2 ResNet-GN parameter, e.g. res2_0_branch2a_gn_s."""
    if name.startswith("stem.conv1."):
        block, rest = "conv1", name.removeprefix("stem.conv1.")
    else:
        stage, index, layer, rest = name.split(".", 3)
        branch = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}[layer]
        block = f"{stage}_{index}_branch{branch}"
    suffix = {"weight": "w", "norm.weight": "gn_s", "norm.bias": "gn_b"}[rest]
    return f"{block}_{suffix}"


def same(model, state):
    own = model.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


def test_caffe2_groupnorm_pickle_with_official_names_loads_completely(
    make_full_cfg, tmp_path, load_backbone
):
    bottom_up = build_bottom_up(make_full_cfg(50))
    state = random_state(bottom_up)
    blobs = {caffe2_name(name): tensor.numpy() for name, tensor in state.items()}
    assert {"conv1_w", "conv1_gn_s", "res2_0_branch1_gn_b", "res5_2_branch2c_w"} < set(blobs)
    head = {"pred_w": np.zeros((5, 2048), np.float32), "pred_b": np.zeros(5, np.float32)}
    momentum = {"conv1_w_momentum": np.zeros(1, np.float32)}
    path = tmp_path / "R-50-GN.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs | head | momentum, "cfg": "NUM_GPUS: 8"}))

    report = load_backbone(bottom_up, read_checkpoint(path))

    assert report.loaded == 53 * 3
    assert (report.missing, report.mismatched) == ((), ())
    assert set(report.unexpected) == set(head)
    assert report.layout == "caffe2"
    assert same(bottom_up, state)


def test_detector_takes_the_backbone_and_keeps_the_rest(make_cfg, load_backbone):
    pyramid = build_backbone(make_cfg())
    other = build_backbone(make_cfg())
    before = {n: t.clone() for n, t in pyramid.state_dict().items() if "bottom_up" not in n}
    state = {f"backbone.{name}": tensor for name, tensor in random_state(other).items()}
    report = load_backbone(pyramid, state)
    assert same(pyramid.bottom_up, {n.split("bottom_up.")[-1]: t for n, t in state.items()})
    after = pyramid.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(report.unexpected) == {f"backbone.{name}" for name in before}
    assert report.loaded == 60


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_torchvision_weights_and_statistics_go_into_batchnorm(norm, make_full_cfg, load_backbone):
    bottom_up = build_bottom_up(make_full_cfg(18, NORM=norm))
    state = random_state(torchvision.models.resnet18(weights=None))
    report = load_backbone(bottom_up, state)
    assert set(report.unexpected) == {"fc.weight", "fc.bias"}
    assert torch.equal(bottom_up.stem.conv1.norm.running_var, state["bn1.running_var"])
    assert torch.equal(bottom_up.res5[1].conv2.norm.weight, state["layer4.1.bn2.weight"])


def test_old_batchnorm_files_without_counters_load(make_full_cfg, load_backbone):
    bottom_up = build_bottom_up(make_full_cfg(18, NORM="BN"))
    state = random_state(torchvision.models.resnet18(weights=None))
    old = {name: t for name, t in state.items() if "num_batches_tracked" not in name}
    assert load_backbone(bottom_up, old).missing == ()


def test_batchnorm_into_groupnorm_is_refused_unless_asked_for(make_full_cfg, load_backbone):
    bottom_up = build_bottom_up(make_full_cfg(18))
    state = random_state(torchvision.models.resnet18(weights=None))
    before = {name: tensor.clone() for name, tensor in bottom_up.state_dict().items()}
    with pytest.raises(UserError, match=r"tv\.pth: trained with BatchNorm.*NORM_WEIGHTS: affine"):
        load_backbone(bottom_up, state, "tv.pth")
    assert same(bottom_up, before)
    report = load_backbone(bottom_up, state, "tv.pth", norm_weights="affine_only")
    assert report.missing == ()
    assert "stem.conv1.norm.running_mean" in report.unexpected
    assert torch.equal(bottom_up.stem.conv1.norm.weight, state["bn1.weight"])


def test_fused_batchnorm_of_caffe2_is_not_taken_for_groupnorm(make_full_cfg, load_backbone):
    bottom_up = build_bottom_up(make_full_cfg(50))
    state = {
        caffe2_name(name).replace("_gn_", "_bn_"): tensor
        for name, tensor in random_state(bottom_up).items()
    }
    with pytest.raises(UserError, match="fused into a fixed scale"):
        load_backbone(bottom_up, state)


def test_groupnorm_into_batchnorm_says_what_is_missing(make_cfg, load_backbone):
    state = random_state(build_bottom_up(make_cfg()))
    with pytest.raises(UserError, match=r"no BatchNorm statistics: set NORM to GN"):
        load_backbone(build_bottom_up(make_cfg(NORM="SyncBN")), state)


def test_ninety_percent_is_an_error_that_names_the_missing_keys(make_cfg, load_backbone):
    bottom_up = build_bottom_up(make_cfg())
    state = random_state(bottom_up)
    before = {name: tensor.clone() for name, tensor in bottom_up.state_dict().items()}
    missing = [name for name in state if name.startswith("res5.1.")]
    for name in missing:
        del state[name]
    with pytest.raises(UserError) as caught:
        load_backbone(bottom_up, state, "w.pth")
    message = str(caught.value)
    assert message.startswith("w.pth: fills 54 of the backbone's 60 tensors, 6 missing")
    assert all(name in message for name in missing)
    assert "checkpoint of the config's architecture" in message
    assert same(bottom_up, before)


def test_long_lists_are_cut_at_twenty_with_a_count(make_cfg, load_backbone):
    bottom_up = build_bottom_up(make_cfg())
    state = {n: t for n, t in random_state(bottom_up).items() if n.startswith(("stem", "res2"))}
    with pytest.raises(UserError, match=r"45 missing \(res3\.0\.shortcut.* and 25 more\)"):
        load_backbone(bottom_up, state)


def test_shapes_that_differ_are_listed(make_cfg, load_backbone):
    state = random_state(build_bottom_up(make_cfg(RES2_OUT_CHANNELS=64)))
    message = r"res2\.0\.conv1\.weight \(64, 32, 3, 3\), not \(32, 32, 3, 3\)"
    with pytest.raises(UserError, match=message):
        load_backbone(build_bottom_up(make_cfg()), state)


def test_a_deeper_networks_file_is_refused_though_it_covers_everything(
    make_full_cfg, load_backbone
):
    state = random_state(build_bottom_up(make_full_cfg(34)))
    model = build_bottom_up(make_full_cfg(18))
    with pytest.raises(UserError, match=r"too many \(res2\.2\.conv1.*those of a resnet34"):
        load_backbone(model, state)


def test_what_changes_nothing_is_allowed(make_full_cfg, load_backbone):
    """Zero biases of Caffe2's convolutions, and a stage that this network leaves out."""
    state = random_state(build_bottom_up(make_full_cfg(18)))
    state["stem.conv1.bias"] = torch.zeros(64)
    cfg = make_full_cfg(18, OUT_FEATURES=["res4"])
    cfg.MODEL.FPN.IN_FEATURES = ["res4"]
    model = build_bottom_up(cfg)
    report = load_backbone(model, state)
    assert same(model, state)
    assert "stem.conv1.bias" in report.unexpected
    assert "res5.0.conv1.weight" in report.unexpected
    state["stem.conv1.bias"][3] = 0.1
    with pytest.raises(UserError, match=r"1 too many \(stem\.conv1\.bias\)"):
        load_backbone(model, state)


def test_nan_in_a_checkpoint_is_refused(make_cfg, load_backbone):
    bottom_up = build_bottom_up(make_cfg())
    state = random_state(bottom_up)
    state["res3.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinity in res3\.0\.conv1\.weight"):
        load_backbone(bottom_up, state)


def test_containers_of_common_training_scripts_are_unwrapped(tmp_path):
    tensor = torch.ones(2)
    for content, name in (
        ({"w": tensor}, "w"),
        ({"model": {"w": tensor}, "optimizer": {"state": {0: {"m": tensor}}}}, "w"),
        ({"epoch": 3, "state_dict": {"w": tensor}}, "w"),
        ({"teacher": {"backbone.w": tensor}, "epoch": 1}, "teacher.backbone.w"),
    ):
        torch.save(content, tmp_path / "w.pth")
        assert list(read_checkpoint(tmp_path / "w.pth")) == [name]


def test_big_endian_arrays_are_read(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.array([1, 2], ">f4")}))
    assert read_checkpoint(tmp_path / "w.pkl")["w"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), noise=st.binary(max_size=30))
def test_damaged_files_are_one_clear_error_or_harmless(name, cut, noise):
    """Harmless: bytes after a whole pickle, or another comment at a zip archive's end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "w.pkl":
            path.write_bytes(pickle.dumps({"model": {"w": np.arange(50.0)}}))
        else:
            torch.save({"model": {"w": torch.arange(50.0)}}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(cut * len(whole))] + noise)
        try:
            found = read_checkpoint(path)
        except UserError as error:
            message = str(error)
        else:
            assert cut > 0.99
            assert found["w"].tolist() == list(range(50))
            return
        assert message.startswith(str(path))


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, {"a": "text"}, 5])
def test_files_without_tensors_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: holds no tensors"):
        read_checkpoint(tmp_path / "w.pth")


def test_written_backbones_are_read_with_their_metadata(make_cfg, tmp_path, load_backbone):
    bottom_up = build_bottom_up(make_cfg())
    state = random_state(bottom_up)
    path = tmp_path / "new" / "w.pth"
    write_backbone(path, state, {"format": 1, "input": input_settings(make_cfg())})
    load_backbone(bottom_up, read_checkpoint(path))
    assert same(bottom_up, state)
    metadata = read_metadata(path)
    assert metadata["format"] == 1
    check_input(make_cfg(), metadata, "w.pth")
    other = make_cfg({"MODEL.PIXEL_STD": [58.0, 57.0, 57.0]})
    with pytest.raises(UserError, match=r"w\.pth: pre-trained with MODEL\.PIXEL_STD \[1\.0, 1\.0"):
        check_input(other, metadata, "w.pth")
    assert weights_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_of_others_have_no_metadata(make_cfg, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pth")
    assert read_metadata(tmp_path / "w.pth") == {}
    check_input(make_cfg(), {}, "w.pth")


def test_unwritable_output_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_backbone(tmp_path / "file" / "w.pth", {"w": torch.ones(1)}, {})


def test_converted_file_fills_a_network_that_the_original_fills(
    make_full_cfg, tmp_path, load_backbone
):
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
    assert PretrainingCost.of(output) == {}
    PretrainingCost.file(source).write_text('{"seconds": 7.5, "device": "cpu"}')
    convert_file(source, output, "resnet18")
    assert PretrainingCost.of(output) == {"cost": {"seconds": 7.5, "device": "cpu"}}
    PretrainingCost.file(source).unlink()
    convert_file(source, output, "resnet18")
    assert PretrainingCost.of(output) == {}


def test_conversion_that_cannot_be_writes_nothing(make_full_cfg, tmp_path):
    source = tmp_path / "r18.pth"
    state = build_bottom_up(make_full_cfg(18)).state_dict()
    torch.save(state, source)
    for output, architecture, message in (
        ("out.pth", "resnet51", "unknown architecture; use one of resnet18"),
        ("out.pth", "resnet50", "not the weights of a resnet50 .* those of a resnet18"),
        ("out.pkl", "resnet18", r"out\.pkl: a checkpoint's name ends in \.pth"),
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
