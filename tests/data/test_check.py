"""Every kind of finding is found, where it is and nowhere else."""

import json
import os
from pathlib import Path

import pytest

from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.check import Report, check, check_decodable
from scratch_vs_pretrain.data.coco import BREAKS, KINDS, MENDED, SPOILS
from scratch_vs_pretrain.data.loading import load_training_records
from scratch_vs_pretrain.errors import UserError


def found(*sets):
    report = check(sets, workers=2, progress=False)
    return {kind: notes for (_, kind), notes in report.found.items()}


def edit(position, **changes):
    return lambda content, folder: content["annotations"][position].update(changes)


def edit_image(position, **changes):
    return lambda content, folder: content["images"][position].update(changes)


def truncate(content, folder):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


def small_boxes(content, folder):
    for entry in content["annotations"][::4]:
        entry["bbox"][2] = 1.5


CASES = [
    ("missing image", lambda content, folder: (folder / "2.png").unlink(), "2.png"),
    ("undecodable image", truncate, "2.png"),
    ("unusable entry", edit(2, bbox=[1, 2]), "annotations[2] has bbox [1, 2]"),
    ("unusable entry", edit(2, category_id="a"), "annotations[2] has category_id 'a'; give"),
    ("unusable entry", edit(2, category_id=10**19), "category_id 10000000000000000000; give"),
    ("annotation id 0", edit(2, id=0), "renumbered"),
    ("annotation without area", edit(2, area=None), "annotation 3"),
    ("area unlike its box", edit(2, area=90), "annotation 3 (area 90, box 5 x 5.95)"),
    ("area unlike its box", edit(2, area=0.4), "annotation 3 (area 0.4, box 5 x 5.95)"),
    ("same box twice", edit(6, bbox=[1, 2, 5, 5.95]), "annotation 7"),
    ("boxes under 2 pixels", small_boxes, "10 of 40 boxes"),
    (
        "unusable entry",
        lambda content, folder: content["images"].append(dict(content["images"][2])),
        "images[4] has the id 2 of one before it",
    ),
    ("duplicate annotation id", edit(2, id=1), "annotations[2] (1)"),
]


def test_good_data_have_nothing_to_report(build):
    report = check([build()], progress=False)
    assert report.found == {}
    assert not report.breaks
    assert report.text() == (
        "Can a number trained on this be trusted? yes\ntrain: 4 images\nnothing to report"
    )


@pytest.mark.parametrize(("kind", "change", "where"), CASES)
def test_each_kind_is_found_where_it_is(build, kind, change, where):
    report = check([build(change)], workers=2, progress=False)
    ((_, notes),) = report.found.items()
    assert report.found.keys() == {("train", kind)}
    assert len(notes) == 1
    assert where in notes[0]
    assert report.breaks == (KINDS[kind].means == BREAKS)


def replaced(make):
    def change(content, folder):
        (folder / "2.png").unlink()
        make(folder / "2.png")

    return change


