"""Named subsets: which images ``coco_2017_train_10k`` or ``coco_2017_train_10pct_s3`` means.

The rule, which depends on nothing but the image ids: sort the ids by the SHA-256 digest of
``svp-subset:<seed>:<image id>`` in UTF-8 and take the first n. So the subsets of one set and one
seed are nested, and the order of the annotation file, the Python version, the platform and the
process make no difference.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from scratch_vs_pretrain.errors import UserError

# Other names of registered data sets.
ALIASES = {"coco_35k": "coco_2014_valminusminival"}  # the paper's 35k images, also called val35k

UNITS = {"": Fraction(1), "k": Fraction(1000), "pct": Fraction(1, 100)}

_SIZE = r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?)(?P<unit>k|pct|)"
_NAME = re.compile(rf"(?P<base>.+)_(?P<size>{_SIZE})(?:_s(?P<seed>[0-9]{{1,12}}))?", re.ASCII)


@dataclass(frozen=True)
class Subset:
    """A part of a data set.

    Attributes:
        name: as it was written.
        base: the data set it is drawn from.
        size: the number of images, or the fraction of them where `relative`.
        relative: whether `size` is a fraction of the base.
        seed: subsets of one seed are nested.
    """

    name: str
    base: str
    size: Fraction
    relative: bool
    seed: int = 0

    def count(self, images: int) -> int:
        """Returns the number of images, of a base that has so many; halves are rounded up.

        Raises:
            UserError: the base has too few, or too few for a percentage of them to be an image.
        """
        wanted = self.size * images if self.relative else self.size
        count = math.floor(wanted + Fraction(1, 2))
        if count > images:
            raise UserError(
                f"{self.name}: {count:,} images are more than the {images:,} of {self.base}; "
                "choose a smaller size"
            )
        if count < 1:
            raise UserError(
                f"{self.name}: is less than one of the {images:,} images of {self.base}; "
                "choose a larger size"
            )
        return count


def parse_subset(name: str, registered: Iterable[str]) -> Subset | None:
    """Returns the subset that a name means, None if it does not read like a subset's.

    Args:
        name: ``<dataset>_<size>`` or ``<dataset>_<size>_s<seed>``, where a size is a number of
            images (``500``), of thousands of them (``3.5k``) or a percentage (``10pct``).
        registered: data sets that can be the base; no subsets.

    Raises:
        UserError: the size makes no sense, or the base is not registered.
    """
    bases = {*registered, *ALIASES}
    found = _NAME.fullmatch(name)
    if not found or found["base"] not in bases:
        _refuse_misspelt(name, bases)
        if not found:
            return None
        raise UserError(
            f"{name}: reads like a subset of {found['base']}, which is not registered; "
            "name a registered full data set, such as coco_2017_train"
        )
    size = Fraction(found["number"]) * UNITS[found["unit"]]
    relative = found["unit"] == "pct"
    if size == 0:
        raise UserError(f"{name}: a subset of size 0 has nothing to train on; choose a larger size")
    if relative and size > 1:
        raise UserError(f"{name}: {found['size']} is more than the whole; choose at most 100pct")
    if not relative and size.denominator != 1:
        raise UserError(f"{name}: {found['size']} is no whole number of images; such as 3.5k or 10")
    return Subset(name, found["base"], size, relative, int(found["seed"] or 0))


def draw(ids: Sequence[int | str], count: int, seed: int) -> list[int | str]:
    """Returns the ids of a subset in the order of the rule, see the module's docstring.

    Args:
        ids: distinct, in any order.
        count: how many to take; at most all.
        seed: of the subset.
    """

    def key(identity: int | str) -> tuple[bytes, bool]:
        text = f"svp-subset:{seed}:{identity}"
        # 7 and "7" may both be ids.
        return hashlib.sha256(text.encode()).digest(), isinstance(identity, str)

    return sorted(ids, key=key)[:count]


def digest(ids: Iterable[int | str]) -> str:
    """Returns the SHA-256 of an id list: ascending, one a line (numbers before texts)."""
    ordered = sorted(ids, key=lambda identity: (isinstance(identity, str), identity))
    return hashlib.sha256("".join(f"{identity}\n" for identity in ordered).encode()).hexdigest()


def _refuse_misspelt(name: str, bases: Iterable[str]) -> None:
    """Raises UserError for a registered name with something size-like but wrong behind it."""
    for base in sorted(bases, key=len, reverse=True):
        rest = name.removeprefix(f"{base}_")
        if rest != name and re.match(r"[+-]?\.?[0-9]", rest):
            raise UserError(
                f"{name}: {rest} is no size of a subset; write one such as 500, 3.5k, 10k or "
                "10pct, with a seed behind it such as 10k_s3 if you like"
            )
