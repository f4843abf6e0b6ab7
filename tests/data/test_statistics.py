import json

from scratch_vs_pretrain.data.coco import read_coco
from scratch_vs_pretrain.data.datasets import subset_text


def instance(identity, image, category, **more):
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": [0, 0, 10, 10],
        "area": 100,
        "iscrowd": 0,
        **more,
    }


def test_counts(tmp_path):
    annotations = [
        instance(1, 1, 9, area=32**2),
        instance(2, 1, 2, area=32**2 + 0.5),
        instance(3, 2, 9, area=96**2),
        instance(4, 2, 9, area=96**2 + 1),
        instance(5, 3, 4, iscrowd=1, area=10**6),
    ]
    without_area = instance(6, 2, 2, bbox=[0, 0, 100, 100])
    del without_area["area"]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 4} for i in (3, 1, 2, 4)
        ],
        "annotations": [*annotations, without_area],
        "categories": [{"id": 9, "name": "z"}, {"id": 4, "name": "crowd"}, {"id": 2, "name": "a"}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    lines = [" ".join(line.split()) for line in subset_text("a", read_coco(file)).splitlines()]
    assert lines[:-1] == [
        "a",
        "images 4 (2 without instances)",
        "instances 5, and 1 crowds",
        "instances per image 1.25",
        "sizes 1 small, 2 medium, 2 large",
        "categories present 2: z 3, a 2",
        "categories absent 1: crowd",
    ]


def test_an_empty_set_has_no_mean(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    assert "instances per image      -" in subset_text("a", read_coco(file))
