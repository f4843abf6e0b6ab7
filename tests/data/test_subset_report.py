"""What `svp subset` shows and writes; see tests/cli for the command."""

import json
import uuid

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.datasets import coco_of, export, register, subset_text
from scratch_vs_pretrain.data.subsets import digest, draw
from scratch_vs_pretrain.errors import UserError


@pytest.fixture
def full(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_CACHE", str(tmp_path / "cache"))
    name = f"test_{uuid.uuid4().hex}"
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(20, 0, -1)
        ],
        "annotations": [
            {"id": i, "image_id": 1 + i % 20, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
            for i in range(60)
        ],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}],
    }
    file = tmp_path / "full.json"
    file.write_text(json.dumps(content))
    cfg = default_config()
    cfg.SVP.DATASETS = ((name, str(file), str(tmp_path)),)
    register(cfg)
    yield name
    for added in [one for one in DatasetCatalog.list() if one.startswith(name)]:
        DatasetCatalog.pop(added)
        MetadataCatalog.pop(added, None)


def test_text(full):
    subset = f"{full}_5"
    lines = [" ".join(line.split()) for line in subset_text(subset, coco_of(subset)).splitlines()]
    assert lines == [
        subset,
        "images 5 (0 without instances)",
        "instances 15, and 0 crowds",
        "instances per image 3.00",
        "sizes 15 small, 0 medium, 0 large",
        "categories present 1: disc 15",
        "categories absent 1: ring",
        f"sha256 of the image ids {digest(draw(range(1, 21), 5, 0))}",
    ]


def test_a_full_set_can_be_shown_too(full):
    assert "images                   20 (0 without instances)" in subset_text(full, coco_of(full))


def test_ids_are_ascending(full):
    assert coco_of(f"{full}_7_s2").ids() == sorted(draw(range(1, 21), 7, 2))


def test_the_export_is_coco_json(full, tmp_path):
    file = export(coco_of(f"{full}_5"), tmp_path / "five.json")
    found = read_annotations(file)
    assert (len(found.file_names), found.annotations) == (5, 15)
    assert found.categories == ("disc", "ring")


def test_an_export_overwrites_nothing(full, tmp_path):
    target = tmp_path / "mine.json"
    target.write_text("mine")
    with pytest.raises(UserError, match=f"{target}: exists already"):
        export(coco_of(f"{full}_5"), target)
    assert target.read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        export(coco_of(f"{full}_5"), tmp_path / "no" / "such.json")
