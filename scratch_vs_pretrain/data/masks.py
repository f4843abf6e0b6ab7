"""Whether the masks of annotations can be trained on."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pycocotools import mask as mask_api

# A polygon may reach this many image sizes outside: rasterizing takes memory in proportion.
REACH = 1.0

# Polygons whose corners fit into a processor's cache.
_CHUNK = 1000
# Pixels: a polygon of more area than this times its outline's length covers some.
_FAT = 1.1


class Unfit(Exception):
    """An annotation that cannot be learnt; its arguments are the kind of finding and a remark."""


def surely_filled(masks: Sequence[Any], sizes: ArrayLike) -> np.ndarray:
    """Tells which masks are polygons that cover pixels for sure, without rasterizing them.

    Rasterizing moves an outline by less than 0.3 pixel (it rounds to fifths of a pixel, twice), so
    a disc of radius 1.01 inside a polygon keeps one of 0.71, which holds the centre of a pixel. Of
    a simple polygon without such a disc every point is within 1.01 of the outline, and its area is
    at most 1.01 times the outline's length (Sz.-Nagy, 1959). What is not so clear has to be looked
    at.

    Args:
        masks: COCO segmentations.
        sizes: (n, 2) width and height of their images.

    Returns:
        (n,) bool; False for the hundreds around a mask of odd form. An outline that winds twice
        around the same pixels, which so cancel each other, may be said to be filled.
    """
    filled, sizes = np.zeros(len(masks), dtype=bool), np.reshape(sizes, (-1, 2))
    for start in range(0, len(masks), _CHUNK):
        part = slice(start, start + _CHUNK)
        with np.errstate(over="ignore", invalid="ignore"):  # corners of any size
            filled[part] = _surely_filled(masks[part], sizes[part])
    return filled


def _surely_filled(masks: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    filled = np.zeros(len(masks), dtype=bool)
    # Of one polygon each; few have more, and those are looked at.
    single = [i for i, mask in enumerate(masks) if type(mask) is list and len(mask) == 1]
    polygons = [masks[i][0] for i in single]
    flat = array("d")
    try:
        for polygon in polygons:
            flat.fromlist(polygon)
    except (TypeError, OverflowError):  # something that is no list of numbers
        return filled
    lengths = np.fromiter(map(len, polygons), int, len(polygons))
    if not single or (lengths < 6).any() or (lengths % 2).any():
        return filled
    x, y = np.frombuffer(flat).reshape(-1, 2).T.copy()
    ends = np.cumsum(lengths) // 2
    starts = np.concatenate([[0], ends[:-1]])
    dx, dy = np.diff(x, append=0), np.diff(y, append=0)
    dx[ends - 1], dy[ends - 1] = x[starts] - x[ends - 1], y[starts] - y[ends - 1]
    area = abs(np.add.reduceat(x * dy - y * dx, starts)) / 2
    outline = np.add.reduceat(np.sqrt(dx * dx + dy * dy), starts)
    inside = np.minimum(np.minimum.reduceat(x, starts), np.minimum.reduceat(y, starts)) >= 0
    for values, side in ((x, 0), (y, 1)):
        inside &= np.maximum.reduceat(values, starts) <= sizes[single, side]
    filled[single] = inside & (area > _FAT * outline)
    return filled


def trainable_mask(mask: Any, width: int, height: int) -> tuple[Any, bool]:
    """Returns a mask as Detectron2's records have it, and whether a polygon had to be left out.

    Args:
        mask: a COCO segmentation, of any content.
        width, height: of the image, in pixels.

    Raises:
        Unfit: it cannot be trained on.
    """
    if not mask:
        raise Unfit("no mask", "")
    try:
        if isinstance(mask, dict):
            return _run_lengths(mask, [height, width]), False
        return _polygons(mask, width, height)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Unfit("invalid mask", " ".join(str(error).split())) from None


def _run_lengths(mask: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    if list(mask["size"]) != size:
        raise Unfit("RLE of another size", f"{mask['size']}, image {size}")
    counts = mask["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError("its runs are not as many pixels as the image")
    if not any(runs[1::2]):
        raise Unfit("empty mask", "")
    return mask_api.frPyObjects(mask, *size) if runs is counts else dict(mask)


def _runs(counts: str | bytes) -> list[int]:
    """Returns the run lengths that COCO's compressed text stands for.

    As ``rleFrString`` of pycocotools' maskApi.c reads them, which checks nothing: runs that end
    early would leave a part of the decoded mask to chance.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii") if isinstance(counts, str) else counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError("its text is none of run lengths")
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its text ends within a number")
    return runs


def _polygons(mask: Any, width: int, height: int) -> tuple[list[list[float]], bool]:
    # Detectron2 leaves out polygons of fewer than three points, too.
    polygons = [one for one in mask if len(one) >= 6 and len(one) % 2 == 0]
    size = np.array([width, height])
    for one in polygons:
        corners = np.frombuffer(array("d", one)).reshape(-1, 2)
        if not np.isfinite(corners).all():
            raise ValueError("a corner is no number")
        if (corners < -REACH * size).any() or (corners > (1 + REACH) * size).any():
            raise ValueError("a corner is far outside the image")
    if not polygons:
        raise Unfit("empty mask", "no polygon has three points")
    codes = mask_api.frPyObjects(polygons, height, width)
    if not sum(int(mask_api.area(code)) for code in codes):
        raise Unfit("empty mask", "")
    return polygons, len(polygons) < len(mask)
