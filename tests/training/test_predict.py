import json
from pathlib import Path

import pytest
from detectron2.data.datasets import register_coco_instances

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import config_text, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.training.trained import predict


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


def test_the_first_test_pictures_are_kept_with_what_was_found(shapes, tmp_path, config_of, train):
    folder, _ = train(tmp_path / "run", config_of("mask_rcnn_R_50_FPN_gn", shapes, {}))
    kept = json.loads(folder.detections_file.read_text())
    folder.detections_file.unlink()
    boxes, _ = predict(folder.path, "detectors_test")
    assert json.loads(folder.detections_file.read_text()) == kept
    truth, found = json.loads(Path(shapes[1][1]).read_text()), json.loads(boxes.read_text())
    assert [Path(one["file"]).name for one in kept["pictures"]] == ["000001.jpg", "000002.jpg"]
    for number, picture in enumerate(kept["pictures"], 1):
        objects = [one["bbox"] for one in truth["annotations"] if one["image_id"] == number]
        assert [one["box"] for one in picture["objects"]] == objects
        scores = [round(one["score"], 3) for one in found if one["image_id"] == number]
        assert [one["score"] for one in picture["detections"]] == sorted(scores, reverse=True)
        for one in picture["objects"]:
            x, y, width, height = one["box"]
            points = [value for line in one["outline"] for value in line]
            left, right, top, bottom = (f(points[k::2]) for k in (0, 1) for f in (min, max))
            assert abs(left - x) <= 1 >= abs(right - x - width)
            assert abs(top - y) <= 1 >= abs(bottom - y - height)


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
