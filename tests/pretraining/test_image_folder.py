import numpy as np
import pytest
import torch
from PIL import Image

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.pretraining.pretrain import ImageBatches, find_images, random_crops


def write_image(path, value=None, size=(30, 24), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3)
    pixels = rng.integers(0, 256, shape) if value is None else np.broadcast_to(value, shape)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    for k in range(10):
        for label, name in enumerate(("cat", "dog")):
            write_image(tmp_path / "train" / name / f"{k}.png", seed=2 * k + label)
            write_image(tmp_path / "val" / name / f"{k}.png", seed=100 + 2 * k + label)
    return tmp_path


def batches(tree, **settings):
    images = find_images(tree, 0.0, 0)
    spec = {"image_size": 16, "batch_size": 6, "min_area": 0.2} | settings
    return ImageBatches(images, PretrainSpec(**spec))


def test_train_and_val_folders_are_found(tree):
    images = find_images(tree, 0.5, 0)
    assert images.classes == ("cat", "dog")
    assert (len(images.train), len(images.validation)) == (20, 20)
    assert {"/train/" in path for path, _ in images.train} == {True}
    assert {label for _, label in images.validation} == {0, 1}


def test_a_plain_tree_holds_some_out_without_overlap(tree):
    plain = tree / "train"
    images = find_images(plain, 0.25, seed=3)
    assert (len(images.train), len(images.validation)) == (15, 5)
    assert not set(images.train) & set(images.validation)
    assert images == find_images(plain, 0.25, seed=3)
    assert images != find_images(plain, 0.25, seed=4)
    assert find_images(plain, 0.0, 0).validation == ()
    assert len(find_images(plain, 1.0, 0).train) == 1


@pytest.mark.parametrize("cache", [True, False])
def test_an_epoch_shows_whole_batches_of_distinct_pictures(cache, tmp_path):
    for k in range(20):
        write_image(tmp_path / "ab"[k % 2] / f"{k}.png", value=10 * k + 5)
    served = batches(tmp_path, cache=cache)
    assert served.cached == cache
    assert (len(served), served.images_per_epoch) == (3, 18)
    epochs = []
    for number in range(2):
        parts = list(served.epoch(number))
        assert [pictures.shape for pictures, _ in parts] == [(6, 3, 16, 16)] * 3
        values = torch.cat([pictures[:, 0, 8, 8] for pictures, _ in parts]).round().int()
        labels = torch.cat([labels for _, labels in parts])
        assert len(set(values.tolist())) == 18
        assert ((values - 5) // 10 % 2).tolist() == labels.tolist()
        epochs.append(values.tolist())
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("cache", [True, False])
def test_batches_are_a_function_of_seed_and_epoch(cache, tree):
    def first(seed, epoch):
        return next(batches(tree, cache=cache, seed=seed).epoch(epoch))[0]

    torch.manual_seed(1)
    once = first(7, 3)
    torch.manual_seed(2)
    assert torch.equal(once, first(7, 3))
    assert not torch.equal(once, first(8, 3))
    assert not torch.equal(once, first(7, 4))


def test_workers_do_not_change_the_pictures(tree):
    for cache in (True, False):
        served = [batches(tree, cache=cache, workers=n) for n in (0, 2)]
        for here, there in zip(served[0].epoch(1), served[1].epoch(1), strict=True):
            assert torch.equal(here[0], there[0])
            assert torch.equal(here[1], there[1])


def test_the_global_random_state_is_left_alone(tree):
    state = torch.get_rng_state()
    list(batches(tree, cache=False).epoch(0))
    list(batches(tree, cache=True).validation())
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_is_the_central_crop_cached_or_not(tree):
    cached = list(batches(tree, cache=True).validation())
    streamed = list(batches(tree, cache=False).validation())
    assert [len(labels) for _, labels in cached] == [6, 6, 6, 2]
    for one, other in zip(cached, streamed, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_set_smaller_than_a_batch_is_one_batch(tree):
    served = batches(tree, batch_size=64)
    assert (len(served), served.images_per_epoch) == (1, 20)


def test_whole_picture_crops_are_the_picture_or_its_mirror():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    # Area 1 with an aspect ratio cut to the picture leaves one side whole; a constant row pattern
    # is unchanged by cutting columns.
    rows = images[:, :, :, :1].expand(-1, -1, -1, 8)
    crops = random_crops(rows, 8, 1.0, generator)
    assert ((crops - crops[..., :1]).abs() < 1e-3).all()


def test_crops_stay_inside_and_reach_everywhere():
    """A picture whose pixels are their own coordinates shows where each crop lies."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(64.0)
    picture = torch.stack([axis.expand(64, 64), axis[:, None].expand(64, 64), axis.expand(64, 64)])
    crops = random_crops(picture.expand(2000, 3, 64, 64), 32, 0.25, generator)
    left, right = crops[:, 0, 0, 0], crops[:, 0, 0, -1]
    top, bottom = crops[:, 1, 0, 0], crops[:, 1, -1, 0]
    assert crops.min() >= 0
    assert crops.max() <= 63
    assert 0.45 < (left > right).float().mean() < 0.55  # mirrored; 4.5 standard errors
    assert (top < bottom).all()
    # Sample centres are half an output pixel inside the crop: it is 32 / 31 wider than they are.
    width = (right - left).abs() * 32 / 31
    height = (bottom - top) * 32 / 31
    area = width * height / 64**2
    assert area.min() > 0.2
    assert 0.55 < area.mean() < 0.7  # uniform in [0.25, 1] would have 0.625 before cutting
    assert (width / height).min() > 0.7
    assert (width / height).max() < 1.4
    centre = (left + right) / 2
    assert centre.min() < 20
    assert centre.max() > 44


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_picture_is_named(cache, workers, tree):
    broken = tree / "train" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"^{broken}: cannot be decoded \(.*\); remove or replace"):
        list(batches(tree, cache=cache, workers=workers, batch_size=20).epoch(0))


def test_trees_that_are_none_are_refused(tree, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="no such folder"):
        find_images(tree / "nowhere", 0.1, 0)
    with pytest.raises(UserError, match=r"no picture set .* one folder per class"):
        find_images(empty, 0.1, 0)
    (empty / "cat").mkdir()
    with pytest.raises(UserError, match=r"no picture set .*cat"):
        find_images(empty, 0.1, 0)
    write_image(empty / "cat" / "a.png")
    with pytest.raises(UserError, match="one class folder only"):
        find_images(empty, 0.1, 0)
    write_image(tree / "val" / "horse" / "a.png")
    with pytest.raises(UserError, match=r"val: its class folders differ"):
        find_images(tree, 0.1, 0)
