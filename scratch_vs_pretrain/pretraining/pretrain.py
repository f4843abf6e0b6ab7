"""Classifier pre-training of a config's own backbone, on a folder of class folders.

Batch k of an epoch is a function of (seed, epoch, k) alone, whatever the number of workers.
"""

import copy
import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import build_box_head
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from scratch_vs_pretrain.errors import UserError, regular, say, writable
from scratch_vs_pretrain.modeling.backbone import VGG_BOX_HEAD, VGGFC67Head, build_bottom_up, joined
from scratch_vs_pretrain.modeling.checkpoint_file import check_output, load, save, write_backbone
from scratch_vs_pretrain.modeling.checks import frozen_norms, use_runnable_norms
from scratch_vs_pretrain.modeling.initial import input_settings
from scratch_vs_pretrain.pictures import deep_as_rgb
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.reproducibility import provenance
from scratch_vs_pretrain.run_folder import write_json
from scratch_vs_pretrain.run_info import PretrainingCost

_log = logging.getLogger(__name__)

FORMAT = 2  # since deep networks start as their shortcuts: no older snapshot is gone on with
# The loss is looked at every so many batches: reading it waits for the device.
LOOK_EVERY = 10

# An accuracy no more than so many standard errors above guessing is guessing.
CHANCE_ERRORS = 3

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
            picture = deep_as_rgb(regular(Path(path))) or default_loader(path)
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


class Classifier(nn.Module):
    """A config's bottom-up network with average pooling and one linear layer.

    VGG-16 has its own fully connected layers between the two: the detector takes them over.

    Pixels are normalized, and channels ordered, as the detector of the same config does it; stages
    that it would freeze are trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: CfgNode, classes: int) -> None:
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        self.bottom_up = build_bottom_up(cfg)
        if frozen := frozen_norms(self.bottom_up):
            raise UserError(f"this backbone cannot be pre-trained: {frozen}")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT}; pre-training knows BGR and RGB")
        self._reverse = cfg.INPUT.FORMAT == "BGR"
        for name, values in (("mean", cfg.MODEL.PIXEL_MEAN), ("std", cfg.MODEL.PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        for block in self.bottom_up.modules():
            # Deep networks start as their shortcuts (Goyal et al., Section 5.1), or a short warm-up
            # makes them diverge; ResNet-18 learns slower so (docs/learning.md).
            if isinstance(block, BottleneckBlock) and block.conv3.norm:
                nn.init.zeros_(block.conv3.norm.weight)
        self._feature, shape = list(self.bottom_up.output_shape().items())[-1]
        self.box_head: VGGFC67Head | None = None
        if cfg.MODEL.ROI_BOX_HEAD.NAME == VGG_BOX_HEAD:
            size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            shape = ShapeSpec(channels=shape.channels, height=size, width=size)
            self.box_head = build_box_head(cfg, shape)
            self._size, shape = size, self.box_head.output_shape
        self.linear = nn.Linear(shape.channels, classes)
        # Goyal et al., "Accurate, Large Minibatch SGD", Section 5.1, as in Detectron2's ResNet.
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores (batch x classes) for RGB pictures (batch x 3 x h x w, 0 to 255)."""
        images = images.flip(1) if self._reverse else images
        features = self.bottom_up((images - self.mean) / self.std)[self._feature]
        if self.box_head is None:
            return self.linear(features.mean((2, 3)))
        # VGG's own last pooling; at 224 pixels it leaves 7 x 7, which fc6 expects.
        features = F.max_pool2d(features, kernel_size=2, stride=2, ceil_mode=True)
        return self.linear(self.box_head(F.adaptive_avg_pool2d(features, self._size)))

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights under the names that Detectron2's ResNet classifier has."""
        linear = {f"linear.{name}": value for name, value in self.linear.state_dict().items()}
        part = joined(self.bottom_up, self.box_head) if self.box_head else self.bottom_up
        return {**part.state_dict(), **linear}


@dataclass(frozen=True)
class PretrainResult:
    """What was trained, and how well.

    Attributes:
        accuracy: of the validation pictures, percent; None without any.
        seconds: of training, validation and calls that were killed included.
    """

    file: Path
    accuracy: float | None
    seconds: float
    metadata: dict[str, Any]


def pretrain(
    cfg: CfgNode, image_folder: Path, output_file: Path, spec: PretrainSpec
) -> PretrainResult:
    """Trains a config's backbone as a classifier and writes its weights.

    After each epoch everything is saved beside `output_file` (``.partial``), and a call with the
    same arguments goes on from there; the result is the same. On CPU it depends on `spec` and the
    pictures alone.

    Args:
        cfg: the detector's config; backbone, pixel statistics and channel order are its own.
        image_folder: ``train/<class>/*`` and ``val/<class>/*``, or ``<class>/*``.
        output_file: written atomically at the end.
        spec: the recipe.
    """
    spec.check()
    partial = output_file.with_name(f"{output_file.name}.partial")
    cost_file = PretrainingCost.file(output_file)
    _check_writable(output_file, partial, cost_file)
    device = _device(spec.device)
    images = find_images(image_folder, spec.validation_fraction, spec.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)
        model = Classifier(cfg, len(images.classes))
    norms = use_runnable_norms(model, device, world_size=1)
    _check_fits(model.to(device), images, spec)
    batches = ImageBatches(images, spec)
    metadata = {
        **_describe(images, batches, spec),
        "norms": norms,
        "input": input_settings(cfg),
        "config": cfg.dump(),
        "versions": provenance(device.type)["versions"],
    }
    accuracy, seconds = _train(model, batches, spec, partial, metadata)
    metadata["accuracy"] = accuracy
    chance, count = 1 / len(images.classes), len(images.validation)
    guessing = 100 * (chance + CHANCE_ERRORS * math.sqrt(chance * (1 - chance) / max(count, 1)))
    if accuracy is not None and accuracy <= guessing:
        say(
            f"{output_file}: {accuracy:.1f} % of {count} validation pictures are right, as by "
            f"guessing among {len(images.classes)} classes: it has learned nothing; train longer, "
            "or at another rate"
        )
    write_backbone(output_file, model.weights(), metadata)
    # Not in the weights: the same training gives the same file, however long it takes.
    cost = PretrainingCost(seconds=seconds, device=provenance(device.type)["device"])
    write_json(cost_file, cost.model_dump())
    partial.unlink(missing_ok=True)
    return PretrainResult(output_file, accuracy, seconds, metadata)


