"""Annotation files of subsets: made once, never used half-written, remade when the base changes."""

import json
import os
import threading

import pytest

from scratch_vs_pretrain.data import subsets
from scratch_vs_pretrain.data.coco import read_annotations
from scratch_vs_pretrain.data.subsets import (
    cache_folder,
    draw,
    parse_subset,
    subset_file,
)
from scratch_vs_pretrain.errors import UserError


def content(images=30):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(images)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12}
            for i in range(images)
        ],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}],
    }


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("SVP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "base.json"
    file.write_text(json.dumps(content()))
    return file


def subset(rest="10"):
    return parse_subset(f"base_{rest}", ["base"])


@pytest.fixture
def scans(monkeypatch):
    """Counts how often a base is read."""
    found = []

    def scan(file, draw):
        found.append(file)
        return original(file, draw)

    original = subsets.extract
    monkeypatch.setattr(subsets, "extract", scan)
    return found


def test_the_file_holds_the_drawn_images_and_all_categories(base):
    made = subset_file(subset(), base)
    found = json.loads(made.read_text())
    ids = sorted(draw(range(30), 10, 0))
    assert [image["id"] for image in found["images"]] == ids
    assert {entry["image_id"] for entry in found["annotations"]} == set(ids)
    index = read_annotations(made)
    assert index.categories == ("disc", "ring")
    assert len(index.file_names) == index.annotations == 10


def test_the_second_time_the_base_is_not_read(base, scans):
    first = subset_file(subset(), base)
    assert subset_file(subset(), base) == first
    assert scans == [base]


@pytest.mark.parametrize("rest", ["10_s1", "11", "10pct", "1pct"])
def test_each_subset_has_a_file_of_its_own(base, rest):
    base.write_text(json.dumps(content(100)))
    assert subset_file(subset(rest), base) != subset_file(subset("1"), base)


def test_one_image_and_all_of_them_are_different_files(base):
    assert len(read_annotations(subset_file(subset("1"), base)).file_names) == 1
    assert len(read_annotations(subset_file(subset("100pct"), base)).file_names) == 30


def test_a_changed_base_is_noticed_even_with_its_old_time_and_size(base):
    before = subset_file(subset(), base)
    times = base.stat()
    text = base.read_text()
    with base.open("r+") as file:  # the same inode
        file.write(text.replace('"height": 12', '"height": 13'))
    os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert base.stat().st_size == times.st_size
    after = subset_file(subset(), base)
    assert json.loads(after.read_text())["images"][0]["height"] == 13
    assert after != before


@pytest.mark.parametrize("length", [0, 10, -1])
def test_a_half_written_file_is_not_used(base, scans, length):
    made = subset_file(subset(), base)
    whole = made.read_bytes()
    made.write_bytes(whole[:length])
    assert subset_file(subset(), base) == made
    assert made.read_bytes() == whole
    assert len(scans) == 2


def test_many_at_once(base):
    made, errors = [], []

    def make():
        try:
            made.append(subset_file(subset(), base))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(made) == 8
    assert all(one == made[0] for one in made)


def test_messages_name_the_base(base):
    with pytest.raises(UserError, match="base_31: 31 images are more than the 30 of base"):
        subset_file(subset("31"), base)
    broken = content()
    broken["annotations"][3]["bbox"] = [1]
    base.write_text(json.dumps(broken))
    with pytest.raises(UserError, match=rf"{base} \(base_30\): not in COCO .*\[3\] has bbox"):
        subset_file(subset("30"), base)
    base.unlink()
    with pytest.raises(UserError, match=f"{base}: cannot read"):
        subset_file(subset(), base)


def test_a_cache_that_cannot_be_written(base, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot keep subsets there .*; set SVP_CACHE"):
        subset_file(subset(), base)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SVP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "scratch_vs_pretrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "scratch_vs_pretrain"
