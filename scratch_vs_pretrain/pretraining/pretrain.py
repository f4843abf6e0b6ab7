"""Classifier pre-training of a config's own backbone, on a folder of class folders."""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.modeling.checkpoint_file import load, save
from scratch_vs_pretrain.modeling.checks import use_runnable_norms
from scratch_vs_pretrain.modeling.weights import input_settings, write_backbone
from scratch_vs_pretrain.pretraining.classifier import Classifier
from scratch_vs_pretrain.pretraining.image_folder import ImageBatches, LabelledImages, find_images
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.reproducibility import provenance

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_log = logging.getLogger(__name__)

FORMAT = 1
# The loss is looked at every so many batches: reading it waits for the device.
LOOK_EVERY = 10

SCHEDULES = ("cosine", "step")
# Of the epochs, where the "step" schedule drops the rate to a tenth.
STEP_DROPS = (0.3, 0.6, 0.9)
REFERENCE_BATCH, RATE_OF_REFERENCE = 256, 0.1
# An accuracy no more than so many standard errors above guessing is guessing.
CHANCE_ERRORS = 3


@dataclass(frozen=True)
class PretrainSpec:
    """How a classifier is trained. The defaults are ImageNet's usual recipe (Goyal et al., 2017).

    Attributes:
        epochs: times that the training set is seen.
        image_size: side of the square training pictures, in pixels.
        batch_size: pictures per batch; smaller sets are one batch.
        learning_rate: largest rate of SGD; None for 0.1 per 256 pictures of a batch.
        schedule: "cosine" to 0, or "step": a tenth after 30, 60 and 90 % of the epochs.
        warmup: fraction of the training over which the rate rises linearly from 0.
        momentum, weight_decay: of SGD, for all parameters.
        label_smoothing: 0 for none.
        min_area: smallest random crop, as a fraction of the picture's area.
        validation_fraction: held out for measuring the accuracy where there is no ``val`` folder.
        workers: processes that decode pictures; 0 decodes in this one.
        cache: keep decoded pictures in memory; None does so up to 1 GiB.
        seed: of initial weights, order and crops.
        device: "cpu", "cuda", ...; None takes a GPU if there is one.
    """

    epochs: int = 100
    image_size: int = 224
    batch_size: int = 256
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    min_area: float = 0.08
    validation_fraction: float = 0.1
    workers: int = 0
    cache: bool | None = None
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raises UserError, which names the field, for values that make no training."""
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule: {self.schedule!r}; use {' or '.join(SCHEDULES)}")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers}; it must not be negative")
        for name in ("epochs", "image_size", "batch_size", "largest_rate", "min_area"):
            if not getattr(self, name) > 0:
                name = name.replace("largest", "learning")
                raise UserError(f"{name}: {getattr(self, name)}; it must be above 0")
        for name in ("warmup", "label_smoothing", "min_area", "validation_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)}; it must be between 0 and 1")

    @property
    def largest_rate(self) -> float:
        """The rate at the end of the warm-up; by default linear in the batch size, as Goyal's."""
        default = RATE_OF_REFERENCE * self.batch_size / REFERENCE_BATCH
        return default if self.learning_rate is None else self.learning_rate

    def rate(self, step: int, steps: int) -> float:
        """Returns the learning rate of batch `step` (from 0) of `steps`."""
        warmup = round(self.warmup * steps)
        if step < warmup:
            return self.largest_rate * ((step + 1) / warmup)
        if self.schedule == "step":
            return self.largest_rate * 0.1 ** sum(step >= drop * steps for drop in STEP_DROPS)
        done = (step - warmup) / max(steps - warmup, 1)
        return self.largest_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class PretrainResult:
    """What was trained, and how well.

    Attributes:
        accuracy: of the validation pictures, percent; None without any.
        seconds: of training by this call, validation included.
    """

    file: Path
    accuracy: float | None
    seconds: float
    metadata: dict[str, Any]


