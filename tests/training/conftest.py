"""The paper's detectors, shrunken, on synthetic data; and when two runs are the same."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.engine import SimpleTrainer

from scratch_vs_pretrain.config import config_text, default_config, merge_file, merge_overrides
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.evaluation.evaluator import check_test_sets
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import RunInfo
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training.checkpoint import load_newest
from scratch_vs_pretrain.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"

NARROW = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "SVP.RESNETS.ALLOW_NARROW": True,
    "SVP.VGG.WIDTH": 4,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    # Untrained detectors find something, too.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (16,),
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": 1,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 64,
    "INPUT.MASK_FORMAT": "bitmask",
    "TEST.AUG.MIN_SIZES": (48, 64),
    "TEST.AUG.MAX_SIZE": 64,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "TEST.EVAL_PERIOD": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.STEPS": (2,),
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WARMUP_ITERS": 2,
    "SVP.GROUP_SIZE": 1,
    "SVP.TENSORBOARD": False,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 0,
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(
        folder, ShapesSpec(train=4, test=2, image_size=64, object_size=(20, 40)), progress=False
    )
    return [
        [f"detectors_{part}", str(folder / "annotations" / f"{part}.json"), str(folder / part)]
        for part in ("train", "test")
    ]


@pytest.fixture(scope="session")
def keypoint_shapes(shapes, tmp_path_factory):
    """The same pictures with a person's keypoints: seventeen points on each object's diagonal."""
    folder = tmp_path_factory.mktemp("keypoints")
    sets = []
    for part, (_, annotations, images) in zip(("train", "test"), shapes, strict=True):
        content = json.loads(Path(annotations).read_text())
        person = {"id": 1, "name": "person", "keypoints": list(COCO_PERSON_KEYPOINT_NAMES)}
        content["categories"] = [{**person, "skeleton": []}]
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            points = [(x + width * k / 17, y + height * k / 17, 2) for k in range(17)]
            annotation |= {
                "category_id": 1,
                "num_keypoints": 17,
                "keypoints": [value for point in points for value in point],
            }
        file = folder / f"{part}.json"
        file.write_text(json.dumps(content))
        sets.append([f"keypoints_{part}", str(file), images])
    return sets


def _config_of(name, datasets, overrides):
    """Returns a config file's detector in small, with a train and a test set."""
    cfg = default_config()
    merge_file(cfg, CONFIGS / f"{name}.yaml")
    sets = {
        "SVP.DATASETS": tuple(datasets),
        "DATASETS.TRAIN": (datasets[0][0],),
        "DATASETS.TEST": (datasets[1][0],),
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    }
    merge_overrides(cfg, NARROW | sets | overrides, name)
    return cfg


def _make_run(path, cfg):
    """Writes the folder that `svp run` would."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.config_file.write_text(config_text(cfg))
    folder.write(RunInfo(study="s", arm="scratch", schedule="3it", seed=0, iterations=3))
    return folder


def _train(path, cfg):
    """Trains in a new run folder; returns it and the trainer."""
    folder = _make_run(path, cfg)
    register(cfg)
    check_test_sets(cfg)
    trainer = Trainer(cfg, folder)
    trainer.train()
    return folder, trainer


@pytest.fixture(scope="session")
def config_of():
    return _config_of


@pytest.fixture(scope="session")
def make_run():
    return _make_run


@pytest.fixture(scope="session")
def train():
    return _train


WALL_CLOCK = ("time", "data_time", "eta_seconds", "rank_data_time")


def _metrics(folder):
    rows = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in rows]


def _assert_same(one, other):
    first, second = map(load_newest, (one, other))
    assert first["iteration"] == second["iteration"]
    assert first["model"].keys() == second["model"].keys()
    for name, tensor in second["model"].items():
        assert torch.equal(first["model"][name], tensor), name
    assert first["optimizer"]["state"].keys() == second["optimizer"]["state"].keys()
    for number, state in first["optimizer"]["state"].items():
        momentum = second["optimizer"]["state"][number]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], momentum)
    assert _metrics(one) == _metrics(other)
    names = [sorted(file.name for file in run.evaluations.iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        contents = [json.loads((run.evaluations / name).read_text()) for run in (one, other)]
        assert contents[0]["tasks"] == contents[1]["tasks"]


@pytest.fixture(scope="session")
def metrics_of():
    """Returns the lines of a run's metrics.json without what depends on the machine's speed."""
    return _metrics


@pytest.fixture(scope="session")
def assert_same():
    """Two runs ended bit for bit alike: weights, momentum, metrics and evaluations."""
    return _assert_same


@pytest.fixture
def train_until(monkeypatch):
    """Trains a run folder and sends SIGTERM after so many completed iterations."""

    def train_until(folder, completed):
        show_progress = Trainer._show_progress

        def stop(trainer):
            show_progress(trainer)
            if trainer.iter + 1 == completed:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_show_progress", stop)
            assert worker.main([str(folder.path)]) == worker.INTERRUPTED

    return train_until


@pytest.fixture
def at_iteration():
    """Does something before an iteration of training in this process; for forks."""

    def plan(iteration, action):
        step = SimpleTrainer.run_step

        def called(trainer):
            if trainer.iter == iteration:
                action()
            step(trainer)

        SimpleTrainer.run_step = called

    return plan


@pytest.fixture
def trainer_with(write_study, tmp_path):
    """Builds a trainer of 50 iterations on twelve pictures of 64 pixels."""

    def build(name, overrides=None, iterations=50):
        overrides = {"SOLVER.CHECKPOINT_PERIOD": 1000, **(overrides or {})}
        study = write_study(overrides=overrides, schedules=[{"iterations": iterations}])
        [folder] = prepare(load_study(study), tmp_path / name)
        cfg = worker.config_of(folder.config_file)
        register(cfg)
        return Trainer(cfg, folder)

    return build
