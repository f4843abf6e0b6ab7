"""Equality with pycocotools, on real annotations and on cases made to be awkward."""

import contextlib
import copy
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scratch_vs_pretrain.evaluation.scores import NUMBERS, score

ANNOTATIONS = Path(__file__).parents[2].parent / "shared" / "datasets" / "coco" / "annotations"
TASKS = ("bbox", "segm", "keypoints")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found annotation id 0"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # pycocotools' decode
]


def reference(ground_truth, results, task, keypoint_sigmas=None, numbered_from=1):
    """pycocotools' numbers in percent, as `score` has them (its own code, but for the percent).

    Annotations are numbered anew: it takes a match with one whose id is 0 for none.
    """
    truth, detections = COCO(), COCO()
    truth.dataset = copy.deepcopy(ground_truth)
    for number, annotation in enumerate(truth.dataset["annotations"], numbered_from):
        annotation["id"] = number
    results = copy.deepcopy(results)
    if task == "segm":
        for result in results:
            result.pop("bbox", None)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if results:
            detections = truth.loadRes(results)
        else:  # loadRes fails on an empty list
            detections.dataset = {**ground_truth, "annotations": []}
            detections.createIndex()
        evaluation = COCOeval(truth, detections, task)
        if keypoint_sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(keypoint_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = [truth.cats[number]["name"] for number in evaluation.params.catIds]
    return {
        **dict(zip(NUMBERS[task], map(percent, evaluation.stats), strict=True)),
        "per_iou": {
            f"{threshold:.2f}": percent_of_known(precision[index])
            for index, threshold in enumerate(evaluation.params.iouThrs)
        },
        "per_class": {name: percent_of_known(precision[:, :, k]) for k, name in enumerate(names)},
    }


def percent(value):
    return None if value == -1 else 100 * value


def percent_of_known(values):
    return percent(values[values > -1].mean()) if (values > -1).any() else None


def assert_equal(ground_truth, results, task, **options):
    ours = score(ground_truth, results, task, **options)
    theirs = reference(ground_truth, results, task, **options)
    # 1e-9 before the percent scaling
    for group in ("per_iou", "per_class"):
        assert ours.pop(group) == pytest.approx(theirs.pop(group), abs=1e-7)
    assert ours == pytest.approx(theirs, abs=1e-7)


def encode(mask):
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def shifted(mask, dx, dy):
    return np.roll(mask, (round(dy), round(dx)), axis=(0, 1))


def plausible_detections(ground_truth, seed):
    """Perturbed ground truth: jitter, drops, duplicates, wrong classes, false positives, ties."""
    random = np.random.default_rng(seed)
    index = COCO()
    index.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    categories = sorted(index.cats)
    results = []
    for image_id in random.permutation(sorted(index.imgs)):
        for annotation in index.imgToAnns[image_id]:
            for _ in range(random.choice([0, 1, 1, 2])):
                x, y, w, h = annotation["bbox"]
                scale = random.choice([0, 0.02, 0.1, 0.4])
                dx, dy, dw, dh = random.normal(0, scale, 4) * [w, h, w, h]
                wrong_class = random.random() < 0.1
                result = {
                    "image_id": int(image_id),
                    "category_id": int(random.choice(categories))
                    if wrong_class
                    else annotation["category_id"],
                    "score": float(np.round(random.random(), random.choice([1, 6]))),
                    "bbox": [x + dx, y + dy, max(w + dw, 0.0), max(h + dh, 0.0)],
                    "segmentation": encode(shifted(index.annToMask(annotation), dx, dy)),
                }
                if "keypoints" in annotation:
                    points = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)
                    points[:, :2] += random.normal(0, scale * np.sqrt(w * h), (len(points), 2))
                    result["keypoints"] = points.ravel().tolist()
                results.append(result)
    return results


@functools.cache
def real(name):
    path = ANNOTATIONS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    ground_truth = json.loads(path.read_text())
    return ground_truth, plausible_detections(ground_truth, seed=0)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("instances_val2017", "bbox"),
        ("instances_val2017", "segm"),
        ("person_keypoints_val2017", "bbox"),
        ("person_keypoints_val2017", "segm"),
        ("person_keypoints_val2017", "keypoints"),
    ],
)
def test_equals_pycocotools_on_real_annotations(name, task):
    ground_truth, results = real(name)
    assert score(ground_truth, results, task)["AP"] > 5
    assert_equal(ground_truth, results, task)


