"""Images, instances and pixels that an arm has seen, pre-training included (paper, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What is assumed of weights that do not say how they were trained, as the paper's Figure 2 does:
# the training set of ILSVRC 2012, 100 epochs, one object and 224 x 224 pixels an image.
IMAGENET_IMAGES = 1_281_167
IMAGENET_EPOCHS = 100
IMAGENET_SIDE = 224


@dataclass(frozen=True)
class Counts:
    """What was seen; what was seen again counts again.

    Attributes:
        images: after augmentation.
        instances: objects to learn from, of these images; None where unknown.
        pixels: of these images without padding; None where unknown.
    """

    images: int = 0
    instances: int | None = 0
    pixels: int | None = 0

    def __add__(self, other: Counts) -> Counts:
        def total(a: int | None, b: int | None) -> int | None:
            return None if a is None or b is None else a + b

        return Counts(
            self.images + other.images,
            total(self.instances, other.instances),
            total(self.pixels, other.pixels),
        )


@dataclass(frozen=True)
class Pretraining:
    """What the initial weights of an arm have seen.

    Attributes:
        counts: nothing from random weights.
        assumed: the weights do not say it; ImageNet's usual recipe stands in.
    """

    counts: Counts
    assumed: bool = False


NO_PRETRAINING = Pretraining(Counts())


def imagenet_pretraining() -> Pretraining:
    """Returns what is assumed of weights that do not say how they were trained."""
    images = IMAGENET_IMAGES * IMAGENET_EPOCHS
    return Pretraining(Counts(images, images, images * IMAGENET_SIDE**2), assumed=True)


def pretraining(init: Mapping[str, Any]) -> Pretraining:
    """Returns what an arm's initial weights have seen.

    Args:
        init: as in run.json: "weights", None for random ones, and "pretraining", what
            `svp pretrain` noted in them.
    """
    if not init.get("weights"):
        return NO_PRETRAINING
    noted = init.get("pretraining")
    counts = counts_of(noted.get("samples") if isinstance(noted, Mapping) else None)
    return imagenet_pretraining() if counts is None else Pretraining(counts)


def counts_of(samples: Any) -> Counts | None:
    """Returns the counts that a file holds as "images", "instances", "pixels"; None if not all."""
    if not isinstance(samples, Mapping):
        return None
    found = [samples.get(name) for name in ("images", "instances", "pixels")]
    values = [value for value in found if type(value) is int and value >= 0]
    return Counts(*values) if len(values) == len(found) else None
