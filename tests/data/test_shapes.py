"""The synthetic data sets as folders of files."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import binary_fill_holes

import scratch_vs_pretrain.data.shapes as module
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.shapes import (
    BORDER,
    CLASSES,
    JPEG_QUALITY,
    KEYPOINTS,
    LEAST_VISIBLE,
    SPEC_FILE,
    STREAMS,
    ClassificationSpec,
    Pose,
    ShapesSpec,
    draw_scene,
    make_shapes,
    silhouette,
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
        make_shapes(shapes, SMALL, progress=False)
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
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        make_shapes(tmp_path / "shapes", SPEC, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.shapes: cannot be written"):
        make_shapes(tmp_path / "file" / "shapes", SPEC, progress=False)


def test_torchvision_reads_the_classification_set(tmp_path):
    from torchvision.datasets import ImageFolder

    make_shapes(tmp_path / "single", SMALL, progress=False)
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


CROWDED = ShapesSpec(image_size=64, objects=(6, 9), object_size=(12, 40))


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_scene_is_a_function_of_seed_stream_and_index():
    spec = ShapesSpec()
    scenes = [draw_scene(spec, stream, index) for stream in STREAMS for index in range(3)]
    for number, first in enumerate(scenes):
        for second in scenes[number + 1 :]:
            assert not np.array_equal(first[0], second[0])
    assert equal(draw_scene(spec, STREAMS[1], 2), scenes[5])
    assert equal(draw_scene(ShapesSpec(train=1, test=9), STREAMS[1], 2), scenes[5])
    assert not np.array_equal(draw_scene(ShapesSpec(seed=1), STREAMS[1], 2)[0], scenes[5][0])


def test_masks_are_disjoint_visible_parts_inside_the_image():
    for index in range(40):
        image, labels, masks, _ = draw_scene(CROWDED, "train", index)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert masks.shape == (len(labels), 64, 64)
        assert 1 <= len(labels) <= 9
        assert masks.sum(axis=0).max() <= 1
        assert masks.any(axis=(1, 2)).all()


def test_every_labelled_object_shows_a_quarter_of_itself():
    """The whole area is bounded from below by that of the smallest diameter and stretch."""
    smallest = ShapesSpec(image_size=64, objects=(6, 9), object_size=(12, 12))
    floors = [
        min(
            silhouette(name, Pose(np.array([32.0, 32.0]), 12, 0.8, angle), 64)[1]
            for angle in np.linspace(0, 2 * math.pi, 90)
        )
        for name in CLASSES
    ]
    ratios = [
        mask.sum() / floors[label]
        for index in range(60)
        for label, mask in zip(*draw_scene(smallest, "train", index)[1:3], strict=True)
    ]
    # Subpixel positions change a 12-pixel object's area by a few pixels; hence 0.9.
    assert min(ratios) > 0.9 * LEAST_VISIBLE
    assert min(ratios) < 0.6, "nothing is occluded in these crowded images"


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(CLASSES),
    diameter=st.floats(6, 60),
    stretch=st.floats(0.8, 1),
    angle=st.floats(0, 2 * math.pi),
    corner=st.tuples(st.booleans(), st.booleans()),
)
def test_the_foremost_object_is_always_visible_enough(name, diameter, stretch, angle, corner):
    keep = BORDER * diameter
    centre = np.array([64 - keep if far else keep for far in corner])
    mask, area = silhouette(name, Pose(centre, diameter, stretch, angle), 64)
    assert mask.sum() >= LEAST_VISIBLE * area


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(CLASSES), angle=st.floats(0, 2 * math.pi))
def test_an_outline_lies_in_its_circle(name, angle):
    mask, area = silhouette(name, Pose(np.array([32.0, 32.0]), 40, 1.0, angle), 64)
    rows, columns = np.nonzero(mask)
    # A pixel whose corner is touched counts: sqrt(2) beyond the radius of 20.
    assert np.hypot(rows - 32, columns - 32).max() <= 20 + math.sqrt(2)
    assert mask.sum() == area


def test_areas_of_outlines():
    """Against geometry, for a unit circle of 100 pixels; the perimeter adds at most 3 %."""
    area = {
        name: silhouette(name, Pose(np.array([110.0, 110.0]), 200, 1.0, 0.3), 220)[1] / 100**2
        for name in CLASSES
    }
    assert area["disc"] == pytest.approx(math.pi, rel=0.03)
    assert area["square"] == pytest.approx(2, rel=0.03)
    assert area["triangle"] == pytest.approx(3 * math.sqrt(3) / 4, rel=0.03)
    assert area["bar"] == pytest.approx(4 * 0.95 * 0.31, rel=0.03)
    assert area["ring"] == pytest.approx(math.pi * (1 - 0.55**2), rel=0.03)
    assert area["cross"] == pytest.approx(4 * 0.6 * 0.65 + 0.6**2, rel=0.03)
    assert area["star"] == pytest.approx(10 * 0.42 * math.sin(math.pi / 5) / 2, rel=0.03)


def test_colour_does_not_tell_the_class():
    """Nearest class mean of objects' mean colours does as well as guessing, on other images."""
    colours, labels = [], []
    for index in range(400):
        image, found, masks, _ = draw_scene(
            ShapesSpec(image_size=64, object_size=(12, 40)), "train", index
        )
        colours += [image[mask].mean(axis=0) for mask in masks]
        labels += found
    colour, label = np.array(colours), np.array(labels)
    half = len(label) // 2
    means = np.stack([colour[:half][label[:half] == k].mean(axis=0) for k in range(len(CLASSES))])
    guesses = np.linalg.norm(colour[half:, None] - means, axis=2).argmin(axis=1)
    chance = 1 / len(CLASSES)
    # Four standard deviations of the hit rate of guessing.
    tolerance = 4 * math.sqrt(chance * (1 - chance) / (len(label) - half))
    assert (guesses == label[half:]).mean() == pytest.approx(chance, abs=tolerance)


