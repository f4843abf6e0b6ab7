"""Records for training and evaluation."""

import pytest
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.loading import load_test_records, load_training_records
from scratch_vs_pretrain.errors import UserError


def image_ids(cfg):
    return [record["image_id"] for record in load_training_records(cfg).records]


def only_two_images_have_instances(content, folder):
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in (1, 3)]
    crowd = {**content["annotations"][0], "id": 99, "image_id": 0, "iscrowd": 1}
    content["annotations"].append(crowd)
    content["images"].reverse()


def test_images_without_instances_are_left_out(build, config_of):
    cfg = config_of(build(only_two_images_have_instances))
    assert image_ids(cfg) == [1, 3]
    assert load_training_records(cfg).repaired == {"image without instances, left out": 2}
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert image_ids(cfg) == [0, 1, 2, 3]


def test_images_with_few_keypoints_are_left_out(build, config_of):
    def change(content, folder):
        content["categories"][0]["keypoints"] = list(COCO_PERSON_KEYPOINT_NAMES)
        for one in content["annotations"]:
            visible = 2 if one["image_id"] == 1 else 1
            one["keypoints"] = [3, 3, 2] * visible + [0, 0, 0] * (17 - visible)

    cfg = config_of(build(change))
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 20
    assert image_ids(cfg) == [0, 1, 2, 3]
    cfg.MODEL.KEYPOINT_ON = True
    assert image_ids(cfg) == [1]
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 21
    with pytest.raises(UserError, match="cannot train on"):
        load_training_records(cfg)


def test_no_names():
    with pytest.raises(UserError, match=r"DATASETS\.TRAIN: is empty"):
        load_training_records(default_config())


def test_proposals_are_never_unpickled(build, config_of):
    cfg = config_of(build())
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(UserError, match=r"MODEL\.LOAD_PROPOSALS"):
        load_training_records(cfg)


def test_nothing_that_can_be_learnt(build, config_of):
    def change(content, folder):
        for one in content["annotations"]:
            one["bbox"] = [1, 2, 0, 0]

    cfg = config_of(build(change))
    lost = r"instances lost: 40 of 40 \(100 %\): degenerate box 40 .*`svp check-data` lists all"
    with pytest.raises(UserError, match=lost):
        load_training_records(cfg)
    cfg.SVP.MAX_DROPPED = 1.0
    with pytest.raises(UserError, match=r"nothing to learn: all 40 annotations are dropped"):
        load_training_records(cfg)


def test_records_for_evaluation_have_the_true_sizes_and_no_annotations(build, config_of):
    def change(content, folder):
        Image.new("RGB", (20, 30)).save(folder / "2.png")
        content["images"].reverse()
        content["annotations"][0]["category_id"] = 99  # which Detectron2's loader would refuse

    (name,) = config_of(build(change)).DATASETS.TRAIN
    records = load_test_records(name)
    assert [record["image_id"] for record in records] == [0, 1, 2, 3]
    assert [(record["width"], record["height"]) for record in records[1:3]] == [(16, 12), (20, 30)]
    assert records[0].get("annotations") == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "has no list of images"),
        ([{"id": 1}], r"images\[0\] has no file_name"),
        (
            [{"id": 1, "file_name": "../a.png", "width": 1, "height": 1}],
            "leads out of the image folder",
        ),
    ],
)
def test_images_to_evaluate_on_that_are_not_listed_as_they_should_be(
    build, config_of, images, message
):
    one = build()
    (name,) = config_of(one).DATASETS.TRAIN
    import json

    one.annotations.write_text(json.dumps({"images": images}))
    with pytest.raises(UserError, match=message):
        load_test_records(name)
