"""Every study file: it plans, passes the audit, and its numbers are the paper's."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from scratch_vs_pretrain.config import flatten
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checks import norm_layers
from scratch_vs_pretrain.study.audit import audit, missing_weights
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.resolve import arm_config, run_config, switched_study
from scratch_vs_pretrain.study.sections import Data, DataFiles
from scratch_vs_pretrain.study.spec import load_study

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
MISTAKES = STUDIES / "miniature" / "wrong_on_purpose.yaml"
NO_NORM = STUDIES / "miniature" / "no_norm.yaml"
FILES = sorted(set(STUDIES.rglob("*.yaml")) - {MISTAKES, NO_NORM})

# Iterations and iterations at which the rate drops.
LENGTHS = {
    "2x": (180_000, (120_000, 160_000)),
    "3x": (270_000, (210_000, 250_000)),
    "4x": (360_000, (300_000, 340_000)),
    "5x": (450_000, (390_000, 430_000)),
    "6x": (540_000, (480_000, 520_000)),
    "9x": (810_000, (750_000, 790_000)),
    "11x": (990_000, (930_000, 970_000)),
    "18k": (18_000, (12_000, 16_000)),
    "144k": (144_000, (96_000, 128_000)),
}
FIVE = ["2x", "3x", "4x", "5x", "6x"]
PAPER = {
    "baseline_r50_gn": {"scratch": FIVE, "pretrained": FIVE},
    "baseline_r101_gn": {"scratch": FIVE, "pretrained": FIVE},
    "baseline_r50_syncbn": {"scratch": FIVE, "pretrained": FIVE},
    "enhanced_r50": {"scratch": ["9x"], "pretrained": ["6x"]},
    "enhanced_r50_train_aug": {"scratch": ["9x"], "pretrained": ["6x"]},
    "enhanced_r101": {"scratch": ["9x"], "pretrained": ["6x"]},
    "large_r101": {"scratch": ["9x"], "pretrained": ["6x"]},
    "large_x152": {"scratch": ["9x"], "pretrained": ["6x"]},
    "large_x152_cascade": {"scratch": ["9x"], "pretrained": ["6x"]},
    "keypoints_r50": {"scratch": ["2x", "3x"], "pretrained": ["2x", "3x"]},
    "vgg16": {"scratch": ["11x"], "pretrained": ["9x"]},
    "voc_r101": {"scratch": ["144k"], "pretrained": ["18k"]},
}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Data of a demo or a miniature that was run in the repository are not looked at."""
    monkeypatch.chdir(tmp_path)


def study_named(name: str):
    return load_study(STUDIES / f"{name}.yaml")


def tiny_data(folder: Path, keypoints: int = 0) -> Data:
    category = {"id": 1, "name": "disc"}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}
    entry["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    if keypoints:
        category["keypoints"] = [f"k{number}" for number in range(keypoints)]
        entry |= {"keypoints": [1, 1, 2] * keypoints, "num_keypoints": keypoints}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "categories": [category],
        "annotations": [entry],
    }
    (folder / "a.json").write_text(json.dumps(content))
    files = DataFiles(folder / "a.json", folder)
    return Data((files,), files)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_plans_and_is_fair(file, tmp_path):
    study = load_study(file)
    if file.stem == "demo" or file.parent.name == "overfit":  # what runs it makes its data
        keypoints = 5 if "keypoint" in file.stem else 0
        study = replace(study, data=tiny_data(tmp_path, keypoints))
    audited = audit(study)
    assert audited.allowed == {}
    assert audited.notices == ()
    assert set(audited.differing) <= {"MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.STEPS"}
    assert len(plan(study).rows) == len(study.runs())


@pytest.mark.parametrize("file", [MISTAKES, NO_NORM], ids=lambda file: file.stem)
def test_what_else_arms_differ_in_is_named(file, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES.parents[1] / "scripts"))
    study = load_study(file)
    audited = audit(study)
    assert audited.admitted == study.admit
    assert set(audited.allowed) == set(study.allow_differences)
    with pytest.raises(UserError, match=r"no warm-up|MODEL\.BACKBONE\.NAME"):
        audit(replace(study, admit=study.admit[:-1], allow_differences=()))


def test_every_paper_study_is_listed_here():
    files = {file.stem for file in (STUDIES / "paper").glob("*.yaml")}
    # tests/configs/test_less_data.py has the others.
    assert set(PAPER) == {name for name in files if not name.startswith("less_data")}


@pytest.mark.parametrize("name", PAPER)
def test_schedules_rates_and_drops_are_the_papers(name):
    rows = plan(study_named(f"paper/{name}")).rows
    found = {arm: [row.schedule for row in rows if row.arm == arm] for arm in PAPER[name]}
    assert found == PAPER[name]
    for row in rows:
        assert (row.iterations, row.drops) == LENGTHS[row.schedule]
        assert row.base_rate == 0.02
        assert row.images == row.iterations * 16


