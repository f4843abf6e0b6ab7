"""Every kind of finding is found, where it is and nowhere else."""

import json

import numpy as np
import pytest
from PIL import Image

from scratch_vs_pretrain.data.check import KINDS, DataSet, check
from scratch_vs_pretrain.errors import UserError


@pytest.fixture
def build(tmp_path):
    """Writes a data set of four good images, changed by the caller; returns it and its content."""

    def make(change=lambda content, folder: None, name="train", seed=0):
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(seed)
        for number in range(4):
            pixels = random.integers(256, size=(12, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(4)
            ],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [1, 2, 5, 6],
                    "area": 30,
                    "iscrowd": 0,
                    "segmentation": [[1, 2, 6, 2, 6, 8, 1, 8]],
                }
                for i in range(4)
            ],
            "categories": [{"id": 1, "name": "disc"}],
        }
        change(content, folder)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        return DataSet(name, file, folder)

    return make


def found(*sets):
    report = check(sets, workers=2, progress=False)
    return {kind: notes for (_, kind), notes in report.found.items()}


def edit(position, **changes):
    return lambda content, folder: content["annotations"][position].update(changes)


def edit_image(position, **changes):
    return lambda content, folder: content["images"][position].update(changes)


def save(mode, **how):
    def change(content, folder):
        Image.new(mode, (16, 12), 9).save(folder / "2.png", how.pop("format", "PNG"), **how)

    return change


def rotate(content, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 16)).save(folder / "2.png", "JPEG", exif=exif)


def truncate(content, folder):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


CASES = {
    "missing image": (lambda content, folder: (folder / "2.png").unlink(), "2.png"),
    "undecodable image": (truncate, "2.png"),
    "another size than stated": (edit_image(2, width=17), "16 x 12 found"),
    "no COCO entry": (edit(2, bbox=[1, 2]), "annotations[2]"),
    "unknown category": (edit(2, category_id=7), "annotation 3 (7)"),
    "duplicate image id": (
        lambda content, folder: content["images"].append(dict(content["images"][2])),
        "images[4] (2)",
    ),
    "duplicate annotation id": (edit(2, id=1), "annotations[2] (1)"),
    "path out of the image folder": (edit_image(2, file_name="../2.png"), "../2.png"),
    "invalid mask": (edit(2, segmentation={"size": [12, 16], "counts": [5, 5]}), "annotation 3"),
    "RLE of another size": (
        edit(2, segmentation={"size": [16, 12], "counts": [100, 92]}),
        "annotation 3 ([16, 12], image [12, 16])",
    ),
    "annotation of a missing image": (edit(2, image_id=9), "annotation 3"),
    "degenerate box": (edit(2, bbox=[1, 2, 0, 6]), "annotation 3"),
    "box outside the image": (edit(2, bbox=[10, 2, 9, 6]), "annotation 3"),
    "empty mask": (edit(2, segmentation={"size": [12, 16], "counts": [192]}), "annotation 3"),
    "image without annotation": (edit(2, image_id=1), "2.png"),
    "greyscale image": (save("L"), "2.png"),
    "CMYK image": (save("CMYK", format="JPEG"), "2.png"),
    "EXIF-rotated image": (rotate, "2.png"),
}
# What one mistake entails.
ALSO = {
    "no COCO entry": {"image without annotation"},
    "annotation of a missing image": {"image without annotation"},
    "path out of the image folder": {"annotation of a missing image"},
}


def test_good_data_have_nothing_to_report(build):
    report = check([build()], progress=False)
    assert report.found == {}
    assert not report.breaks
    assert report.text() == "train: 4 images\nnothing to report"


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_found_where_it_is(build, kind):
    change, where = CASES[kind]
    notes = found(build(change))
    assert notes.keys() == {kind, *ALSO.get(kind, ())}
    assert len(notes[kind]) == 1
    assert where in notes[kind][0]


def test_boxes_may_end_on_the_border_and_a_little_outside(build):
    assert found(build(edit(2, bbox=[-0.5, 0, 17, 12.5]))) == {}


def test_same_content_in_train_and_test(build):
    def copy(content, folder):
        (folder / "1.png").write_bytes((folder.parent / "train" / "3.png").read_bytes())

    train = build()
    notes = found(train, build(copy, "test", seed=1))
    assert notes == {"same image in several data sets": ["test 1.png = train 3.png"]}


def test_what_breaks_training_is_told_apart(build):
    report = check([build(edit(2, bbox=[1, 2, 0, 6]))], progress=False)
    assert not report.breaks
    assert "nothing breaks training" in report.text()
    broken = check([build(CASES["missing image"][0], "other")], progress=False)
    assert broken.breaks
    assert "this would break training" in broken.text()


def test_json_has_every_finding(build):
    def several(content, folder):
        for number in range(4):
            (folder / f"{number}.png").unlink()

    report = check([build(several)], progress=False)
    content = json.loads(json.dumps(report.to_json()))
    assert content["breaks_training"] is True
    assert content["images"] == {"train": 4}
    (finding,) = content["findings"]
    assert (finding["kind"], finding["count"]) == ("missing image", 4)
    assert finding["where"] == [f"{number}.png" for number in range(4)]


def test_not_coco_at_all(build, tmp_path):
    one = build()
    one.annotations.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check([one], progress=False)
    one.annotations.write_text('{"annotations": [], "categories": []}')
    with pytest.raises(UserError, match="it has no list of images"):
        check([one], progress=False)


def test_every_kind_has_a_test():
    elsewhere = {"same image in several data sets", "XML names another file", "unusable XML"}
    assert set(KINDS) == CASES.keys() | elsewhere
