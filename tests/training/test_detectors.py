"""Every detector of the paper, shrunken: trains three iterations, evaluates, predicts."""

import json
import math
from pathlib import Path

import pytest
import torch

from scratch_vs_pretrain.config import config_text
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import check_test_sets
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import write_backbone
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training.__main__ import train as train_run
from scratch_vs_pretrain.training.trained import load_model, predict

COCO = Path(__file__).parents[2].parent / "shared" / "datasets" / "coco"
ITERATIONS = 3

# pycocotools' masks under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

ONE_PROCESS = "SyncBN (as BatchNorm: one process)"
SYNCBN = {
    f"MODEL.{part}.NORM": "SyncBN" for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
}
AUGMENTED = {"TEST.AUG.ENABLED": True}
MASKS = ["bbox", "segm"]
ANY_SCORE = {"MODEL.RETINANET.SCORE_THRESH_TEST": 0.0}
RESNEXT = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NUM_GROUPS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
}

TIMM = {"MODEL.BACKBONE.NAME": "build_svp_timm_fpn_backbone", "MODEL.TIMM.NAME": "test_convnext"}

# Config, what it is changed in beside its size, tasks, and the normalization that really runs.
DETECTORS = {
    "mask-gn": ("mask_rcnn_R_50_FPN_gn", {}, MASKS, {"GN"}),
    "mask-syncbn": ("mask_rcnn_R_50_FPN_syncbn", {}, MASKS, {ONE_PROCESS}),
    "resnext-gn": ("mask_rcnn_X_152_8x32d_FPN_gn", RESNEXT, MASKS, {"GN"}),
    "resnext-syncbn": ("mask_rcnn_X_152_8x32d_FPN_gn", RESNEXT | SYNCBN, MASKS, {ONE_PROCESS}),
    "cascade-gn-tta": ("cascade_mask_rcnn_R_50_FPN_gn", AUGMENTED, MASKS, {"GN"}),
    "cascade-syncbn": ("cascade_mask_rcnn_R_50_FPN_gn", SYNCBN, MASKS, {ONE_PROCESS}),
    "boxes-gn-tta": ("faster_rcnn_R_101_FPN_gn_voc", AUGMENTED, ["bbox"], {"GN"}),
    "boxes-syncbn": ("faster_rcnn_R_101_FPN_gn_voc", SYNCBN, ["bbox"], {ONE_PROCESS}),
    "retinanet": ("retinanet_R_18_FPN_gn", ANY_SCORE, ["bbox"], {"GN"}),
    "fcos": ("fcos_R_18_FPN_gn", ANY_SCORE, ["bbox"], {"GN"}),
    "timm": ("mask_rcnn_R_50_FPN_gn", TIMM, MASKS, {"GN", "LN"}),
    "vgg-tta": ("faster_rcnn_VGG_16", AUGMENTED, ["bbox"], set()),
}


def assert_evaluated(folder, tasks):
    content = json.loads(folder.evaluation_file(ITERATIONS).read_text())
    assert list(content["tasks"]) == tasks
    for task in tasks:
        assert math.isfinite(content["tasks"][task]["AP"])
    return content


USUAL = {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.BACKBONE.FREEZE_AT": 2}
PRETRAINED = {
    "usual recipe": (USUAL, "stem.", "res3.0.conv1.weight"),
    "frozen features": ({"SVP.FREEZE": "backbone"}, "", None),
    "timm": (TIMM, "none", "net.stages_0.blocks.0.conv_dw.weight"),
}


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_arm_trains_and_keeps_what_is_frozen(name, shapes, tmp_path, config_of, train):
    keys, frozen, trained = PRETRAINED[name]
    cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, keys)
    torch.manual_seed(5)
    state = build_bottom_up(cfg).state_dict()
    write_backbone(tmp_path / "w.pth", state, {})
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    folder, trainer = train(tmp_path / "run", cfg)
    assert trainer.described["init_report"].loaded == len(state)
    after = trainer.network.backbone.bottom_up.state_dict()
    still = [key for key in state if key.startswith(frozen)]
    assert all(torch.equal(after[key], state[key]) for key in still)
    assert trained is None or not torch.equal(after[trained], state[trained])
    assert_evaluated(folder, MASKS)
    assert predict(folder.path, "detectors_test", tmp_path / "out" / "mine")


