"""Every model config: it loads, can be trained from scratch, and describes the intended network."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import FlopCountAnalysis

from scratch_vs_pretrain.config import default_config, merge_file, merge_overrides
from scratch_vs_pretrain.modeling import backbone as _registers_backbones  # noqa: F401
from scratch_vs_pretrain.modeling.checks import check_trainable
from scratch_vs_pretrain.study.audit import recipe_problems

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted(file for file in CONFIGS.glob("*.yaml") if not file.name.startswith("Base-"))

# Of Detectron2 v0.6: configs/Base-RCNN-FPN.yaml.
ZOO_FPN = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}


def zoo_config(norm: str):
    """Returns the zoo's network: configs/Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml and
    scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml of Detectron2 v0.6, with their bases."""
    cfg = default_config()
    values = {
        **ZOO_FPN,
        "MODEL.MASK_ON": True,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.FPN.NORM": norm,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": norm,
        "MODEL.ROI_MASK_HEAD.NORM": norm,
    }
    merge_overrides(cfg, values, "zoo")
    return cfg


def config_of(name: str):
    cfg = default_config()
    merge_file(cfg, CONFIGS / name)
    return cfg


def build(cfg, device: str = "meta"):
    cfg.MODEL.DEVICE = device
    with torch.device(device):
        return build_model(cfg)


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_builds_a_network_that_can_be_trained_from_scratch(file):
    cfg = config_of(file.name)
    assert recipe_problems(cfg) == []
    check_trainable(build(cfg), cfg, images_per_process=2)


def test_base_loads():
    assert recipe_problems(config_of("Base-RCNN-FPN.yaml")) == []


@pytest.mark.parametrize(
    "name", ["mask_rcnn_R_50_FPN_gn", "mask_rcnn_X_152_8x32d_FPN_gn", "keypoint_rcnn_R_50_FPN_gn"]
)
def test_has_the_papers_recipe(name):
    cfg = config_of(f"{name}.yaml")
    solver, image = cfg.SOLVER, cfg.INPUT
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.GAMMA) == (16, 0.02, 0.1)
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY, solver.WARMUP_METHOD) == (0.9, 1e-4, "linear")
    assert (image.MIN_SIZE_TRAIN, image.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert (image.MIN_SIZE_TEST, image.MAX_SIZE_TEST) == (800, 1333)
    assert (image.RANDOM_FLIP, image.CROP.ENABLED) == ("horizontal", False)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("mask_rcnn_R_50_FPN_gn.yaml", "GN"), ("mask_rcnn_R_50_FPN_syncbn.yaml", "SyncBN")],
)
def test_r50_has_the_zoos_parameters(name, norm):
    assert shapes(build(config_of(name))) == shapes(build(zoo_config(norm)))


def test_every_part_is_normalized():
    # One layer per backbone convolution (53 of R50), FPN convolution (2 x 4), and convolution of
    # the box head (4) and mask head (4).
    names = {"GN": "GroupNorm", "SyncBN": "NaiveSyncBatchNorm"}
    for norm, kind in names.items():
        model = build(config_of(f"mask_rcnn_R_50_FPN_{norm.lower()}.yaml"))
        census = Counter(
            name.split(".")[0] if name.startswith("backbone") else name.split(".")[1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.GroupNorm) or type(module).__name__.endswith("BatchNorm")
        )
        assert census == {"backbone": 53 + 8, "box_head": 4, "mask_head": 4}, kind


def test_vgg_is_the_original():
    model = build(config_of("faster_rcnn_VGG_16.yaml"))
    assert not [m for m in model.modules() if "Norm" in type(m).__name__]
    # 14.7M of the convolutions; fc6 and fc7, as in the classifier of 138M without its last layer.
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    assert count["backbone"] == 14_714_688
    head = sum(p.numel() for p in model.roi_heads.box_head.parameters())
    assert head == 138_357_544 - 14_714_688 - (4096 * 1000 + 1000)
    assert model.roi_heads.box_pooler.output_size == (7, 7)
    assert [pooler.spatial_scale for pooler in model.roi_heads.box_pooler.level_poolers] == [1 / 16]
    assert model.proposal_generator.in_features == ["conv5_3"]
    assert model.proposal_generator.anchor_generator.num_anchors == [15]


def test_x152_has_four_times_the_flops_of_r101():
    # 8x32d, not the zoo's 32x8d, which has 24.38 GMAC at 224 pixels, or 3.1 times.
    # Convolutions cost in proportion to the area, so that of 224 pixels is 49 times that of 32.
    macs = {}
    for name in ("mask_rcnn_X_152_8x32d_FPN_gn.yaml", "mask_rcnn_R_101_FPN_gn.yaml"):
        bottom_up = build(config_of(name)).backbone.bottom_up.to_empty(device="cpu").eval()
        analysis = FlopCountAnalysis(bottom_up, torch.empty(1, 3, 32, 32))
        macs[name] = analysis.unsupported_ops_warnings(False).by_operator()["conv"] * 49 / 1e9
    x152, r101 = macs.values()
    assert (x152, r101) == pytest.approx((33.05, 7.80), abs=0.01)
    assert x152 / r101 == pytest.approx(4.24, abs=0.01)


@pytest.fixture
def sample():
    """One 96-pixel image with two objects."""
    generator = torch.Generator().manual_seed(0)
    truth = Instances((96, 96))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8, 56, 64], [40.0, 30, 90, 90]]))
    truth.gt_classes = torch.tensor([3, 17])
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0, 8:64, 8:56] = masks[1, 30:90, 40:90] = True
    truth.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, 96, 96), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 96, "width": 96, "instances": truth}


def test_r50_computes_what_the_zoos_does(sample):
    # Equal weights, equal losses and detections. A low threshold, so that random weights detect.
    models = [config_of("mask_rcnn_R_50_FPN_gn.yaml"), zoo_config("GN")]
    for cfg in models:
        cfg.INPUT.MASK_FORMAT = "bitmask"
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.TEST.DETECTIONS_PER_IMAGE = 10
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    ours, zoos = (build(cfg, "cpu") for cfg in models)
    zoos.load_state_dict(ours.state_dict())
    losses = []
    for model in (ours, zoos):
        torch.manual_seed(0)
        with EventStorage():
            losses.append({name: loss.item() for name, loss in model([sample]).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 5
    with torch.no_grad():
        found = [model.eval()([sample])[0]["instances"] for model in (ours, zoos)]
    assert len(found[0]) == len(found[1]) > 0
    torch.testing.assert_close(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)
    torch.testing.assert_close(found[0].scores, found[1].scores)
    assert torch.equal(found[0].pred_classes, found[1].pred_classes)
    assert torch.equal(found[0].pred_masks, found[1].pred_masks)
