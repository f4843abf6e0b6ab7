import json

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.modeling import build_model

from scratch_vs_pretrain.config import config_text
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import (
    check_test_sets,
    evaluate_model,
    mirror_back,
    with_augmentation,
)
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.audit import recipe_problems
from scratch_vs_pretrain.training.trained import predict

# pycocotools' masks under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def test_changes_the_detections_and_leaves_the_model_alone(shapes, tmp_path, config_of, train):
    cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, {"TEST.AUG.ENABLED": True})
    _, trainer = train(tmp_path / "run", cfg)
    network = trainer.network
    modes = [module.training for module in network.modules()]
    [evaluation], metrics = evaluate_model(cfg, network, test_aug=True)
    assert list(evaluation["tasks"]) == ["bbox", "segm", "bbox_TTA", "segm_TTA"]
    assert evaluation["images"] == 2
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/AP75"} < metrics.keys()
    [plain], _ = evaluate_model(cfg, network)
    assert plain["tasks"] == {task: evaluation["tasks"][task] for task in ("bbox", "segm")}
    assert [module.training for module in network.modules()] == modes
    assert network.roi_heads.mask_on
    files = predict(tmp_path / "run", "detectors_test", tmp_path / "tta")
    run = RunFolder(tmp_path / "run")
    plain_cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, {})
    run.config_file.write_text(config_text(plain_cfg))
    others = predict(run.path, "detectors_test", tmp_path / "plain")
    assert files[0].read_text() != others[0].read_text()


def test_finds_nothing_without_failing(shapes, tmp_path, config_of, train):
    nothing = {"TEST.AUG.ENABLED": True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.1}
    folder, _ = train(tmp_path / "run", config_of("mask_rcnn_R_50_FPN_gn", shapes, nothing))
    tasks = json.loads(folder.evaluation_file(3).read_text())["tasks"]
    assert tasks["bbox_TTA"]["AP"] == tasks["segm_TTA"]["AP"] == 0


def test_runs_at_the_end_of_training_alone(shapes, tmp_path, config_of, train):
    asked = {"TEST.AUG.ENABLED": True, "TEST.EVAL_PERIOD": 1}
    folder, _ = train(tmp_path / "run", config_of("mask_rcnn_R_50_FPN_gn", shapes, asked))
    tasks = [list(json.loads(folder.evaluation_file(k).read_text())["tasks"]) for k in (1, 2, 3)]
    plain = ["bbox", "segm"]
    assert tasks == [plain, plain, [*plain, "bbox_TTA", "segm_TTA"]]
    rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [("bbox/AP" in row, "bbox_TTA/AP" in row) for row in rows] == [
        (True, False),
        (True, False),
        (True, True),
    ]


def test_is_refused_where_it_cannot_be(shapes, config_of):
    voc = {"TEST.AUG.ENABLED": True, "DATASETS.TEST": ("voc_2012_val",)}
    cfg = config_of("faster_rcnn_R_101_FPN_gn_voc", shapes, voc)
    with pytest.raises(UserError, match="for voc_2012_val"):
        check_test_sets(cfg)
    assert any("for voc_2012_val" in problem for problem in recipe_problems(cfg))


def test_mirrored_heat_maps_are_turned_and_left_is_right():
    maps = torch.zeros(1, 3, 4, 6)
    nose, left, right = 0, 1, 2
    maps[0, nose, 1, 0] = maps[0, left, 2, 1] = maps[0, right, 3, 5] = 1
    back = mirror_back(maps, [nose, right, left])
    peaks = [tuple(int(i) for i in (one == 1).nonzero()[0]) for one in back[0]]
    assert peaks == [(1, 5), (3, 0), (2, 4)]
    assert torch.equal(mirror_back(back, [nose, right, left]), maps)


@pytest.fixture
def keypoint_detector(keypoint_shapes, config_of):
    """A keypoint detector with random weights, its config and a picture of its training set."""
    cfg = config_of(
        "keypoint_rcnn_R_50_FPN_gn", keypoint_shapes, {"MODEL.ROI_HEADS.NUM_CLASSES": 1}
    )
    register(cfg)
    torch.manual_seed(0)
    (record, *_) = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    return cfg, build_model(cfg).eval(), DatasetMapper(cfg, is_train=False)(record)


@torch.no_grad()
def test_keypoints_of_one_scale_are_the_detectors_own(keypoint_detector):
    cfg, model, picture = keypoint_detector
    (plain,) = model([picture])
    cfg.merge_from_list(
        ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False]
    )
    with with_augmentation(cfg, model) as detector:
        (merged,) = detector([picture])
    assert model.roi_heads.keypoint_on
    assert len(plain["instances"]) > 0
    for field in ("scores", "pred_keypoints"):
        torch.testing.assert_close(merged["instances"].get(field), plain["instances"].get(field))


@torch.no_grad()
def test_keypoints_of_an_image_and_its_mirror_image_mirror_each_other(keypoint_detector):
    cfg, model, picture = keypoint_detector
    cfg.merge_from_list(["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,)])
    mirror = {**picture, "image": picture["image"].flip(2)}
    with with_augmentation(cfg, model) as detector:
        found, mirrored = (detector([one])[0]["instances"] for one in (picture, mirror))
    turned = mirrored.pred_keypoints[:, create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)]
    turned[:, :, 0] = 64 - turned[:, :, 0]
    torch.testing.assert_close(found.scores, mirrored.scores)
    torch.testing.assert_close(found.pred_keypoints[..., 1:], turned[..., 1:])
    torch.testing.assert_close(found.pred_keypoints[..., 0], turned[..., 0], atol=1, rtol=0)
