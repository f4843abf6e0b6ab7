import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import check_trainable
from scratch_vs_pretrain.modeling.norms import use_runnable_norms


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("norm", ["GN", "SyncBN"])
@pytest.mark.parametrize("replace", [False, True])
def test_sound_models_pass_at_any_batch(norm, replace, make_cfg):
    cfg = make_cfg(NORM=norm)
    model = build_bottom_up(cfg)
    if replace:
        use_runnable_norms(model, "cpu", world_size=1)
    check_trainable(model, cfg, images_per_process=1, optimizer=optimizer_of(model))


@pytest.mark.parametrize(("images", "refused"), [(2, True), (15, True), (16, False)])
def test_batchnorm_needs_images(images, refused, make_cfg):
    cfg = make_cfg(NORM="BN")
    model = build_bottom_up(cfg)
    if not refused:
        check_trainable(model, cfg, images)
        return
    with pytest.raises(UserError, match=f"20 layers are BatchNorm.*at {images} images.*NORM to GN"):
        check_trainable(model, cfg, images)


def test_frozen_stages_are_named_with_the_key(make_cfg):
    cfg = make_cfg({"MODEL.BACKBONE.FREEZE_AT": 2})
    with pytest.raises(UserError, match=r"FREEZE_AT is 2.*stem\.conv1\.weight.*set it to 0"):
        check_trainable(build_bottom_up(cfg), cfg, 2)


def test_a_single_frozen_parameter_is_found(make_cfg):
    cfg = make_cfg()
    model = build_bottom_up(cfg)
    model.res4[1].conv2.norm.bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"1 parameters are frozen \(res4\.1\.conv2\.norm\.bias\)"):
        check_trainable(model, cfg, 2)


def test_frozen_batchnorm_is_found_anywhere(make_cfg):
    cfg = make_cfg()
    model = build_bottom_up(cfg)
    model.res5[0].conv1.norm = FrozenBatchNorm2d(256)
    with pytest.raises(UserError, match=r"1 layers are FrozenBN \(res5\.0\.conv1\.norm\)"):
        check_trainable(model, cfg, 2)


@pytest.mark.parametrize("overrides", [{"SOLVER.WARMUP_ITERS": 0}, {"SOLVER.WARMUP_FACTOR": 1.0}])
def test_missing_warmup_is_found(overrides, make_cfg):
    cfg = make_cfg(overrides)
    with pytest.raises(UserError, match=f"no warm-up: {next(iter(overrides))}"):
        check_trainable(build_bottom_up(cfg), cfg, 2)


def test_parameters_that_no_optimizer_holds_are_found(make_cfg):
    cfg = make_cfg()
    model = build_bottom_up(cfg)
    optimizer = optimizer_of(model)
    model.late = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"missing from the optimizer \(late\.weight, late\.bias\)"):
        check_trainable(model, cfg, 2, optimizer)


def test_everything_wrong_is_in_one_message(make_cfg):
    overrides = {"MODEL.BACKBONE.FREEZE_AT": 1, "SOLVER.WARMUP_ITERS": 0}
    cfg = make_cfg(overrides, NORM="BN")
    with pytest.raises(UserError) as caught:
        check_trainable(build_bottom_up(cfg), cfg, 2)
    for part in ("FREEZE_AT is 1", "FrozenBN", "BatchNorm", "WARMUP_ITERS"):
        assert part in str(caught.value)
    # Freezing turns the stem's norm into FrozenBN, so 19 are left.
    assert "19 layers are BatchNorm" in str(caught.value)
    assert "and 14 more" in str(caught.value)
