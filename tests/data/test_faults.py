"""Files as people have them: what they look like, and whether a number can be trusted."""

import contextlib
import functools
import json
import struct
import zlib

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from PIL import Image

from scratch_vs_pretrain.data.check import DataSet, check
from scratch_vs_pretrain.data.coco import KINDS, SEVERE
from scratch_vs_pretrain.data.datasets import check_files
from scratch_vs_pretrain.data.judge import MOST_DROPPED, Heads
from scratch_vs_pretrain.data.loading import (
    a_few,
    check_ground_truth,
    load_test_records,
    load_training_records,
    refusal_at_a_look,
)
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pretraining.pretrain import _Pictures

FLAT = [1, 2, 6, 2, 6, 8, 1, 8]


def content_of(file):
    return json.loads(file.read_text())


def every(**changes):
    """Changes all annotations; values may be functions of an annotation."""

    def change(content, folder):
        for one in content["annotations"]:
            for key, value in changes.items():
                one[key] = value(one) if callable(value) else value

    return change


def two_categories(content, folder):
    content["categories"] = [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}]
    for number, one in enumerate(content["annotations"]):
        one["category_id"] = number % 2


def one_category_lost(content, folder):
    content["categories"].append({"id": 2, "name": "ring"})
    content["annotations"][0].update(category_id=2, bbox=[1, 2, 0, 6])


