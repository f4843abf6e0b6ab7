"""Registered data sets: what is registered, checked, loaded and recorded of them."""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta
from detectron2.data.detection_utils import create_keypoint_hflip_indices, read_image
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.datasets import (
    annotations_of,
    check_files,
    describe,
    register,
)
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.data.pictures import image_errors
from scratch_vs_pretrain.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "datasets"
needs_real_data = pytest.mark.skipif(
    not (REAL / "coco" / "annotations").is_dir(), reason=f"no real photographs in {REAL}"
)
PERSON = {
    "id": 1,
    "name": "person",
    "keypoints": list(builtin_meta.COCO_PERSON_KEYPOINT_NAMES),
    "skeleton": [[16, 14]],
}


def box(identity, image, **more):
    entry = {"id": identity, "image_id": image, "category_id": 1, "bbox": [1, 2, 5, 6]}
    return {**entry, "area": 30, "iscrowd": 0, **more}


def coco(images=3, annotations=None, categories=({"id": 1, "name": "disc"},)):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(images)
        ],
        "annotations": [box(1, 0), box(2, 0), box(3, 1)] if annotations is None else annotations,
        "categories": list(categories),
    }


@pytest.fixture
def new_name():
    """Makes names that nothing else registers, and takes them out of the catalogs at the end."""
    names = []

    def make():
        names.append(f"test_{uuid.uuid4().hex}")
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def registered(tmp_path, new_name):
    """Writes and registers a data set; returns its config, name, annotation file and folder."""

    def make(content=None, pictures=3):
        name = new_name()
        file, folder = tmp_path / f"{name}.json", tmp_path / name
        file.write_text(json.dumps(coco() if content is None else content))
        folder.mkdir()
        for number in range(pictures):
            Image.new("RGB", (16, 12)).save(folder / f"{number}.png")
        cfg = default_config()
        cfg.SVP.DATASETS = ((name, str(file), str(folder)),)
        cfg.DATASETS.TRAIN = (name,)
        register(cfg)
        return cfg, name, file, folder

    return make


class TestRegister:
    def test_detectron2_finds_it(self, registered):
        _, name, file, folder = registered()
        records = DatasetCatalog.get(name)
        assert [record["file_name"] for record in records] == [
            str(folder / f"{number}.png") for number in range(3)
        ]
        assert MetadataCatalog.get(name).thing_classes == ["disc"]
        assert MetadataCatalog.get(name).json_file == str(file)
        assert MetadataCatalog.get(name).evaluator_type == "coco"
        assert MetadataCatalog.get(name).get("keypoint_names") is None

    def test_again_changes_nothing(self, registered, monkeypatch):
        cfg, name, file, folder = registered()
        DatasetCatalog.get(name)
        register(cfg)
        monkeypatch.chdir(file.parent)
        cfg.SVP.DATASETS = [[name, file.name, f"./{folder.name}/"]]
        register(cfg)
        assert len(DatasetCatalog.get(name)) == 3

    def test_relative_paths_survive_another_working_folder(
        self, registered, new_name, monkeypatch, tmp_path
    ):
        cfg, _, file, folder = registered()
        name = new_name()
        monkeypatch.chdir(tmp_path)
        cfg.SVP.DATASETS = ((name, file.name, folder.name),)
        register(cfg)
        monkeypatch.chdir("/")
        check_files([name])

    @pytest.mark.parametrize("which", [1, 2])
    def test_one_name_for_other_files_is_refused(self, registered, which):
        cfg, name, *_ = registered()
        other = registered()[0].SVP.DATASETS[0]
        mixed = list(cfg.SVP.DATASETS[0])
        mixed[which] = other[which]
        cfg.SVP.DATASETS = (tuple(mixed),)
        with pytest.raises(UserError, match=f"{name} is the name of another data set"):
            register(cfg)

    def test_a_built_in_name_is_not_replaced(self, registered):
        cfg, _, file, folder = registered()
        cfg.SVP.DATASETS = (("coco_2017_val", str(file), str(folder)),)
        with pytest.raises(UserError, match="coco_2017_val is the name of another data set"):
            register(cfg)

    @pytest.mark.parametrize("entry", ["abc", ("a", "b"), ("a", "b", ""), ("a", "b", 3), 5])
    def test_no_triple(self, entry):
        cfg = default_config()
        cfg.SVP.DATASETS = (entry,)
        with pytest.raises(UserError, match=r"SVP\.DATASETS: .* must be \[name"):
            register(cfg)

    def test_a_missing_file_registers_nothing(self, new_name, tmp_path):
        cfg, name = default_config(), new_name()
        cfg.SVP.DATASETS = ((name, str(tmp_path / "no.json"), str(tmp_path)),)
        with pytest.raises(UserError, match=r"no\.json: cannot read"):
            register(cfg)
        assert name not in DatasetCatalog

    def test_coco_person_keypoints(self, registered):
        _, name, *_ = registered(coco(categories=[PERSON]))
        known = MetadataCatalog.get(name)
        assert known.keypoint_names == builtin_meta.COCO_PERSON_KEYPOINT_NAMES
        assert known.keypoint_flip_map == builtin_meta.COCO_PERSON_KEYPOINT_FLIP_MAP
        assert known.keypoint_connection_rules == builtin_meta.KEYPOINT_CONNECTION_RULES
        builtin = create_keypoint_hflip_indices(["keypoints_coco_2017_val"])
        assert create_keypoint_hflip_indices([name]) == builtin

    def test_other_keypoints(self, registered):
        fish = {
            "id": 1,
            "name": "fish",
            "keypoints": ["fin right", "nose", "fin left", "leftover"],
            "skeleton": [[2, 1], [2, 3]],
        }
        _, name, *_ = registered(coco(categories=[fish]))
        known = MetadataCatalog.get(name)
        assert known.keypoint_flip_map == (("fin left", "fin right"),)
        assert [rule[:2] for rule in known.keypoint_connection_rules] == [
            ("nose", "fin right"),
            ("nose", "fin left"),
        ]
        assert create_keypoint_hflip_indices([name]) == [2, 1, 0, 3]


