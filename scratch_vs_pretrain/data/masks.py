"""Whether the masks of annotations can be trained on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

# A polygon may reach this many image sizes outside: rasterizing takes memory in proportion.
REACH = 1.0

_CHUNK = 20_000


class UnfitMask(Exception):
    """A mask that cannot be trained on; its arguments are the kind of finding and a remark."""


def surely_filled(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Tells which masks are polygons that cover pixels for sure, without rasterizing them.

    Rasterizing moves an outline by less than a pixel. So a polygon inside its image whose signed
    area is more than twice its outline's length covers some; one that is not so clear, or winds
    twice around the same pixels, has to be looked at.

    Args:
        masks: COCO segmentations.
        sizes: (width, height) of their images.

    Returns:
        (n,) bool.
    """
    filled = np.zeros(len(masks), dtype=bool)
    for start in range(0, len(masks), _CHUNK):
        part = slice(start, start + _CHUNK)
        filled[part] = _surely_filled(masks[part], sizes[part])
    return filled


def _surely_filled(masks: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    # Of one polygon each; few have more, and those are looked at.
    single = [
        i
        for i, mask in enumerate(masks)
        if type(mask) is list and len(mask) == 1 and type(mask[0]) is list
        if len(mask[0]) >= 6 and len(mask[0]) % 2 == 0
    ]
    filled = np.zeros(len(masks), dtype=bool)
    if not single:
        return filled
    try:
        flat = np.array(list(itertools.chain.from_iterable(masks[i][0] for i in single)))
    except (TypeError, ValueError, OverflowError):
        return filled
    if flat.dtype.kind not in "if":
        return filled
    points = flat.astype(float).reshape(-1, 2)
    corners = np.array([len(masks[i][0]) // 2 for i in single])
    starts = np.concatenate([[0], np.cumsum(corners)[:-1]])
    following = np.arange(1, len(points) + 1)
    following[starts + corners - 1] = starts
    step = points[following] - points
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    # From each polygon's own corner, so that the products stay small.
    own = points - np.repeat(low, corners, axis=0)
    area = abs(np.add.reduceat(own[:, 0] * step[:, 1] - own[:, 1] * step[:, 0], starts)) / 2
    outline = np.add.reduceat(abs(step).sum(1), starts)
    size = np.array([sizes[i] for i in single])
    inside = (low >= -1).all(1) & (high <= size + 1).all(1)
    filled[single] = inside & (area > 2 * outline)
    return filled


def trainable_mask(mask: Any, width: int, height: int) -> tuple[Any, bool]:
    """Returns a mask as Detectron2's records have it, and whether a polygon had to be left out.

    Args:
        mask: a COCO segmentation, of any content.
        width, height: of the image, in pixels.

    Raises:
        UnfitMask: it cannot be trained on.
    """
    if not mask:
        raise UnfitMask("no mask", "")
    try:
        if isinstance(mask, dict):
            return _run_lengths(mask, [height, width]), False
        return _polygons(mask, width, height)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UnfitMask("invalid mask", " ".join(str(error).split())) from None


def _run_lengths(mask: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    if list(mask["size"]) != size:
        raise UnfitMask("RLE of another size", f"{mask['size']}, image {size}")
    counts = mask["counts"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError("its runs are not as many pixels as the image")
    if not any(runs[1::2]):
        raise UnfitMask("empty mask", "")
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
    for one in polygons:
        if not all(type(value) in (int, float) and math.isfinite(value) for value in one):
            raise ValueError("a corner is no number")
        for values, side in ((one[0::2], width), (one[1::2], height)):
            if min(values) < -REACH * side or max(values) > (1 + REACH) * side:
                raise ValueError("a corner is far outside the image")
    if not polygons:
        raise UnfitMask("empty mask", "no polygon has three points")
    codes = mask_api.frPyObjects(polygons, height, width)
    if not sum(int(mask_api.area(code)) for code in codes):
        raise UnfitMask("empty mask", "")
    return polygons, len(polygons) < len(mask)
