import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scratch_vs_pretrain.data.loading import check_ground_truth, load_ground_truth
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.scores import score

NAME = "ground_truth_under_test"


def annotation(number, **changes):
    keypoints = [value for k in range(17) for value in (k, k, 2)]
    return {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "segmentation": [[0, 0, 20, 0, 20, 20]],
        "keypoints": keypoints,
        "num_keypoints": 17,
        **changes,
    }


def content(*annotations):
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 20}],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "disc"}],
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "annotations.json"
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(json_file=str(path), image_root=str(tmp_path))
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_complete_ground_truth_is_fit_for_every_task(file):
    file.write_text(json.dumps(content(annotation(1), annotation(2, iscrowd=1, num_keypoints=0))))
    check_ground_truth(NAME, ("bbox", "segm", "keypoints"))


@pytest.mark.parametrize(
    ("task", "key", "made"),
    [("bbox", "area", 400.0), ("segm", "area", 400.0), ("keypoints", "num_keypoints", 17)],
)
def test_what_follows_from_the_rest_may_be_missing(file, task, key, made):
    incomplete = annotation(7)
    del incomplete[key]
    file.write_text(json.dumps(content(annotation(1), incomplete)))
    check_ground_truth(NAME, (task,))
    assert load_ground_truth(NAME, task)["annotations"][1][key] == made


def test_keypoints_are_needed_everywhere(file):
    incomplete = annotation(7, keypoints=[])
    file.write_text(json.dumps(content(annotation(1), incomplete)))
    with pytest.raises(UserError, match=f"{NAME}: annotation 7 has no keypoints, .*KEYPOINT_ON"):
        check_ground_truth(NAME, ("keypoints",))


@pytest.mark.parametrize("value", [None, "visible", [], 10**400, float("nan")])
def test_keypoints_that_are_no_numbers_matter_to_keypoint_ap_alone(file, value):
    odd = annotation(7, keypoints=[1, 1, value] * 17, num_keypoints=None)
    file.write_text(json.dumps(content(annotation(1), odd)))
    check_ground_truth(NAME, ("bbox", "segm"))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 1.0}]
    assert score(load_ground_truth(NAME), found, "bbox")["AP50"] > 0
    says = f"{NAME}: annotation 7 has keypoints that are no 51 numbers, .*KEYPOINT_ON"
    with pytest.raises(UserError, match=says):
        check_ground_truth(NAME, ("keypoints",))


def test_difficult_of_coco_files_changes_nothing(file):
    """pycocotools knows no such key."""
    file.write_text(json.dumps(content(annotation(1, difficult=1))))
    assert load_ground_truth(NAME)["annotations"][0]["iscrowd"] == 0


@pytest.mark.parametrize("mask", [[], [[]], None])
def test_an_annotation_without_a_mask_is_left_out_of_mask_ap_alone(file, mask):
    maskless = annotation(3, segmentation=mask)
    file.write_text(json.dumps(content(*(annotation(n) for n in range(20, 60)), maskless)))
    check_ground_truth(NAME, ("bbox", "segm"))
    assert len(load_ground_truth(NAME, "bbox")["annotations"]) == 41
    assert len(load_ground_truth(NAME, "segm")["annotations"]) == 40


@pytest.mark.parametrize("mask", [[], [[]], None])
def test_masks_that_are_missing_are_named(file, mask):
    """More than a twentieth of them: whether to do without is the user's decision."""
    file.write_text(json.dumps(content(annotation(1), annotation(3, segmentation=mask))))
    check_ground_truth(NAME, ("bbox",))
    with pytest.raises(UserError, match=r"instances lost: 1 of 2 .*MODEL\.MASK_ON"):
        check_ground_truth(NAME, ("bbox", "segm"))


def test_annotation_ids_are_numbered_anew(file):
    file.write_text(json.dumps(content(annotation(0), annotation(0, bbox=[1, 1, 5, 5]))))
    assert [one["id"] for one in load_ground_truth(NAME)["annotations"]] == [1, 2]


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 5], [0, 0, 5, -1], [90, 0, 5, 5], [0, 0, float("nan"), 5]]
)
def test_what_no_detection_could_match_is_left_out(file, box):
    file.write_text(json.dumps(content(annotation(1), annotation(2, bbox=box))))
    (left,) = load_ground_truth(NAME)["annotations"]
    assert left["bbox"] == [0, 0, 20, 20]


def test_as_many_sigmas_as_keypoints_are_needed(file):
    file.write_text(json.dumps(content(annotation(1, keypoints=[1, 1, 2] * 5))))
    with pytest.raises(UserError, match=r"5 keypoints, not 17, .*KEYPOINT_OKS_SIGMAS"):
        check_ground_truth(NAME, ("keypoints",))
    check_ground_truth(NAME, ("keypoints",), keypoint_sigmas=[0.05] * 5)


@pytest.mark.parametrize("without", [{"annotations": []}, {"annotations": None}])
def test_images_alone_cannot_be_scored(file, without):
    file.write_text(json.dumps({**content(), **without}))
    with pytest.raises(UserError, match="no annotations"):
        check_ground_truth(NAME, ("bbox",))
    check_ground_truth(NAME, ())


def test_a_file_is_read_once_until_it_changes(file):
    file.write_text(json.dumps(content(annotation(1))))
    first = load_ground_truth(NAME)
    assert load_ground_truth(NAME) is first
    file.write_text(json.dumps(content(annotation(2, bbox=[0, 0, 20, 19]))))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert load_ground_truth(NAME)["annotations"][0]["bbox"] == [0, 0, 20, 19]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not valid JSON"),
        ("[]", "not in COCO format"),
        ('{"images": []}', "not in COCO format"),
    ],
)
def test_what_is_no_coco_json_is_refused_by_name(file, text, message):
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file.name}: {message}"):
        load_ground_truth(NAME)


def test_a_missing_file_is_named(file):
    with pytest.raises(UserError, match=f"{NAME}: no such annotation file as .*{file.name}"):
        load_ground_truth(NAME)


def test_another_format_than_coco_is_refused():
    with pytest.raises(UserError, match=r"cityscapes_fine_instance_seg_val: is not in COCO format"):
        load_ground_truth("cityscapes_fine_instance_seg_val")


@pytest.mark.parametrize("area", [-5, 0, 442, 1e11, 10**400, float("inf"), float("nan"), "400"])
def test_perfect_detections_score_100_whatever_area_is_stated(file, area):
    file.write_text(json.dumps(content(annotation(1, area=area))))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 1.0}]
    numbers = score(load_ground_truth(NAME), found, "bbox")
    assert numbers["AP"] == numbers["APs"] == pytest.approx(100)
    assert numbers["APm"] is None
    assert numbers["APl"] is None


def test_an_area_larger_than_the_picture_does_not_make_a_small_object_large(file):
    """As it does in pycocotools, which takes whatever is stated."""
    one = content(annotation(1, area=90_000))
    file.write_text(json.dumps(one))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 1.0}]
    theirs = COCO()
    theirs.dataset = one
    theirs.createIndex()
    evaluation = COCOeval(theirs, theirs.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    by_size = [round(100 * value) for value in evaluation.stats[3:6]]
    assert by_size == [-100, -100, 100]  # none is small, none is medium
    ours = score(load_ground_truth(NAME), found, "bbox")
    assert [ours[name] for name in ("APs", "APm", "APl")] == [pytest.approx(100), None, None]
