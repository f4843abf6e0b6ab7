"""The synthetic data sets as folders of files."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

import scratch_vs_pretrain.data.shapes as module
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.shapes import (
    CLASSES,
    JPEG_QUALITY,
    KEYPOINTS,
    SPEC_FILE,
    STREAMS,
    ClassificationSpec,
    ShapesSpec,
    draw_scene,
    make_classification,
    make_shapes,
)
from scratch_vs_pretrain.errors import UserError

SPEC = ShapesSpec(train=12, test=5, image_size=64, object_size=(12, 40))
SMALL = ClassificationSpec(train=20, test=9, image_size=32, object_size=(12, 30))


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_coco(file):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


def as_jpeg(drawn):
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, SPEC, progress=False)
    return folder


def test_the_same_spec_gives_the_same_bytes(shapes, tmp_path):
    make_shapes(tmp_path / "again", SPEC, progress=False)
    assert digests(tmp_path / "again") == digests(shapes)


def test_an_image_does_not_depend_on_how_many_there_are(shapes, tmp_path):
    fewer = ShapesSpec(train=4, test=3, image_size=64, object_size=(12, 40))
    make_shapes(tmp_path / "fewer", fewer, progress=False)
    few, many = digests(tmp_path / "fewer"), digests(shapes)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 7
    assert {name: many[name] for name in pictures} == {name: few[name] for name in pictures}
    for split in ("train", "test"):
        part, whole = (
            json.loads((folder / "annotations" / f"{split}.json").read_text())
            for folder in (tmp_path / "fewer", shapes)
        )
        assert part["annotations"] == whole["annotations"][: len(part["annotations"])]


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("test", 5)])
def test_pycocotools_reads_what_was_drawn(shapes, split, count):
    coco = read_coco(shapes / "annotations" / f"{split}.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.imgs) == count
    for image in coco.loadImgs(coco.getImgIds()):
        assert (shapes / split / image["file_name"]).is_file()
        _, labels, masks, _ = draw_scene(SPEC, split, image["id"] - 1)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [a["category_id"] - 1 for a in annotations] == labels
        for annotation, drawn in zip(annotations, masks, strict=True):
            mask = coco.annToMask(annotation)
            assert np.array_equal(mask, drawn)
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            assert annotation["iscrowd"] == 0
    assert len(coco.anns) == sum(len(anns) for anns in coco.imgToAnns.values())


def test_detectron2_reads_it_as_bit_masks(shapes):
    """Through Detectron2's own mapper, with INPUT.MASK_FORMAT bitmask."""
    from detectron2.data import DatasetMapper
    from detectron2.data.datasets import load_coco_json

    records = load_coco_json(str(shapes / "annotations" / "train.json"), str(shapes / "train"))
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    for record in records[:4]:
        sample = mapper(record)
        image, labels, masks, _ = draw_scene(SPEC, "train", record["image_id"] - 1)
        found = sample["instances"]
        # In records the categories are COCO's, counted from 1, as no data set name was given.
        assert (found.gt_classes - 1).tolist() == labels
        assert np.array_equal(found.gt_masks.tensor.numpy(), masks)
        assert np.array_equal(sample["image"].numpy().transpose(1, 2, 0), as_jpeg(image))


def test_an_object_in_front_of_the_middle_leaves_a_hole(tmp_path):
    """Why masks are run lengths: convex outlines whose visible part encloses something else."""
    spec = ShapesSpec(train=150, test=0, image_size=64, objects=(6, 9), object_size=(8, 44))
    make_shapes(tmp_path / "crowded", spec, progress=False)
    coco = read_coco(tmp_path / "crowded" / "annotations" / "train.json")
    convex = {CLASSES.index(name) + 1 for name in ("disc", "square", "triangle", "bar")}
    masks = [coco.annToMask(a) for a in coco.anns.values() if a["category_id"] in convex]
    assert any(binary_fill_holes(mask).sum() > mask.sum() for mask in masks)


def test_an_existing_data_set_is_reused(shapes):
    before = {path: path.stat().st_mtime_ns for path in shapes.rglob("*")}
    make_shapes(shapes, SPEC, progress=False)
    assert {path: path.stat().st_mtime_ns for path in shapes.rglob("*")} == before


def test_another_data_set_is_not_overwritten(shapes):
    before = digests(shapes)
    for change in ({"seed": 1}, {"noise": 0.5}, {"train": 13}):
        (key,) = change
        with pytest.raises(UserError, match=f"{shapes}: holds another data set .{key} is"):
            make_shapes(shapes, ShapesSpec(**{**vars(SPEC), **change}), progress=False)
    with pytest.raises(UserError, match="kind is shapes, not classification"):
        make_classification(shapes, SMALL, progress=False)
    assert digests(shapes) == before


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="in use for something else"):
            make_shapes(folder, SPEC, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "spec.json").write_text('{"kind": "sha')
    with pytest.raises(UserError, match=r"spec\.json: not valid JSON"):
        make_shapes(tmp_path, SPEC, progress=False)


