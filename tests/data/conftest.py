"""A small COCO-format data set, good as it is, for tests to damage."""

import json
import uuid

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.check import DataSet
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.pictures import register_deep_images

register_deep_images()

WIDTH, HEIGHT = 16, 12
ANNOTATIONS = 40


@pytest.fixture
def build(tmp_path):
    """Writes a data set of four good images, changed by the caller; returns what to check."""

    def make(change=lambda content, folder: None, name="train", seed=0, **more):
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(seed)
        for number in range(4):
            pixels = random.integers(256, size=(HEIGHT, WIDTH, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
                for i in range(4)
            ],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": i % 4,
                    "category_id": 1,
                    "bbox": [1, 2, 5, 6 - i / ANNOTATIONS],
                    "area": 30,
                    "iscrowd": 0,
                    "segmentation": [[1, 2, 6, 2, 6, 8, 1, 8]],
                }
                for i in range(ANNOTATIONS)
            ],
            "categories": [{"id": 1, "name": "disc"}],
        }
        change(content, folder)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        return DataSet(name, file, folder, **more)

    return make


@pytest.fixture
def config_of():
    """Registers a built data set for the length of a test; returns a config that trains on it."""
    names = []

    def make(one, masks=True):
        names.append(f"test_{uuid.uuid4().hex}")
        cfg = default_config()
        cfg.SVP.DATASETS = ((names[-1], str(one.annotations), str(one.images)),)
        cfg.DATASETS.TRAIN = (names[-1],)
        cfg.MODEL.MASK_ON = masks
        register(cfg)
        return cfg

    yield make
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
