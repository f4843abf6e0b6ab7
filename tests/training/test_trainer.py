import pytest
import torch
from detectron2.solver import build_lr_scheduler

from scratch_vs_pretrain.config import default_config, paper_schedule, short_schedule
from scratch_vs_pretrain.training.trainer import rate_factor


@pytest.mark.parametrize("schedule", [paper_schedule(2), paper_schedule(6), short_schedule(600)])
def test_rate_is_that_of_detectron2(schedule):
    cfg = default_config()
    schedule.apply(cfg)
    cfg.SOLVER.WARMUP_ITERS = 100
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    reference = build_lr_scheduler(cfg, optimizer)
    checked = {0, 1, 50, 99, 100, 101, schedule.iterations - 1}
    checked |= {step + offset for step in schedule.steps for offset in (-1, 0, 1)}
    for iteration in sorted(checked):
        reference.last_epoch = iteration
        factor = reference.get_lr()[0] / cfg.SOLVER.BASE_LR
        assert rate_factor(cfg, iteration) == pytest.approx(factor, rel=1e-9)


def test_schedules_share_their_trunk_exactly():
    """Detectron2's rate is a function of iteration / MAX_ITER, whose rounding differs."""
    short, long = default_config(), default_config()
    paper_schedule(2).apply(short)
    paper_schedule(5).apply(long)
    trunk = range(0, short.SOLVER.STEPS[0], 7)
    assert [rate_factor(short, k) for k in trunk] == [rate_factor(long, k) for k in trunk]
