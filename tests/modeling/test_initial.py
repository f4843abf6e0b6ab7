import pickle

import pytest
import torch
import torchvision
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from safetensors.torch import save_file

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint
from scratch_vs_pretrain.modeling.initial import heads_of, match_backbone, match_detector

SMALL = {
    "MODEL.MASK_ON": True,
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
}
CLASS_LAYERS = {
    f"roi_heads.{layer}.{parameter}"
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    for parameter in ("weight", "bias")
}


@pytest.fixture
def make_detector(make_cfg):
    """Builds a small Mask R-CNN from a seed, as a run does."""

    def make(seed, overrides=None, **resnets):
        seed_all_rng(seed)
        return build_model(make_cfg(SMALL | (overrides or {}), **resnets))

    return make


def load_detector(model, *arguments):
    report, tensors = match_detector(model, *arguments)
    model.load_state_dict(tensors, strict=False)
    return report


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_another_number_of_classes_keeps_the_other_arms_class_layers_to_the_bit(make_detector):
    trained = state_of(make_detector(1, {"MODEL.ROI_HEADS.NUM_CLASSES": 7}))
    scratch, model = make_detector(0), make_detector(0)
    report = load_detector(model, trained)
    found, initial = state_of(model), state_of(scratch)
    assert set(report.reinitialized) == CLASS_LAYERS
    assert not differing({name: initial[name] for name in CLASS_LAYERS}, found)
    assert not differing({n: t for n, t in found.items() if n not in CLASS_LAYERS}, trained)
    assert set(report.unexpected) == CLASS_LAYERS
    assert report.loaded == len(found) - len(CLASS_LAYERS)


def test_the_same_number_of_classes_is_loaded_whole(make_detector):
    trained = state_of(make_detector(1))
    model = make_detector(0)
    report = load_detector(model, trained | {"pixel_mean": torch.zeros(3, 1, 1)})
    assert not differing(trained, state_of(model))
    assert report.reinitialized == ()
    assert report.unexpected == ("pixel_mean",)


def test_heads_of_users_own_are_filled_by_their_names(make_detector):
    first, second = make_detector(1), make_detector(0)
    first.my_head, second.my_head = (torch.nn.Linear(2, 2) for _ in range(2))
    report = load_detector(second, state_of(first))
    assert report.reinitialized == report.unexpected == ()
    assert torch.equal(first.my_head.weight, second.my_head.weight)


def test_files_of_detectron2s_zoo_and_of_runs_are_read(make_detector, tmp_path):
    trained = state_of(make_detector(1))
    zoo = {
        "model": {n: t.numpy() for n, t in trained.items()},
        "__author__": "Detectron2 Model Zoo",
    }
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(zoo))
    torch.save({"format": 1, "iteration": 9, "model": trained}, tmp_path / "0000009.pth")
    for name in ("model_final.pkl", "0000009.pth"):
        model = make_detector(0)
        assert load_detector(model, read_checkpoint(tmp_path / name)).reinitialized == ()
        assert not differing(trained, state_of(model))


def test_scale_and_shift_of_batchnorm_do_not_enter_groupnorm_in_the_heads(make_detector):
    trained = state_of(make_detector(1, {"MODEL.FPN.NORM": "BN"}))
    model, scratch = make_detector(0), make_detector(0)
    report = load_detector(model, trained)
    norms = {name for name in report.reinitialized if ".norm." in name}
    assert norms == set(report.reinitialized)
    assert len(norms) == 16
    initial = state_of(scratch)
    assert not differing({name: initial[name] for name in norms}, state_of(model))


def test_what_is_no_detector_for_this_config_is_one_sentence(make_detector, make_cfg):
    model = make_detector(0)
    before = state_of(model)
    backbone = {n: t for n, t in before.items() if n.startswith("backbone.bottom_up.")}
    with pytest.raises(UserError, match=r"w\.pth: a backbone without heads.*use load: backbone"):
        load_detector(model, backbone, "w.pth")
    retinanet = state_of(
        make_detector(
            1,
            {
                "MODEL.META_ARCHITECTURE": "RetinaNet",
                "MODEL.RETINANET.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
                "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
            },
        )
    )
    heads = {n: t for n, t in retinanet.items() if n.startswith("head.")}
    assert heads
    with pytest.raises(
        UserError,
        match=r"w\.pth: a detector of another meta architecture \(it has head, this config "
        r"proposal_generator, roi_heads\)",
    ):
        load_detector(model, backbone | heads, "w.pth")
    other = {n: t[:1] for n, t in before.items() if n.startswith("roi_heads.") and t.ndim > 1}
    with pytest.raises(UserError, match=r"w\.pth: nothing of its heads fits"):
        load_detector(model, backbone | other, "w.pth")
    broken = before | {"roi_heads.box_head.fc1.bias": before["roi_heads.box_head.fc1.bias"] / 0}
    with pytest.raises(UserError, match=r"NaN or infinity in roi_heads\.box_head\.fc1\.bias"):
        load_detector(model, broken, "w.pth")
    assert not differing(before, state_of(model))


