import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scratch_vs_pretrain.config import default_config, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.pretraining import pretrain as module
from scratch_vs_pretrain.pretraining.pretrain import pretrain
from scratch_vs_pretrain.run_info import PretrainingCost

DATASETS = Path(__file__).parents[2].parent / "shared" / "datasets"
SPEC = PretrainSpec(
    epochs=4, image_size=32, batch_size=8, learning_rate=0.02, min_area=0.5, device="cpu"
)


@pytest.fixture
def cfg():
    cfg = default_config()
    settings = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_svp_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res5"],
        "MODEL.RESNETS.NORM": "GN",
        "SVP.RESNETS.ALLOW_NARROW": True,
        "MODEL.PIXEL_STD": [60.0, 60.0, 60.0],
    }
    merge_overrides(cfg, settings, "test")
    return cfg


@pytest.fixture
def pictures(tmp_path):
    """Reddish against bluish noise: two classes that anything but chance tells apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 160, (36, 36, 3))
                pixels[:, :, channel] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "pictures"


def test_learns_and_writes_what_a_detector_loads(cfg, pictures, tmp_path, load_backbone):
    result = pretrain(cfg, pictures, tmp_path / "new" / "w.pth", SPEC)
    assert result.accuracy is not None
    assert result.accuracy > 80
    assert result.seconds > 0
    bottom_up = build_bottom_up(cfg)
    weights = read_checkpoint(result.file)
    report = load_backbone(bottom_up, weights)
    assert report.unexpected == ("linear.weight", "linear.bias")
    assert all(torch.equal(t, weights[n]) for n, t in bottom_up.state_dict().items())
    files = sorted(path.name for path in result.file.parent.iterdir())
    assert files == ["w.pth", "w.pth.cost.json"]
    noted = PretrainingCost.of(result.file)
    assert noted == {"cost": {"seconds": pytest.approx(result.seconds), "device": "cpu"}}


@pytest.mark.parametrize(("depth", "as_shortcut"), [(18, False), (50, True)])
def test_deep_networks_start_as_their_shortcuts(cfg, depth, as_shortcut):
    merge_overrides(cfg, {"MODEL.RESNETS.DEPTH": depth}, "test")
    block = module.Classifier(cfg, classes=2).bottom_up.stages[0][0]
    pixels = torch.randn(2, 32, 8, 8)
    shortcut = (block.shortcut(pixels) if block.shortcut else pixels).relu()
    assert torch.equal(block(pixels), shortcut) == as_shortcut


@pytest.mark.parametrize(
    "content", ["", '{"seconds": 1', '{"seconds": -1, "device": "cpu"}', '{"seconds": NaN}', "pipe"]
)
def test_a_cost_that_cannot_be_read_is_left_out_and_said(content, tmp_path, capsys):
    assert PretrainingCost.of(tmp_path / "w.pth") == {}
    assert capsys.readouterr().err == ""
    file = PretrainingCost.file(tmp_path / "w.pth")
    if content == "pipe":
        os.mkfifo(file)
    else:
        file.write_text(content)
        os.truncate(file, 20 * 2**30 if content.endswith('"cpu"}') else len(content))
    assert PretrainingCost.of(tmp_path / "w.pth") == {}
    assert f"{file}: says no time and device" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["cost.json", "partial"])
def test_a_folder_in_the_way_is_found_before_training(cfg, pictures, tmp_path, ending):
    (tmp_path / f"w.pth.{ending}").mkdir()
    with pytest.raises(UserError, match=f"w.pth.{ending}: is a folder; name another file"):
        pretrain(cfg, pictures, tmp_path / "w.pth", SPEC)


def test_metadata_says_what_was_seen(cfg, pictures, tmp_path):
    result = pretrain(cfg, pictures, tmp_path / "w.pth", SPEC)
    metadata = read_metadata(tmp_path / "w.pth")
    assert metadata == result.metadata
    assert metadata["images"] == 32
    assert metadata["epochs"] == 4
    assert metadata["resolution"] == 32
    assert metadata["samples"] == {"images": 128, "instances": 128, "pixels": 128 * 32 * 32}
    assert metadata["classes"] == ["blue", "red"]
    assert metadata["accuracy"] == result.accuracy
    assert metadata["norms"] == {"GN": 20}
    assert metadata["input"]["MODEL.PIXEL_STD"] == [60.0, 60.0, 60.0]
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "NORM: GN" in metadata["config"]


def test_the_same_seed_gives_the_same_file(cfg, pictures, tmp_path):
    torch.manual_seed(1)
    first = pretrain(cfg, pictures, tmp_path / "1.pth", SPEC)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = pretrain(cfg, pictures, tmp_path / "2.pth", SPEC)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.file.read_bytes() == second.file.read_bytes()
    third = pretrain(cfg, pictures, tmp_path / "3.pth", PretrainSpec(**vars(SPEC) | {"seed": 1}))
    one, other = read_checkpoint(first.file), read_checkpoint(third.file)
    assert not torch.equal(one["stem.conv1.weight"], other["stem.conv1.weight"])


def test_a_killed_pretraining_goes_on_and_ends_the_same(cfg, pictures, tmp_path, monkeypatch):
    whole = pretrain(cfg, pictures, tmp_path / "whole.pth", SPEC)

    trained = []
    train_epoch = module._train_epoch

    def killed_in_second(model, optimizer, batches, epoch, *rest):
        trained.append(epoch)
        train_epoch(model, optimizer, batches, epoch, *rest)
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_train_epoch", killed_in_second)
    with pytest.raises(KeyboardInterrupt):
        pretrain(cfg, pictures, tmp_path / "parts.pth", SPEC)
    assert not (tmp_path / "parts.pth").exists()
    parts = pretrain(cfg, pictures, tmp_path / "parts.pth", SPEC)
    assert trained == [0, 1, 1, 2, 3]
    assert parts.file.read_bytes() == whole.file.read_bytes()


def test_a_snapshot_of_another_recipe_is_not_continued(cfg, pictures, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_accuracy", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, pictures, tmp_path / "w.pth", SPEC)
    assert (tmp_path / "w.pth.partial").exists()
    other = PretrainSpec(**vars(SPEC) | {"learning_rate": 0.01})
    result = pretrain(cfg, pictures, tmp_path / "w.pth", other)
    fresh = pretrain(cfg, pictures, tmp_path / "fresh.pth", other)
    assert result.file.read_bytes() == fresh.file.read_bytes()


def test_syncbn_backbones_train_in_one_process(cfg, pictures, tmp_path, load_backbone):
    cfg.MODEL.RESNETS.NORM = "SyncBN"
    spec = PretrainSpec(**vars(SPEC) | {"epochs": 1})
    result = pretrain(cfg, pictures, tmp_path / "w.pth", spec)
    assert result.metadata["norms"] == {"SyncBN (as BatchNorm: one process)": 20}
    assert load_backbone(build_bottom_up(cfg), read_checkpoint(result.file)).missing == ()


@pytest.mark.parametrize("cache", [True, False])
def test_without_validation_pictures_there_is_no_accuracy(cache, cfg, pictures, tmp_path):
    spec = PretrainSpec(**vars(SPEC) | {"epochs": 1, "validation_fraction": 0.0, "cache": cache})
    result = pretrain(cfg, pictures / "train", tmp_path / "w.pth", spec)
    assert result.accuracy is None
    assert read_metadata(result.file)["accuracy"] is None


def test_a_backbone_at_chance_level_is_named(cfg, pictures, tmp_path, capfd):
    spec = PretrainSpec(**vars(SPEC) | {"epochs": 1, "learning_rate": 1e-9})
    result = pretrain(cfg, pictures, tmp_path / "w.pth", spec)
    assert result.accuracy < 90
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "guessing" in line]
    assert "w.pth: " in said
    assert "as by guessing among 2 classes" in said
    pretrain(cfg, pictures, tmp_path / "v.pth", SPEC)
    assert "guessing" not in capfd.readouterr().err


def test_a_progress_bar_shows_loss_and_accuracy(cfg, pictures, tmp_path, capfd):
    spec = PretrainSpec(**vars(SPEC) | {"epochs": 1})
    pretrain(cfg, pictures, tmp_path / "w.pth", spec)
    shown = capfd.readouterr().err
    assert "pre-training: 4/4 batch" in shown
    assert "accuracy=" in shown


def test_a_diverging_loss_is_an_error_that_writes_nothing(cfg, pictures, tmp_path):
    spec = PretrainSpec(**vars(SPEC) | {"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(UserError, match=r"diverged at batch \d+ of 16; lower learning_rate"):
        pretrain(cfg, pictures, tmp_path / "w.pth", spec)
    assert not (tmp_path / "w.pth").exists()


def test_bad_input_is_refused_before_training(cfg, pictures, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    for output, message in (
        (tmp_path / "file" / "w.pth", "cannot be written"),
        (tmp_path, "is a folder; name another file"),
        (tmp_path / "config.yaml", "a checkpoint's name ends in .pth"),
        (tmp_path / "run" / "checkpoints" / "0000600.pth", "lies in the run folder"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(cfg, pictures, output, SPEC)
    with pytest.raises(UserError, match="no such folder"):
        pretrain(cfg, tmp_path / "none", tmp_path / "w.pth", SPEC)
    for field, message in (
        ({"device": "tpu"}, "device: there is no tpu"),
        ({"epochs": 0}, "epochs"),
    ):
        spec = PretrainSpec(**vars(SPEC) | field)
        with pytest.raises(UserError, match=message):
            pretrain(cfg, pictures, tmp_path / "w.pth", spec)


@pytest.mark.skipif(
    not (DATASETS / "imagenette80.tar").exists(), reason="../shared/datasets is absent"
)
def test_real_photographs_are_trained_on(cfg, tmp_path, load_backbone):
    with tarfile.open(DATASETS / "imagenette80.tar") as archive:
        kept, members = {}, []
        for member in archive:
            folder = str(Path(member.name).parent)
            if member.isfile() and kept.get(folder, 0) < 8:
                kept[folder] = kept.get(folder, 0) + 1
                members.append(member)
        # Python 3.11.4 is the first with filters.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path / "imagenette", members, **safe)
    spec = PretrainSpec(**vars(SPEC) | {"epochs": 1, "image_size": 64, "batch_size": 16})
    result = pretrain(cfg, tmp_path / "imagenette", tmp_path / "w.pth", spec)
    assert result.metadata["images"] == 80
    assert result.metadata["validation_images"] == 80
    assert len(result.metadata["classes"]) == 10
    assert load_backbone(build_bottom_up(cfg), read_checkpoint(result.file)).missing == ()


def test_cosine_rises_to_the_rate_and_falls_to_zero():
    spec = PretrainSpec(learning_rate=0.4, warmup=0.1)
    rates = [spec.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert rates[99] == pytest.approx(0.4 * (1 + math.cos(math.pi * 89 / 90)) / 2)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1))
def test_rates_are_positive_and_never_above_the_largest(steps, warmup):
    spec = PretrainSpec(warmup=warmup)
    assert all(0 < spec.rate(step, steps) <= spec.largest_rate for step in range(steps))


@pytest.mark.parametrize(
    "field",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"learning_rate": math.nan},
        {"min_area": 1.5},
        {"warmup": -0.1},
        {"validation_fraction": 2.0},
        {"workers": -1},
    ],
)
def test_values_that_make_no_training_are_refused_by_name(field):
    with pytest.raises(UserError, match=next(iter(field))):
        PretrainSpec(**field).check()


def test_the_defaults_are_a_training():
    PretrainSpec().check()


def test_the_rate_follows_the_batch_size_unless_it_is_given():
    assert PretrainSpec().largest_rate == 0.1
    assert PretrainSpec(batch_size=32).largest_rate == 0.0125
    assert PretrainSpec(batch_size=32, learning_rate=0.3).largest_rate == 0.3


@pytest.mark.parametrize(
    ("size", "batch", "norm"), [(1, 1, "GN"), (1, 5, "GN"), (1, 1, "SyncBN"), (32, 1, "SyncBN")]
)
def test_maps_of_one_pixel_of_one_picture_are_refused_before_training(
    cfg, pictures, tmp_path, monkeypatch, size, batch, norm
):
    """Of 16 pictures for validation the last is alone in its batch of 5."""
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("trained"))
    cfg.MODEL.RESNETS.NORM = norm
    spec = PretrainSpec(**vars(SPEC) | {"image_size": size, "batch_size": batch})
    with pytest.raises(UserError, match=rf"image_size: {size}; .* cannot take batches of 1 such"):
        pretrain(cfg, pictures, tmp_path / "w.pth", spec)
