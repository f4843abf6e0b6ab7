"""Batches of labelled pictures from a folder of class folders, for classifier pre-training.

Batch k of an epoch is a function of (seed, epoch, k) alone, whatever the number of workers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.pictures import deep_as_rgb
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.progress import Bar

# Pictures are shown to a classifier at 7/8 of the size they were resized to: 224 of 256.
RESIZE_FACTOR = 8 / 7
CACHE_BYTES = 2**30
ASPECT_RATIOS = (3 / 4, 4 / 3)

Sample = tuple[str, int]
Batch = tuple[Tensor, Tensor]
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class LabelledImages:
    """Names of classes in label order; (file, label) of training and of other pictures."""

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]


def find_images(folder: Path, validation_fraction: float, seed: int) -> LabelledImages:
    """Lists ``train/<class>/*`` and ``val/<class>/*``, or ``<class>/*``, below `folder`.

    Without a ``val`` folder, `validation_fraction` of the pictures, drawn from `seed`, is held out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of class folders")
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    train = _scan(train_folder)
    if len(train.classes) < 2:
        raise UserError(f"{train_folder}: one class folder only; a classifier needs two or more")
    if train_folder != folder and (folder / "val").is_dir():
        validation = _scan(folder / "val")
        if validation.classes != train.classes:
            raise UserError(f"{folder / 'val'}: its class folders differ from those of train")
        return LabelledImages(tuple(train.classes), tuple(train.samples), tuple(validation.samples))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train.samples), generator=generator).tolist()
    held_out = set(order[: min(int(len(order) * validation_fraction), len(order) - 1)])
    parts: tuple[list[Sample], list[Sample]] = ([], [])
    for index, sample in enumerate(train.samples):
        parts[index in held_out].append(sample)
    return LabelledImages(tuple(train.classes), *map(tuple, parts))


class ImageBatches:
    """Serves training and validation batches of one size.

    Sets that fit into `CACHE_BYTES` are decoded once and kept as uint8 at 8/7 of the training size;
    random crops are then drawn for a whole batch at a time. Larger sets are decoded and cropped
    from the full picture by worker processes in each epoch.
    """

    def __init__(self, images: LabelledImages, spec: PretrainSpec) -> None:
        self._images = images
        self._spec = spec
        self._batch_size = min(spec.batch_size, len(images.train))
        stored = round(spec.image_size * RESIZE_FACTOR)
        self._whole = v2.Compose([v2.Resize(stored), v2.CenterCrop(stored), v2.PILToTensor()])
        count = len(images.train) + len(images.validation)
        self.cached = count * 3 * stored**2 <= CACHE_BYTES if spec.cache is None else spec.cache
        self._train: Batch | None = None
        self._validation: Batch | None = None
        if self.cached:
            with Bar(total=count, desc="reading", unit="image") as bar:
                self._train = self._decode_all(images.train, bar)
                self._validation = self._decode_all(images.validation, bar)

    def __len__(self) -> int:
        """Batches per epoch; the last, incomplete one is left out."""
        return len(self._images.train) // self._batch_size

    @property
    def images_per_epoch(self) -> int:
        """Pictures that one epoch shows."""
        return len(self) * self._batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yields an epoch's pictures (float, batch x 3 x size x size, RGB, 0 to 255) and labels."""
        generator = torch.Generator().manual_seed(self._spec.seed * 1_000_003 + number)
        size, area = self._spec.image_size, self._spec.min_area
        order = torch.randperm(len(self._images.train), generator=generator)
        batches = order[: self.images_per_epoch].split(self._batch_size)
        if self._train is not None:
            pictures, labels = self._train
            for batch in batches:
                yield random_crops(pictures[batch], size, area, generator), labels[batch]
            return
        seeds = torch.randint(2**62, order.shape, generator=generator).tolist()
        crop = v2.RandomResizedCrop(size, (area, 1.0), ASPECT_RATIOS)
        transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
        keys = [[(index, seeds[index]) for index in batch.tolist()] for batch in batches]
        for pictures, labels in self._decode(self._images.train, transform, keys):
            yield pictures.float(), labels

    def validation(self) -> Iterator[Batch]:
        """Yields the validation set's central crops, as :meth:`epoch` does."""
        central = v2.CenterCrop(self._spec.image_size)
        if self._validation is not None and self._images.validation:
            batches: Any = zip(*(t.split(self._batch_size) for t in self._validation), strict=True)
        else:
            batches = self._decode(self._images.validation, self._whole)
        for pictures, labels in batches:
            yield central(pictures).float(), labels

    def _decode_all(self, samples: tuple[Sample, ...], bar: Bar) -> Batch:
        pictures = torch.empty(
            (len(samples), 3, *self._whole.transforms[1].size), dtype=torch.uint8
        )
        done = 0
        for batch, _ in self._decode(samples, self._whole):
            pictures[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
        return pictures, torch.tensor([label for _, label in samples], dtype=torch.int64)

    def _decode(
        self,
        samples: tuple[Sample, ...],
        transform: Transform,
        batches: list[list[tuple[int, int]]] | None = None,
    ) -> Iterator[Batch]:
        """Decodes `batches` of (place in samples, seed of the transform); or all, in order."""
        if batches is None:
            size, keys = self._batch_size, [(index, 0) for index in range(len(samples))]
            batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        yield from DataLoader(
            _Pictures(samples, transform),
            batch_sampler=batches,
            num_workers=self._spec.workers,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )


def random_crops(images: Tensor, size: int, min_area: float, generator: torch.Generator) -> Tensor:
    """Draws a random resized crop, mirrored or not, of each of a batch of pictures, as float.

    The distribution of Szegedy et al., "Going deeper with convolutions", Section 6: area and
    aspect ratio (3/4 to 4/3) are uniform, the latter in its logarithm. A side that would exceed the
    picture is cut to it; `min_area` is a fraction of the picture's.
    """
    area, shape, right, down, mirror = torch.rand((5, len(images)), generator=generator)
    area = min_area + area * (1 - min_area)
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = torch.exp(low + shape * (high - low))
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where(mirror < 0.5, width, -width)
    theta[:, 0, 2] = (1 - width) * (2 * right - 1)
    theta[:, 1, 1] = height
    theta[:, 1, 2] = (1 - height) * (2 * down - 1)
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


class _Pictures(Dataset):
    def __init__(self, samples: tuple[Sample, ...], transform: Transform) -> None:
        self._samples = samples
        self._transform = transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self._samples[index]
        try:
            picture = deep_as_rgb(Path(path)) or default_loader(path)
        except Exception as error:  # damaged files make decoders raise anything
            reason = " ".join(str(error).split())
            text = f"{path}: cannot be decoded ({reason}); remove or replace it"
            raise UserError(text) from None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._transform(picture), label


def _scan(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{folder}: no picture set ({reason}); it must hold one folder per class"
        ) from None
