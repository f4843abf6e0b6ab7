"""Damaged data: findings are dropped or mended, counted, named by check-data, and trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api

from scratch_vs_pretrain import modeling as _registers_networks  # noqa: F401
from scratch_vs_pretrain.config import default_config, merge_file
from scratch_vs_pretrain.data.check import check
from scratch_vs_pretrain.data.coco import KINDS, MENDED, coco_file
from scratch_vs_pretrain.data.judge import Heads, Unfit, judge, surely_filled, trainable_mask
from scratch_vs_pretrain.data.loading import load_training_records


def edit(position, **changes):
    return lambda content, folder: content["annotations"][position].update(changes)


def edit_image(position, **changes):
    return lambda content, folder: content["images"][position].update(changes)


def save(mode, kind="PNG", size=(16, 12), **how):
    return lambda content, folder: Image.new(mode, size, 9).save(folder / "2.png", kind, **how)


def without(position, key):
    return lambda content, folder: content["annotations"][position].pop(key, None)


def truncate(content, folder):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


def empty_image(content, folder):
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 2]


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return save("RGB", "JPEG", size=(12, 16), exif=exif)


BIG = [[1, 2, 6, 2, 6, 8, 1, 8]]
DAMAGE = [
    ("another size than stated", edit_image(2, width=17), "16 x 12 found"),
    ("other spelling", edit(2, iscrowd="0"), "annotations[2].iscrowd ('0')"),
    ("file of another name", edit_image(2, file_name="2.PNG"), "2.PNG (2.png)"),
    ("unknown category", edit(2, category_id=7), "annotation 3 (7)"),
    ("annotation of a missing image", edit(2, image_id=9), "annotation 3"),
    ("annotation marked ignore", edit(2, ignore=1), "annotation 3"),
    *(
        ("impossible area", edit(2, area=area), "annotation 3")
        for area in (-5, 0, 10**400, float("inf"), float("nan"), "30", 222)  # of 16 x 12
    ),
    ("degenerate box", edit(2, bbox=[1, 2, 0, 6]), "annotation 3"),
    ("degenerate box", edit(2, bbox=[1, 2, -5, 6]), "annotation 3"),
    ("degenerate box", edit(2, bbox=[float("nan"), 2, 5, 6]), "annotation 3"),
    ("degenerate box", edit(2, bbox=[1, 2, float("inf"), 6]), "annotation 3"),
    ("degenerate box", edit(2, bbox=[10**400, 2, 5, 6]), "annotation 3"),
    ("box outside the image", edit(2, bbox=[16, 2, 5, 6]), "annotation 3"),
    ("box outside the image", edit(2, bbox=[-9, 2, 5, 6]), "annotation 3"),
    ("box partly outside the image", edit(2, bbox=[10, 2, 9, 6]), "annotation 3"),
    ("no mask", without(2, "segmentation"), "annotation 3"),
    ("no mask", edit(2, segmentation=[]), "annotation 3"),
    ("invalid mask", edit(2, segmentation={"size": [12, 16], "counts": [5, 5]}), "annotation 3"),
    ("invalid mask", edit(2, segmentation={"size": [12, 16]}), "annotation 3"),
    *(
        ("invalid mask", edit(2, segmentation={"size": [12, 16], "counts": counts}), "annotation 3")
        for counts in ([100.5, 91.5], [0.5] * 384, [100, "92"], [100, None, 92])
    ),
    ("invalid mask", edit(2, segmentation=[[1, 2, 6, 2, 6, None]]), "annotation 3"),
    ("invalid mask", edit(2, segmentation=[[1, 2, 6, 2, 6, float("nan")]]), "annotation 3"),
    ("invalid mask", edit(2, segmentation=[[1, 2, 6, 2, 6, 1e9]]), "annotation 3"),
    ("invalid mask", edit(2, segmentation=7), "annotation 3"),
    (
        "RLE of another size",
        edit(2, segmentation={"size": [16, 12], "counts": [100, 92]}),
        "annotation 3 ([16, 12], image [12, 16])",
    ),
    ("empty mask", edit(2, segmentation={"size": [12, 16], "counts": [192]}), "annotation 3"),
    ("empty mask", edit(2, segmentation=[[1, 2, 6, 2]]), "annotation 3"),
    ("empty mask", edit(2, segmentation=[[1, 2, 1, 2, 1, 2]]), "annotation 3"),
    ("empty mask", edit(2, segmentation=[[20, 2, 30, 2, 30, 9]]), "annotation 3"),
    (
        "polygon of fewer than three points",
        edit(2, segmentation=[*BIG, [1, 2, 6, 2]]),
        "annotation 3",
    ),
    ("image without instances", empty_image, "2.png"),
    ("greyscale image", save("L"), "2.png"),
    ("deep image", save("I;16"), "2.png"),
    ("CMYK image", save("CMYK", "JPEG"), "2.png"),
    ("EXIF-rotated image", turned(), "2.png"),
]


def judged(content, heads=None):
    """The judgement of every entry alone."""
    return judge(coco_file(Path("a"), "", content), {}, heads or Heads(), most_dropped=1)


@pytest.fixture(scope="module")
def network():
    """A Mask R-CNN small enough to train an iteration in a moment."""
    cfg = default_config()
    merge_file(cfg, Path(__file__).parents[2] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml")
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return build_model(cfg).train()


def train_on_all(network, cfg, records, mask_format="bitmask"):
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=cfg.MODEL.MASK_ON,
        instance_mask_format=mask_format,
    )
    with EventStorage():
        loss = sum(network([mapper(record) for record in records]).values())
    loss.backward()
    assert torch.isfinite(loss)


def detectron2s(cfg, one, masks=True):
    records = load_coco_json(str(one.annotations), str(one.images), cfg.DATASETS.TRAIN[0])
    for record in records:
        for obj in record["annotations"] if not masks else ():
            del obj["segmentation"]
    return records


def findings(one):
    report = check([one], workers=2, progress=False)
    return {kind: where for (_, kind), where in report.found.items()}, report


def repairs(found):
    return {
        f"{kind}, {KINDS[kind].fate}": len(where)
        for kind, where in found.items()
        if KINDS[kind].means == MENDED
    }


def test_good_data_are_as_detectron2_loads_them(build, config_of):
    one = build()
    cfg = config_of(one)
    loaded = load_training_records(cfg)
    assert loaded.records == detectron2s(cfg, one)
    assert loaded.repaired == {}
    bare = load_training_records(config_of(one, masks=False)).records
    assert not any("segmentation" in obj for record in bare for obj in record["annotations"])


@pytest.mark.parametrize(("kind", "change", "where"), DAMAGE)
def test_damage_is_named_and_counted_and_trained_on(build, config_of, network, kind, change, where):
    one = build(change)
    found, report = findings(one)
    assert found.keys() == {kind}
    assert len(found[kind]) == 1
    assert where in found[kind][0]
    assert not report.breaks
    cfg = config_of(one)
    loaded = load_training_records(cfg)
    assert loaded.repaired == repairs(found) == {f"{kind}, {KINDS[kind].fate}": 1}
    train_on_all(network, cfg, loaded.records)


def test_every_mended_kind_is_tried():
    elsewhere = {
        "no valid keypoints",
        "undecodable training image",
        "object of another class",
    }
    tried = {kind for kind, *_ in DAMAGE} | elsewhere
    assert tried == {kind for kind, what in KINDS.items() if what.means == MENDED}


def shifted(change, by):
    """The same damage to another image, by shifting the lists that the change counts in."""

    def do(content, folder):
        for key in ("images", "annotations"):
            content[key] = content[key][by:] + content[key][:by]
        change(content, folder)

    return do


ANNOTATION_DAMAGE = [case for case in DAMAGE if case[2].startswith("annotation")]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(ANNOTATION_DAMAGE), st.integers(0, 7)), min_size=1, max_size=6
    ),
    image=st.none() | st.sampled_from([case for case in DAMAGE if case[2].endswith("found")]),
    masks=st.booleans(),
)
def test_any_damage_together_trains_and_check_counts_the_same(
    build, config_of, network, tmp_path_factory, changes, image, masks
):
    name = tmp_path_factory.mktemp("set").name

    def damage(content, folder):
        for (_, change, _), by in changes:
            shifted(change, by)(content, folder)
        if image:
            image[1](content, folder)

    one = build(damage, name, heads=Heads(masks), dropped=1)
    found, report = findings(one)
    assert not report.breaks
    cfg = config_of(one, masks)
    cfg.SVP.MAX_DROPPED = 1.0
    loaded = load_training_records(cfg)
    assert loaded.repaired == repairs(found)
    network.roi_heads.mask_on = masks
    train_on_all(network, cfg, loaded.records)
    network.roi_heads.mask_on = True


def test_without_a_mask_head_masks_do_not_matter(build, config_of):
    cfg = config_of(build(edit(2, segmentation=7)), masks=False)
    loaded = load_training_records(cfg)
    assert loaded.repaired == {}
    assert sum(len(record["annotations"]) for record in loaded.records) == 40


def test_boxes_are_clipped_and_may_end_a_little_outside():
    def boxes(*bbox):
        content = {
            "images": [{"id": 1, "file_name": "a", "width": 16, "height": 12}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(bbox), "area": 20}
            ],
            "categories": [{"id": 1, "name": "disc"}],
        }
        (record,), notes = judged(content)
        return [one["bbox"] for one in record["annotations"]], [note.kind for note in notes]

    assert boxes(-0.5, 0, 17, 12.5) == ([[-0.5, 0, 17, 12.5]], [])
    assert boxes(-3, 2, 8, 20) == ([[0, 2, 5, 10]], ["box partly outside the image"])
    assert boxes(16.2, 2, 0.5, 5)[0] == []


def test_masks_of_the_true_size_are_kept_where_another_is_stated(build, config_of):
    def change(content, folder):
        content["images"][2].update(width=20)
        content["annotations"][2]["segmentation"] = {"size": [12, 16], "counts": [100, 92]}
        content["annotations"][6]["segmentation"] = {"size": [12, 20], "counts": [100, 140]}
        content["annotations"][6]["bbox"] = [1, 2, 18, 6]

    one = build(change, dropped=1)
    cfg = config_of(one)
    cfg.SVP.MAX_DROPPED = 1.0
    loaded = load_training_records(cfg)
    assert loaded.repaired == repairs(findings(one)[0])
    assert loaded.repaired == {
        "another size than stated, true size used": 1,
        "RLE of another size, dropped": 1,
        "box partly outside the image, clipped": 1,
    }
    (record,) = (record for record in loaded.records if record["image_id"] == 2)
    assert (record["width"], record["height"]) == (16, 12)
    assert len(record["annotations"]) == 9


def keypoint_change(keypoints):
    def change(content, folder):
        content["categories"][0]["keypoints"] = list(COCO_PERSON_KEYPOINT_NAMES)
        for one in content["annotations"]:
            one["keypoints"] = [3, 4, 2] * 17
        content["annotations"][2]["keypoints"] = keypoints

    return change


@pytest.mark.parametrize("keypoints", [None, [], [1, 2, 2], [None, 2, 2] * 17, "x" * 51])
def test_keypoints_that_are_none_are_taken_as_unlabelled(build, config_of, keypoints):
    one = build(keypoint_change(keypoints))
    found, report = findings(one)
    assert found == {"no valid keypoints": ["annotation 3"]}
    assert not report.breaks
    cfg = config_of(one)
    cfg.MODEL.KEYPOINT_ON = True
    loaded = load_training_records(cfg)
    assert loaded.repaired == repairs(found)
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="RGB",
        use_keypoint=True,
        keypoint_hflip_indices=np.arange(17),
    )
    labelled = [
        mapper(r)["instances"].gt_keypoints.tensor[:, :, 2].tolist() for r in loaded.records
    ]
    assert sorted(sum(row) for rows in labelled for row in rows) == [0] + [34] * 39


def test_good_keypoints_are_as_detectron2_loads_them(build, config_of):
    one = build(keypoint_change([5, 6, 1] * 17))
    cfg = config_of(one, masks=False)
    cfg.MODEL.KEYPOINT_ON = True
    loaded = load_training_records(cfg)
    assert loaded.records == detectron2s(cfg, one, masks=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
MASKS = (
    JSON
    | st.lists(st.lists(st.floats(width=32) | st.integers(-50, 50), max_size=12), max_size=3)
    | st.fixed_dictionaries(
        {
            "size": st.just([12, 16]) | JSON,
            "counts": st.lists(st.integers(-5, 200), max_size=6) | st.text(max_size=12) | JSON,
        }
    )
)


@settings(max_examples=300, deadline=None)
@given(mask=MASKS, bbox=st.lists(st.floats() | st.integers(), min_size=4, max_size=4))
def test_any_mask_and_box_is_mapped_or_dropped(mask, bbox, tmp_path_factory):
    from detectron2.data import transforms
    from detectron2.data.detection_utils import (
        annotations_to_instances,
        transform_instance_annotations,
    )

    content = {
        "images": [{"id": 1, "file_name": "a", "width": 16, "height": 12}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox, "segmentation": mask}
        ],
        "categories": [{"id": 1, "name": "disc"}],
    }
    (record,), _ = judged(content, Heads(masks=True))
    flip = transforms.TransformList([transforms.HFlipTransform(16)])
    objects = [transform_instance_annotations(one, flip, (12, 16)) for one in record["annotations"]]
    annotations_to_instances(objects, (12, 16), mask_format="bitmask")


SIZE = (64, 48)
CORNER = st.floats(-3, 70, width=32)


def star(centre, radii):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points = np.array(centre) + np.array(radii)[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    return points.ravel().tolist()


STARS = st.builds(
    star,
    st.tuples(st.floats(0, 64), st.floats(0, 48)),
    st.lists(st.floats(0.01, 40), min_size=3, max_size=12),
)


@settings(max_examples=500, deadline=None)
@given(polygon=STARS | st.lists(CORNER, min_size=6, max_size=12).filter(lambda p: not len(p) % 2))
def test_what_is_surely_filled_covers_pixels(polygon):
    if surely_filled([[polygon]], [SIZE]) == [True]:
        (code,) = mask_api.frPyObjects([polygon], SIZE[1], SIZE[0])
        assert mask_api.area(code) > 0
        assert trainable_mask([polygon], *SIZE) == [polygon]


def test_run_lengths_are_compressed_as_detectron2_does():
    runs = {"size": [48, 64], "counts": [1000, 72, 2000]}
    found = trainable_mask(runs, *SIZE)
    assert found == mask_api.frPyObjects(runs, 48, 64)
    text = {**found, "counts": found["counts"].decode()}
    assert trainable_mask(text, *SIZE) == text


@pytest.mark.parametrize("counts", ["", "0", "abc", "\x7f" * 20, "1" * 50])
def test_broken_run_lengths_are_unfit(counts):
    with pytest.raises(Unfit):
        trainable_mask({"size": [48, 64], "counts": counts}, *SIZE)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=40
        )
    )
)
def test_compressed_run_lengths_of_any_mask(rows):
    mask = np.asfortranarray(np.array(rows, dtype=np.uint8))
    code = mask_api.encode(mask)
    height, width = mask.shape
    if not mask.any():
        with pytest.raises(Unfit, match="empty mask"):
            trainable_mask(code, width, height)
        return
    assert trainable_mask(code, width, height) == code
    with pytest.raises(Unfit, match="invalid mask"):
        trainable_mask({**code, "counts": code["counts"] + b"1"}, width, height)


@pytest.mark.parametrize("side", [5, 6, 10])
@pytest.mark.parametrize("shift", [0, 0.25, 0.5])
def test_most_need_no_rasterizing(side, shift):
    corners = np.array([0, 0, side, 0, side, side, 0, side]) + 3 + shift
    assert surely_filled([[corners.tolist()]], [SIZE]) == [True]


@pytest.mark.parametrize(
    "polygon",
    [
        [5.0, 5.0, 15.0, 5.0, 15.0, float("nan")],
        [-5.0, 5.0, 15.0, 5.0, 15.0, 15.0],
        [5.0, 5.0, 65.0, 5.0, 65.0, 15.0],
        [5.0, 5.0, 5.5, 5.0, 5.5, 20.0, 5.0, 20.0],
    ],
)
def test_whatever_is_not_clear_has_to_be_rasterized(polygon):
    assert surely_filled([[polygon]], [SIZE]) == [False]


@pytest.mark.parametrize("corner", [None, "15", float("inf"), 10**400])
def test_a_corner_that_is_no_number_is_invalid(corner):
    with pytest.raises(Unfit, match="invalid mask"):
        trainable_mask([[5.0, 5.0, 15.0, 5.0, 15.0, corner]], *SIZE)


@pytest.mark.parametrize("mark", ["0", "false", "", None, 0])
def test_what_says_no_is_not_ignored(build, mark):
    assert findings(build(edit(2, ignore=mark)))[0] == {}


def test_whole_runs_may_be_written_as_fractions():
    """As pycocotools reads them."""
    found = trainable_mask({"size": [12.0, 16.0], "counts": [100.0, 90.0, 2.0]}, 16, 12)
    whole = trainable_mask({"size": [12, 16], "counts": [100, 90, 2]}, 16, 12)
    assert (mask_api.decode(found) == mask_api.decode(whole)).all()