def test_classes_are_balanced():
    """No class is drawn more often; hiding costs the small outlines a few per cent at most."""
    counts = np.zeros(len(CLASSES))
    for index in range(600):
        np.add.at(
            counts,
            draw_scene(ShapesSpec(image_size=64, object_size=(12, 40)), "train", index)[1],
            1,
        )
    expected = counts.sum() / len(CLASSES)
    # Four standard deviations of a binomial count, and 5 % for hiding.
    assert np.abs(counts - expected).max() < 4 * math.sqrt(expected) + 0.05 * expected


def test_sizes_and_counts_keep_to_the_spec():
    spec = ShapesSpec(objects=(3, 3), object_size=(20, 24), image_size=128)
    for index in range(20):
        _, labels, masks, _ = draw_scene(spec, "train", index)
        assert len(labels) <= 3
        sides = [np.ptp(np.nonzero(mask), axis=1).max() + 1 for mask in masks]
        assert max(sides) <= 24 + 2
    _, labels, masks, _ = draw_scene(ShapesSpec(objects=(1, 1), object_size=(60, 60)), "test", 0)
    assert len(labels) == 1
    assert masks[0].sum() > 300


def test_foremost_sets_the_class():
    for label in range(len(CLASSES)):
        _, labels, *_ = draw_scene(ClassificationSpec(objects=(2, 4)), STREAMS[2], 5, label)
        assert labels[0] == label


def test_knobs_have_their_effect():
    still = ShapesSpec(objects=(1, 1), texture=0, background=0, clutter=0, noise=0, blur=0)
    image, _, masks, _ = draw_scene(still, "train", 0)
    assert len(np.unique(image[masks[0]], axis=0)) == 1
    assert len(np.unique(image[~masks[0]], axis=0)) == 1
    noisy = draw_scene(
        ShapesSpec(objects=(1, 1), texture=0, background=0, clutter=0, noise=5, blur=0), "train", 0
    )
    residual = noisy[0].astype(float) - image
    inside = (image > 20) & (image < 235)
    # 128 x 128 pixels: the estimate's standard deviation is below 1 %; rounding adds 1/12.
    assert residual[inside].std() == pytest.approx(5, rel=0.05)