@pytest.mark.parametrize("name", DETECTORS)
def test_trains_evaluates_and_predicts(name, shapes, tmp_path, config_of, train):
    file, overrides, tasks, norms = DETECTORS[name]
    cfg = config_of(file, shapes, overrides)
    folder, trainer = train(tmp_path / "run", cfg)
    assert set(trainer.described["norms"]) == norms
    augmented = [f"{task}_TTA" for task in tasks] if cfg.TEST.AUG.ENABLED else []
    content = assert_evaluated(folder, [*tasks, *augmented])
    assert "others" not in content
    files = predict(folder.path, "detectors_test", tmp_path / "out" / "mine")
    assert [path.name for path in files] == [f"mine_{task}.json" for task in tasks]
    fields = {"bbox": "bbox", "segm": "segmentation"}
    for path, task in zip(files, tasks, strict=True):
        results = json.loads(path.read_text())
        assert results
        assert all(
            set(one) == {"image_id", "category_id", fields[task], "score"} for one in results
        )


@pytest.mark.parametrize(
    "name", ["retinanet_R_18_FPN_gn", "fcos_R_18_FPN_gn", "panoptic_fpn_R_18_gn"]
)
def test_other_meta_architectures_resume_exactly(
    name, shapes, tmp_path, config_of, make_run, train_until, assert_same
):
    """RetinaNet and FCOS divide their losses by an average that no checkpoint has by itself."""
    longer = {"SOLVER.MAX_ITER": 4, "SOLVER.STEPS": (3,), "SVP.LOG_PERIOD": 1, **ANY_SCORE}
    alone, stopped = (
        make_run(tmp_path / part, config_of(name, shapes, longer)) for part in ("alone", "stopped")
    )
    for folder in (alone, stopped):
        folder.update(init={"sha256": None})
    assert worker.main([str(alone.path)]) == worker.FINISHED
    train_until(stopped, 2)
    assert worker.main([str(stopped.path)]) == worker.FINISHED
    assert_same(alone, stopped)
    if "panoptic" in name:
        tasks = json.loads(alone.evaluation_file(4).read_text())["tasks"]
        assert list(tasks) == [*MASKS, "sem_seg", "panoptic_seg"]
        assert 0 <= tasks["sem_seg"]["mIoU"] <= 100
        row = json.loads(alone.metrics_file.read_text().splitlines()[-1])
        assert row["panoptic_seg/PQ"] == tasks["panoptic_seg"]["PQ"]


KEYPOINTS = {"MODEL.ROI_HEADS.NUM_CLASSES": 1}
COCO_CLASSES = {"MODEL.ROI_HEADS.NUM_CLASSES": 80, "INPUT.MASK_FORMAT": "polygon"}


@pytest.mark.parametrize(
    ("changes", "census"), [(AUGMENTED, "GN"), (SYNCBN, ONE_PROCESS)], ids=["gn-tta", "syncbn"]
)
def test_keypoints_train_evaluate_and_predict(
    changes, census, keypoint_shapes, tmp_path, config_of, train
):
    cfg = config_of("keypoint_rcnn_R_50_FPN_gn", keypoint_shapes, KEYPOINTS | changes)
    folder, trainer = train(tmp_path / "run", cfg)
    assert set(trainer.described["norms"]) == {census}
    tasks = ["bbox", "keypoints"]
    augmented = [f"{task}_TTA" for task in tasks] if cfg.TEST.AUG.ENABLED else []
    assert_evaluated(folder, [*tasks, *augmented])
    files = predict(folder.path, "keypoints_test")
    assert [path.name for path in files] == [f"keypoints_test_{task}.json" for task in tasks]
    assert all(len(one["keypoints"]) == 51 for one in json.loads(files[1].read_text()))