NO_PICTURES = {
    "dangling link": lambda file: file.symlink_to("/nowhere"),
    "circular link": lambda file: file.symlink_to(file),
    "device": lambda file: file.symlink_to("/dev/zero"),
    "folder": lambda file: file.mkdir(),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_what_is_no_file_is_a_missing_picture_in_checks_and_in_training(build, config_of, what):
    one = build(replaced(NO_PICTURES[what]), unreadable=0.25)
    report = check([one], workers=2, progress=False)
    assert report.found == {("train", "missing image"): ["2.png"]}
    cfg = config_of(one)
    with pytest.raises(UserError, match=r"1 of the 4 images of .* are missing: 2\.png"):
        datasets.check_files(cfg.DATASETS.TRAIN)
    load_training_records(cfg)  # looks at no pipe


def test_annotations_that_are_a_pipe_are_not_waited_for(build):
    one = build()
    one.annotations.unlink()
    os.mkfifo(one.annotations)
    with pytest.raises(UserError, match=r"train\.json: cannot read the annotations \(a pipe"):
        check([one], progress=False)


def test_what_cannot_be_used_breaks_training_too(build, config_of):
    """What is told to break training is what training refuses before it starts."""
    for number, (kind, change, _) in enumerate(CASES):
        if KINDS[kind].means == BREAKS and kind != "undecodable image":
            with pytest.raises(UserError):
                datasets.check_files(config_of(build(change, f"set{number}")).DATASETS.TRAIN)


def test_a_path_out_of_the_folder(build):
    notes = found(build(edit_image(2, file_name="../2.png")))
    assert "leads out of the image folder" in notes["unusable entry"][0]
    assert len(notes["annotation of a missing image"]) == 10


def test_undecodable_images_in_small_number_are_replaced_in_training(build):
    report = check([build(truncate, unreadable=0.25)], progress=False)
    assert not report.breaks
    ((_, kind),) = report.found
    assert kind == "undecodable training image"


def test_same_content_in_train_and_test(build):
    def copy(content, folder):
        (folder / "1.png").write_bytes((folder.parent / "train" / "3.png").read_bytes())

    train = build()
    notes = found(train, build(copy, "test", seed=1))
    assert notes == {"same image in several data sets": ["test 1.png = train 3.png"]}


def test_what_breaks_training_is_told_apart(build):
    report = check([build(edit(2, bbox=[1, 2, 0, 6]))], progress=False)
    assert not report.breaks
    assert report.text().startswith("Can a number trained on this be trusted? yes, with 1 repair")
    broken = check([build(truncate, "other")], progress=False)
    assert broken.breaks
    assert broken.text().startswith(
        "Can a number trained on this be trusted? no: other: undecodable image (1)\n"
    )


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


def test_annotations_alone(build):
    def damage(content, folder):
        (folder / "2.png").unlink()
        content["annotations"][2]["bbox"] = [1, 2, 0, 6]

    report = check([build(damage)], progress=False, images=False)
    assert {kind for _, kind in report.found} == {"degenerate box"}
    assert "no image was opened" in report.text()
    assert report.to_json()["images_opened"] is False


def test_not_coco_at_all(build, tmp_path):
    one = build()
    one.annotations.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check([one], progress=False)
    one.annotations.write_text('{"annotations": [], "categories": []}')
    with pytest.raises(UserError, match="it has no list of images"):
        check([one], progress=False)


def test_images_to_evaluate_on_must_all_decode(build, config_of):
    (name,) = config_of(build()).DATASETS.TRAIN
    check_decodable([name])
    (broken,) = config_of(build(truncate, "broken")).DATASETS.TRAIN
    with pytest.raises(UserError, match=rf"1 of the 4 images of {broken}, .*: 2\.png"):
        check_decodable([name, broken])


def test_every_kind_is_documented_as_it_is():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    table = text.split("| found | means | in training |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in table.strip().splitlines()]
    assert {row[0]: (row[1], row[2]) for row in rows} == {
        kind: (what.means, what.fate) for kind, what in KINDS.items()
    }


def test_every_kind_has_a_test():
    elsewhere = {
        "same image in several data sets",
        "same image twice in a data set",
        "same file listed twice",
        "box one pixel wide",
        "XML names another file",
        "XML with fractions or without flags",
        "unusable XML",
    }
    here = {kind for kind, *_ in CASES} | elsewhere
    faults = {"nothing to learn", *(k for k, what in KINDS.items() if what.means == SPOILS)}
    assert here | faults == {kind for kind, what in KINDS.items() if what.means != MENDED}


def test_names_are_printed_harmless(build):
    text = check([build(edit_image(2, file_name="a\u202e\x1b\udc80.png"))], progress=False).text()
    assert r"a\u202e\x1b\udc80.png" in text
    forged = "train\nCan a number trained on this be trusted? yes"
    report = Report({forged: 3}, {(forged, "missing image"): ["a.png"]}, hints=[f"{forged}: b"])
    assert sum(line.startswith("Can a number") for line in report.text().splitlines()) == 1
