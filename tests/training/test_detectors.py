"""Every detector of the paper, shrunken: trains three iterations, evaluates, predicts."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.data.datasets import register_coco_instances

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import config_text, default_config, merge_file, merge_overrides
from scratch_vs_pretrain.data.registration import register
from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.study.audit import recipe_problems
from scratch_vs_pretrain.training.cascade_switch import switched_state
from scratch_vs_pretrain.training.evaluation import check_test_sets, evaluate_model
from scratch_vs_pretrain.training.predict import predict
from scratch_vs_pretrain.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
COCO = Path(__file__).parents[2].parent / "shared" / "datasets" / "coco"
ITERATIONS = 3

# pycocotools' masks under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

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
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.STEPS": (2,),
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WARMUP_ITERS": 2,
    "SVP.GROUP_SIZE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 0,
}

# Config, what it is changed in beside its size, tasks, and the normalization that really runs.
DETECTORS = {
    "mask-gn": ("mask_rcnn_R_50_FPN_gn", {}, ["bbox", "segm"], {"GN"}),
    "mask-syncbn": (
        "mask_rcnn_R_50_FPN_syncbn",
        {},
        ["bbox", "segm"],
        {"SyncBN (as BatchNorm: one process)"},
    ),
    "resnext": (
        "mask_rcnn_X_152_8x32d_FPN_gn",
        {
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.NUM_GROUPS": 8,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        },
        ["bbox", "segm"],
        {"GN"},
    ),
    "cascade-tta": (
        "cascade_mask_rcnn_R_50_FPN_gn",
        {"TEST.AUG.ENABLED": True},
        ["bbox", "segm"],
        {"GN"},
    ),
    "boxes-tta": ("faster_rcnn_R_101_FPN_gn_voc", {"TEST.AUG.ENABLED": True}, ["bbox"], {"GN"}),
    "vgg": ("faster_rcnn_VGG_16", {}, ["bbox"], set()),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    make_shapes(
        folder, ShapesSpec(train=4, test=2, image_size=64, object_size=(20, 40)), progress=False
    )
    return [
        [f"detectors_{part}", str(folder / "annotations" / f"{part}.json"), str(folder / part)]
        for part in ("train", "test")
    ]


def config_of(name, datasets, overrides):
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


def make_run(path, cfg):
    """Writes the folder that `svp run` would."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.config_file.write_text(config_text(cfg))
    folder.update(arm="scratch", schedule="3it", seed=0)
    return folder


def train(path, cfg):
    folder = make_run(path, cfg)
    register(cfg)
    check_test_sets(cfg)
    trainer = Trainer(cfg, folder)
    trainer.train()
    return folder, trainer


def assert_evaluated(folder, tasks):
    content = json.loads(folder.evaluation_file(ITERATIONS).read_text())
    assert list(content["tasks"]) == tasks
    for task in tasks:
        assert math.isfinite(content["tasks"][task]["AP"])
    return content


@pytest.mark.parametrize("name", DETECTORS)
def test_trains_evaluates_and_predicts(name, shapes, tmp_path):
    file, overrides, tasks, norms = DETECTORS[name]
    cfg = config_of(file, shapes, overrides)
    folder, trainer = train(tmp_path / "run", cfg)
    assert set(trainer.described["norms"]) == norms
    content = assert_evaluated(folder, tasks)
    if cfg.TEST.AUG.ENABLED:
        (plain,) = content["others"]
        assert (content["test_aug"], plain["test_aug"]) == (True, False)
        assert list(plain["tasks"]) == tasks
    else:
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


def keypoint_set(folder, part, of):
    """Writes the COCO person keypoints of every object: seventeen points along its diagonal."""
    content = json.loads(Path(of).read_text())
    names = [f"point{k}" for k in range(17)]
    content["categories"] = [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}]
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
    return str(file)


KEYPOINTS = {"MODEL.ROI_HEADS.NUM_CLASSES": 1}


def test_keypoints_train_evaluate_and_predict(shapes, tmp_path):
    datasets = [
        [f"keypoints_{part}", keypoint_set(tmp_path, part, annotations), images]
        for part, (_, annotations, images) in zip(("train", "test"), shapes, strict=True)
    ]
    cfg = config_of("keypoint_rcnn_R_50_FPN_gn", datasets, KEYPOINTS)
    folder, _ = train(tmp_path / "run", cfg)
    assert_evaluated(folder, ["bbox", "keypoints"])
    files = predict(folder.path, "keypoints_test")
    assert [path.name for path in files] == [
        "keypoints_test_bbox.json",
        "keypoints_test_keypoints.json",
    ]
    assert all(len(one["keypoints"]) == 51 for one in json.loads(files[1].read_text()))


