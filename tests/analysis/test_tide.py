"""Against tidecv, the authors' own implementation, and on cases small enough to count by hand."""

import json
import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from scratch_vs_pretrain.evaluation.scores import ERROR_TYPES, error_costs

NAMES = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), ERROR_TYPES, strict=True))
COCO = Path(__file__).parents[3] / "shared/datasets/coco/annotations/instances_val2017.json"
OBJECT = [0.0, 0.0, 10.0, 10.0]


@pytest.fixture(scope="session")
def tidecv():
    # It draws with these, which pyproject.toml leaves out: nothing is drawn here.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cv2", "seaborn"):
            patch.setitem(sys.modules, name, MagicMock())
        import tidecv
    return tidecv


def theirs(tidecv, ground_truth, results):
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for image in ground_truth["images"]:
        truth.add_image(image["id"], "")
    for one in ground_truth["annotations"]:
        add = truth.add_ignore_region if one["iscrowd"] else truth.add_ground_truth
        add(one["image_id"], one["category_id"], one["bbox"], None)
    for one in results:
        found.add_detection(one["image_id"], one["category_id"], one["score"], one["bbox"], None)
    tide = tidecv.TIDE()
    tide.evaluate(truth, found, mode=tidecv.TIDE.BOX)
    return {NAMES[name]: cost for name, cost in tide.get_main_errors()["found"].items()}


def disturbed(ground_truth, seed, *, extra=2):
    """Detections of a middling detector: objects moved, misnamed, doubled, left out, made up."""
    draw = random.Random(seed)
    classes = sorted({one["category_id"] for one in ground_truth["annotations"]})
    results = []

    def add(image, category, box):
        results.append(
            {"image_id": image, "category_id": category, "bbox": box, "score": draw.random()}
        )

    for one in ground_truth["annotations"]:
        for _ in range(draw.choice((0, 1, 1, 1, 2))):
            x, y, w, h = one["bbox"]
            scale = draw.choice((0.02, 0.1, 0.3))
            box = [x + draw.gauss(0, scale) * w, y + draw.gauss(0, scale) * h, w, h]
            wrong = draw.random() < 0.25
            add(one["image_id"], draw.choice(classes) if wrong else one["category_id"], box)
    for image in ground_truth["images"]:
        for _ in range(draw.randint(0, extra)):
            box = [draw.uniform(0, 60), draw.uniform(0, 60), draw.uniform(5, 30), 20.0]
            add(image["id"], draw.choice((*classes, 999)), box)
    return results


def scenes(seed):
    draw = random.Random(seed)
    annotations = [
        {
            "id": number,
            "image_id": draw.randrange(20),
            "category_id": draw.randint(1, 4),
            "bbox": [draw.uniform(0, 60), draw.uniform(0, 60), draw.uniform(5, 30), 20.0],
            "iscrowd": int(draw.random() < 0.1),
        }
        for number in range(1, 60)
    ]
    return {"images": [{"id": n} for n in range(20)], "annotations": annotations}


@pytest.mark.parametrize("seed", range(20))
def test_same_as_tidecv(tidecv, seed):
    ground_truth = scenes(seed)
    results = disturbed(ground_truth, seed)
    expected = theirs(tidecv, ground_truth, results)
    assert sum(cost > 0 for cost in expected.values()) >= 5
    assert error_costs(ground_truth, results) == pytest.approx(expected, abs=1e-9)


def test_more_detections_than_count(tidecv):
    ground_truth = scenes(0)
    results = disturbed(ground_truth, 0, extra=250)
    assert error_costs(ground_truth, results) == pytest.approx(
        theirs(tidecv, ground_truth, results), abs=1e-9
    )


@pytest.mark.skipif(not COCO.exists(), reason=f"{COCO} is not here")
def test_same_as_tidecv_on_coco(tidecv):
    ground_truth = json.loads(COCO.read_text())
    results = disturbed(ground_truth, 0)
    assert error_costs(ground_truth, results) == pytest.approx(
        theirs(tidecv, ground_truth, results), abs=1e-9
    )


def costs(*found, objects=((1, OBJECT),), crowd=None):
    """Costs on one image of `objects` (class, box) and `found` (class, box, score)."""
    annotations = [{"image_id": 1, "category_id": c, "bbox": box} for c, box in objects]
    if crowd:
        annotations.append({"image_id": 1, "category_id": 1, "bbox": crowd, "iscrowd": 1})
    results = [
        {"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in found
    ]
    return error_costs({"images": [{"id": 1}], "annotations": annotations}, results)


def only(**expected):
    return {**dict.fromkeys(ERROR_TYPES, 0.0), **expected}


def test_nothing_found_is_missed():
    assert costs() == only(missed=100.0)
    assert costs((2, OBJECT, 0.5), objects=((1, OBJECT), (2, OBJECT))) == only(missed=50.0)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ((1, [0.0, 0.0, 10.0, 4.0], 0.9), "localization"),
        ((2, OBJECT, 0.9), "classification"),
        ((2, [0.0, 0.0, 10.0, 4.0], 0.9), None),
        ((1, [50.0, 50.0, 5.0, 5.0], 0.9), None),
    ],
)
def test_one_error_alone_costs_all(wrong, kind):
    found = costs(wrong)
    assert found == only(**({kind: 100.0} if kind else {}))


def test_false_positives_before_a_true_one():
    true = (1, OBJECT, 0.5)
    assert costs((1, [50.0, 50.0, 5.0, 5.0], 0.9), true) == only(background=50.0)
    double = (1, [0.0, 0.0, 10.0, 9.0], 0.4)
    found = costs(true, double, (1, [50.0, 0.0, 10.0, 10.0], 0.3),
                  objects=((1, OBJECT), (1, [50.0, 0.0, 10.0, 10.0])))  # fmt: skip
    # Precision at the second object is 2/3 instead of 1 for the upper half of 101 recalls.
    assert found == only(duplicate=pytest.approx(100 * 50 / 101 / 3))


def test_inside_a_crowd_is_no_error_to_mend():
    assert costs((1, OBJECT, 0.5), (1, [52.0, 52.0, 5.0, 5.0], 0.9),
                 crowd=[50.0, 50.0, 20.0, 20.0]) == only()  # fmt: skip


def test_no_objects():
    assert costs((1, OBJECT, 0.5), objects=()) == dict.fromkeys(ERROR_TYPES)
    assert costs(objects=()) == dict.fromkeys(ERROR_TYPES)
