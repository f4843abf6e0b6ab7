"""By which numbers the conclusions are judged; see docs/conclusions.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scratch_vs_pretrain.analysis.stats.paired import NOISE_ON_COCO
from scratch_vs_pretrain.config import nearest
from scratch_vs_pretrain.errors import UserError

# More images than any data set has.
LARGEST = 1e12


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the rules.

    Attributes:
        margin: AP by which scratch may end behind and still counts as no worse.
        working_share: share of the pretrained arm's final AP from which on scratch "works".
        early_share: part of the shorter training that counts as early.
        noise: AP by which fewer than three seeds must lie off a bound to decide.
        least_ap: the better arm's final AP below which nothing is judged: not trained far enough.
        many_images: training images from which on pre-training is not expected to win at the end.
        few_images: training images up to which it is.
        few_instances: instances per image below which a data set counts as small, too.
        loss_excess: how much higher, as a share, scratch's final training loss may be than the
            pretrained arm's, to say that it fits its training data as well.
    """

    margin: float = 0.5
    working_share: float = 0.5
    early_share: float = 0.5
    noise: float = NOISE_ON_COCO
    least_ap: float = 5.0
    many_images: float = 10_000
    few_images: float = 3_500
    few_instances: float = 3.0
    loss_excess: float = 0.05


def read_thresholds(given: Mapping[str, Any], where: str) -> Thresholds:
    """Returns the defaults with what a study sets itself.

    Args:
        given: thresholds by name, from a study file or a ``run.json``.
        where: begins messages.

    Raises:
        UserError: an unknown name, or a value that is not a number from 0 to
            :data:`LARGEST`; names `where`.
    """
    names = [field.name for field in dataclasses.fields(Thresholds)]
    for name, value in given.items():
        if name not in names:
            known = nearest(name, names) or f"; known are {', '.join(names)}"
            raise UserError(f"{where}: unknown threshold {name}{known}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= LARGEST:
            raise UserError(
                f"{where}: {name} is {value!r}, but must be a number from 0 to {LARGEST:g}"
            )
    return Thresholds(**given)
