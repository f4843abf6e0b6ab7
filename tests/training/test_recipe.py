import pytest
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2_optimizer

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.study.sections import paper_schedule, short_schedule
from scratch_vs_pretrain.training.recipe import build_optimizer, depth_of, rate_factor


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


class Net(torch.nn.Module):
    """The names of a transformer's backbone and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.ModuleDict({"net": torch.nn.Module()})
        self.backbone["net"].patch_embed = torch.nn.Linear(2, 2)
        self.backbone["net"].blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        self.backbone["net"].norm = torch.nn.LayerNorm(2)
        self.head = torch.nn.Linear(2, 2)


def test_adamw_with_vitdets_decay_of_rates():
    cfg, model = default_config(), Net()
    cfg.SVP.OPTIMIZER, cfg.SVP.LAYER_DECAY = "AdamW", 0.5
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.1, 0.2, 0.0
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    of = {
        name: (group["lr"] / 0.1, group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
        for name, own in model.named_parameters()
        if own is value
    }
    assert len(of) == len(list(model.parameters()))
    # get_vit_lr_decay_rate of upstream main's projects/ViTDet, for three blocks.
    assert of["backbone.net.patch_embed.weight"] == pytest.approx((0.5**4, 0.2))
    assert [of[f"backbone.net.blocks.{k}.bias"][0] for k in range(3)] == pytest.approx(
        [0.5**3, 0.5**2, 0.5]
    )
    assert of["backbone.net.norm.weight"] == (1.0, 0.0)
    assert of["head.weight"] == (1.0, 0.2)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("backbone.bottom_up.stem.conv1.weight", 0),
        ("backbone.bottom_up.res2.0.conv1.weight", 1),
        ("backbone.bottom_up.res5.1.conv2.norm.bias", 4),
        ("backbone.net.pos_embed", 0),
        ("backbone.net.blocks.11.attn.qkv.weight", 12),
        ("backbone.fpn_lateral2.weight", None),
        ("roi_heads.res5.0.conv1.weight", None),
    ],
)
def test_depth_of_a_parameter(name, depth):
    assert depth_of(name) == depth


def test_sgd_is_detectron2s():
    cfg, model = default_config(), Net()
    ours, theirs = build_optimizer(cfg, model), detectron2_optimizer(cfg, model)
    assert type(ours) is type(theirs)
    assert ours.state_dict() == theirs.state_dict()
