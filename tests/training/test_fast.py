import contextlib
import copy
import logging

import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.training import kernels

# Without BF16, which the machine may not have.
EXACT = {"SVP.FAST.ENABLED": True, "SVP.FAST.BF16": False}

# Half the distance between neighbouring bfloat16 numbers, relative to them.
ROUNDING = 2**-8


def losses(trainer):
    """Trains and returns the total loss of every iteration, (iterations,)."""
    found = []
    hook = hooks.CallbackHook(
        after_step=lambda trainer: found.append(trainer.storage.history("total_loss").latest())
    )
    trainer.register_hooks([hook])
    trainer.train()
    return torch.tensor(found, dtype=torch.float64)


def distance(some, others):
    """Mean relative difference of the losses of two trainings."""
    return float((some / others - 1).abs().mean())


def test_no_option_is_in_force_by_default(trainer_with):
    trainer = trainer_with("plain")
    assert trainer.described["fast"] == ()
    assert trainer.model is trainer.network


def test_options_are_recorded_and_can_be_left_out(trainer_with):
    trainer = trainer_with("fast", EXACT)
    assert "FUSED_OPTIMIZER" in trainer.described["fast"]
    assert "BF16" not in trainer.described["fast"]
    assert all(group["fused"] for group in trainer.optimizer.param_groups)
    off = {**EXACT, "SVP.FAST.FUSED_OPTIMIZER": False}
    assert trainer_with("off", off).described["fast"] == ()


def test_options_of_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "has_bf16", lambda device: True)
    cfg = default_config()
    cfg.MODEL.DEVICE = "cuda"
    cfg.SVP.FAST.ENABLED = True
    assert kernels.options_in_force(cfg) == ("BF16", "FUSED_OPTIMIZER", "OVERLAP", "PREFETCH")
    cfg.MODEL.DEVICE = "cpu"
    assert kernels.options_in_force(cfg) == ("BF16", "FUSED_OPTIMIZER")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrow_norms_are_group_norms(layout):
    """In float32 as PyTorch's; in bfloat16 but for a rounding of input, weights and output."""
    wide = torch.nn.GroupNorm(4, 8)
    torch.nn.init.normal_(wide.weight)
    model = torch.nn.Sequential(copy.deepcopy(wide))
    kernels.keep_norms_narrow(model)
    [narrow] = model
    assert type(narrow) is not torch.nn.GroupNorm
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 5, 3).to(memory_format=layout).requires_grad_()
    torch.testing.assert_close(narrow(maps), wide(maps), rtol=1e-5, atol=1e-6)
    half = maps.to(torch.bfloat16)
    assert narrow(half).dtype == torch.bfloat16
    torch.testing.assert_close(narrow(half).float(), wide(maps), rtol=4 * ROUNDING, atol=0.05)
    narrow(half).sum().backward()
    assert torch.isfinite(narrow.weight.grad).all()


def test_bfloat16_that_would_be_emulated_is_left_out(trainer_with, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "has_bf16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_with("fast", {"SVP.FAST.ENABLED": True})
    assert "BF16" not in trainer.described["fast"]
    assert "SVP.FAST.BF16 is left out" in caplog.text


def test_the_fused_optimizer_computes_the_same(trainer_with):
    """But for the order of sums; after a few iterations other proposals win, see below."""
    plain = losses(trainer_with("plain", iterations=3))
    fused = losses(trainer_with("fused", EXACT, 3))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=0)


@pytest.mark.skipif(
    not kernels.has_bf16(torch.device("cpu")), reason="no bfloat16 on this processor"
)
def test_losses_differ_no_more_than_by_one_rounding_of_the_weights(trainer_with):
    """A detector's training is chaotic: which proposals are sampled hangs on single comparisons.

    So the tolerance is what the smallest perturbation that bfloat16 stands for makes of the same
    training in float32: every initial weight moved by up to one rounding.
    """
    plain = losses(trainer_with("plain", iterations=25))
    trainer = trainer_with("perturbed", iterations=25)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.network.parameters():
            weight *= 1 + ROUNDING * (2 * torch.rand(weight.shape, generator=noise) - 1)
    perturbed = losses(trainer)
    half = losses(trainer_with("fast", {"SVP.FAST.ENABLED": True}, 25))
    assert not torch.equal(half, plain)
    assert abs(half[0] / plain[0] - 1) < ROUNDING
    assert distance(half, plain) < 1.5 * distance(perturbed, plain)
    assert float(half.mean()) == pytest.approx(float(plain.mean()), rel=0.1)