V1 = {
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
}
V2 = V1 | {
    "MODEL.FPN.NORM": "BN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_MASK_HEAD.NORM": "BN",
}


@pytest.mark.parametrize(("name", "keys"), [("fpn", V1), ("fpn_v2", V2)])
def test_torchvisions_mask_rcnn_computes_the_same(name, keys, make_full_cfg):
    torch.manual_seed(0)
    build = getattr(torchvision.models.detection, f"maskrcnn_resnet50_{name}")
    reference = build(weights=None, weights_backbone=None).eval()
    for module in reference.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model = build_model(make_full_cfg(50, SMALL | keys, NORM="FrozenBN")).eval()
    report = load_detector(model, reference.state_dict())
    assert report.reinitialized == ()
    assert all(
        "num_batches" in name or name.startswith("backbone.body.fc") for name in report.unexpected
    )
    images, regions = torch.randn(1, 3, 64, 96), torch.randn(2, 256, 7, 7)
    mask_regions = torch.randn(2, 256, 14, 14)
    ids = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
    with torch.no_grad():
        theirs = list(reference.backbone(images).values())
        ours = model.backbone(images)
        for found, expected in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        scores, deltas = reference.rpn.head(theirs)
        found_scores, found_deltas = model.proposal_generator.rpn_head(list(ours.values()))
        torch.testing.assert_close(found_scores, scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found_deltas, deltas, rtol=1e-4, atol=1e-4)
        scores, boxes = reference.roi_heads.box_predictor(reference.roi_heads.box_head(regions))
        found_scores, found_boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(regions))
        torch.testing.assert_close(found_scores, scores[:, [*ids, 0]], rtol=1e-4, atol=1e-4)
        boxes = boxes.view(2, 91, 4)[:, ids].flatten(1)
        torch.testing.assert_close(found_boxes, boxes, rtol=1e-4, atol=1e-4)
        masks = reference.roi_heads.mask_predictor(reference.roi_heads.mask_head(mask_regions))
        found_masks = model.roi_heads.mask_head.layers(mask_regions)
        torch.testing.assert_close(found_masks, masks[:, ids], rtol=1e-4, atol=1e-4)


def test_torchvisions_background_goes_last(make_full_cfg):
    """Of another data set, whose ids are all in use."""
    names = {
        "backbone.body.layer1.0.conv1.weight": torch.zeros(1),
        "roi_heads.box_predictor.cls_score.bias": torch.arange(4.0),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(16.0),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": torch.arange(4.0),
    }
    heads = heads_of(names)
    assert heads["roi_heads.box_predictor.cls_score.bias"][1].tolist() == [1, 2, 3, 0]
    assert heads["roi_heads.box_predictor.bbox_pred.bias"][1].tolist() == list(range(4, 16))
    assert heads["roi_heads.mask_head.predictor.bias"][1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float64"])
def test_what_are_no_weights_of_float32_is_one_sentence(kind, make_detector, tmp_path):
    model, file = make_detector(0), tmp_path / "w.safetensors"
    dtype = getattr(torch, kind)
    backbone = {n: t for n, t in state_of(model).items() if n.startswith("backbone.bottom_up.")}
    name = "backbone.bottom_up.res2.0.conv1.weight"
    bad = backbone[name].to(dtype)
    save_file(backbone | {name: bad * 1e300 if kind == "float64" else bad}, file)
    says = rf"w\.safetensors: res2\.0\.conv1\.weight holds {kind} numbers \(quantised\?\); give one"
    if kind == "float64":
        says = r"w\.safetensors: NaN or infinity in res2\.0\.conv1\.weight, as float32"
    with pytest.raises(UserError, match=says):
        match_backbone(model, read_checkpoint(file), str(file))


def test_weights_of_other_floats_and_batchnorms_counters_are_read(make_detector):
    model = make_detector(0, NORM="BN")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state_of(model).items()}
        report, tensors = match_backbone(model, state)
        assert report.missing == ()
        assert {t.dtype for n, t in tensors.items() if "num_b" in n} == {torch.int64}


def test_integers_do_not_fill_heads(make_detector):
    trained = state_of(make_detector(1))
    trained["roi_heads.box_head.fc1.bias"] = trained["roi_heads.box_head.fc1.bias"].to(torch.int8)
    with pytest.raises(UserError, match=r"roi_heads\.box_head\.fc1\.bias holds int8 numbers"):
        load_detector(make_detector(0), trained, "w.pth")


def test_two_networks_of_eight_bits_are_told_by_their_numbers(make_detector):
    state = make_detector(0).backbone.bottom_up.state_dict()
    eight = {n: t.to(torch.float8_e4m3fn) for n, t in state.items()}
    two = {f"a.{n}": t for n, t in eight.items()} | {f"b.{n}": t for n, t in eight.items()}
    with pytest.raises(UserError, match="holds float8_e4m3fn numbers"):
        match_backbone(make_detector(0), two)