def pretrain(
    cfg: CfgNode,
    image_folder: Path,
    output_file: Path,
    spec: PretrainSpec | None = None,
    progress: bool = True,
) -> PretrainResult:
    """Trains a config's backbone as a classifier and writes its weights.

    After each epoch everything is saved beside `output_file` (``.partial``), and a call with the
    same arguments goes on from there; the result is the same. On CPU it depends on `spec` and the
    pictures alone.

    Args:
        cfg: the detector's config; backbone, pixel statistics and channel order are its own.
        image_folder: ``train/<class>/*`` and ``val/<class>/*``, or ``<class>/*``.
        output_file: written atomically at the end.
        spec: the recipe; None for ImageNet's.
        progress: show progress bars.

    Raises:
        UserError: bad spec or pictures, an output that cannot be written, or a loss that diverges.
    """
    spec = spec or PretrainSpec()
    spec.check()
    _check_writable(output_file)
    device = _device(spec.device)
    images = find_images(image_folder, spec.validation_fraction, spec.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)
        model = Classifier(cfg, len(images.classes))
    norms = use_runnable_norms(model, device, world_size=1)
    batches = ImageBatches(
        images,
        size=spec.image_size,
        batch_size=spec.batch_size,
        min_area=spec.min_area,
        workers=spec.workers,
        cache=spec.cache,
        seed=spec.seed,
        progress=progress,
    )
    metadata = {
        **_describe(images, batches, spec),
        "norms": norms,
        "input": input_settings(cfg),
        "config": cfg.dump(),
        "versions": provenance(device.type)["versions"],
    }
    start = time.monotonic()
    snapshot = _Snapshot(output_file.with_name(f"{output_file.name}.partial"), metadata)
    accuracy = _train(model.to(device), batches, spec, snapshot, progress)
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
    snapshot.path.unlink(missing_ok=True)
    return PretrainResult(output_file, accuracy, time.monotonic() - start, metadata)


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


@dataclass(frozen=True)
class _Snapshot:
    """Everything after an epoch, so that a killed pre-training goes on with the next."""

    path: Path
    metadata: dict[str, Any]

    def save(self, epochs: int, model: Classifier, optimizer: torch.optim.Optimizer) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save(self.path, {"metadata": self.metadata, "epochs": epochs, **state})

    def restore(self, model: Classifier, optimizer: torch.optim.Optimizer) -> int:
        """Returns the number of epochs already trained, having restored what they left."""
        if not self.path.exists():
            return 0
        state = load(self.path, str(self.path))
        if not isinstance(state, dict) or state.get("metadata") != self.metadata:
            _log.warning("%s is of another pre-training; starting anew", self.path)
            return 0
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["epochs"]


def _train(
    model: Classifier,
    batches: ImageBatches,
    spec: PretrainSpec,
    snapshot: _Snapshot,
    progress: bool,
) -> float | None:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.largest_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
    )
    done = snapshot.restore(model, optimizer)
    accuracy = _accuracy(model, batches) if done else None
    with Bar(
        total=spec.epochs * len(batches),
        initial=done * len(batches),
        desc="pre-training",
        unit="batch",
        disable=not progress,
    ) as bar:
        for epoch in range(done, spec.epochs):
            _train_epoch(model, optimizer, batches, epoch, spec, bar)
            snapshot.save(epoch + 1, model, optimizer)
            accuracy = _accuracy(model, batches)
            _log.info("epoch %d: validation accuracy %s %%", epoch + 1, accuracy)
    return accuracy


def _train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    batches: ImageBatches,
    epoch: int,
    spec: PretrainSpec,
    bar: Bar,
) -> None:
    device = model.device
    steps = spec.epochs * len(batches)
    model.train()
    for step, (images, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = spec.rate(step, steps)
        labels = labels.to(device, non_blocking=True)
        scores = model(images.to(device, non_blocking=True))
        loss = F.cross_entropy(scores, labels, label_smoothing=spec.label_smoothing)
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
    device = model.device
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


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the file to write the weights to")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