def test_gives_what_it_was_given_back_unchanged():
    ground_truth, results = real("person_keypoints_val2017")
    before = json.dumps([ground_truth, results])
    for task in TASKS:
        score(ground_truth, results, task)
    assert json.dumps([ground_truth, results]) == before


@st.composite
def awkward_cases(draw):
    """COCO ground truth and results that cover the corners of the rules.

    Crowds, images without annotations or detections, categories without either, unknown
    categories, tied scores, more detections than count, boxes and masks without area, areas on
    the borders of the ranges, keypoints none of which is labelled.
    """
    side = 80
    image_ids = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=3, unique=True))
    category_ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True))
    coordinates = st.integers(0, side - 2) | st.floats(0, side - 2, width=32)
    lengths = st.integers(0, 40) | st.sampled_from([0.5, 7.25, 32])
    boxes = st.tuples(coordinates, coordinates, lengths, lengths)
    points = st.lists(
        st.tuples(st.integers(0, side), st.integers(0, side)), min_size=17, max_size=17
    )

    def mask_of(box):
        x, y, w, h = map(round, box)
        mask = np.zeros((side, side), dtype=np.uint8)
        mask[y : y + h, x : x + w] = 1
        return mask

    annotations = []
    first_id = draw(st.sampled_from([0, 1, 1]))
    for number in range(first_id, first_id + draw(st.sampled_from([0, 2, 4, 8]))):
        x, y, w, h = box = draw(boxes)
        crowd = draw(st.sampled_from([False, False, True]))
        visible = draw(st.sampled_from([0, 1, 17]))
        flags = [2] * visible + [0] * (17 - visible)
        annotations.append(
            {
                "id": number,
                "image_id": draw(st.sampled_from(image_ids)),
                "category_id": draw(st.sampled_from(category_ids)),
                "iscrowd": int(crowd),
                "bbox": list(box),
                "area": draw(st.sampled_from([w * h, 0, 1023.5, 32**2, 96**2, 1e5])),
                "segmentation": encode(mask_of(box))
                if crowd
                else [[x, y, x + w, y, x + w, y + h, x, y + h]],
                "keypoints": [
                    value
                    for point, flag in zip(draw(points), flags, strict=True)
                    for value in (*point, flag)
                ],
                "num_keypoints": visible,
            }
        )
    results = []
    for _ in range(draw(st.sampled_from([0, 3, 6, 12]))):
        # Mostly near an annotation, so that there are matches at some of the thresholds.
        near = annotations and draw(st.sampled_from([True, True, True, False]))
        like = draw(st.sampled_from(annotations)) if near else None
        box = like["bbox"] if like else list(draw(boxes))
        box = [max(0, value + draw(st.sampled_from([0, 0, 0, 1, -2]))) for value in box]
        keypoints = [value for point in draw(points) for value in (*point, 1)]
        results.append(
            {
                "image_id": like["image_id"] if like else draw(st.sampled_from(image_ids)),
                "category_id": like["category_id"]
                if like
                else draw(st.sampled_from([*category_ids, 1000])),
                "score": draw(st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])),
                "bbox": box,
                "segmentation": encode(mask_of(box)),
                "keypoints": like["keypoints"] if like else keypoints,
            }
        )
    ground_truth = {
        "images": [{"id": number, "width": side, "height": side} for number in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in category_ids],
    }
    return ground_truth, results * draw(st.sampled_from([1, 1, 1, 25]))


@settings(max_examples=80, deadline=None)
@given(case=awkward_cases(), task=st.sampled_from(TASKS))
def test_equals_pycocotools_on_awkward_cases(case, task):
    assert_equal(*case, task)


def square(number, image_id=1, **changes):
    """A 40-pixel square, as an annotation."""
    keypoints = [value for k in range(17) for value in (10 + 2 * k, 10 + 2 * k, 2)]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [10, 10, 40, 40],
        "area": 1600,
        "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]],
        "keypoints": keypoints,
        "num_keypoints": 17,
        **changes,
    }


def detection(annotation, **changes):
    mask = np.zeros((100, 100))
    mask[10:50, 10:50] = 1
    kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "keypoints")}
    return {**kept, "segmentation": encode(mask), "score": 0.9, **changes}


def one_image(*annotations, categories=({"id": 1, "name": "disc"},)):
    return {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": list(annotations),
        "categories": list(categories),
    }


