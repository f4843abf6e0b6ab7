import functools
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from tqdm import tqdm

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import (
    CocoScoreEvaluator,
    evaluate_model,
    flat_metrics,
    write_evaluation,
)
from scratch_vs_pretrain.evaluation.others import as_tasks
from scratch_vs_pretrain.evaluation.scores import ERROR_TYPES, NUMBERS
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.training import distributed

REAL = Path(__file__).parents[2].parent / "shared" / "datasets" / "coco"
SIDE = 64

torch.set_num_threads(1)

# pycocotools' masks under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def small_set(images=4):
    """COCO JSON of two squares per image; the ids of the categories have gaps."""
    annotations = []
    for number in range(1, images + 1):
        for category, (x, y, side) in {3: (4, 6, 20), 7: (30, 30, 33)}.items():
            corners = [[x, y, x + side, y, x + side, y + side, x, y + side]]
            keypoints = [value for k in range(17) for value in (x + k, y + k % 5, 2)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": corners,
                    "keypoints": keypoints,
                    "num_keypoints": 17,
                }
            )
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE}
            for number in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}],
    }


@pytest.fixture
def register():
    """Registers COCO JSON files for the length of a test."""
    names = []

    def register(name, annotations, images):
        metadata = {"keypoint_names": [str(k) for k in range(17)], "keypoint_flip_map": ()}
        register_coco_instances(name, metadata, str(annotations), str(images))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def dataset(tmp_path, register):
    """The name of a registered small set, whose images lie in tmp_path."""
    ground_truth = small_set()
    for image in ground_truth["images"]:
        Image.new("RGB", (SIDE, SIDE), (90, 120, 40)).save(tmp_path / image["file_name"])
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(ground_truth))
    return register("small_test", path, tmp_path)


def config(*datasets, mask=True, keypoints=False, workers=0):
    cfg = default_config()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = datasets
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.KEYPOINT_ON = keypoints
    return cfg


def instances_of(truth, image, annotations, classes, jitter=None):
    """Ground truth as a model's output, moved and scored at random if `jitter` is a generator."""
    height, width = image["height"], image["width"]
    boxes, masks, keypoints, scores = [], [], [], []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        dx, dy = jitter.normal(0, 0.08, 2) * (w, h) if jitter else (0.0, 0.0)
        boxes.append([x + dx, y + dy, x + w + dx, y + h + dy])
        masks.append(np.roll(truth.annToMask(annotation), (int(dy), int(dx)), (0, 1)))
        scores.append(float(np.round(jitter.random(), 2)) if jitter else 0.9)
        if "keypoints" in annotation:
            points = np.array(annotation["keypoints"], dtype=np.float32).reshape(-1, 3)
            keypoints.append(points + np.array([dx + 0.5, dy + 0.5, 0]))
    found = Instances((height, width))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.tensor([classes[a["category_id"]] for a in annotations]).long()
    found.pred_masks = torch.from_numpy(np.array(masks).reshape(-1, height, width)).bool()
    if keypoints:
        found.pred_keypoints = torch.tensor(np.array(keypoints), dtype=torch.float32)
    return found


class StoredModel(nn.Module):
    """Returns stored outputs; draws random numbers as it does, and holds a part that is frozen."""

    def __init__(self, ground_truth, jitter=None, drop=lambda image: False):
        super().__init__()
        self.frozen = nn.BatchNorm2d(3)
        self.trained = nn.Dropout()
        self.train()
        self.frozen.eval()
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        classes = {number: index for index, number in enumerate(sorted(truth.cats))}
        self.outputs = {}
        for number, image in truth.imgs.items():
            annotations = [] if drop(image) else truth.imgToAnns[number]
            self.outputs[number] = instances_of(truth, image, annotations, classes, jitter)
        self.seen = []

    def forward(self, inputs):
        assert not any(module.training for module in self.modules())
        torch.rand(3), np.random.rand(3), random.random()
        self.seen += [image["image_id"] for image in inputs]
        return [{"instances": self.outputs[image["image_id"]]} for image in inputs]


def test_ground_truth_as_predictions_scores_100(dataset):
    evaluations, metrics = evaluate_model(config(dataset, keypoints=True), StoredModel(small_set()))
    assert metrics["bbox/AP"] == pytest.approx(100)
    assert metrics["segm/AP"] == pytest.approx(100)
    assert metrics["keypoints/AP"] == pytest.approx(100)
    [evaluation] = evaluations
    assert evaluation["dataset"] == dataset
    assert evaluation["images"] == 4
    assert evaluation["seconds"] > 0
    per_class = evaluation["tasks"]["bbox"]["per_class"]
    assert per_class == {"disc": pytest.approx(100), "box": pytest.approx(100)}
    assert evaluation["tasks"]["bbox"]["errors"] == dict.fromkeys(ERROR_TYPES, 0.0)


