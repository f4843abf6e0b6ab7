"""VOC trees: what is read of them, what is refused, and how they look as COCO JSON."""

import uuid

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import BoxMode
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.check import check, registered_set
from scratch_vs_pretrain.data.datasets import location
from scratch_vs_pretrain.data.loading import load_ground_truth, load_training_records
from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError

CLASSES = ("ring", "disc")
OBJECT = (
    "<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
    "<difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
OBJECTS = [
    {"name": "disc", "difficult": 0, "box": (1, 1, 40, 30)},
    {"name": "ring", "difficult": 1, "box": (5, 6, 7, 8)},
]


def annotation(objects=OBJECTS, size="<width>40</width><height>30</height><depth>3</depth>"):
    content = "".join(OBJECT.format(**one) for one in objects)
    return f"<annotation><size>{size}</size>{content}</annotation>"


@pytest.fixture
def tree(tmp_path):
    """Registers a tree of three images, the last one without objects; returns its name."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    for identity in "abc":
        text = annotation([] if identity == "c" else OBJECTS)
        (tmp_path / "Annotations" / f"{identity}.xml").write_text(text)
        (tmp_path / "JPEGImages" / f"{identity}.jpg").touch()
    name = f"test_{uuid.uuid4().hex}"
    register_pascal_voc(name, str(tmp_path), "train", 2012, CLASSES)
    yield name
    DatasetCatalog.pop(name)
    MetadataCatalog.pop(name)


def test_is_described_checked_and_loaded(tree, tmp_path):
    found = datasets.describe([tree])
    assert (found["images"], found["annotations"]) == (3, 4)
    assert datasets.annotations_of(tree).categories == CLASSES
    datasets.check_files([tree])
    assert location(tree) == (tmp_path / "ImageSets" / "Main" / "train.txt", tmp_path)
    cfg = default_config()
    cfg.DATASETS.TRAIN = (tree,)
    assert [record["image_id"] for record in load_training_records(cfg).records] == ["a", "b"]


def test_what_is_a_voc_tree(tree):
    assert is_voc(tree)
    assert is_voc("voc_2007_trainval")
    assert not is_voc("coco_2017_val")
    assert not is_voc("nothing")


def test_as_coco_the_boxes_are_detectron2s(tree):
    truth = load_ground_truth(tree)
    records = {record["image_id"]: record for record in DatasetCatalog.get(tree)}
    assert [image["id"] for image in truth["images"]] == list(records)
    for image in truth["images"]:
        record = records[image["id"]]
        assert (image["height"], image["width"]) == (record["height"], record["width"])
        ours = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        assert [one["category_id"] - 1 for one in ours] == [
            one["category_id"] for one in record["annotations"]
        ]
        assert [one["bbox"] for one in ours] == [
            BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYWH_ABS)
            for one in record["annotations"]
        ]
    assert [one["iscrowd"] for one in truth["annotations"]] == [0, 1, 0, 1]
    assert truth["annotations"][1]["area"] == 9
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4]
    assert truth["categories"] == [{"id": 1, "name": "ring"}, {"id": 2, "name": "disc"}]


def test_the_digest_follows_the_annotations(tree, tmp_path):
    before = datasets.describe([tree])["sha256"]
    (tmp_path / "Annotations" / "b.xml").write_text(annotation(OBJECTS[:1]))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc \n")
    assert datasets.describe([tree])["sha256"] != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train\.txt: is empty"),
        ("\n \n", r"train\.txt: is empty"),
        ("a\nb\0x\n", r"train\.txt: line 2: give one image name"),
        ("a\na\n", r"train\.txt: lists a twice"),
        ("a\n../../etc/passwd\n", r"train\.txt: line 2: \.\./\.\./etc/passwd leads out of the"),
        ("/etc/passwd\n", r"train\.txt: line 1: /etc/passwd leads out of the tree"),
        ("a 1\nb -1\n", r"train\.txt: line 1: give one image name"),
        ("a\nd\n", r"d\.xml: cannot read the annotations"),
    ],
)
def test_lists_that_cannot_be_used(tree, tmp_path, text, message):
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        datasets.describe([tree])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml: not valid XML"),
        (annotation(size=""), r"a\.xml: the image has no number as size\.width"),
        (annotation().replace("<ymin>6<", "<ymin>x<"), r"object 2 .* bndbox\.ymin \(it is 'x'"),
        (annotation().replace("<ymin>6<", "<ymin>nan<"), r"object 2 .* bndbox\.ymin"),
        (annotation().replace("<xmax>40</xmax>", ""), r"object 1 .* bndbox\.xmax \(it is ''"),
        (annotation().replace("<name>disc</name>", ""), "object 1 has no name"),
    ],
)
def test_annotations_that_cannot_be_used(tree, tmp_path, text, message):
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        datasets.check_files([tree])


def test_missing_images_and_missing_trees(tree, tmp_path):
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of the 3 images of .* missing: JPEGImages/b\.jpg"):
        datasets.check_files([tree])
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"no such file as .*train\.txt$"):
        datasets.check_files([tree])


def test_check_data_reads_trees(tree, tmp_path):
    for identity in "abc":
        Image.new("RGB", (40, 30), (ord(identity), 0, 0)).save(
            tmp_path / "JPEGImages" / f"{identity}.jpg"
        )
    good = check([registered_set(tree)], progress=False)
    assert {kind: notes for (_, kind), notes in good.found.items()} == {
        "image without instances": ["JPEGImages/c.jpg"]
    }
    lying = annotation().replace("<size>", "<filename>other.jpg</filename><size>")
    (tmp_path / "Annotations" / "b.xml").write_text(lying)
    report = check([registered_set(tree)], progress=False)
    assert report.found[tree, "XML names another file"] == ["b.xml (other.jpg)"]
    assert not report.breaks


def test_check_data_names_every_xml_that_cannot_be_used(tree, tmp_path):
    for identity in "abc":
        Image.new("RGB", (40, 30), (ord(identity), 0, 0)).save(
            tmp_path / "JPEGImages" / f"{identity}.jpg"
        )
    for identity in "ab":
        (tmp_path / "Annotations" / f"{identity}.xml").write_text("<annotation>")
    report = check([registered_set(tree)], progress=False)
    assert report.breaks
    assert len(report.found[tree, "unusable XML"]) == 2


def test_boxes_one_pixel_wide_are_named_and_learnt_as_detectron2_learns_them(tree, tmp_path):
    thin = [*OBJECTS[:1], {"name": "ring", "difficult": 0, "box": (5, 6, 5, 8)}]
    (tmp_path / "Annotations" / "a.xml").write_text(annotation(thin))
    report = check([registered_set(tree)], progress=False, images=False)
    assert report.found[tree, "box one pixel wide"] == ["a.xml (ring)"]
    assert not report.breaks
    cfg = default_config()
    cfg.DATASETS.TRAIN = (tree,)
    assert load_training_records(cfg).records[0]["annotations"][1]["bbox"] == [4, 5, 1, 3]


@pytest.mark.parametrize(
    ("text", "difficult"),
    [
        *((text, 0) for text in ("", "0", " 0 ", "0.0", "false", "No", "nan", "Unspecified")),
        *((text, 1) for text in ("1", " 1 ", "1.0", "2", "true", "Yes")),
    ],
)
def test_difficult_is_read_as_it_is_meant(tree, tmp_path, text, difficult):
    one = annotation([{**OBJECTS[0], "difficult": text}])
    (tmp_path / "Annotations" / "a.xml").write_text(one)
    assert load_ground_truth(tree)["annotations"][0]["iscrowd"] == difficult


def test_fractions_missing_flags_and_other_classes(tree, tmp_path):
    """VOC 2012 has a few fractions, which Detectron2 trains on and its evaluator cannot read."""
    for identity in "abc":
        Image.new("RGB", (40, 30), (ord(identity), 0, 0)).save(
            tmp_path / "JPEGImages" / f"{identity}.jpg"
        )
    text = annotation().replace("<ymin>6<", "<ymin>6.25<").replace("<truncated>0</truncated>", "")
    (tmp_path / "Annotations" / "a.xml").write_text(text.replace("disc", "star"))
    report = check([registered_set(tree)], progress=False)
    assert report.found[tree, "XML with fractions or without flags"] == ["a.xml"]
    assert report.found[tree, "object of another class"] == ["a.xml (star)"]
    assert not report.breaks
    cfg = default_config()
    cfg.DATASETS.TRAIN = (tree,)
    loaded = load_training_records(cfg)
    assert loaded.repaired["object of another class, dropped"] == 1
    assert loaded.records[0]["annotations"][0]["bbox"] == [4, 5.25, 3, 2.75]
    assert [one["category_id"] for one in load_ground_truth(tree)["annotations"]] == [1, 2, 1]
