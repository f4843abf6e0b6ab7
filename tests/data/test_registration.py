"""Subsets by name: registered on demand, in any process, and never evaluated on."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.datasets import ensure, find_subset, refuse_subsets
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.data.subsets import draw
from scratch_vs_pretrain.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "datasets"
needs_real_data = pytest.mark.skipif(
    not (REAL / "coco" / "annotations").is_dir(), reason=f"no real photographs in {REAL}"
)


def content(images=40):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(images)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i // 2,
                "category_id": 3,
                "bbox": [1, 2, 3, 4],
                "area": 12,
                "iscrowd": 0,
                "segmentation": [[1, 1, 5, 1, 5, 5]],
            }
            for i in range(2 * images)
        ],
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "ring"}],
    }


@pytest.fixture
def full(tmp_path, monkeypatch):
    """Registers a data set; returns its config, name and annotation file."""
    monkeypatch.setenv("SVP_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog.list())
    name = f"test_{uuid.uuid4().hex}"
    file, folder = tmp_path / "full.json", tmp_path / "images"
    file.write_text(json.dumps(content()))
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").touch()
    cfg = default_config()
    cfg.SVP.DATASETS = ((name, str(file), str(folder)),)
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.TEST = (name,)
    datasets.register(cfg)
    yield cfg, name, file
    for added in set(DatasetCatalog.list()) - before:
        DatasetCatalog.pop(added)
        MetadataCatalog.pop(added, None)


def test_a_name_alone_is_enough(full):
    cfg, name, file = full
    subset = f"{name}_10_s4"
    cfg.DATASETS.TRAIN = (subset,)
    cfg.MODEL.MASK_ON = True
    records = load_training_records(cfg).records
    chosen = sorted(draw(range(40), 10, 4))
    assert [record["image_id"] for record in records] == chosen
    whole = load_coco_json(str(file), str(file.parent / "images"), name)
    assert records == [record for record in whole if record["image_id"] in chosen]
    described = datasets.describe([subset])
    assert (described["images"], described["annotations"]) == (10, 20)
    assert datasets.annotations_of(subset).categories == ("disc", "ring")
    datasets.check_files([subset])


def test_a_subset_has_the_metadata_of_its_base(full):
    _, name, _ = full
    whole, part = MetadataCatalog.get(name), MetadataCatalog.get(f"{name}_10")
    ensure([f"{name}_10"])
    DatasetCatalog.get(name)
    DatasetCatalog.get(f"{name}_10")
    differing = {"name", "json_file"}
    assert part.as_dict().keys() == whole.as_dict().keys()
    for key in whole.as_dict().keys() - differing:
        assert part.get(key) == whole.get(key)
    assert part.thing_classes == ["disc", "ring"]


def test_registering_a_config_registers_its_subsets(full):
    cfg, name, _ = full
    cfg.DATASETS.TRAIN = (f"{name}_10", f"{name}_50pct")
    datasets.register(cfg)
    datasets.register(cfg)
    assert {f"{name}_10", f"{name}_50pct"} <= set(DatasetCatalog.list())


def test_a_subset_of_a_subset_is_refused_also_once_that_is_registered(full):
    _, name, _ = full
    ensure([f"{name}_10"])
    assert find_subset(f"{name}_10_s3").base == name
    with pytest.raises(UserError, match="is no size of a subset"):
        ensure([f"{name}_10_5"])


def test_more_than_there_are(full):
    _, name, _ = full
    with pytest.raises(UserError, match=f"{name}_10k: 10,000 images are more than the 40 of"):
        datasets.check_files([f"{name}_10k"])
    assert f"{name}_10k" not in DatasetCatalog


def test_a_base_that_is_not_in_coco_format():
    with pytest.raises(UserError, match="voc_2007_trainval: is not in COCO format"):
        ensure(["voc_2007_trainval_100"])


def test_evaluation_is_never_on_a_subset(full):
    cfg, name, _ = full
    with pytest.raises(UserError, match=rf"DATASETS\.TEST: {name}_10 is a subset of {name};"):
        refuse_subsets([name, f"{name}_10"])
    cfg.DATASETS.TEST = (f"{name}_10",)
    with pytest.raises(UserError, match="evaluate on the full set"):
        datasets.register(cfg)


def test_detectron2s_own_small_sets_are_full_sets():
    assert find_subset("coco_2017_val_100") is None
    refuse_subsets(["coco_2017_val_100"])


def test_other_names_are_left_alone():
    ensure(["nothing at all", "coco_2017_val"])
    assert "nothing at all" not in DatasetCatalog


IN_ANOTHER_PROCESS = """
import json
from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.loading import load_training_records
cfg = default_config()
cfg.DATASETS.TRAIN = ("coco_2017_train_100", "coco_35k")
found = [r["image_id"] for r in load_training_records(cfg).records]
print(json.dumps([found, datasets.describe(["coco_35k"])["images"]]))
"""


@needs_real_data
def test_built_in_names_in_another_process(tmp_path):
    """With photographs' annotations, and a part of them as the paper's 35k."""
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for target, origin in (("train2017", "train2017"), ("valminusminival2014", "val2017")):
        original = REAL / "coco" / "annotations" / f"instances_{origin}.json"
        (folder / f"instances_{target}.json").write_bytes(original.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(tmp_path),
            "SVP_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, images = json.loads(done.stdout.splitlines()[-1])
    train = json.loads((folder / "instances_train2017.json").read_text())
    usable = {a["image_id"] for a in train["annotations"] if not a["iscrowd"]}
    chosen = set(draw([image["id"] for image in train["images"]], 100, 0)) & usable
    assert found[: len(chosen)] == sorted(chosen)
    assert images == 206