class TestDescribe:
    def test_one(self, registered):
        _, name, file, _ = registered()
        found = describe([name])
        assert annotations_of(name).categories == ("disc",)
        assert json.loads(json.dumps(found)) == {
            "names": [name],
            "images": 3,
            "annotations": 3,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }

    def test_several(self, registered):
        first, second = registered()[1], registered(coco(images=2))[1]
        found = describe([first, second])
        assert list(found.values())[:3] == [[first, second], 5, 6]
        parts = {describe([name])["sha256"] for name in (first, second)}
        assert len({found["sha256"], describe([second, first])["sha256"]} | parts) == 4

    def test_categories_must_agree(self, registered):
        first = registered()[1]
        second = registered(coco(categories=[{"id": 1, "name": "ring"}]))[1]
        with pytest.raises(UserError, match=f"{second}: its categories differ from those of"):
            describe([first, second])

    def test_a_misspelt_name(self):
        with pytest.raises(UserError, match="did you mean coco_2017_val"):
            describe(["coco_2017_vall"])

    def test_an_unknown_name(self):
        with pytest.raises(UserError, match=r"qqqqqqqq: .*state its files under data"):
            describe(["qqqqqqqq"])

    def test_neither_coco_nor_voc(self, new_name):
        name = new_name()
        DatasetCatalog.register(name, list)
        with pytest.raises(UserError, match=f"{name}: is not in COCO format"):
            describe([name])

    def test_a_voc_tree_that_is_not_there(self):
        with pytest.raises(UserError, match=r"voc_2007_trainval: no such file as .*trainval\.txt"):
            describe(["voc_2007_trainval"])


