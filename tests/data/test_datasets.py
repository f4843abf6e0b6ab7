"""Registered data sets: what is registered, checked, loaded and recorded of them."""

import hashlib
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta, load_coco_json
from detectron2.data.detection_utils import create_keypoint_hflip_indices, read_image
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.coco import read_annotations, read_coco
from scratch_vs_pretrain.data.datasets import (
    annotations_of,
    check_files,
    coco_of,
    describe,
    digest,
    draw,
    ensure,
    export,
    refuse_subsets,
    register,
    subset_of,
    subset_text,
)
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pictures import image_errors

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
        cfg, name, *_ = registered(content)
        with pytest.raises(UserError, match=f"{name}: cannot train on it: (nothing to le|instan)"):
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
from scratch_vs_pretrain.pictures import image_errors
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
def test_built_in_names(run_code):
    """In a process of its own, since Detectron2 reads DETECTRON2_DATASETS when it is imported."""
    done = run_code(BUILT_IN, datasets=REAL)
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


def forty(images=40):
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
    file.write_text(json.dumps(forty()))
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
    assert subset_of(f"{name}_10_s3").base == name
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
    assert subset_of("coco_2017_val_100") is None
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
def test_built_in_names_in_another_process(tmp_path, run_code):
    """With photographs' annotations, and a part of them as the paper's 35k."""
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for target, origin in (("train2017", "train2017"), ("valminusminival2014", "val2017")):
        original = REAL / "coco" / "annotations" / f"instances_{origin}.json"
        (folder / f"instances_{target}.json").write_bytes(original.read_bytes())
    done = run_code(IN_ANOTHER_PROCESS)
    assert done.returncode == 0, done.stderr
    found, images = json.loads(done.stdout.splitlines()[-1])
    train = json.loads((folder / "instances_train2017.json").read_text())
    usable = {a["image_id"] for a in train["annotations"] if not a["iscrowd"]}
    chosen = set(draw([image["id"] for image in train["images"]], 100, 0)) & usable
    assert found[: len(chosen)] == sorted(chosen)
    assert images == 206


@pytest.fixture
def twenty(tmp_path, monkeypatch):
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
    file = tmp_path / "twenty.json"
    file.write_text(json.dumps(content))
    cfg = default_config()
    cfg.SVP.DATASETS = ((name, str(file), str(tmp_path)),)
    register(cfg)
    yield name
    for added in [one for one in DatasetCatalog.list() if one.startswith(name)]:
        DatasetCatalog.pop(added)
        MetadataCatalog.pop(added, None)


def test_text(twenty):
    subset = f"{twenty}_5"
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


def test_a_full_set_can_be_shown_too(twenty):
    assert "images                   20 (0 without instances)" in subset_text(
        twenty, coco_of(twenty)
    )


def test_ids_are_ascending(twenty):
    assert coco_of(f"{twenty}_7_s2").ids() == sorted(draw(range(1, 21), 7, 2))


def test_the_export_is_coco_json(twenty, tmp_path):
    file = export(coco_of(f"{twenty}_5"), tmp_path / "five.json")
    found = read_annotations(file)
    assert (len(found.file_names), found.annotations) == (5, 15)
    assert found.categories == ("disc", "ring")


def test_an_export_overwrites_nothing(twenty, tmp_path):
    target = tmp_path / "mine.json"
    target.write_text("mine")
    with pytest.raises(UserError, match=f"{target}: exists already"):
        export(coco_of(f"{twenty}_5"), target)
    assert target.read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        export(coco_of(f"{twenty}_5"), tmp_path / "no" / "such.json")


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
            {"id": i, "file_name": f"{i}.jpg", "height": 99, "width": 99} for i in (3, 1, 2, 4)
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