def _check_fits(model: Classifier, images: LabelledImages, spec: PretrainSpec) -> None:
    """Shows a copy of a network its smallest batches, of two pictures at most: where maps shrink to
    one pixel, pooling finds no window in it, and norms nothing to compare a single picture with."""
    size = min(spec.batch_size, len(images.train))
    network = copy.deepcopy(model)
    for training, count in ((True, size), (False, len(images.validation) % size or size)):
        pictures = torch.zeros(min(count, 2), 3, spec.image_size, spec.image_size)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                network.train(training)(pictures.to(model.mean.device))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"image_size: {spec.image_size}; this backbone cannot take batches of {count} such "
                f"pictures ({' '.join(str(error).split())}); raise image_size or batch_size"
            ) from None


def _describe(images: LabelledImages, batches: ImageBatches, spec: PretrainSpec) -> dict[str, Any]:
    shown = batches.images_per_epoch * spec.epochs
    return {
        "format": FORMAT,
        "kind": "classification",
        "images": len(images.train),
        "validation_images": len(images.validation),
        "classes": list(images.classes),
        "epochs": spec.epochs,
        "resolution": spec.image_size,
        # One labelled object a picture.
        "samples": {"images": shown, "instances": shown, "pixels": shown * spec.image_size**2},
        "seed": spec.seed,
        "spec": dataclasses.asdict(spec),
    }


def _train(
    model: Classifier,
    batches: ImageBatches,
    spec: PretrainSpec,
    partial: Path,
    metadata: dict[str, Any],
) -> tuple[float | None, float]:
    """Trains all epochs, those of a killed call aside that `partial` has everything of.

    Returns:
        The accuracy of the validation pictures, percent; and seconds, of such calls, too.
    """
    momentum, decay = spec.momentum, spec.weight_decay
    optimizer = torch.optim.SGD(model.parameters(), spec.largest_rate, momentum, weight_decay=decay)
    done, start = 0, time.monotonic()
    if partial.exists():
        state = load(partial, str(partial))
        if isinstance(state, dict) and state.get("metadata") == metadata:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            done, start = state["epochs"], start - state.get("seconds", 0.0)
        else:
            _log.warning("%s is of another pre-training; starting anew", partial)
    accuracy = _accuracy(model, batches) if done else None
    steps = {"total": spec.epochs * len(batches), "initial": done * len(batches)}
    with Bar(**steps, desc="pre-training", unit="batch") as bar:
        for epoch in range(done, spec.epochs):
            _train_epoch(model, optimizer, batches, epoch, spec, bar)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            about = {"epochs": epoch + 1, "seconds": time.monotonic() - start}
            save(partial, {"metadata": metadata, **about, **state})
            accuracy = _accuracy(model, batches)
            _log.info("epoch %d: validation accuracy %s %%", epoch + 1, accuracy)
    return accuracy, time.monotonic() - start


def _train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    batches: ImageBatches,
    epoch: int,
    spec: PretrainSpec,
    bar: Bar,
) -> None:
    device = model.mean.device
    steps = spec.epochs * len(batches)
    model.train()
    for step, (images, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = spec.rate(step, steps)
        labels = labels.to(device, non_blocking=True)
        scores = model(images.to(device, non_blocking=True))
        loss = F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
        if step % LOOK_EVERY == 0 or step == steps - 1:
            if not loss.isfinite():
                raise UserError(
                    f"pre-training diverged at batch {step + 1} of {steps}; "
                    f"lower learning_rate ({spec.largest_rate})"
                )
            correct = (scores.argmax(1) == labels).float().mean().item()
            bar.set_postfix(loss=f"{loss.item():.2f}", accuracy=f"{100 * correct:.0f}%")


@torch.no_grad()
def _accuracy(model: Classifier, batches: ImageBatches) -> float | None:
    device = model.mean.device
    model.eval()
    right = [
        (model(images.to(device)).argmax(1).cpu() == labels)
        for images, labels in batches.validation()
    ]
    return 100 * torch.cat(right).float().mean().item() if right else None


def _device(name: str | None) -> torch.device:
    available = torch.cuda.is_available()
    name = name or ("cuda" if available else "cpu")
    if name != "cpu" and not (available and name.startswith("cuda")):
        raise UserError(f"device: there is no {name} here; use cpu")
    return torch.device(name)


def _check_writable(path: Path, *others: Path) -> None:
    for file in (path, *others):
        if file.is_dir():
            raise UserError(f"{file}: is a folder; name another file to write the weights to")
    check_output(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