def test_an_empty_folder_is_used(tmp_path):
    make_shapes(tmp_path, ShapesSpec(train=1, test=1), progress=False)
    assert (tmp_path / "annotations" / "test.json").is_file()


def test_a_killed_process_leaves_no_data_set(tmp_path):
    folder = tmp_path / "shapes"
    code = (
        "import sys; from pathlib import Path; from scratch_vs_pretrain.data import shapes; "
        "shapes.make_shapes(Path(sys.argv[1]), shapes.ShapesSpec(train=10**6), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("*.jpg"))) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not folder.exists()
    make_shapes(folder, SPEC, progress=False)
    assert len(list((folder / "train").iterdir())) == 12


def test_a_failed_call_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(UserError, match=r"cannot write the data set \(No space left on device\)"):
        make_shapes(tmp_path / "shapes", SPEC, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.shapes: cannot write"):
        make_shapes(tmp_path / "file" / "shapes", SPEC, progress=False)


def test_torchvision_reads_the_classification_set(tmp_path):
    from torchvision.datasets import ImageFolder

    make_classification(tmp_path / "single", SMALL, progress=False)
    for split, count in (("train", 20), ("val", 9)):
        found = ImageFolder(str(tmp_path / "single" / split))
        assert found.classes == sorted(CLASSES)
        counts = np.bincount(found.targets, minlength=len(CLASSES))
        assert counts.sum() == count
        assert np.ptp(counts) <= 1
        assert all(image.size == (32, 32) for image, _ in found)
    label = CLASSES.index("star")
    saved = np.asarray(Image.open(tmp_path / "single" / "val" / "star" / f"{label + 1:06d}.jpg"))
    assert np.array_equal(saved, as_jpeg(draw_scene(SMALL, STREAMS[3], label, label)[0]))


def test_the_bar_shows_progress(tmp_path, capsys):
    make_shapes(tmp_path / "loud", ShapesSpec(train=2, test=1))
    assert "3/3" in capsys.readouterr().err
    make_shapes(tmp_path / "quiet", ShapesSpec(train=2, test=1), progress=False)
    assert capsys.readouterr().err == ""


def test_keypoints_change_nothing_else_and_are_on_the_objects(tmp_path):
    make_shapes(tmp_path / "plain", SPEC, progress=False)
    make_shapes(tmp_path / "points", dataclasses.replace(SPEC, keypoints=True), progress=False)
    plain, points = (
        json.loads((tmp_path / name / "annotations/train.json").read_text())
        for name in ("plain", "points")
    )
    assert points["images"] == plain["images"]
    before, after = digests(tmp_path / "plain"), digests(tmp_path / "points")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"annotations/train.json", "annotations/test.json", "spec.json"}
    for one, bare in zip(points["annotations"], plain["annotations"], strict=True):
        keypoints = np.array(one.pop("keypoints")).reshape(-1, 3)
        assert one.pop("num_keypoints") == (keypoints[:, 2] > 0).sum()
        assert one == bare
        left, top, width, height = one["bbox"]
        x, y = keypoints[keypoints[:, 2] == 2, :2].T
        assert ((x >= left - 2) & (x <= left + width + 2)).all()
        assert ((y >= top - 2) & (y <= top + height + 2)).all()
    found = read_annotations(tmp_path / "points/annotations/test.json")
    assert found.keypoints == KEYPOINTS
    assert found.labelled
    assert "keypoints" not in found.lacks


def test_most_tips_of_the_foremost_object_can_be_seen():
    visible = []
    for index in range(30):
        _, _, masks, tips = draw_scene(ShapesSpec(), "train", index)
        visible += module._visible(tips[0], masks[0])[2::3]
    assert np.mean(np.array(visible) == 2) > 0.8


def test_fewer_classes_are_the_first_ones(tmp_path):
    spec = dataclasses.replace(SPEC, classes=2)
    make_shapes(tmp_path / "two", spec, progress=False)
    content = json.loads((tmp_path / "two/annotations/train.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES[:2])
    assert {one["category_id"] for one in content["annotations"]} == {1, 2}
    assert "classes" in json.loads((tmp_path / "two" / SPEC_FILE).read_text())
    with pytest.raises(UserError, match="classes is 9"):
        dataclasses.replace(SPEC, classes=9)
