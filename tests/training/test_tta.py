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
    (merged, plain), metrics = evaluate_model(cfg, network)
    assert merged["tasks"].keys() == plain["tasks"].keys() == {"bbox", "segm"}
    assert {"bbox/AP", "detectors_test/plain/bbox/AP"} < metrics.keys()
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
    content = json.loads(folder.evaluation_file(3).read_text())
    assert content["test_aug"]
    assert content["tasks"]["bbox"]["AP"] == content["tasks"]["segm"]["AP"] == 0


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
