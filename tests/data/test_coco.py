"""Reading COCO annotation files, good and bad."""

import contextlib
import copy
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.data.coco import AnnotationFile, coco_file, read_annotations, read_coco
from scratch_vs_pretrain.errors import UserError

GOOD = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 20, "width": 30},
        {"id": 3, "file_name": "sub/a.jpg", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
}


def write(folder, content):
    file = folder / "annotations.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def changed(*path, value=None, remove=False):
    content = copy.deepcopy(GOOD)
    entry = content
    for key in path[:-1]:
        entry = entry[key]
    if remove:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return content


def test_what_is_kept(tmp_path):
    file = write(tmp_path, GOOD)
    assert read_annotations(file) == AnnotationFile(
        file_names=("sub/a.jpg", "b.jpg"),
        annotations=2,
        categories=("four", "nine"),
        keypoints=(),
        skeleton=(),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        lacks={
            "segm": "no annotation has a mask",
            "keypoints": "annotation 1 has no keypoints",
        },
    )


def test_a_changed_file_is_read_again(tmp_path):
    file = write(tmp_path, GOOD)
    first = read_annotations(file)
    assert read_annotations(file) is first
    file.write_text(json.dumps(GOOD).replace("nine", "NINE"))
    os.utime(file, ns=(1, 1))
    assert read_annotations(file).categories == ("four", "NINE")


def test_keypoints(tmp_path):
    category = {"id": 1, "name": "hand", "keypoints": ["tip", "root"], "skeleton": [[1, 2]]}
    content = {**changed("annotations", value=[]), "categories": [category]}
    found = read_annotations(write(tmp_path, content))
    assert found.keypoints == ("tip", "root")
    assert found.skeleton == ((1, 2),)


@pytest.mark.parametrize("skeleton", [[[1, 3]], [[0, 1]], [[1]], 5, [["a", "b"]]])
def test_a_bad_skeleton_is_none(tmp_path, skeleton):
    """It is only drawn; training and scoring need none."""
    category = {"id": 1, "name": "hand", "keypoints": ["tip", "root"], "skeleton": skeleton}
    content = {**GOOD, "annotations": [], "categories": [category]}
    found = read_annotations(write(tmp_path, content))
    assert (found.keypoints, found.skeleton) == (("tip", "root"), ())


@pytest.mark.parametrize("keypoints", [5, "tip", [1], {"tip": 1}])
def test_bad_keypoints_are_no_keypoints(tmp_path, keypoints):
    category = {"id": 9, "name": "hand", "keypoints": keypoints}
    found = read_annotations(write(tmp_path, {**GOOD, "categories": [category]}))
    assert found.keypoints == ()
    assert found.lacks["keypoints"] == "the keypoints of a category are no list of names"


def test_categories_of_different_keypoints_have_boxes(tmp_path):
    categories = [
        {"id": 4, "name": "hand", "keypoints": ["tip"], "skeleton": []},
        {"id": 9, "name": "foot", "keypoints": ["toe"], "skeleton": []},
    ]
    found = read_annotations(write(tmp_path, {**GOOD, "categories": categories}))
    assert found.lacks["keypoints"] == "the categories have different keypoints"


@pytest.mark.parametrize("sigmas", [[0.1], [0.1, "x"], [0.1, -1], [0.1, 10**400], 5])
def test_bad_sigmas_keep_keypoints_from_being_scored(tmp_path, sigmas):
    category = {"id": 4, "name": "hand", "keypoints": ["tip", "root"], "sigmas": sigmas}
    found = read_annotations(write(tmp_path, {**GOOD, "categories": [category]}))
    assert "are not 2 positive numbers" in found.lacks["keypoints"]