def test_tasks_follow_from_the_config(dataset):
    model = StoredModel(small_set())
    [evaluation], metrics = evaluate_model(config(dataset, mask=False), model)
    assert list(evaluation["tasks"]) == ["bbox"]
    # There is no large square: no number rather than -1 or NaN.
    assert evaluation["tasks"]["bbox"]["APl"] is None
    assert set(metrics) == {f"bbox/{name}" for name in NUMBERS["bbox"]} - {"bbox/APl", "bbox/ARl"}


def test_half_of_the_images_found_halves_the_recall(dataset):
    model = StoredModel(small_set(), drop=lambda image: image["id"] % 2)
    _, metrics = evaluate_model(config(dataset), model)
    assert metrics["bbox/AR100"] == pytest.approx(50)
    assert metrics["segm/AR100"] == pytest.approx(50)


def test_a_model_that_finds_nothing_scores_zero(dataset):
    model = StoredModel(small_set(), drop=lambda image: True)
    evaluations, metrics = evaluate_model(config(dataset), model)
    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0
    assert evaluations[0]["images"] == 4


def random_numbers():
    return torch.rand(4).tolist(), np.random.rand(4).tolist(), random.random()


def seed_all():
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_as_if_nothing_had_happened(dataset, workers):
    model = StoredModel(small_set())
    seed_all()
    expected = random_numbers()
    seed_all()
    evaluate_model(config(dataset, workers=workers), model)
    assert random_numbers() == expected
    assert (model.training, model.trained.training, model.frozen.training) == (True, True, False)


def test_an_interrupted_evaluation_leaves_no_trace_either(dataset):
    model = StoredModel({**small_set(), "images": []})  # fails at the first image
    seed_all()
    expected = random_numbers()
    seed_all()
    with pytest.raises(KeyError):
        evaluate_model(config(dataset), model)
    assert random_numbers() == expected
    assert (model.training, model.frozen.training) == (True, False)


def test_progress_wraps_the_batches(dataset, capsys):
    bar = functools.partial(tqdm, desc="evaluating", mininterval=0)
    evaluate_model(config(dataset), StoredModel(small_set()), progress=bar)
    assert "evaluating: 100%" in capsys.readouterr().err


def test_further_data_sets_follow_under_their_names(dataset, register, tmp_path):
    other = register("small_other", tmp_path / "annotations.json", tmp_path)
    model = StoredModel(small_set(), drop=lambda image: image["id"] == 1)
    evaluations, metrics = evaluate_model(config(dataset, other), model)
    assert metrics["bbox/AR100"] == metrics[f"{other}/bbox/AR100"] == pytest.approx(75)
    folder = RunFolder(tmp_path / "run")
    path = write_evaluation(folder, 600, evaluations)
    assert path == folder.evaluation_file(600)
    content = json.loads(path.read_text())
    assert list(content) == [
        *("format", "iteration", "dataset", "images", "seconds", "tasks", "others")
    ]
    assert (content["iteration"], content["dataset"]) == (600, dataset)
    assert [other["dataset"] for other in content["others"]] == [other]
    assert flat_metrics([content, *content["others"]]) == metrics


def test_one_data_set_has_no_others(dataset, tmp_path):
    evaluations, _ = evaluate_model(config(dataset), StoredModel(small_set()))
    content = json.loads(write_evaluation(RunFolder(tmp_path), 1, evaluations).read_text())
    assert "others" not in content
    assert content["tasks"] == evaluations[0]["tasks"]


def real_set(name, register):
    path = REAL / "annotations" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    register("real_test", path, REAL / "val2017")
    DatasetCatalog.get("real_test")  # which numbers the classes
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("instances_val2017", ("bbox", "segm")),
        ("person_keypoints_val2017", ("bbox", "segm", "keypoints")),
    ],
)
def test_equals_detectron2s_evaluator_on_real_annotations(name, tasks, register):
    ground_truth = real_set(name, register)
    model = StoredModel(ground_truth, jitter=np.random.default_rng(0)).eval()
    ours = CocoScoreEvaluator("real_test", tasks)
    theirs = COCOEvaluator("real_test", tasks, use_fast_impl=False)
    theirs.reset()
    # In this order, as theirs moves the keypoints of the outputs.
    for evaluator in (ours, theirs):
        for image in ground_truth["images"]:
            inputs = [{"image_id": image["id"]}]
            evaluator.process(inputs, model(inputs))
    found = ours.evaluate()
    for task, expected in theirs.evaluate().items():
        per_class = {key[3:]: expected.pop(key) for key in list(expected) if key[:3] == "AP-"}
        assert 1 < expected["AP"] < 99
        for number, value in expected.items():
            assert found[task][number] == pytest.approx(value, abs=1e-7), (task, number)
        for category, value in per_class.items():
            assert found[task]["per_class"][category] == (
                None if np.isnan(value) else pytest.approx(value, abs=1e-7)
            )


