import json
from pathlib import Path

import pytest
from detectron2.data.datasets import register_coco_instances

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import config_text, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.training.predict import predict


def test_needs_no_annotations(shapes, tmp_path, config_of, train):
    cfg = config_of("faster_rcnn_VGG_16", shapes, {})
    folder, _ = train(tmp_path / "run", cfg)
    content = json.loads(Path(shapes[1][1]).read_text())
    del content["annotations"]
    (tmp_path / "dev.json").write_text(json.dumps(content))
    register_coco_instances("detectors_dev", {}, str(tmp_path / "dev.json"), shapes[1][2])
    (file,) = predict(folder.path, "detectors_dev", tmp_path / "dev")
    assert {one["image_id"] for one in json.loads(file.read_text())} == {1, 2}


def test_names_its_files(shapes, tmp_path, capsys, config_of, train):
    folder, _ = train(tmp_path / "run", config_of("faster_rcnn_VGG_16", shapes, {}))
    assert main(["predict", str(folder.path), "--dataset", "detectors_train"]) == 0
    file = folder.path / "predictions" / "detectors_train_bbox.json"
    assert capsys.readouterr().out == f"{file}\n"
    assert {one["image_id"] for one in json.loads(file.read_text())} == {1, 2, 3, 4}


def test_refuses_what_it_cannot_do(shapes, tmp_path, capsys, config_of, make_run):
    assert main(["predict", str(tmp_path), "--dataset", "detectors_test"]) == 2
    assert "run.json: no such file" in capsys.readouterr().err
    cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, {})
    folder = make_run(tmp_path / "run", cfg)
    with pytest.raises(UserError, match="no readable checkpoint; train the run first"):
        predict(folder.path, "detectors_test")
    with pytest.raises(UserError, match="no such data set"):
        predict(folder.path, "detectors_tset")
    merge_overrides(cfg, {"MODEL.ROI_HEADS.NUM_CLASSES": 3}, "test")
    folder.config_file.write_text(config_text(cfg))
    with pytest.raises(UserError, match="has 8 categories, but the model was trained for 3"):
        predict(folder.path, "detectors_test")
    assert not (folder.path / "predictions").exists()
