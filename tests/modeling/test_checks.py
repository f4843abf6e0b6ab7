import multiprocessing

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.modeling import build_backbone
from torch import distributed as dist
from torch import nn

from scratch_vs_pretrain.config import ADMISSIBLE
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import (
    NAIVE,
    ONE_PROCESS,
    check_trainable,
    use_runnable_norms,
)
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
    with pytest.raises(
        UserError, match=r"parameters are frozen \(stem\.conv1\.weight.*FREEZE_AT to 0"
    ):
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


def test_parameters_that_no_optimizer_holds_are_found(make_cfg):
    cfg = make_cfg()
    cfg.SVP.ADMIT = ("",)  # admits nothing
    model = build_bottom_up(cfg)
    optimizer = optimizer_of(model)
    model.late = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"missing from the optimizer \(late\.weight, late\.bias\)"):
        check_trainable(model, cfg, 2, optimizer)


def test_everything_wrong_is_in_one_message(make_cfg):
    cfg = make_cfg({"MODEL.BACKBONE.FREEZE_AT": 1}, NORM="BN")
    with pytest.raises(UserError) as caught:
        check_trainable(build_bottom_up(cfg), cfg, 2)
    for part in ("parameters are frozen", "FrozenBN", "BatchNorm"):
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
    with pytest.raises(UserError, match=r"cannot train from scratch: .*parameters are frozen"):
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
    with pytest.raises(UserError, match=r"parameters are frozen .*leave freeze out"):
        check_trainable(model, scratch, 2)


def test_what_cannot_be_frozen_is_one_sentence(make_cfg):
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
    ],
)
def test_a_study_of_mistakes_can_admit_each(check, keys, make_cfg):
    assert set(ADMISSIBLE) >= {check}
    cfg = make_cfg(keys)
    with pytest.raises(UserError):
        check_trainable(build_backbone(cfg), cfg, 2)
    cfg = make_cfg(keys | {"SVP.ADMIT": [check]})
    check_trainable(build_backbone(cfg), cfg, 2)


def test_census_names_every_kind():
    model = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(2, 4),
        nn.SyncBatchNorm(4),
        FrozenBatchNorm2d(4),
        nn.LayerNorm(4),
        nn.Conv2d(4, 4, 1),
    )
    assert use_runnable_norms(model, "cuda", world_size=2) == {
        "BN": 1,
        "FrozenBN": 1,
        "GN": 2,
        "LN": 1,
        "SyncBN": 1,
    }


def test_syncbn_backbone_trains_on_cpu_with_its_weights_kept(make_cfg):
    torch.manual_seed(0)
    model = build_bottom_up(make_cfg(NORM="SyncBN"))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {id(p) for p in model.parameters()}

    assert use_runnable_norms(model, "cpu", world_size=1) == {ONE_PROCESS: 20}

    assert not [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert {id(p) for p in model.parameters()} == parameters
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_one_process_is_batchnorm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.SyncBatchNorm(5, eps=1e-3, momentum=0.3))
    reference = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3)
    use_runnable_norms(model, "cpu", world_size=1)
    images = torch.randn(3, 5, 4, 4)
    for _ in range(2):
        assert torch.equal(model(images), reference(images))
    model.eval()
    reference.eval()
    assert torch.equal(model(images), reference(images))


def test_evaluation_mode_and_frozen_parameters_survive():
    model = nn.Sequential(nn.SyncBatchNorm(3)).eval()
    model[0].weight.requires_grad_(False)
    use_runnable_norms(model, "cpu", world_size=2)
    assert not model[0].training
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad


@pytest.mark.parametrize(
    ("device", "processes", "runs"),
    [("cuda", 8, "SyncBN"), ("cuda", 1, ONE_PROCESS), ("cpu", 1, ONE_PROCESS), ("cpu", 2, NAIVE)],
)
def test_syncbn_is_replaced_only_where_it_cannot_run(device, processes, runs):
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.GroupNorm(1, 3))
    assert use_runnable_norms(model, device, processes) == {"GN": 1, runs: 1}
    assert isinstance(model[0], NaiveSyncBatchNorm) == (runs != "SyncBN")


def batchnorm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.Conv2d(8, 2, 1))


def train(model, images, share=1.0):
    """Trains three steps; `share` makes one process's loss its part of the whole batch's."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        (model(images).square().mean() * share).backward()
        optimizer.step()


def train_part(rank, part, share, folder):
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    model = batchnorm_network()
    census = use_runnable_norms(model, "cpu", world_size=2)
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    train(parallel, part, share)
    torch.save({"model": model.state_dict(), "census": census}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_gloo_processes_train_as_one_with_the_whole_batch(tmp_path):
    """Unequal parts (1 and 3 images) of one batch give the weights of one BatchNorm process."""
    torch.manual_seed(1)
    images = torch.randn(4, 3, 8, 8)
    context = multiprocessing.get_context("fork")
    # Gradients are averaged over processes, so the shares of the loss add up to two.
    parts = [(0, images[:1], 2 * 1 / 4), (1, images[1:], 2 * 3 / 4)]
    processes = [context.Process(target=train_part, args=(*part, tmp_path)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]

    reference = batchnorm_network()
    use_runnable_norms(reference, "cpu", world_size=1)
    train(reference, images)
    expected = reference.state_dict()
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["census"] == {NAIVE: 1}
        for name, tensor in result["model"].items():
            # Variance as a difference of means of squares loses some digits. The running variance
            # is torch's unbiased one in one process, over 4 x 6 x 6 values: 144 / 143.
            tolerance = 1 / 143 if name == "1.running_var" else 1e-4
            if name != "1.num_batches_tracked":
                torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance)