def test_keypoint_detector_is_refused_without_keypoints(shapes, config_of):
    cfg = config_of("keypoint_rcnn_R_50_FPN_gn", shapes, KEYPOINTS)
    register(cfg)
    with pytest.raises(UserError, match=r"detectors_test: annotation 1 has no keypoints"):
        check_test_sets(cfg)


def real_part(folder, kind, part, images):
    """Writes the annotations of the first images of a real data set that have objects."""
    source = COCO / "annotations" / f"{kind}_{part}2017.json"
    content = json.loads(source.read_text())
    used = [a["image_id"] for a in content["annotations"] if a.get("num_keypoints", 9) > 8]
    chosen = set(list(dict.fromkeys(used))[:images])
    content["images"] = [one for one in content["images"] if one["id"] in chosen]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    file = folder / f"{kind}_{part}.json"
    file.write_text(json.dumps(content))
    return [f"{folder.name}_{part}", str(file), str(COCO / f"{part}2017")]


@pytest.mark.skipif(not COCO.is_dir(), reason="needs COCO images in ../shared/datasets")
@pytest.mark.parametrize(
    ("file", "kind", "overrides", "tasks"),
    [
        ("mask_rcnn_R_50_FPN_gn", "instances", COCO_CLASSES, MASKS),
        ("mask_rcnn_R_50_FPN_syncbn", "instances", COCO_CLASSES, MASKS),
        ("cascade_mask_rcnn_R_50_FPN_gn", "instances", COCO_CLASSES | AUGMENTED, MASKS),
        ("faster_rcnn_VGG_16", "instances", COCO_CLASSES, ["bbox"]),
        (
            "keypoint_rcnn_R_50_FPN_gn",
            "person_keypoints",
            KEYPOINTS | AUGMENTED,
            ["bbox", "keypoints"],
        ),
    ],
)
def test_real_photographs(file, kind, overrides, tasks, tmp_path, config_of, train):
    datasets = [real_part(tmp_path, kind, "train", 4), real_part(tmp_path, kind, "val", 2)]
    folder, trainer = train(tmp_path / "run", config_of(file, datasets, overrides))
    augmented = [f"{task}_TTA" for task in tasks] if trainer.cfg.TEST.AUG.ENABLED else []
    assert_evaluated(folder, [*tasks, *augmented])
    written = predict(folder.path, datasets[1][0])
    assert [path.name for path in written] == [f"{datasets[1][0]}_{task}.json" for task in tasks]
    assert all(json.loads(path.read_text()) for path in written)


def test_switch_to_cascade_with_test_augmentation(shapes, tmp_path, config_of, make_run):
    longer = {"SOLVER.MAX_ITER": ITERATIONS, "SOLVER.STEPS": (2,), **AUGMENTED}
    plain, cascade = (
        config_of(name, shapes, longer)
        for name in ("mask_rcnn_R_50_FPN_gn", "cascade_mask_rcnn_R_50_FPN_gn")
    )
    folder = make_run(tmp_path / "run", cascade)
    folder.before_switch_file.write_text(config_text(plain))
    folder.update(init={"sha256": None}, switch={"at": 1})
    train_run(folder)
    assert folder.read().state == "finished"
    before = json.loads(folder.evaluation_file(1).read_text())
    assert list(before["tasks"]) == MASKS
    assert_evaluated(folder, [*MASKS, "bbox_TTA", "segm_TTA"])
    files = predict(folder.path, "detectors_test")
    assert all(json.loads(path.read_text()) for path in files)
    third_stage = "roi_heads.box_head.2.fc1.weight"
    assert third_stage in load_model(folder, cascade).state_dict()
