import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from scratch_vs_pretrain.config import default_config, merge_overrides
from scratch_vs_pretrain.modeling import backbone as _registers_backbones  # noqa: F401
from scratch_vs_pretrain.training.checkpoint import plain_name, switched_state

CLASSES = 3
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_svp_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.FPN.NORM": "GN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [48], [64]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NORM": "GN",
    "INPUT.MASK_FORMAT": "bitmask",
    "SVP.RESNETS.ALLOW_NARROW": True,
}
CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}
AGNOSTIC = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
LATER = ("box_head.1.", "box_head.2.", "box_predictor.1.", "box_predictor.2.")


def build(overrides=None, seed=0):
    cfg = default_config()
    merge_overrides(cfg, SMALL | (overrides or {}), "test")
    torch.manual_seed(seed)
    model = build_model(cfg)
    return model, build_optimizer(cfg, model)


def sample():
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 50], [20.0, 16, 60, 60]]))
    truth.gt_classes = torch.tensor([0, 2])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:50, 8:40] = masks[1, 16:60, 20:60] = True
    truth.gt_masks = BitMasks(masks)
    image = torch.arange(3 * 64 * 64).reshape(3, 64, 64).remainder(251).to(torch.uint8)
    return {"image": image, "height": 64, "width": 64, "instances": truth}


def step(model, optimizer):
    with EventStorage():
        losses = model.train()([sample()])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def checkpoint(model, optimizer):
    state = {"iteration": 7, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state)


def momentum(model, optimizer):
    return {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


@pytest.fixture(scope="module")
def trained():
    """A class-agnostic plain detector and its optimizer after two steps."""
    model, optimizer = build(AGNOSTIC)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def test_first_stage_is_the_plain_box_head_and_later_ones_are_fresh(trained):
    cascade, optimizer = build(CASCADE, seed=1)
    own = {name: tensor.clone() for name, tensor in cascade.state_dict().items()}
    plain = trained[0].state_dict()
    switched = switched_state(checkpoint(*trained), cascade, optimizer)["model"]
    assert set(switched) == set(own)
    fresh = {name for name in own if plain_name(name) is None}
    assert {plain_name(name) for name in own.keys() - fresh} == set(plain)
    for name, tensor in switched.items():
        assert torch.equal(tensor, own[name] if name in fresh else plain[plain_name(name)])
    for name in fresh:
        assert name.startswith(tuple(f"roi_heads.{part}" for part in LATER))
    # conv, its norm's scale and shift, fc weight and bias; classifier and regressor: twice.
    assert len(fresh) == 2 * (1 + 2 + 2 + 4)


def test_first_stage_predicts_what_the_plain_detector_does(trained):
    cascade, optimizer = build(CASCADE, seed=1)
    plain = trained[0]
    cascade.load_state_dict(switched_state(checkpoint(*trained), cascade, optimizer)["model"])
    pooled = torch.randn(5, 32, 7, 7)
    with torch.no_grad():
        expected = plain.roi_heads.box_predictor(plain.roi_heads.box_head(pooled))
        found = cascade.roi_heads.box_predictor[0](cascade.roi_heads.box_head[0](pooled))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_regressors_of_classes_are_averaged():
    plain, optimizer = build()
    step(plain, optimizer)
    cascade, cascade_optimizer = build(CASCADE, seed=1)
    names = [f"roi_heads.box_predictor.0.bbox_pred.{kind}" for kind in ("weight", "bias")]
    state = switched_state(checkpoint(plain, optimizer), cascade, cascade_optimizer)
    weight = plain.state_dict()["roi_heads.box_predictor.bbox_pred.weight"]
    mean = torch.stack([weight[4 * k : 4 * k + 4] for k in range(CLASSES)]).mean(0)
    torch.testing.assert_close(state["model"][names[0]], mean)
    cascade_optimizer.load_state_dict(state["optimizer"])
    assert not set(names) & set(momentum(cascade, cascade_optimizer))


def test_momentum_goes_with_its_parameter(trained):
    cascade, optimizer = build(CASCADE, seed=1)
    before = checkpoint(*trained)
    state = switched_state(before, cascade, optimizer)
    assert state["iteration"] == 7
    cascade.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    plain, found = momentum(*trained), momentum(cascade, optimizer)
    assert {plain_name(name) for name in found} == set(plain)
    for name, buffer in found.items():
        assert torch.equal(buffer, plain[plain_name(name)]), name
    # The norms' weight decay is another; each parameter stays in its group.
    decays = [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    plain_decays = [(g["weight_decay"], len(g["params"])) for g in trained[1].param_groups]
    assert [decay for decay, _ in decays] == [decay for decay, _ in plain_decays]
    assert [len(g["params"]) for g in build(CASCADE)[1].param_groups] == [n for _, n in decays]


def test_cascade_trains_on_after_the_switch(trained):
    cascade, optimizer = build(CASCADE, seed=1)
    state = switched_state(checkpoint(*trained), cascade, optimizer)
    cascade.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    losses = step(cascade, optimizer)
    assert {f"loss_cls_stage{stage}" for stage in range(3)} < set(losses)
    assert all(loss == loss for loss in losses.values())
    # A fresh parameter's first momentum is its gradient and weight decay alone.
    name = "roi_heads.box_head.1.fc1.bias"
    parameter = dict(cascade.named_parameters())[name]
    decay = 1e-4 * state["model"][name]
    expected = parameter.grad + decay
    torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], expected)


def test_plain_checkpoint_is_left_alone(trained):
    before = checkpoint(*trained)
    again = copy.deepcopy(before)
    switched_state(before, *build(CASCADE, seed=1))
    assert set(before["optimizer"]["state"]) == set(again["optimizer"]["state"])
    assert all(torch.equal(before["model"][name], t) for name, t in again["model"].items())


def test_one_mask_head_sees_the_boxes_of_the_last_stage():
    cascade, _ = build(CASCADE)
    assert len(cascade.roi_heads.box_head) == len(cascade.roi_heads.box_predictor) == 3
    names = [name for name in cascade.state_dict() if "mask_head" in name]
    assert not any(name.split(".")[2].isdigit() for name in names)
    seen = []
    cascade.roi_heads.mask_pooler.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[1])
    )
    with torch.no_grad():
        found = cascade.eval()([sample()])[0]["instances"]
    (boxes,) = seen
    assert len(found) > 0
    assert torch.equal(boxes[0].tensor, found.pred_boxes.tensor)
