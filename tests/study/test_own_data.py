"""Class count, heads, keypoints and evaluation follow from a study's files."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.data import voc
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.audit import audit
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.resolve import run_config
from scratch_vs_pretrain.study.spec import load_study

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS / "demo_mask_rcnn_R_18_FPN_gn.yaml"
FASTER = CONFIGS / "faster_rcnn_R_101_FPN_gn_voc.yaml"
RETINANET = CONFIGS / "retinanet_R_18_FPN_gn.yaml"
REAL = Path(__file__).parents[2].parent / "shared" / "datasets" / "coco"
POLYGON = [[1, 2, 6, 2, 6, 8, 1, 8]]
RUNS = {"size": [12, 16], "counts": [100, 92]}


def coco(masks=None, keypoints=(), sigmas=None, classes=("disc",)):
    """COCO JSON of two annotations with these masks, and keypoints of these names."""
    entry = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
    if keypoints:
        entry |= {"keypoints": [1, 2, 2] * len(keypoints), "num_keypoints": len(keypoints)}
    annotations = [{**entry, "id": number} for number in (1, 2)]
    for one, mask in zip(annotations, masks or (), strict=False):
        one["segmentation"] = mask
    category = {"keypoints": list(keypoints)} if keypoints else {}
    category |= {"sigmas": sigmas} if sigmas else {}
    return {
        "images": [{"id": 0, "file_name": "0.png", "width": 16, "height": 12}],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, **category} for number, name in enumerate(classes, 1)
        ],
    }


@pytest.fixture
def study(tmp_path):
    """Writes a study over two COCO files; returns its path."""

    def make(train, test=None, base=DEMO, arm=None, **overrides):
        data = {}
        for part, content in (("train", train), ("test", test or train)):
            (tmp_path / f"{part}.json").write_text(json.dumps(content))
            data[part] = {"annotations": f"{part}.json", "images": "."}
        content = {
            "name": "own",
            "base": str(base),
            "arms": {"scratch": {"init": "scratch", "overrides": arm or {}}},
            "schedules": [{"iterations": 300}],
            "overrides": overrides,
            "data": data,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def config(path):
    found = load_study(path)
    return run_config(found, found.runs()[0])


def notices(path):
    about_data = ("the data", "no category")
    return " / ".join(n for n in audit(load_study(path)).notices if n.startswith(about_data))


@pytest.mark.parametrize(
    ("masks", "base", "on", "notice"),
    [
        ([POLYGON, POLYGON], DEMO, True, ""),
        ([POLYGON, POLYGON], FASTER, True, "turn MODEL.MASK_ON on, unlike faster_rcnn"),
        (None, DEMO, False, "turn MODEL.MASK_ON off, unlike demo_mask_rcnn"),
        (None, FASTER, False, ""),
        ([POLYGON, POLYGON], RETINANET, False, ""),  # it learns boxes alone
        ([POLYGON, []], DEMO, True, ""),  # whether to do without masks is the user's decision
    ],
)
def test_masks(study, masks, base, on, notice):
    path = study(coco(masks), base=base, **{"SVP.MAX_DROPPED": 1.0})
    assert config(path).MODEL.MASK_ON is on
    assert (notice in notices(path)) if notice else not notices(path)
    assert config(path).MODEL.ROI_HEADS.NUM_CLASSES == 1


def test_masks_that_only_training_lacks_here_and_there(study):
    path = study(coco([POLYGON, []]), coco([POLYGON, POLYGON]), **{"SVP.MAX_DROPPED": 1.0})
    assert config(path).MODEL.MASK_ON is True
    assert not notices(path)


def test_a_mask_head_may_be_kept_off(study):
    path = study(coco([POLYGON, POLYGON]), **{"MODEL.MASK_ON": False})
    assert config(path).MODEL.MASK_ON is False
    assert not notices(path)


def test_run_lengths_need_bit_masks(study):
    assert config(study(coco([RUNS, POLYGON]), base=FASTER)).INPUT.MASK_FORMAT == "bitmask"
    assert config(study(coco([POLYGON, POLYGON]), base=FASTER)).INPUT.MASK_FORMAT == "polygon"


def test_keypoints(study):
    names = ("left fin", "right fin", "tail")
    path = study(coco(keypoints=names, sigmas=[0.1, 0.1, 0.2]))
    cfg = config(path)
    assert cfg.MODEL.KEYPOINT_ON is True
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    assert cfg.TEST.KEYPOINT_OKS_SIGMAS == [0.1, 0.1, 0.2]
    assert "turn MODEL.KEYPOINT_ON on" in notices(path)
    path = study(coco(keypoints=names), **{"MODEL.KEYPOINT_ON": True})
    assert config(path).TEST.KEYPOINT_OKS_SIGMAS == [0.067] * 3
    assert "keypoints are scored with 0.067 each" in notices(path)


def test_coco_persons_are_scored_with_cocos_sigmas(study):
    from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES

    path = study(coco(keypoints=COCO_PERSON_KEYPOINT_NAMES))
    assert config(path).TEST.KEYPOINT_OKS_SIGMAS == []
    assert "scored with" not in notices(path)


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (coco(), {"MODEL.MASK_ON": True}, r"MODEL\.MASK_ON .* True.* no annotation has a mask"),
        (coco(), {"MODEL.KEYPOINT_ON": True}, r"KEYPOINT_ON .* True.* no annotation .* keypoints"),
        (
            coco(keypoints=("a", "b")),
            {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17},
            r"name 2 keypoints, but MODEL\.ROI_KEYPOINT_HEAD\.NUM_KEYPOINTS is 17",
        ),
        (
            coco(keypoints=("a", "b")),
            {"TEST.KEYPOINT_OKS_SIGMAS": [0.1, 0.1, 0.1]},
            r"name 2 keypoints, but TEST\.KEYPOINT_OKS_SIGMAS has 3",
        ),
        (
            coco([RUNS, RUNS]),
            {"INPUT.MASK_FORMAT": "polygon"},
            r"some masks are run lengths; set INPUT\.MASK_FORMAT to bitmask",
        ),
    ],
)
@pytest.mark.parametrize("place", ["study", "arm"])
def test_overrides_that_contradict_the_files(study, capsys, content, overrides, message, place):
    path = study(content, arm=overrides) if place == "arm" else study(content, **overrides)
    assert main(["run", str(path), "-o", str(path.parent / "output")]) == 2
    text = capsys.readouterr().err
    assert re.search(message, text)
    assert text.count("\n") == 1
    assert not (path.parent / "output").exists()


def assert_refused_before_it_runs(path, capsys, message):
    assert main(["plan", str(path)]) == 0
    assert f"note: before it runs: {message}" in capsys.readouterr().out
    assert main(["run", str(path), "-o", str(path.parent / "out")]) == 2
    assert f"svp: error: {path}: {message}" in capsys.readouterr().err
    assert not (path.parent / "out").exists()


def test_images_that_are_not_there(study, tmp_path, capsys):
    message = f"{tmp_path}: 1 of the 1 images of own_train are missing: 0.png; restore them"
    assert_refused_before_it_runs(study(coco()), capsys, message)


def test_files_of_other_categories(study):
    with pytest.raises(UserError, match=r"data: .*test\.json has other categories than"):
        config(study(coco(), coco(classes=("ring",))))


def write_tree(root, split, names):
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax>"
        "<ymax>40</ymax></bndbox></object>"
        for name in names
    )
    Image.new("RGB", (64, 48), (90, 120, 40)).save(root / "JPEGImages" / f"{split}.jpg")
    size = "<size><width>64</width><height>48</height></size>"
    text = f"<annotation>{size}{objects}</annotation>"
    (root / "Annotations" / f"{split}.xml").write_text(text)


@pytest.fixture
def voc_study(tmp_path):
    write_tree(tmp_path / "a", "train", ["ring", "disc"])
    write_tree(tmp_path / "b", "train", ["disc"])
    write_tree(tmp_path / "b", "val", ["disc", "star"])

    def make(base=DEMO, **more):
        content = {
            "name": "trees",
            "base": str(base),
            "arms": {"scratch": {"init": "scratch"}},
            "schedules": [{"iterations": 300}],
            "data": {
                "train": [{"voc": "a", "split": "train"}, {"voc": "b", "split": "train"}],
                "test": {"voc": "b", "split": "val", "year": 2007},
                **more.pop("data", {}),
            },
            **more,
        }
        path = tmp_path / "voc.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def test_voc_trees(voc_study, tmp_path):
    path = voc_study()
    cfg = config(path)
    classes = ["disc", "ring", "star"]
    assert list(cfg.DATASETS.TRAIN) == ["trees_train-1", "trees_train-2"]
    assert list(cfg.DATASETS.TEST) == ["trees_test"]
    assert [list(entry) for entry in cfg.SVP.VOC_DATASETS] == [
        ["trees_train-1", str(tmp_path / "a"), "train", 2012, classes],
        ["trees_train-2", str(tmp_path / "b"), "train", 2012, classes],
        ["trees_test", str(tmp_path / "b"), "val", 2007, classes],
    ]
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON) == (3, False)
    assert "turn MODEL.MASK_ON off" in notices(path)
    (row,) = plan(load_study(path)).rows
    assert row.epochs == 300 * 4 / 2
    given = config(voc_study(data={"classes": ["star", "disc"]}))
    assert given.SVP.VOC_DATASETS[0][-1] == ["star", "disc"]
    assert given.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_images_of_a_voc_tree_that_are_not_there(voc_study, tmp_path, capsys):
    path = voc_study()
    (tmp_path / "b/JPEGImages/train.jpg").unlink()
    message = f"{tmp_path / 'b'}: 1 of the 1 images of trees_train-2 are missing"
    assert_refused_before_it_runs(path, capsys, message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL.MASK_ON": True}, "VOC trees have boxes alone"),
        ({"TEST.AUG.ENABLED": True}, "without test augmentation.* trees_test"),
    ],
)
def test_what_voc_trees_cannot_do(voc_study, capsys, overrides, message):
    path = voc_study(overrides=overrides)
    assert main(["plan", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def refused(capsys, path):
    output = path.parent / "output"
    assert main(["run", str(path), "-o", str(output)]) == 2
    assert not output.exists()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_annotation_files_that_cannot_be_used(study, capsys):
    without = {key: value for key, value in coco().items() if key != "images"}
    assert "test.json: not in COCO format; it has no list of images" in refused(
        capsys, study(coco(), without)
    )
    climbing = coco()
    climbing["images"][0]["file_name"] = "../0.png"
    assert "an image is ../0.png, which leads out of the image folder" in refused(
        capsys, study(climbing)
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "val.txt: is empty"), ("../../val\n", "../../val leads out of the tree")],
)
@pytest.mark.parametrize("classes", [{}, {"classes": ["disc"]}])
def test_lists_of_images_that_cannot_be_used(voc_study, tmp_path, capsys, lines, message, classes):
    path = voc_study(data=classes)
    (tmp_path / "b" / "ImageSets" / "Main" / "val.txt").write_text(lines)
    assert message in refused(capsys, path)


SMALL = {
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 1,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16],
    "TEST.DETECTIONS_PER_IMAGE": 5,
}
SHORT = [{"iterations": 2, "name": "short", "drops_before_end": [1]}]


def train_here(path):
    """Trains a study of one run in this process; returns its run.json and last evaluation."""
    from scratch_vs_pretrain.training.__main__ import train

    (folder,) = prepare(load_study(path), path.parent / "output")
    train(folder)
    return folder.read(), json.loads(folder.evaluation_file(2).read_text())


def test_voc_trees_train_and_are_evaluated(voc_study):
    path = voc_study(name="voc-end-to-end", schedules=SHORT, overrides=SMALL)
    run, evaluation = train_here(path)
    assert run.state == "finished"
    assert (run.data.train.images, run.data.train.annotations) == (2, 3)
    assert run.repaired == {}
    assert evaluation["dataset"] == "voc-end-to-end_test"
    assert list(evaluation["tasks"]) == ["bbox", "voc"]
    assert list(evaluation["tasks"]["bbox"]["per_class"]) == ["disc", "ring", "star"]
    file = next(path.parent.glob("*/Annotations/*.xml"))
    file.write_text(f"{file.read_text()}\n")
    voc._parse_all.cache_clear()  # another process would not have read it
    with pytest.raises(UserError, match=r"seed0: t\w+ data have changed since this run was plan"):
        prepare(load_study(path), path.parent / "output")


@pytest.mark.skipif(not (REAL / "annotations").is_dir(), reason=f"no real photographs in {REAL}")
def test_photographs_with_keypoints_train_and_are_evaluated(tmp_path):
    data = {}
    for part in ("train", "val"):
        file = REAL / "annotations" / f"person_keypoints_{part}2017.json"
        content = json.loads(file.read_text())
        content["images"] = content["images"][:6]
        ids = [image["id"] for image in content["images"]]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        if part == "train":
            content["annotations"][0]["bbox"][2] = 0
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
        data[part] = {"annotations": f"{part}.json", "images": str(REAL / f"{part}2017")}
    study = {
        "name": "keypoints-end-to-end",
        "base": str(DEMO),
        "arms": {"scratch": {"init": "scratch"}},
        "schedules": SHORT,
        "overrides": {**SMALL, "SVP.MAX_DROPPED": 0.2},
        "data": {"train": data["train"], "test": data["val"]},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    run, evaluation = train_here(path)
    assert run.state == "finished"
    assert run.repaired == {
        "degenerate box, dropped": 1,
        "image without instances, left out": 1,
    }
    assert list(evaluation["tasks"]) == ["bbox", "segm", "keypoints"]
    assert list(evaluation["tasks"]["bbox"]["per_class"]) == ["person"]