@pytest.mark.parametrize("task", TASKS)
def test_perfect_detections_score_100(task):
    truth = square(1)
    found = score(one_image(truth), [detection(truth)], task)
    assert found["AP"] == pytest.approx(100)
    assert found["APm"] == pytest.approx(100)
    assert found["APl"] is None
    assert found["per_class"] == {"disc": pytest.approx(100)}
    assert list(found["per_iou"]) == [f"0.{hundredths}" for hundredths in range(50, 100, 5)]


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(("false_positives", "ar100"), [(9, 100), (99, 100), (100, 0)])
def test_a_hundred_detections_of_an_image_count(task, false_positives, ar100):
    truth = square(1)
    elsewhere = {"bbox": [60, 60, 9, 9], "segmentation": encode(np.eye(100))}
    results = [detection(truth, score=0.5)]
    results += [detection(truth, **elsewhere) for _ in range(false_positives)]
    assert score(one_image(truth), results, task)["AR100"] == ar100
    assert_equal(one_image(truth), results, task)


@pytest.mark.parametrize("task", TASKS)
def test_no_detection_at_all_scores_zero(task):
    ground_truth = one_image(square(1), categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    found = score(ground_truth, [], task)
    assert found["AP"] == 0
    assert found["per_class"] == {"a": 0, "b": None}


@pytest.mark.parametrize("task", TASKS)
def test_no_ground_truth_has_no_score(task):
    found = score(one_image(), [detection(square(1))], task)
    assert {found[name] for name in NUMBERS[task]} == {None}
    assert set(found["per_iou"].values()) == {None}


def test_mask_area_decides_the_size_of_a_mask_also_beside_a_box():
    truth = square(1, area=900)
    # An unmatched detection of a medium box and a small mask is a false positive among the small.
    false_positive = detection(truth, segmentation=encode(np.eye(100)), bbox=[60, 60, 40, 40])
    results = [detection(truth, score=0.5), false_positive]
    found = score(one_image(truth), results, "segm")
    assert found["APs"] == pytest.approx(50)
    assert_equal(one_image(truth), results, "segm")


def test_keypoint_sigmas_replace_cocos():
    truth = square(1)
    off = [value + (index % 3 != 2) for index, value in enumerate(truth["keypoints"])]
    results = [detection(truth, keypoints=off)]
    strict = [0.01] * 17
    loose = score(one_image(truth), results, "keypoints")["AP"]
    assert score(one_image(truth), results, "keypoints", keypoint_sigmas=strict)["AP"] < (loose)
    assert_equal(one_image(truth), results, "keypoints", keypoint_sigmas=strict)


def test_area_of_keypoints_without_a_box_is_their_extent():
    truth = square(1)
    result = detection(truth)
    del result["bbox"]
    assert_equal(one_image(truth), [result], "keypoints")


def test_categories_of_one_name_stay_apart():
    twins = [{"id": 1, "name": "disc"}, {"id": 2, "name": "disc"}]
    ground_truth = one_image(square(1), square(2, category_id=2), categories=twins)
    found = score(ground_truth, [detection(square(1))], "bbox")
    assert found["per_class"] == {"disc (1)": pytest.approx(100), "disc (2)": 0}


def test_prints_nothing(capfd):
    score(one_image(square(1)), [detection(square(1))], "segm")
    assert capfd.readouterr() == ("", "")


def test_image_ids_may_be_strings_beside_numbers():
    truth = square(1, image_id="1")
    images = [{"id": one, "width": 100, "height": 100} for one in ("1", 1)]
    ground_truth = {**one_image(truth), "images": images}
    found = score(ground_truth, [detection(truth)], "segm")
    assert found["AP"] == pytest.approx(100)


def test_refuses_results_for_other_images():
    with pytest.raises(ValueError, match="such as 7"):
        score(one_image(square(1)), [detection(square(1), image_id=7)], "bbox")


def test_refuses_an_unknown_task():
    with pytest.raises(ValueError, match="panoptic"):
        score(one_image(square(1)), [], "panoptic")


def test_json_holds_every_number():
    found = score(one_image(square(1)), [], "keypoints")
    content = json.loads(json.dumps(found, allow_nan=False))
    assert set(content) == {*NUMBERS["keypoints"], "per_iou", "per_class"}


def test_perfect_detections_score_100_whatever_the_ids():
    """As Roboflow numbers annotations; pycocotools' number on the same file beside ours."""
    boxes = [[10 * k, 5, 8, 8] for k in range(4)]
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "disc"}],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - k / 10}
        for k, box in enumerate(boxes)
    ]
    assert score(truth, results, "bbox")["AP"] == pytest.approx(100)
    theirs = reference(truth, results, "bbox", numbered_from=0)["AP"]
    assert theirs == pytest.approx(56.44, abs=0.01)
