import copy
import logging

import pytest
import torch

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.training import fast

# Without BF16, which the machine may not have.
EXACT = {"SVP.FAST.ENABLED": True, "SVP.FAST.BF16": False}

# Half the distance between neighbouring bfloat16 numbers, relative to them.
ROUNDING = 2**-8


def losses(trainer):
    """Trains and returns the total loss of every iteration, (50,)."""
    trainer.train()
    return torch.tensor(
        [value for value, _ in trainer.storage.history("total_loss").values()],
        dtype=torch.float64,
    )


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


def test_compiling_makes_a_resume_inexact():
    cfg = default_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.SVP.FAST.COMPILE_BACKBONE = True
    assert fast.inexact_because(cfg) == []
    cfg.SVP.FAST.ENABLED = True
    (reason,) = fast.inexact_because(cfg)
    assert "compiled backbone" in reason


def test_a_run_on_a_gpu_that_is_to_repeat_itself_tries_no_algorithms(monkeypatch):
    monkeypatch.setattr(fast, "has_bf16", lambda device: True)
    cfg = default_config()
    cfg.MODEL.DEVICE = "cuda"
    cfg.SVP.FAST.ENABLED = True
    cfg.SVP.FAST.CUDNN_BENCHMARK = True
    expected = ("BF16", "CUDNN_BENCHMARK", "FUSED_OPTIMIZER", "OVERLAP", "PREFETCH")
    assert fast.options_in_force(cfg) == expected
    cfg.SVP.DETERMINISTIC = True
    assert fast.options_in_force(cfg) == tuple(n for n in expected if n != "CUDNN_BENCHMARK")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrow_norms_are_group_norms(layout):
    """In float32 as PyTorch's; in bfloat16 but for a rounding of input, weights and output."""
    wide = torch.nn.GroupNorm(4, 8)
    torch.nn.init.normal_(wide.weight)
    narrow = copy.deepcopy(wide)
    fast.keep_norms_narrow(narrow)
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 5, 3).to(memory_format=layout).requires_grad_()
    torch.testing.assert_close(narrow(maps), wide(maps), rtol=1e-5, atol=1e-6)
    half = maps.to(torch.bfloat16)
    assert narrow(half).dtype == torch.bfloat16
    torch.testing.assert_close(narrow(half).float(), wide(maps), rtol=4 * ROUNDING, atol=0.05)
    narrow(half).sum().backward()
    assert torch.isfinite(narrow.weight.grad).all()


def test_bfloat16_that_would_be_emulated_is_left_out(trainer_with, monkeypatch, caplog):
    monkeypatch.setattr(fast, "has_bf16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_with("fast", {"SVP.FAST.ENABLED": True})
    assert "BF16" not in trainer.described["fast"]
    assert "SVP.FAST.BF16 is left out" in caplog.text


def test_the_fused_optimizer_and_channels_last_compute_the_same(trainer_with):
    """But for the order of sums; after a few iterations other proposals win, see below."""
    plain = losses(trainer_with("plain", iterations=3))
    fused = losses(trainer_with("fused", EXACT, 3))
    layout = losses(trainer_with("layout", {**EXACT, "SVP.FAST.CHANNELS_LAST": True}, 3))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=0)
    torch.testing.assert_close(layout[0], plain[0], rtol=1e-3, atol=0)


@pytest.mark.skipif(not fast.has_bf16(torch.device("cpu")), reason="no bfloat16 on this processor")
def test_losses_differ_no_more_than_by_one_rounding_of_the_weights(trainer_with):
    """A detector's training is chaotic: which proposals are sampled hangs on single comparisons.

    So the tolerance is what the smallest perturbation that bfloat16 stands for makes of the same
    training in float32: every initial weight moved by up to one rounding.
    """
    plain = losses(trainer_with("plain"))
    trainer = trainer_with("perturbed")
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.network.parameters():
            weight *= 1 + ROUNDING * (2 * torch.rand(weight.shape, generator=noise) - 1)
    perturbed = losses(trainer)
    half = losses(trainer_with("fast", {"SVP.FAST.ENABLED": True}))
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
@pytest.mark.parametrize("layout", [{}, {"SVP.FAST.CHANNELS_LAST": True}])
def test_all_options_on_a_gpu(trainer_with, layout):
    device = {"MODEL.DEVICE": "cuda"}
    plain = losses(trainer_with("plain", device))
    trainer = trainer_with("fast", {**device, **layout, "SVP.FAST.ENABLED": True})
    expected = {"BF16", "FUSED_OPTIMIZER", "OVERLAP", "PREFETCH"}
    assert expected <= set(trainer.described["fast"])
    half = losses(trainer)
    assert abs(half[0] / plain[0] - 1) < ROUNDING
    assert float(half.mean()) == pytest.approx(float(plain.mean()), rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_compiled_backbone_computes_the_same(trainer_with):
    device = {"MODEL.DEVICE": "cuda"}
    only = {
        **EXACT,
        "SVP.FAST.FUSED_OPTIMIZER": False,
        "SVP.FAST.OVERLAP": False,
        "SVP.FAST.PREFETCH": False,
        "SVP.FAST.COMPILE_BACKBONE": True,
    }
    plain = losses(trainer_with("plain", device))
    compiled = losses(trainer_with("compiled", {**device, **only}))
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-3, atol=0)