def test_plan_of_the_baseline_reads_like_the_paper():
    lines = plan(study_named("paper/baseline_r50_gn")).text().splitlines()
    assert " ".join(lines[1].split()) == "scratch 2x 180,000 120,000 160,000 120,000 2,880,000 24.3"
    assert lines[-4:] == [
        "scratch: 780,000 iterations instead of 1,800,000 (0.433x)",
        "pretrained: 780,000 iterations instead of 1,800,000 (0.433x)",
        "10 runs, 1,560,000 iterations",
        "arms differ in: MODEL.WEIGHTS",
    ]


@pytest.mark.parametrize(
    ("name", "sizes", "sampling"),
    [
        ("baseline_r50_gn", (800,), "choice"),
        ("keypoints_r50", (800,), "choice"),
        ("enhanced_r50", (640, 800), "range"),
        ("enhanced_r50_train_aug", (640, 800), "range"),
        ("enhanced_r101", (640, 800), "range"),
        ("large_r101", (640, 800), "range"),
        ("large_x152", (640, 800), "range"),
        ("large_x152_cascade", (640, 800), "range"),
        ("vgg16", (640, 800), "range"),
        ("voc_r101", (640, 800), "range"),
    ],
)
def test_train_augmentation_is_the_papers(name, sizes, sampling):
    study = study_named(f"paper/{name}")
    for run in study.runs():
        values = flatten(run_config(study, run))
        assert values["INPUT.MIN_SIZE_TRAIN"] == sizes
        assert values["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == sampling


@pytest.mark.parametrize(
    ("name", "depth", "norm"),
    [
        ("baseline_r50_gn", 50, "GN"),
        ("baseline_r101_gn", 101, "GN"),
        ("baseline_r50_syncbn", 50, "SyncBN"),
        ("enhanced_r50", 50, "GN"),
        ("enhanced_r50_train_aug", 50, "GN"),
        ("enhanced_r101", 101, "GN"),
        ("large_r101", 101, "GN"),
        ("large_x152", 152, "GN"),
        ("large_x152_cascade", 152, "GN"),
        ("keypoints_r50", 50, "GN"),
        ("voc_r101", 101, "GN"),
    ],
)
def test_detectors_are_the_papers(name, depth, norm):
    study = study_named(f"paper/{name}")
    values = flatten(run_config(study, study.runs()[0]))
    assert values["MODEL.RESNETS.DEPTH"] == depth
    assert values["MODEL.BACKBONE.FREEZE_AT"] == 0
    parts = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    assert {values[f"MODEL.{part}.NORM"] for part in parts} == {norm}
    assert values["MODEL.KEYPOINT_ON"] == name.startswith("keypoints")
    assert values["MODEL.MASK_ON"] == name.startswith(("baseline", "enhanced", "large"))


@pytest.mark.parametrize("name", ["enhanced_r50", "enhanced_r101", "large_x152_cascade"])
def test_cascade_has_the_last_270k_iterations_and_test_augmentation(name):
    study = study_named(f"paper/{name}")
    starts = {
        arm.name: study.switch.start(schedule.resolve(16, 16))
        for arm in study.arms
        for schedule in arm.schedules
    }
    assert starts == {"scratch": 810_000 - 270_000, "pretrained": 540_000 - 270_000}
    cfg = run_config(study, study.runs()[0])
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    after = switched_study(study)
    cascade = run_config(after, after.runs()[0])
    assert cascade.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    assert cascade.MODEL.ROI_BOX_CASCADE_HEAD.IOUS == (0.5, 0.6, 0.7)
    assert cfg.TEST.AUG.ENABLED
    assert cascade.TEST.AUG.ENABLED


def test_vgg_study_has_no_normalization_at_all():
    study = study_named("paper/vgg16")
    for run in study.runs():
        values = flatten(run_config(study, run))
        assert values["MODEL.BACKBONE.NAME"] == "build_svp_vgg16_backbone"
        assert values["MODEL.BACKBONE.FREEZE_AT"] == 0
        parts = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
        assert {values[f"MODEL.{part}.NORM"] for part in parts} == {""}
    with_norm = replace(study, overrides={**study.overrides, "MODEL.ROI_BOX_HEAD.NORM": "GN"})
    with pytest.raises(UserError, match=r"VGG-16 has no normalization .*ROI_BOX_HEAD\.NORM GN"):
        audit(with_norm)


# Parameters without FPN: torchvision's networks without their classifier, and ours of 8 groups.
R50, R101, X152, VGG = 25_557_032 - 2_049_000, 44_549_160 - 2_049_000, 164_726_080, 14_714_688
# 1x1 and 3x3 convolutions of four levels with a GN or BN each, and the RPN of three anchors.
FPN = 256 * (256 + 512 + 1024 + 2048) + 4 * 9 * 256 * 256 + 8 * 2 * 256
RPN = 9 * 256 * 256 + 256 + 257 * 3 * (1 + 4)
# Four convolutions with norms, a fully connected layer, and predictors for 80 classes.
BOX_CONVS = 4 * (9 * 256 * 256 + 2 * 256) + (49 * 256 + 1) * 1024
BOX = BOX_CONVS + 1025 * (81 + 4 * 80)
MASK = 4 * (9 * 256 * 256 + 2 * 256) + (4 * 256 + 1) * 256 + 257 * 80
# Three box heads that regress for all classes alike.
CASCADE = 3 * (BOX_CONVS + 1025 * (81 + 4))
VOC_BOX = BOX_CONVS + 1025 * (21 + 4 * 20)
KEYPOINT_BOX = BOX_CONVS + 1025 * (2 + 4)
# Eight convolutions of 512 and the transposed one of 17 keypoints.
KEYPOINT = (9 * 256 + 1) * 512 + 7 * (9 * 512 + 1) * 512 + (16 * 512 + 1) * 17
FC67 = (49 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * (81 + 4 * 80)
VGG_RPN = 9 * 512 * 512 + 512 + 513 * 15 * (1 + 4)

# Parameters of each network, and its normalization layers: one for each convolution of the
# backbone (53, 104 or 155), of the FPN (8), and of the box and the mask head (4 each).
NETWORKS = {
    "baseline_r50_gn": (R50 + FPN + RPN + BOX + MASK, {"GN": 69}),
    "baseline_r101_gn": (R101 + FPN + RPN + BOX + MASK, {"GN": 120}),
    "baseline_r50_syncbn": (R50 + FPN + RPN + BOX + MASK, {"SyncBN": 69}),
    "enhanced_r50": (R50 + FPN + RPN + BOX + MASK, {"GN": 69}),
    "enhanced_r50_train_aug": (R50 + FPN + RPN + BOX + MASK, {"GN": 69}),
    "enhanced_r101": (R101 + FPN + RPN + BOX + MASK, {"GN": 120}),
    "large_r101": (R101 + FPN + RPN + BOX + MASK, {"GN": 120}),
    "large_x152": (X152 + FPN + RPN + BOX + MASK, {"GN": 171}),
    "large_x152_cascade": (X152 + FPN + RPN + BOX + MASK, {"GN": 171}),
    "less_data": (R50 + FPN + RPN + BOX + MASK, {"GN": 69}),
    "less_data_1k_tuned_on_scratch": (R50 + FPN + RPN + BOX + MASK, {"GN": 69}),
    "keypoints_r50": (R50 + FPN + RPN + KEYPOINT_BOX + KEYPOINT, {"GN": 65}),
    "vgg16": (VGG + VGG_RPN + FC67, {}),
    "voc_r101": (R101 + FPN + RPN + VOC_BOX, {"GN": 116}),
}


def test_every_paper_study_has_its_network_stated():
    assert set(NETWORKS) == {file.stem for file in (STUDIES / "paper").glob("*.yaml")}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_arm_has_the_same_network(name):
    study = study_named(f"paper/{name}")
    parameters, norms = NETWORKS[name]
    assert_one_network(study, parameters, norms)
    if study.switch:
        two_more_box_heads = {"GN": norms["GN"] + 2 * 4}
        assert_one_network(switched_study(study), parameters - BOX + CASCADE, two_more_box_heads)


def assert_one_network(study, parameters, norms):
    described = []
    for arm in study.arms:
        cfg = arm_config(study, arm, arm.schedules[-1]).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert Counter(kind for _, _, kind in norm_layers(model)) == norms
        described.append({key: tuple(t.shape) for key, t in model.state_dict().items()})
    assert all(other == described[0] for other in described)
    assert len(described) > 1


def test_data_sets_are_the_papers():
    study = study_named("paper/voc_r101")
    data = run_config(study, study.runs()[0]).DATASETS
    assert data.TRAIN == ("voc_2007_trainval", "voc_2012_train")
    assert data.TEST == ("voc_2012_val",)
    study = study_named("paper/keypoints_r50")
    data = run_config(study, study.runs()[0]).DATASETS
    assert data.TRAIN == ("keypoints_coco_2017_train",)


def test_pixels_are_what_the_weights_were_trained_with():
    expected = {
        "baseline_r50_gn": ("BGR", [1.0, 1.0, 1.0]),
        "baseline_r50_syncbn": ("RGB", [58.395, 57.12, 57.375]),
    }
    for name, (order, std) in expected.items():
        study = study_named(f"paper/{name}")
        for run in study.runs():
            values = flatten(run_config(study, run))
            assert values["INPUT.FORMAT"] == order
            assert values["MODEL.PIXEL_STD"] == std
            assert values["MODEL.RESNETS.STRIDE_IN_1X1"] is False


def test_smoke_study_needs_weights_and_is_short():
    file = STUDIES / "coco_smoke.yaml"
    (missing,) = missing_weights(load_study(file))
    assert "--weights pretrained=PATH" in missing
    study = load_study(file, {"pretrained": "weights.pth"})
    values = flatten(run_config(study, study.runs()[1]))
    assert values["MODEL.WEIGHTS"] == str(Path.cwd() / "weights.pth")
    assert values["SOLVER.MAX_ITER"] <= 100
    assert max(values["INPUT.MIN_SIZE_TRAIN"]) <= 192
    assert values["DATASETS.TEST"] == ("coco_2017_val",)