def other_files(size):
    """The files have another size than stated; the boxes go with the stated one."""

    def change(content, folder):
        for number, entry in enumerate(content["images"]):
            pixels = np.random.default_rng(number).integers(256, size=(size[1], size[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / entry["file_name"])
        for number, entry in enumerate(content["annotations"]):
            entry["bbox"] = [9, 5, 6, 6 - number / 40]
            entry["segmentation"] = [[9, 5, 15, 5, 15, 11, 9, 11]]

    return change


SPOILT = [
    (
        every(image_id=lambda one: str(one["image_id"])),
        ["ids of two kinds", "instances lost", "category lost"],
        "image_id is text, the ids of images are numbers",
    ),
    (
        every(segmentation=FLAT),
        ["instances lost", "category lost"],
        "40 of 40 (100 %): invalid mask 40; segmentation is one flat list here",
    ),
    (
        every(segmentation=[[]]),
        ["instances lost", "category lost"],
        "the polygons are empty; with MODEL.MASK_ON: False boxes alone are learnt",
    ),
    (every(iscrowd=1), ["nothing to learn"], "all 40 annotations are crowds"),
    (every(iscrowd="1"), ["nothing to learn"], "all 40 annotations are crowds"),
    (
        every(ignore=1),
        ["instances lost", "category lost"],
        "40 of 40 (100 %): annotation marked ignore 40",
    ),
    (
        two_categories,
        ["categories numbered from 0", "instances lost"],
        "annotations have 0 to 1, categories 1 to 2",
    ),
    (one_category_lost, ["category lost"], "ring, all 1 of its instances"),
    (
        every(bbox=[0.1, 0.2, 0.3, 0.4]),
        ["boxes as parts of the image"],
        "40 of 40 boxes lie in [0, 1]; COCO has pixels",
    ),
    (
        every(bbox=lambda one: [4, 4, 15, 11 - one["id"] / 50]),
        ["boxes as two corners"],
        "40 of 40 boxes leave the image, none does if read as x1, y1, x2, y2",
    ),
    (
        other_files((12, 16)),
        ["size that contradicts the boxes"],
        "0.png (16 x 12 stated, 12 x 16 found)",
    ),
    (
        other_files((32, 24)),
        ["size that contradicts the boxes"],
        "0.png (16 x 12 stated, 32 x 24 found)",
    ),
    (
        other_files((8, 6)),
        ["size that contradicts the boxes"],
        "0.png (16 x 12 stated, 8 x 6 found)",
    ),
]


def bad_keypoints(value, count=9):
    def change(content, folder):
        content["categories"][0]["keypoints"] = ["a", "b", "c"]
        for number, one in enumerate(content["annotations"]):
            one["keypoints"] = [value] * count if number < 38 else [3, 3, 2] * 3

    return change


@pytest.mark.parametrize("most", [MOST_DROPPED, 1])
@pytest.mark.parametrize(
    ("value", "count", "lost"),
    [
        *((float("nan"), 9, True), (2, 10, True), (10**400, 9, True), ("2", 9, True)),
        (0, 9, False),  # unlabelled
    ],
)
def test_keypoints_that_cannot_be_learnt_are_told_alike_everywhere(
    build, config_of, value, count, lost, most
):
    def change(content, folder):
        bad_keypoints(value, count)(content, folder)
        content["annotations"] = content["annotations"][:38]

    for name, damage, nothing in (("all", change, True), ("most", bad_keypoints(value), False)):
        one = build(damage, name, heads=Heads(False, 3), dropped=most)
        cfg = config_of(one, masks=False)
        cfg.MODEL.KEYPOINT_ON, cfg.SVP.MAX_DROPPED = True, most
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
        severe = {"nothing to learn"} if nothing else set()
        if most < 1 and (lost if nothing else value not in (0, 2)):
            severe |= {"instances lost"} | ({"category lost"} if nothing else set())
        report = check([one], workers=1, progress=False)
        kinds = {kind for _, kind in report.found if KINDS[kind].means in SEVERE}
        assert kinds == severe
        planned = refusal_at_a_look(cfg.DATASETS.TRAIN[0], one.annotations, cfg, "TRAIN")
        assert bool(planned) == report.breaks == bool(severe)
        with pytest.raises(UserError) if severe else contextlib.nullcontext() as caught:
            load_training_records(cfg)
        if severe:
            assert str(caught.value) == f"{cfg.DATASETS.TRAIN[0]}: {planned}"


def severe(report):
    return {kind: where for (_, kind), where in report.found.items() if kind in KINDS_OF_FAULTS}


KINDS_OF_FAULTS = {kind for _, kinds, _ in SPOILT for kind in kinds}


@pytest.mark.parametrize(("change", "kinds", "says"), SPOILT)
def test_a_spoilt_set_is_named_by_what_it_looks_like_and_not_trained_on(
    build, config_of, change, kinds, says
):
    one = build(change)
    report = check([one], workers=1, progress=False)
    found = severe(report)
    assert set(kinds) <= found.keys()
    assert any(says in where for where in found[kinds[0]])
    assert report.breaks
    assert report.verdict().startswith("no: ")
    cfg = config_of(one)
    with pytest.raises(
        UserError, match=r"cannot train on it: .*`svp check-data` lists all"
    ) as told:
        load_training_records(cfg)
    # Which does not help where nothing is left.
    nothing = any(kind == "nothing to learn" for _, kind in report.found)
    assert ("SVP.MAX_DROPPED: 1.0 takes it" in str(told.value)) != nothing
    # What the plan says of it, which looks at a few images, and of the same as a test set.
    name, file = cfg.DATASETS.TRAIN[0], one.annotations
    assert refusal_at_a_look(name, file, cfg, "TRAIN").startswith("cannot train on it: ")
    scored = refusal_at_a_look(name, file, cfg, "TEST")
    marked = content_of(file)["annotations"][0].get("ignore")
    assert scored.startswith("cannot evaluate on it: ") != bool(marked)
    says = rf"^{name}: (cannot evaluate on it|no annotation has a)"
    with contextlib.nullcontext() if marked else pytest.raises(UserError, match=says):
        check_ground_truth(name, ("bbox", "segm"))


@pytest.mark.parametrize("lacking", [0, 2, 3])
def test_a_test_set_of_which_much_cannot_be_scored_is_refused_by_the_plan(
    build, config_of, lacking
):
    def change(content, folder):
        for one in content["annotations"][:lacking]:
            del one["segmentation"]

    one = build(change)
    cfg = config_of(one)
    refused = refusal_at_a_look(cfg.DATASETS.TRAIN[0], one.annotations, cfg, "TEST")
    lost = "cannot evaluate on it: instances lost: 3 of 40 (7.5 %): no mask 3; with MODEL.MASK_ON"
    assert refused[: len(lost)] == (lost if lacking == 3 else "")


@pytest.mark.parametrize(("part", "count"), [("TRAIN", 4), ("TEST", 4), ("TRAIN", 1), ("TEST", 1)])
def test_unreadable_images_are_told_of_before_training(build, config_of, part, count):
    """By a look at a few of them, where more are than training can replace."""

    def cut(content, folder):
        for number in range(4 - count, 4):
            (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n")

    one = build(cut)
    cfg = config_of(one)
    cfg.SVP.MAX_UNREADABLE = 0.25
    refused = refusal_at_a_look(cfg.DATASETS.TRAIN[0], one.annotations, cfg, part)
    told = f"{one.images}: {count} of 4 images that were looked at cannot be read, such as "
    if (part, count) == ("TRAIN", 1):
        assert refused == ""
    else:
        assert refused.startswith(f"{told}{4 - count}.png; ")


def test_a_look_is_at_20_images_however_many_there_are():
    names = [str(number) for number in range(100_000)]
    seen = a_few(names)
    assert len(set(seen)) == 20
    assert seen == a_few(names)
    assert seen[:10] == names[:10]
    assert sorted(a_few(names[:12])) == sorted(names[:12])


@pytest.mark.parametrize("stated", [(12, 16), (0, 0)])
def test_sizes_are_mended_where_the_boxes_fit_the_file(build, config_of, stated):
    """Found are 16 x 12, and boxes of these."""

    def change(content, folder):
        for image in content["images"]:
            image.update(width=stated[0], height=stated[1])
        every(bbox=lambda one: [9, 5, 6, 6 - one["id"] / 40], segmentation=[[9, 5, 15, 5, 15, 9]])(
            content, folder
        )

    one = build(change)
    report = check([one], workers=1, progress=False)
    assert {kind for _, kind in report.found} == {"another size than stated"}
    assert report.verdict() == "yes, with 4 repairs"
    cfg = config_of(one)
    for part in ("TRAIN", "TEST"):
        assert refusal_at_a_look(cfg.DATASETS.TRAIN[0], one.annotations, cfg, part) == ""
    records = load_training_records(cfg).records
    assert {(one["width"], one["height"]) for one in records} == {(16, 12)}


def test_boxes_alone_train_by_the_users_word(build, config_of):
    one = build(every(segmentation=[[]]), heads=Heads(masks=False))
    assert not check([one], workers=1, progress=False).breaks
    assert len(load_training_records(config_of(one, masks=False)).records) == 4


def test_the_user_may_insist(build, config_of):
    one = build(every(bbox=lambda one: [4, 4, 15, 11 - one["id"] / 50]), dropped=1)
    assert not check([one], workers=1, progress=False).breaks
    cfg = config_of(one)
    cfg.SVP.MAX_DROPPED = 1.0
    assert len(load_training_records(cfg).records) == 4


@pytest.mark.parametrize("name", ["{folder}/2.png", "../train/2.png", "2.PNG", "..\\train\\2.png"])
def test_odd_file_names_are_found_used_and_named(build, config_of, name):
    def change(content, folder):
        content["images"][2]["file_name"] = name.format(folder=folder)

    one = build(change)
    report = check([one], workers=1, progress=False)
    assert {kind for _, kind in report.found} == {"file of another name"}
    cfg = config_of(one)
    check_files(cfg.DATASETS.TRAIN)
    loaded = load_training_records(cfg)
    assert loaded.records[2]["file_name"] == str(one.images / "2.png")
    assert loaded.repaired == {"file of another name, used": 1}
    assert load_test_records(cfg.DATASETS.TRAIN[0])[2]["file_name"] == str(one.images / "2.png")


@pytest.mark.parametrize("name", ["../2.png", "/etc/passwd", "..\\2.png", "../train2/2.png"])
def test_names_out_of_the_folder_are_refused(build, config_of, name):
    one = build(lambda content, folder: content["images"][2].update(file_name=name))
    assert check([one], workers=1, progress=False).breaks
    cfg = config_of(one)
    for use in (lambda: check_files(cfg.DATASETS.TRAIN), lambda: load_training_records(cfg)):
        with pytest.raises(UserError, match="leads out of the image folder"):
            use()


def test_duplicates_are_counted(build):
    def change(content, folder):
        content["images"].append({**content["images"][1], "id": 9})
        (folder / "3.png").write_bytes((folder / "0.png").read_bytes())
        content["annotations"][7]["bbox"] = list(content["annotations"][3]["bbox"])
        for one in content["annotations"][::8]:
            one["image_id"] = 9

    report = check([build(change)], workers=1, progress=False)
    found = {kind: where for (_, kind), where in report.found.items()}
    assert found == {
        "same file listed twice": ["1.png"],
        "same box twice": ["annotation 8"],
        "same image twice in a data set": ["0.png = 3.png"],
    }
    assert report.images == {"train": 5}  # as they are planned and trained


DEEP = [
    # mode, values, what the network sees of them
    ("I;16", [0, 65535, 32768], [0, 255, 128]),
    ("I;16", [0, 1023, 512], [0, 255, 128]),
    ("I;16", [0, 4095, 2048], [0, 255, 128]),
    ("I;16", [0, 255, 128], [0, 255, 128]),
    ("F", [0, 1, 0.5], [0, 255, 128]),
    ("F", [0, 255, 128], [0, 255, 128]),
]


def deep(mode, values, kind):
    def change(content, folder):
        pixels = np.resize(np.array(values), (12, 16))
        dtype = np.float32 if mode == "F" else np.uint16
        Image.fromarray(pixels.astype(dtype)).save(folder / "2.png", kind)

    return change


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("mode", "values", "seen"), DEEP)
def test_deep_pictures_are_scaled_alike_in_training_and_evaluation(
    build, config_of, mode, values, seen, kind
):
    if mode == "F" and kind == "PNG":
        pytest.skip("PNG has no fractions")
    one = build(deep(mode, values, kind))
    report = check([one], workers=1, progress=False)
    assert {k: len(where) for (_, k), where in report.found.items()} == {"deep image": 1}
    cfg = config_of(one)
    for records in (load_training_records(cfg).records, load_test_records(cfg.DATASETS.TRAIN[0])):
        mapper = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")
        image = mapper(dict(records[2]))["image"].numpy()
        assert image.shape == (3, 12, 16)
        assert (image == np.resize(seen, (12, 16))).all()


def png16(values):
    """Bytes of a PNG of 16 bits; Pillow writes none in colour. `values` are (h, w, 1 to 4)."""
    height, width, samples = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[samples], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tiff16(values, order="<", compressed=False, cmyk=False):
    """The same of a TIFF of 3 or 4 samples."""
    height, width, samples = values.shape
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compressed else data
    tags = {256: width, 257: height, 258: 0, 259: 8 if compressed else 1, 262: 5 if cmyk else 2}
    tags |= {273: 0, 277: samples, 278: height, 279: len(data)}
    tags |= {338: 2} if samples == 4 and not cmyk else {}
    tags[258] = 14 + 12 * len(tags)
    tags[273] = tags[258] + 2 * samples
    counts = {258: samples}
    fields = [struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items()]
    fields[2] = struct.pack(order + "HHII", 258, 3, counts[258], tags[258])
    start = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    bits = struct.pack(f"{order}I{samples}H", 0, *[16] * samples)
    return start + b"".join(fields) + bits + data


@pytest.mark.parametrize("most", [1023, 4095, 65535])
@pytest.mark.parametrize(
    ("write", "samples"),
    [
        *((png16, samples) for samples in (1, 2, 3, 4)),
        *((functools.partial(tiff16, order=order), n) for order in "<>" for n in (3, 4)),
        (functools.partial(tiff16, compressed=True), 3),
        (functools.partial(tiff16, order=">", compressed=True), 4),
        (functools.partial(tiff16, cmyk=True), 4),
    ],
)
def test_colours_of_16_bits_are_scaled_by_their_depth_everywhere(
    build, config_of, tmp_path, write, samples, most
):
    values = np.random.default_rng(0).integers(most + 1, size=(12, 16, samples))
    values[0, 0] = most
    one = build(lambda content, folder: (folder / "2.png").write_bytes(write(values)))
    report = check([one], workers=1, progress=False)
    ((_, kind), (where,)) = next(iter(report.found.items()))
    assert (kind, where[-4:]) == ("deep image", ";16)")
    seen = np.rint(values * (255 / most)).astype(np.uint8)
    if "cmyk" in getattr(write, "keywords", ()):
        seen = np.asarray(Image.frombytes("CMYK", (16, 12), seen.tobytes()).convert("RGB"))
    seen = seen[..., :3] if samples > 2 else seen[..., :1].repeat(3, 2)
    cfg = config_of(one)
    for records in (load_training_records(cfg).records, load_test_records(cfg.DATASETS.TRAIN[0])):
        mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
        assert (mapper(dict(records[2]))["image"].numpy() == seen.transpose(2, 0, 1)).all()
    shown, _ = _Pictures([(str(one.images / "2.png"), 0)], np.asarray)[0, 0]
    assert (shown == seen).all()


@pytest.mark.parametrize(
    ("mode", "values"), [("F", [0, 300]), ("F", [-1, 1]), ("F", [0, np.nan]), ("I", [0, 70000])]
)
def test_deep_pictures_of_no_known_scale_are_refused(build, mode, values):
    def change(content, folder):
        dtype = np.float32 if mode == "F" else np.int32
        pixels = np.resize(np.array(values), (12, 16)).astype(dtype)
        Image.fromarray(pixels).save(folder / "2.png", "TIFF")

    report = check([build(change)], workers=1, progress=False)
    ((_, kind), (where,)) = next(iter(report.found.items()))
    assert kind == "undecodable image"
    assert "convert it to 8 bits" in where


EXPORTS = [
    (
        {"description": "Exported from roboflow.com"},
        every(id=lambda one: one["id"] - 1),
        "Roboflow",
    ),
    ({"contributor": "Label Studio"}, two_categories, "Label Studio"),
    (
        {"description": "Exported using VGG Image Annotator"},
        every(image_id=lambda one: str(one["image_id"])),
        "VGG Image Annotator",
    ),
    ({}, every(attributes={"occluded": False}, segmentation=[]), "CVAT"),
    ({"description": "labelme"}, every(segmentation=[[1, 2, 6, 2]]), "labelme"),
]


@pytest.mark.parametrize(("info", "change", "name"), EXPORTS)
def test_the_exporting_program_is_named_with_what_to_change(build, info, change, name):
    def do(content, folder):
        content["info"] = info
        change(content, folder)

    one = build(do)
    if name == "CVAT":
        one = DataSet(one.name, one.annotations, one.images, heads=Heads(masks=True))
    report = check([one], workers=1, progress=False)
    assert report.hints
    assert all(hint.startswith(f"This looks like an export of {name} (") for hint in report.hints)
    assert report.hints[0] in report.text()
    assert json.loads(json.dumps(report.to_json()))["hints"] == report.hints


def test_other_files_are_no_exports(build):
    assert check([build()], workers=1, progress=False).hints == []


def test_a_share_may_be_dropped(build, config_of):
    """Two of forty are a twentieth, three are more."""

    def damage(count):
        def change(content, folder):
            for one in content["annotations"][:count]:
                one["bbox"] = [1, 2, 0, 6]

        return change

    two, three = build(damage(2), "two"), build(damage(3), "three")
    assert check([two], workers=1, progress=False).verdict() == "yes, with 2 repairs"
    assert check([three], workers=1, progress=False).breaks
    load_training_records(config_of(two))
    with pytest.raises(UserError, match=r"instances lost: 3 of 40 \(7.5 %\): degenerate box 3"):
        load_training_records(config_of(three))