def test_outputs_are_left_as_they_are(dataset):
    model = StoredModel(small_set())
    before = model.outputs[1].pred_keypoints.clone()
    for _ in range(2):
        _, metrics = evaluate_model(config(dataset, keypoints=True), model)
        assert metrics["keypoints/AP"] == pytest.approx(100)
    assert torch.equal(model.outputs[1].pred_keypoints, before)


def test_results_are_kept_for_predictions(dataset):
    model = StoredModel(small_set()).eval()
    evaluator = CocoScoreEvaluator(dataset, ())
    evaluator.process([{"image_id": 2}], model([{"image_id": 2}]))
    assert evaluator.evaluate() == {}
    assert [result["category_id"] for result in evaluator.results] == [3, 7]
    assert evaluator.results[0]["bbox"] == [4, 6, 20, 20]


def test_no_test_set_is_an_error():
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        evaluate_model(config(), nn.Module())


def test_lacking_ground_truth_is_an_error_before_any_inference(dataset, tmp_path):
    ground_truth = small_set()
    model = StoredModel(ground_truth)
    for annotation in ground_truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "annotations.json").write_text(json.dumps(ground_truth))
    with pytest.raises(UserError, match=r"no annotation has a mask.*MODEL\.MASK_ON"):
        evaluate_model(config(dataset), model)
    assert model.seen == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(dataset, tmp_path, workers):
    path = tmp_path / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"3\.png: ") as caught:
        evaluate_model(config(dataset, workers=workers), StoredModel(small_set()))
    assert "\n" not in str(caught.value)


def test_a_class_too_many_is_an_error(dataset):
    model = StoredModel(small_set())
    for output in model.outputs.values():
        output.pred_classes += 1
    with pytest.raises(UserError, match=r"class 2 .*NUM_CLASSES of its heads to 2"):
        evaluate_model(config(dataset), model)


def evaluate_as_one_of_two(rank, cfg, model, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank
    )
    returned = evaluate_model(cfg, model)
    (folder / f"rank{rank}.json").write_text(json.dumps([*returned, model.seen]))


def test_two_processes_share_the_images_and_score_as_one(dataset, tmp_path):
    cfg = config(dataset)
    model = StoredModel(small_set(), jitter=np.random.default_rng(1))
    # Forked, since a spawned process cannot import this file.
    torch.multiprocessing.start_processes(
        evaluate_as_one_of_two, (cfg, model, tmp_path), nprocs=2, start_method="fork"
    )
    (first, metrics, seen), second = (
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)
    )
    assert second[:2] == [[], {}]
    assert sorted(seen + second[2]) == [1, 2, 3, 4]
    assert len(seen) == 2
    [expected], expected_metrics = evaluate_model(cfg, model)
    assert metrics == expected_metrics
    assert (first[0]["images"], first[0]["tasks"]) == (4, expected["tasks"])


def test_three_processes_find_what_one_does(dataset, ranks, ended, tmp_path):
    """Four images over three processes, of which one has a BatchNorm that saw something else."""
    model = StoredModel(small_set(), jitter=np.random.default_rng(3))
    (expected,), metrics = evaluate_model(config(dataset), model)
    found = tmp_path / "found.json"

    def rank():
        distributed.join("cpu")
        number = int(os.environ["RANK"])
        model.frozen.running_mean += number
        distributed.share_buffers(model)
        assert model.frozen.running_mean.tolist() == [0, 0, 0]
        evaluations, of_rank = evaluate_model(config(dataset), model)
        if number == 0:
            found.write_text(
                json.dumps([evaluations[0]["tasks"], evaluations[0]["images"], of_rank])
            )
        else:
            assert (evaluations, of_rank) == ([], {})
        distributed.leave()

    assert ended(*ranks(rank, 3)) == [0, 0, 0], (tmp_path / "forks.log").read_text()
    tasks, images, of_main = json.loads(found.read_text())
    assert tasks == json.loads(json.dumps(expected["tasks"]))
    assert images == 4
    assert of_main == metrics
    assert 0 < metrics["bbox/AP"] < 100


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "returned no numbers"),
        ({}, "returned no numbers"),
        ({"mine": {}}, "returned no numbers"),
        ({"mine": "good"}, "returned 'good' for Mine/mine, which is no number"),
        ({"bbox": {"AP": 1.0}}, "returned a task bbox, which there is"),
    ],
)
def test_an_evaluator_without_numbers_of_its_own(found, said):
    with pytest.raises(UserError, match=f"SVP.EVALUATORS: Mine {said}"):
        as_tasks("Mine", found, {"bbox": {}})


def test_an_evaluators_numbers_are_tasks_by_name():
    assert as_tasks("Mine", {"error": np.float32(2), "none": math.nan}, {}) == {
        "Mine": {"error": 2.0, "none": None}
    }
    assert as_tasks("Mine", {"a": {"x": 1}, "b": {"y": 2}}, {}) == {
        "a": {"x": 1.0},
        "b": {"y": 2.0},
    }
