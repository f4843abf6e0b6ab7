import multiprocessing

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import distributed as dist
from torch import nn

from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checks import (
    NAIVE,
    ONE_PROCESS,
    norm_census,
    use_runnable_norms,
)


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
    assert norm_census(model, world_size=2) == {
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
        process.join(timeout=60)
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
