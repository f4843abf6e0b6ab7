"""A part of an annotation file: the same as by parsing the whole."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scratch_vs_pretrain.data.subsets import extract
from scratch_vs_pretrain.errors import UserError


def image(identity):
    return {"id": identity, "file_name": f"{identity}.jpg", "height": 4, "width": 5}


def part_of(file, wanted=()):
    return json.loads(extract(file, lambda ids: [one for one in ids if one in wanted]))


def written(file, content, **how):
    file.write_text(json.dumps(content, **how))
    return file


def part(content, wanted):
    """The plain way."""
    chosen = [entry for entry in content["images"] if entry["id"] in wanted]
    return {
        "images": sorted(chosen, key=lambda entry: (isinstance(entry["id"], str), entry["id"])),
        "categories": content["categories"],
        "annotations": [a for a in content["annotations"] if a["image_id"] in wanted],
    }


TEXTS = st.text() | st.sampled_from(['"image_id": 1', "{", '}"', "]", "\\", '\\"', "image_id"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.just("image_id"), inner, max_size=3)
    ),
    max_leaves=8,
)
IDENTITIES = st.integers(-9, 99) | st.sampled_from(["a", "7", "é", 'q"{'])


@st.composite
def files(draw):
    identities = draw(st.lists(IDENTITIES, min_size=1, max_size=6, unique=True))
    entries = st.fixed_dictionaries(
        {"image_id": st.sampled_from(identities), "segmentation": VALUES}, optional={"note": VALUES}
    )
    content = {
        "info": draw(VALUES),
        "images": [{**image(identity), "extra": draw(VALUES)} for identity in identities],
        "annotations": draw(st.lists(entries, max_size=8)),
        "categories": [{"id": 1, "name": draw(TEXTS)}],
    }
    order = draw(st.permutations(list(content)))
    return {key: content[key] for key in order}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(files(), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_equals_parsing_the_whole(tmp_path, content, indent, ascii_only, data):
    file = written(tmp_path / "a.json", content, indent=indent, ensure_ascii=ascii_only)
    identities = [entry["id"] for entry in content["images"]]
    wanted = data.draw(st.lists(st.sampled_from(identities), unique=True))
    assert part_of(file, wanted) == part(content, wanted)


def small():
    return {
        "images": [image(1), image(2)],
        "annotations": [{"id": 1, "image_id": 2}],
        "categories": [{"id": 1, "name": "disc"}],
    }


def test_keys_in_unusual_spelling_and_deep_objects(tmp_path):
    file = tmp_path / "a.json"
    deep = {"a": {"b": {"c": {"d": [{"e": "}"}]}}}, "image_id": 1}
    content = {**small(), "annotations": [deep, {"image_id": 2}]}
    file.write_text(json.dumps(content).replace('{"image_id": 2}', '{"image\\u005fid"\n:\t2 }'))
    assert part_of(file, [2])["annotations"] == [{"image_id": 2}]
    assert part_of(file, [1])["annotations"] == [deep]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6))
def test_every_truncation_is_a_sentence(tmp_path, at):
    file = tmp_path / "a.json"
    text = json.dumps(small())
    file.write_text(text[: at % len(text)])
    with pytest.raises(UserError, match=f"{file}: not valid JSON"):
        part_of(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_sentence(tmp_path, data):
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{file}: not "):
        part_of(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "it has no list of images"),
        ({"annotations": {}}, "it has no list of annotations"),
        ({"images": [{**image(1), "id": None}]}, r"images\[0\] has id None"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
        ({"images": [image(1), image(1)]}, r"images\[1\] has the id 1 of one before it"),
        ({"annotations": [{"id": 1, "image_id": 3}]}, r"annotations\[0\] belongs to image 3, whi"),
        ({"annotations": [{"id": 1}]}, r"annotations\[0\] belongs to image None"),
        ({"annotations": [7]}, r"annotations\[0\] belongs to image None"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        part_of(written(tmp_path / "a.json", {**small(), **change}))


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_a_list_is_missing(tmp_path, key):
    content = small()
    del content[key]
    with pytest.raises(UserError, match=f"it has no list of {key}"):
        part_of(written(tmp_path / "a.json", content))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot read the annotations"):
        part_of(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot read the annotations"):
        part_of(tmp_path)