def test_keypoint_detector_is_refused_without_keypoints(shapes):
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
    return [f"real_{kind}_{part}", str(file), str(COCO / f"{part}2017")]


@pytest.mark.skipif(not COCO.is_dir(), reason="needs COCO images in ../shared/datasets")
@pytest.mark.parametrize(
    ("file", "kind", "overrides", "tasks"),
    [
        (
            "mask_rcnn_R_50_FPN_gn",
            "instances",
            {"MODEL.ROI_HEADS.NUM_CLASSES": 80, "INPUT.MASK_FORMAT": "polygon"},
            ["bbox", "segm"],
        ),
        ("keypoint_rcnn_R_50_FPN_gn", "person_keypoints", KEYPOINTS, ["bbox", "keypoints"]),
    ],
    ids=["masks", "keypoints"],
)
def test_real_photographs(file, kind, overrides, tasks, tmp_path):
    datasets = [real_part(tmp_path, kind, "train", 4), real_part(tmp_path, kind, "val", 2)]
    folder, _ = train(tmp_path / "run", config_of(file, datasets, overrides))
    assert_evaluated(folder, tasks)


def test_run_switches_to_cascade_and_trains_on(shapes, tmp_path):
    plain_cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, {})
    _, plain = train(tmp_path / "plain", plain_cfg)
    longer = {"SOLVER.MAX_ITER": ITERATIONS + 2, "SOLVER.STEPS": (4,)}
    cfg = config_of("cascade_mask_rcnn_R_50_FPN_gn", shapes, longer)
    after = make_run(tmp_path / "after", cfg)
    trainer = Trainer(cfg, after)
    checkpoint = plain.checkpointer.load_newest()
    state = switched_state(checkpoint, trainer.network, trainer.optimizer)
    trainer.checkpointer.folder.mkdir()
    torch.save(state, trainer.checkpointer.file(ITERATIONS))
    resumed = Trainer(cfg, after)
    assert resumed.resumed
    assert resumed.iter == ITERATIONS
    before = plain.network.roi_heads.box_head.fc1.weight
    assert torch.equal(resumed.network.roi_heads.box_head[0].fc1.weight, before)
    resumed.train()
    content = json.loads(after.evaluation_file(ITERATIONS + 2).read_text())
    assert math.isfinite(content["tasks"]["segm"]["AP"])


def test_test_augmentation_changes_the_detections_and_leaves_the_model_alone(shapes, tmp_path):
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


def test_test_augmentation_finds_nothing_without_failing(shapes, tmp_path):
    nothing = {"TEST.AUG.ENABLED": True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.1}
    folder, _ = train(tmp_path / "run", config_of("mask_rcnn_R_50_FPN_gn", shapes, nothing))
    assert assert_evaluated(folder, ["bbox", "segm"])["tasks"]["bbox"]["AP"] == 0


def test_test_augmentation_is_refused_where_it_cannot_be(shapes):
    asked = {"TEST.AUG.ENABLED": True}
    keypoints = config_of("keypoint_rcnn_R_50_FPN_gn", shapes, asked)
    voc = config_of(
        "faster_rcnn_R_101_FPN_gn_voc", shapes, asked | {"DATASETS.TEST": ("voc_2012_val",)}
    )
    for cfg, message in ((keypoints, "but no keypoints"), (voc, "for voc_2012_val")):
        with pytest.raises(UserError, match=message):
            check_test_sets(cfg)
        assert any(message in problem for problem in recipe_problems(cfg))


def test_predict_needs_no_annotations(shapes, tmp_path):
    cfg = config_of("faster_rcnn_VGG_16", shapes, {})
    folder, _ = train(tmp_path / "run", cfg)
    content = json.loads(Path(shapes[1][1]).read_text())
    del content["annotations"]
    (tmp_path / "dev.json").write_text(json.dumps(content))
    register_coco_instances("detectors_dev", {}, str(tmp_path / "dev.json"), shapes[1][2])
    (file,) = predict(folder.path, "detectors_dev", tmp_path / "dev")
    assert {one["image_id"] for one in json.loads(file.read_text())} == {1, 2}


def test_predict_names_its_files(shapes, tmp_path, capsys):
    folder, _ = train(tmp_path / "run", config_of("faster_rcnn_VGG_16", shapes, {}))
    assert main(["predict", str(folder.path), "--dataset", "detectors_train"]) == 0
    file = folder.path / "predictions" / "detectors_train_bbox.json"
    assert capsys.readouterr().out == f"{file}\n"
    assert {one["image_id"] for one in json.loads(file.read_text())} == {1, 2, 3, 4}


def test_predict_refuses_what_it_cannot_do(shapes, tmp_path, capsys):
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
