"""Classifier pre-training of a backbone, and how it is done."""

import math
from dataclasses import dataclass

from scratch_vs_pretrain.errors import UserError

REFERENCE_BATCH, RATE_OF_REFERENCE = 256, 0.1


@dataclass(frozen=True)
class PretrainSpec:
    """How a classifier is trained. The defaults are ImageNet's usual recipe (Goyal et al., 2017).

    Attributes:
        epochs: times that the training set is seen.
        image_size: side of the square training pictures, in pixels.
        batch_size: pictures per batch; smaller sets are one batch.
        learning_rate: largest rate of SGD, from which it falls as a cosine; None for 0.1 per 256
            pictures of a batch.
        warmup: fraction of the training over which the rate rises linearly from 0.
        momentum, weight_decay: of SGD, for all parameters.
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
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    min_area: float = 0.08
    validation_fraction: float = 0.1
    workers: int = 0
    cache: bool | None = None
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raises UserError, which names the field, for values that make no training."""
        if self.workers < 0:
            raise UserError(f"workers: {self.workers}; it must not be negative")
        for name in ("epochs", "image_size", "batch_size", "largest_rate", "min_area"):
            if not getattr(self, name) > 0:
                name = name.replace("largest", "learning")
                raise UserError(f"{name}: {getattr(self, name)}; it must be above 0")
        for name in ("warmup", "min_area", "validation_fraction"):
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
        done = (step - warmup) / max(steps - warmup, 1)
        return self.largest_rate * (1 + math.cos(math.pi * done)) / 2
