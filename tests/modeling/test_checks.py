import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

from scratch_vs_pretrain.config_checks import ADMISSIBLE
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import check_trainable, use_runnable_norms
from scratch_vs_pretrain.modeling.initial import freeze


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


PRETRAINED = {"MODEL.WEIGHTS": "weights.pth"}


def test_a_pretrained_backbone_may_be_frozen_and_nothing_else(make_cfg):
    """What most people fine-tune with."""
    keys = PRETRAINED | {"MODEL.BACKBONE.FREEZE_AT": 2}
    cfg = make_cfg(keys, NORM="FrozenBN")
    model = build_backbone(cfg)
    check_trainable(model, cfg, 2)
    with pytest.raises(UserError, match=r"cannot train from scratch: .*FREEZE_AT is 2"):
        check_trainable(model, make_cfg({"MODEL.BACKBONE.FREEZE_AT": 2}, NORM="FrozenBN"), 2)
    model.fpn_output3.weight.requires_grad_(False)
    model.fpn_lateral2.norm = FrozenBatchNorm2d(32)
    with pytest.raises(UserError) as caught:
        check_trainable(model, cfg, 2)
    assert str(caught.value).startswith("this cannot train from weights that are given: 1 param")
    assert "fpn_output3.weight" in str(caught.value)
    assert "1 layers are FrozenBN (fpn_lateral2.norm)" in str(caught.value)


def test_batchnorm_at_a_small_batch_is_refused_with_any_weights(make_cfg):
    cfg = make_cfg(PRETRAINED, NORM="BN")
    with pytest.raises(UserError, match="20 layers are BatchNorm"):
        check_trainable(build_backbone(cfg), cfg, 2)


@pytest.mark.parametrize("norm", ["GN", "BN", "SyncBN"])
def test_frozen_features_are_the_bottom_up_with_its_statistics(norm, make_cfg):
    cfg = make_cfg(PRETRAINED | {"SVP.FREEZE": "backbone"}, NORM=norm)
    model = build_backbone(cfg)
    freeze(model, cfg)
    check_trainable(model, cfg, 2)
    images, before = torch.randn(2, 3, 64, 64), dict(model.bottom_up.state_dict())
    before = {name: tensor.clone() for name, tensor in before.items()}
    model.train()
    sum(features.sum() for features in model(images).values()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = model.bottom_up.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if not n.startswith("bottom_up.")}
    scratch = make_cfg({"SVP.FREEZE": "backbone"}, NORM=norm)
    with pytest.raises(UserError, match=r"SVP\.FREEZE is backbone and keeps it random"):
        check_trainable(model, scratch, 2)


def test_what_cannot_be_frozen_is_one_sentence(make_cfg):
    cfg = make_cfg({"SVP.FREEZE": "neck"})
    with pytest.raises(UserError, match=r"SVP\.FREEZE: 'neck'; use backbone"):
        freeze(build_backbone(cfg), cfg)
    keys = {"MODEL.BACKBONE.NAME": "build_svp_timm_fpn_backbone", "MODEL.TIMM.NAME": "test_resnet"}
    cfg = make_cfg(keys | {"SVP.FREEZE": "backbone"})
    with pytest.raises(UserError, match="BatchNorm of timm's test_resnet cannot be frozen"):
        freeze(build_backbone(cfg), cfg)


@pytest.mark.parametrize(
    ("check", "keys"),
    [
        ("frozen-stages-from-scratch", {"MODEL.BACKBONE.FREEZE_AT": 2}),
        ("frozen-norm-from-scratch", {"MODEL.RESNETS.NORM": "FrozenBN"}),
        ("small-batch-norm", {"MODEL.RESNETS.NORM": "BN"}),
        ("no-warm-up", {"SOLVER.WARMUP_ITERS": 0}),
    ],
)
def test_a_study_of_mistakes_can_admit_each(check, keys, make_cfg):
    assert set(ADMISSIBLE) >= {check}
    cfg = make_cfg(keys)
    with pytest.raises(UserError):
        check_trainable(build_backbone(cfg), cfg, 2)
    cfg = make_cfg(keys | {"SVP.ADMIT": [check]})
    check_trainable(build_backbone(cfg), cfg, 2)