class TestCheckFiles:
    def test_all_there(self, registered):
        first, second = registered()[1], registered()[1]
        check_files([first, second])

    def test_missing_images_are_counted_and_named(self, registered):
        name, _, folder = registered(coco(images=9), pictures=3)[1:]
        with pytest.raises(UserError) as caught:
            check_files([name])
        message = str(caught.value)
        assert (
            f"{folder}: 6 of the 9 images of {name} are missing: 3.png, 4.png, 5.png, .." in message
        )
        (folder / "5.png").touch()
        with pytest.raises(UserError, match=r"5 of the 9 .*: 3\.png, 4\.png, 6\.png"):
            check_files([name])

    def test_images_in_subfolders(self, registered):
        content = coco()
        content["images"][1]["file_name"] = "deep/er/1.png"
        _, name, _, folder = registered(content)
        with pytest.raises(UserError, match=r"1 of the 3 images of .*: deep/er/1\.png;"):
            check_files([name])
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "1.png").rename(folder / "deep" / "er" / "1.png")
        check_files([name])

    def test_no_image_folder(self, registered):
        _, name, _, folder = registered(pictures=0)
        folder.rmdir()
        with pytest.raises(UserError, match=f"{name}: no such image folder as {folder}"):
            check_files([name])

    def test_the_annotation_file_is_gone_or_truncated(self, registered):
        _, name, file, _ = registered()
        file.write_text(file.read_text()[:-30])
        with pytest.raises(UserError, match=f"{file}: not valid JSON"):
            check_files([name])
        file.unlink()
        with pytest.raises(UserError, match=f"{name}: no such annotation file as {file}"):
            check_files([name])

    @pytest.mark.parametrize(
        "content",
        [coco(images=0), coco(annotations=[]), coco(annotations=[box(1, 0, iscrowd=1)])],
    )
    def test_nothing_to_train_on(self, registered, content):
        cfg, name, file, _ = registered(content)
        with pytest.raises(UserError, match=f"{file}: no image has an annotation"):
            check_files([name])
        with pytest.raises(UserError, match="cannot train on"):
            load_training_records(cfg)

    def test_the_second_set_is_checked_too(self, registered):
        first, second = registered()[1], registered(pictures=1)[1]
        with pytest.raises(UserError, match=f"2 of the 3 images of {second}"):
            check_files([first, second])


class TestImageErrors:
    def test_good_images_pass(self, registered):
        file = registered()[3] / "0.png"
        with image_errors(file):
            image = read_image(str(file), "BGR")
        assert image.shape == (12, 16, 3)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
    def test_every_truncation_names_the_file(self, tmp_path, kind):
        file = tmp_path / "picture"
        noise = np.random.default_rng(0).integers(256, size=(40, 30, 3)).astype(np.uint8)
        Image.fromarray(noise).save(file, kind)
        data = file.read_bytes()
        for length in range(0, len(data) * 9 // 10, 37):
            file.write_bytes(data[:length])
            with pytest.raises(UserError, match=f"{file}: cannot be read"), image_errors(file):
                read_image(str(file), "BGR")

    def test_missing_and_wrong_size(self, registered):
        from detectron2.data import DatasetMapper

        cfg, _, _, folder = registered()
        record = load_training_records(cfg).records[0]
        mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
        Image.new("RGB", (16, 13)).save(folder / "0.png")
        with pytest.raises(UserError, match=r"0\.png: .*Mismatched"), image_errors("0.png"):
            mapper(record)
        (folder / "0.png").unlink()
        with pytest.raises(UserError, match=r"0\.png: .*No such file"), image_errors("0.png"):
            mapper(record)

    def test_mistakes_in_code_are_not_hidden(self):
        with pytest.raises(ZeroDivisionError), image_errors("0.png"):
            _ = 1 / 0


BUILT_IN = """
import json
from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.data.pictures import image_errors
names = ["coco_2017_train", "coco_2017_val", "keypoints_coco_2017_train", "keypoints_coco_2017_val"]
datasets.check_files(names)
found = {n: list(datasets.describe([n]).values())[1:3] for n in names}
cfg = default_config()
cfg.DATASETS.TRAIN = ("coco_2017_train",)
records = load_training_records(cfg).records
cfg.DATASETS.TRAIN = ("coco_2014_train",)
try:
    load_training_records(cfg)
except datasets.UserError as error:
    message = str(error)
categories = datasets.annotations_of("coco_2017_val").categories
print(json.dumps([found, len(categories), len(records), message]))
"""


@needs_real_data
def test_built_in_names():
    """In a process of its own, since Detectron2 reads DETECTRON2_DATASETS when it is imported."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(REAL), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUILT_IN], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, categories, records, message = json.loads(done.stdout.splitlines()[-1])
    for name, (images, annotations) in found.items():
        task = "person_keypoints" if name.startswith("keypoints") else "instances"
        file = REAL / "coco" / "annotations" / f"{task}_{name.rsplit('_', 1)[1]}2017.json"
        content = json.loads(file.read_text())
        assert images == len(content["images"])
        assert annotations == len(content["annotations"])
    content = json.loads((REAL / "coco" / "annotations" / "instances_train2017.json").read_text())
    assert records == len({a["image_id"] for a in content["annotations"] if not a["iscrowd"]})
    assert categories == 80
    assert "coco_2014_train: no such annotation file as" in message
    assert "set DETECTRON2_DATASETS" in message
