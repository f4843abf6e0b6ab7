import json

import pytest

from scratch_vs_pretrain.config import config_text
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.audit import recipe_problems
from scratch_vs_pretrain.training.evaluation import check_test_sets, evaluate_model
from scratch_vs_pretrain.training.predict import predict

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
    asked = {"TEST.AUG.ENABLED": True}
    keypoints = config_of("keypoint_rcnn_R_50_FPN_gn", shapes, asked)
    voc = config_of(
        "faster_rcnn_R_101_FPN_gn_voc", shapes, asked | {"DATASETS.TEST": ("voc_2012_val",)}
    )
    for cfg, message in ((keypoints, "but no keypoints"), (voc, "for voc_2012_val")):
        with pytest.raises(UserError, match=message):
            check_test_sets(cfg)
        assert any(message in problem for problem in recipe_problems(cfg))