SPELLINGS = [
    (("images", 0, "width"), 30.0, 30),
    (("images", 0, "width"), "30", 30),
    (("images", 0, "id"), 7.0, 7),
    (("annotations", 0, "id"), 1.0, 1),
    (("annotations", 1, "image_id"), 7.0, 7),
    (("annotations", 0, "category_id"), 9.0, 9),
    (("annotations", 0, "category_id"), "9", 9),
    (("categories", 0, "id"), "9", 9),
    (("categories", 0, "name"), 5, "5"),
    (("annotations", 0, "iscrowd"), None, 0),
    (("annotations", 0, "iscrowd"), "0", 0),
    (("annotations", 0, "iscrowd"), "false", 0),
    (("annotations", 0, "iscrowd"), "true", 1),
    (("annotations", 0, "iscrowd"), 1.0, 1),
]


@pytest.mark.parametrize(("path", "value", "meant"), SPELLINGS)
def test_other_spellings_are_read_as_meant_and_noted(tmp_path, path, value, meant):
    file = read_coco(write(tmp_path, changed(*path, value=value)))
    found = [one.get(path[2]) for one in getattr(file, path[0])]
    assert (meant, type(meant)) in [(one, type(one)) for one in found]
    (note,) = file.notes
    assert note.kind == "other spelling"
    assert f"{path[0]}[{path[1]}].{path[2]}" in note.where


def test_category_ids_that_are_words_are_numbered_as_detectron2_orders_them():
    content = copy.deepcopy(GOOD)
    content["categories"] = [{"id": "zebra", "name": "z"}, {"id": "ant", "name": "a"}]
    for entry, identity in zip(content["annotations"], ("zebra", "ant"), strict=True):
        entry["category_id"] = identity
    file = coco_file(Path("a.json"), "", content)
    assert [one["id"] for one in file.categories] == [2, 1]
    assert [one["category_id"] for one in file.annotations] == [2, 1]
    assert file.facts.categories == ("a", "z")
    assert not file.unusable


def test_a_file_that_somebody_holds_is_not_read_again(tmp_path, monkeypatch):
    file = write(tmp_path, GOOD)
    held = read_coco(file)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    assert read_coco(file) is held


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        (json.dumps(GOOD)[:-40], "not valid JSON .*truncated"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "no list of images"),
        (changed("images", remove=True), "no list of images"),
        (changed("annotations", remove=True), "no list of annotations"),
        (changed("categories", value={}), "no list of categories"),
        (
            changed("images", 1, "file_name", remove=True),
            r"images\[1\] has no file_name; give text",
        ),
        (
            changed("images", 0, "height", value="x"),
            r"images\[0\] has height 'x'; give a whole number",
        ),
        (
            changed("images", 0, "height", value=10**400),
            r"images\[0\] has height 10+; give a whole number",
        ),
        (changed("images", 0, value=None), r"images\[0\] is None; give an object"),
        (
            changed("annotations", 1, "bbox", remove=True),
            r"annotations\[1\] has no bbox; give \[x",
        ),
        (changed("annotations", 1, "bbox", value=[1, 2]), r"annotations\[1\] has bbox \[1, 2\]"),
        (changed("annotations", 0, "bbox", value=[1, 2, None, 4]), r"annotations\[0\] has bbox"),
        (changed("images", 1, "id", value=7), r"images\[1\] has the id 7 of one before it"),
        (changed("categories", 1, "id", value=9), r"categories\[1\] has the id 9 of one before it"),
        (changed("annotations", 0, "iscrowd", value="maybe"), r"annotations\[0\] has iscrowd"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    file = write(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(file)
    assert str(file) in str(caught.value)


def test_not_text(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_annotations(file)


@pytest.mark.parametrize("name", ["missing.json", ""])
def test_no_file(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot read the annotations \(\w"):
        read_annotations(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "name", "keypoints", "skeleton"]), inner)
    ),
    max_leaves=8,
)
PATHS = [
    ("images",),
    ("images", 0),
    ("annotations", 1),
    ("categories",),
    *((key, 0, field) for key in GOOD for field in GOOD[key][0]),
    ("categories", 0, "keypoints"),
    ("categories", 1, "skeleton"),
]


@settings(max_examples=500, deadline=None)
@given(path=st.sampled_from(PATHS), value=JSON)
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory, path, value):
    file = write(tmp_path_factory.mktemp("any"), changed(*path, value=value))
    with contextlib.suppress(UserError):
        assert len(read_annotations(file).categories) <= 3
