"""None"""

import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.data.stream import (
    TrainingStream,
    batch_indices,
    counted,
    prefetched,
    seeded,
)
from scratch_vs_pretrain.errors import UserError


def take(landscape, seed, batch_size, group_size, count):
    batches = batch_indices(np.asarray(landscape), seed, batch_size, group_size)
    return np.array(list(itertools.islice(batches, count)))


shapes = st.tuples(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (8, 2), (6, 3), (4, 4)]),
)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_groups_share_an_orientation_and_epochs_are_even(case):
    landscape, seed, (batch_size, group_size) = case
    batches = take(landscape, seed, batch_size, group_size, 25)
    groups = batches.reshape(-1, group_size)
    orientations = np.asarray(landscape)[groups]
    assert (orientations == orientations[:, :1]).all()
    # An image may wait for its group, but never by more than the epochs its orientation needs to
    # fill one; over time nobody is favoured.
    for orientation in set(landscape):
        members = np.flatnonzero(np.asarray(landscape) == orientation)
        drawn = np.bincount(batches.ravel(), minlength=len(landscape))[members]
        assert drawn.max() - drawn.min() <= 1 + -(-batch_size // len(members))


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_batches_are_a_function_of_the_seed(case):
    landscape, seed, sizes = case
    first = take(landscape, seed, *sizes, 10)
    assert (first == take(landscape, seed, *sizes, 10)).all()
    assert len(first) == 10


def test_another_seed_gives_another_order():
    assert (take([False] * 100, 0, 8, 1, 10) != take([False] * 100, 1, 8, 1, 10)).any()


def test_without_grouping_an_epoch_is_a_permutation():
    batches = take([False] * 48, 3, 16, 2, 6)
    for epoch in batches.reshape(2, 48):
        assert sorted(epoch) == list(range(48))


def test_seeded_leaves_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with seeded(1, 2):
        drawn = np.random.rand(), torch.rand(1).item()
    with seeded(1, 2):
        assert (np.random.rand(), torch.rand(1).item()) == drawn
    with seeded(1, 3):
        assert np.random.rand() != drawn[0]
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_samples_count_unpadded_pixels():
    batch = [{"image": torch.zeros(3, 4, 5), "instances": [1, 2]}, {"image": torch.ones(3, 2, 2)}]
    assert counted(batch) == {"images": 2, "instances": 2, "pixels": 24}


@pytest.fixture
def cfg(tmp_path):
    """A config over 12 small photographs of two orientations, registered for one test."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(12):
        height, width = (40, 60) if number % 3 else (60, 40)
        file = f"{number}.png"
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / file)
        images.append({"id": number, "file_name": file, "height": height, "width": width})
        box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": number + 1, "image_id": number, **box})
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    cfg = default_config()
    cfg.SVP.DATASETS = (["stream_test", str(tmp_path / "annotations.json"), str(tmp_path)],)
    register(cfg)
    cfg.DATASETS.TRAIN = ("stream_test",)
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 48)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 5
    cfg.DATALOADER.NUM_WORKERS = 0
    yield cfg
    DatasetCatalog.remove("stream_test")
    MetadataCatalog.pop("stream_test", None)


def batches_of(cfg, start, count):
    stream = TrainingStream(cfg, start=start)
    return list(itertools.islice(iter(stream), count)), stream


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert one["file_name"] == other["file_name"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


def test_batch_k_does_not_depend_on_the_start(cfg):
    whole, _ = batches_of(cfg, 0, 7)
    rest, _ = batches_of(cfg, 4, 3)
    assert_same(whole[4:], rest)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(cfg, workers):
    alone, _ = batches_of(cfg, 0, 5)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert_same(alone, batches_of(cfg, 0, 5)[0])


def test_processes_share_the_batch(cfg, monkeypatch):
    whole, _ = batches_of(cfg, 0, 3)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(batches_of(cfg, 0, 3)[0])
    assert_same(whole, [one + other for one, other in zip(*parts, strict=True)])


def test_batch_must_divide_over_the_processes(cfg, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(UserError, match=r"IMS_PER_BATCH is 4.*3 processes"):
        TrainingStream(cfg)


def test_augmentation_differs_between_epochs(cfg):
    batches, stream = batches_of(cfg, 0, 12)
    sizes = {sample["image"].shape for batch in batches for sample in batch}
    assert len(sizes) > 3
    assert stream.samples["images"] == 48
    assert stream.samples["instances"] == 48


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_replaced_the_same_way_and_counted(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SVP.MAX_UNREADABLE = 0.1
    broken = DatasetCatalog.get("stream_test")[3]["file_name"]
    with open(broken, "r+b") as file:
        file.truncate(100)
    first, stream = batches_of(cfg, 0, 6)
    assert [len(batch) for batch in first] == [4] * 6
    assert [text.split(":")[0] for text in stream.unreadable] == [broken]
    assert_same(first, batches_of(cfg, 0, 6)[0])


def test_too_many_unreadable_images_stop_training(cfg):
    broken = DatasetCatalog.get("stream_test")[3]["file_name"]
    with open(broken, "wb"):
        pass
    with pytest.raises(UserError, match=r"1 of 12 training images.*MAX_UNREADABLE.*3\.png"):
        batches_of(cfg, 0, 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_nothing_is_refused(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SVP.MAX_UNREADABLE = 100
    for record in DatasetCatalog.get("stream_test"):
        with open(record["file_name"], "wb"):
            pass
    with pytest.raises(UserError, match="no training image can be read"):
        batches_of(cfg, 0, 1)


BATCHES = [
    ([{"image": torch.full((3, 4, 4), k, dtype=torch.uint8), "file_name": str(k)}], [f"bad {k}"])
    for k in range(4)
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_same_batches_on_the_device(count):
    got = list(prefetched(iter(BATCHES[:count]), "cuda"))
    assert [unreadable for _, unreadable in got] == [u for _, u in BATCHES[:count]]
    for (samples, _), (expected, _) in zip(got, BATCHES, strict=False):
        assert samples[0]["image"].is_cuda
        assert torch.equal(samples[0]["image"].cpu(), expected[0]["image"])
        assert samples[0]["file_name"] == expected[0]["file_name"]
        assert not expected[0]["image"].is_cuda


def test_one_batch_is_read_ahead(monkeypatch):
    """The order of reading and handing out, with the CUDA calls replaced by nothing."""
    import contextlib

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    read = []

    def source():
        for number, batch in enumerate(BATCHES):
            read.append(number)
            yield batch

    handed_out = []
    for samples, unreadable in prefetched(source(), "cpu"):
        handed_out.append((int(samples[0]["image"][0, 0, 0]), unreadable, len(read)))
    assert handed_out == [(k, [f"bad {k}"], min(k + 2, 4)) for k in range(4)]