def test_evaluation_is_in_float32(trainer_with):
    trainer = trainer_with("fast", {"SVP.FAST.ENABLED": True})
    seen = []
    trainer.network.backbone.register_forward_hook(
        lambda module, inputs, outputs: seen.append(outputs["p2"].dtype)
    )
    trainer._evaluate(1)
    assert set(seen) == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_all_options_on_a_gpu(trainer_with):
    device = {"MODEL.DEVICE": "cuda"}
    plain = losses(trainer_with("plain", device))
    trainer = trainer_with("fast", {**device, "SVP.FAST.ENABLED": True})
    expected = {"BF16", "FUSED_OPTIMIZER", "OVERLAP", "PREFETCH"}
    assert expected <= set(trainer.described["fast"])
    half = losses(trainer)
    assert abs(half[0] / plain[0] - 1) < ROUNDING
    assert float(half.mean()) == pytest.approx(float(plain.mean()), rel=0.1)


@pytest.fixture
def trainer_on(trainer_with):
    """Builds a trainer on as many pictures as a device is asked to take at a time."""
    return lambda device, images: trainer_with(
        "output", {"MODEL.DEVICE": device, "SOLVER.IMS_PER_BATCH": images}
    )


@pytest.fixture
def without_streams(monkeypatch):
    """CUDA's streams and events, replaced by ones that do nothing and note what waits for what."""
    waits = []

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            waits.append("stream")

        def wait_event(self, event):
            assert event.recorded
            waits.append("event")

    class Event:
        recorded = False

        def record(self):
            self.recorded = True

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return waits


def batch_losses(trainer, batch):
    """Returns the losses of one batch, with the same random draws each time."""
    seed_all_rng(1)
    found = trainer.network([dict(sample) for sample in batch])
    return {name: loss.item() for name, loss in found.items()}


def batch_of(trainer):
    return next(iter(trainer.stream))


# Fewer images than parts, as many, and more that do not divide.
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("images", [2, kernels.PARTS, 6])
def test_the_same_batch_losses(trainer_on, without_streams, images):
    trainer = trainer_on("cpu", images)
    batch = batch_of(trainer)
    with EventStorage(0):
        expected = batch_losses(trainer, batch)
        kernels.overlap(trainer.network)
        assert batch_losses(trainer, batch) == expected
    # The labels' stream for the ground truth, the main one for the labels, each part for the
    # features and the main one for each part.
    working = min(images, kernels.PARTS)
    assert sorted(without_streams) == ["event"] + ["stream"] * (1 + working + kernels.PARTS)


def test_overlap_leaves_evaluation_as_it_is(trainer_on, without_streams):
    trainer = trainer_on("cpu", 2)
    batch = [{"image": sample["image"]} for sample in batch_of(trainer)]
    trainer.network.eval()
    with torch.no_grad():
        expected = trainer.network(batch)
        kernels.overlap(trainer.network)
        found = trainer.network(batch)
    assert without_streams == []
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["instances"].scores, other["instances"].scores)


def test_a_detector_without_proposals_stays_as_it_is(without_streams):
    model = torch.nn.Module()
    kernels.overlap(model)
    model.proposal_generator = None
    kernels.overlap(model)
    assert without_streams == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_overlap_gives_the_same_losses_on_a_gpu(trainer_on):
    trainer = trainer_on("cuda", 6)
    batch = batch_of(trainer)
    with EventStorage(0):
        expected = batch_losses(trainer, batch)
        kernels.overlap(trainer.network)
        for _ in range(3):
            assert batch_losses(trainer, batch) == pytest.approx(expected, rel=1e-5)
