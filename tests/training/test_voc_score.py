"""VOC's AP is Detectron2's, with the metric of the year, beside COCO's; a run from end to end."""

import itertools
import json
import math
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import (
    CocoScoreEvaluator,
    check_test_sets,
    flat_metrics,
)
from scratch_vs_pretrain.evaluation.others import VOC_NUMBERS, WithOthers, others_of
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study

CONFIG = Path(__file__).parents[2] / "configs" / "demo_mask_rcnn_R_18_FPN_gn.yaml"
SIDE = 64
OBJECT = (
    "<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated>"
    "<difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def write_tree(root, split, images, classes, seed=0):
    """Writes a VOC tree: two to four objects an image, the classes in turn, some difficult."""
    number = itertools.count()
    random = np.random.default_rng(seed)
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{split}_{index:03d}" for index in range(images)]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for name in names:
        picture = random.integers(256, size=(SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg")
        objects = ""
        for _ in range(random.integers(2, 5)):
            left, top = random.integers(1, 30, 2)
            width, height = random.integers(8, 33, 2)
            box = (left, top, left + width, top + height)
            which = next(number)
            objects += OBJECT.format(classes[which % len(classes)], int(which % 7 == 6), *box)
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)


@pytest.fixture
def registered(tmp_path):
    names = []

    def make(year, classes=("ring", "disc"), labelled=("ring", "disc")):
        write_tree(tmp_path, "val", 12, labelled)
        names.append(f"test_{uuid.uuid4().hex}")
        register_pascal_voc(names[-1], str(tmp_path), "val", year, classes)
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def outputs(record, random, classes):
    """Most objects found, moved a little and scored at random, and some that are not there."""
    found = [one for one in record["annotations"] if random.random() < 0.8]
    boxes = [np.array(one["bbox"]) + random.normal(0, 2, 4) for one in found]
    labels = [one["category_id"] for one in found]
    for _ in range(3):
        corner = random.uniform(0, 30, 2)
        boxes.append(np.concatenate([corner, corner + random.uniform(8, 30, 2)]))
        labels.append(int(random.integers(classes)))
    instances = Instances((SIDE, SIDE))
    instances.pred_boxes = Boxes(torch.tensor(np.array(boxes), dtype=torch.float32))
    instances.scores = torch.tensor(random.random(len(boxes)))
    instances.pred_classes = torch.tensor(labels)
    return {"instances": instances}


def beside_cocos(name, coco=None):
    coco = coco or CocoScoreEvaluator(name, ("bbox",))
    return WithOthers(coco, others_of(default_config(), name))


def score(evaluator, name):
    classes = len(MetadataCatalog.get(name).thing_classes)
    random = np.random.default_rng(1)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [outputs(record, random, classes)])
    return evaluator.evaluate()


def test_the_metric_of_the_year_beside_cocos(registered):
    found = {}
    for year in (2007, 2012):
        name = registered(year)
        coco = CocoScoreEvaluator(name, ("bbox",))
        found[year] = score(beside_cocos(name, coco), name)
        theirs = score(PascalVOCDetectionEvaluator(name), name)["bbox"]
        assert found[year]["voc"] == {number: theirs[number] for number in VOC_NUMBERS}
        assert found[year]["bbox"] == score(CocoScoreEvaluator(name, ("bbox",)), name)["bbox"]
        assert 5 < found[year]["bbox"]["AP50"] < 100
        assert coco.images == 12
    assert found[2007]["voc"]["AP50"] != found[2012]["voc"]["AP50"]


def test_detections_of_a_class_without_objects_leave_no_number(registered):
    name = registered(2012, classes=("ring", "disc", "star"))
    tasks = score(beside_cocos(name), name)
    assert tasks["voc"] == dict.fromkeys(VOC_NUMBERS)
    metrics = flat_metrics([{"dataset": name, "tasks": tasks}])
    assert "voc/AP50" not in metrics
    assert metrics["bbox/AP50"] > 0
    json.dumps(tasks, allow_nan=False)


def test_trees_that_detectron2s_evaluator_cannot_read(registered, tmp_path):
    name = registered(2012)
    whole = score(beside_cocos(name), name)
    changed = 0
    for file in (tmp_path / "Annotations").iterdir():
        text = re.sub(r"<xmin>(\d+)<", r"<xmin>\g<1>.25<", file.read_text())
        text = text.replace("<truncated>0</truncated>", "").replace("<pose>Unspecified</pose>", "")
        changed += text != file.read_text()
        file.write_text(text)
    listing = tmp_path / "ImageSets" / "Main" / "val.txt"
    listing.write_text(listing.read_text() + "\n")  # what is read again
    assert changed
    found = score(beside_cocos(name), name)
    assert found["voc"] == pytest.approx(whole["voc"], abs=5)  # detections moved with the boxes
    with pytest.raises((AttributeError, FileNotFoundError, ValueError)):
        score(PascalVOCDetectionEvaluator(name), name)


def test_masks_are_not_scored_on_voc(registered):
    cfg = default_config()
    cfg.DATASETS.TEST = (registered(2012),)
    cfg.MODEL.MASK_ON = True
    with pytest.raises(UserError, match=r"no annotation has a mask.*MODEL\.MASK_ON"):
        check_test_sets(cfg)
    cfg.MODEL.MASK_ON = False
    check_test_sets(cfg)


def test_trains_and_evaluates_from_end_to_end(tmp_path, monkeypatch, run_python):
    """The paper's union of two years, evaluated on the third set, under Detectron2's names."""
    classes = MetadataCatalog.get("voc_2012_val").thing_classes
    monkeypatch.chdir(tmp_path)
    datasets = tmp_path / "datasets"  # where this process looks for built-in ones
    write_tree(datasets / "VOC2007", "trainval", 4, classes)
    write_tree(datasets / "VOC2012", "train", 4, classes)
    write_tree(datasets / "VOC2012", "val", 20, classes, seed=3)
    (tmp_path / "study.yaml").write_text(
        f"""
name: tiny-voc
base: {CONFIG}
arms: {{scratch: {{init: scratch}}}}
schedules: [{{iterations: 3, name: short, drops_before_end: [1]}}]
overrides:
  DATASETS.TRAIN: [voc_2007_trainval, voc_2012_train]
  DATASETS.TEST: [voc_2012_val]
  MODEL.MASK_ON: False
  MODEL.ROI_HEADS.NUM_CLASSES: 20
  SOLVER.IMS_PER_BATCH: 2
  SVP.LOG_PERIOD: 1
  INPUT.MIN_SIZE_TRAIN: [64]
  INPUT.MIN_SIZE_TEST: 64
"""
    )
    (folder,) = (run.path for run in prepare(load_study(tmp_path / "study.yaml"), tmp_path))
    told = {"DETECTRON2_DATASETS": str(datasets)}
    done = run_python("-m", "scratch_vs_pretrain.training", folder, **told)
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "run.json").read_text())
    assert run["data"]["train"]["names"] == ["voc_2007_trainval", "voc_2012_train"]
    assert (run["data"]["train"]["images"], run["data"]["test"]["images"]) == (8, 20)
    found = json.loads((folder / "evaluations" / "0000003.json").read_text())
    assert list(found["tasks"]) == ["bbox", "voc"]
    assert list(found["tasks"]["bbox"]["per_class"]) == list(classes)
    assert found["tasks"]["voc"]["AP50"] is not None
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert math.isclose(rows[-1]["voc/AP50"], found["tasks"]["voc"]["AP50"], abs_tol=1e-6)
