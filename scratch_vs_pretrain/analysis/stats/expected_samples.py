"""Instances and pixels of a training image, expected before a run from annotations alone.

Follows Detectron2's training augmentation (``data/detection_utils.py:build_augmentation``, and the
crop that ``DatasetMapper`` puts before it): a random crop, the resizing of the shorter side, and a
flip, which changes no count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A crop's random size, and with crops a range of shorter sides, stands for so many values.
POINTS = 8


@dataclass(frozen=True)
class InputRule:
    """How training images are augmented, as the INPUT keys of a config say it."""

    # MIN_SIZE_TRAIN, lengths of the shorter side; 0 leaves images as they are.
    min_sizes: tuple[int, ...]
    sampling: str  # MIN_SIZE_TRAIN_SAMPLING: "choice" of them, or from the "range" between two
    max_size: int  # MAX_SIZE_TRAIN, the longest that the longer side gets
    crop_type: str | None = None  # CROP.TYPE; None without crops
    crop_size: tuple[float, float] = (1.0, 1.0)  # CROP.SIZE

    def shorter_sides(self) -> np.ndarray:
        """Returns the lengths that are drawn, all equally likely."""
        if self.sampling == "choice":
            return np.array(self.min_sizes)
        lengths = np.arange(self.min_sizes[0], self.min_sizes[-1] + 1)
        if self.crop_type is None or len(lengths) <= POINTS:
            return lengths
        return lengths[((np.arange(POINTS) + 0.5) / POINTS * len(lengths)).astype(int)]


@dataclass(frozen=True)
class Annotated:
    """The training images of a data set."""

    heights: np.ndarray  # (n,) of the images, pixels
    widths: np.ndarray  # (n,) likewise
    owners: np.ndarray  # (m,) the image of each instance, counted from 0; crowds are no instances
    boxes: np.ndarray  # (m, 4) left, top, right, bottom, pixels


def expected_pixels(data: Annotated, rule: InputRule) -> float:
    """Returns the mean over images of the expected pixels after augmentation, without padding."""
    sizes, images = np.unique(np.stack([data.heights, data.widths], 1), axis=0, return_counts=True)
    height, width = sizes.T
    areas = [
        resized_area(h, w, side, rule.max_size)
        for h in _cropped(height, 0, rule)
        for w in _cropped(width, 1, rule)
        for side in rule.shorter_sides()
    ]
    return float(np.mean([np.average(area, weights=images) for area in areas]))


def expected_instances(data: Annotated, rule: InputRule) -> float:
    """Returns the mean over images of the expected number of instances after augmentation.

    An instance counts if its box has an area within the image and, with crops, within the crop.
    (With masks Detectron2 asks for a part of the mask within the crop, which are a few less.)
    """
    height, width = data.heights[data.owners], data.widths[data.owners]
    left, top, right, bottom = data.boxes.T
    # The crop's two sides and places are drawn independently.
    across = _visible(left, right, width, _cropped(width, 1, rule))
    down = _visible(top, bottom, height, _cropped(height, 0, rule))
    return float((across * down).sum() / len(data.heights))


def resized_area(height: np.ndarray, width: np.ndarray, shorter: int, longest: int) -> np.ndarray:
    """Returns the areas (n,) after ``ResizeShortestEdge.get_output_shape``, rounded as there."""
    if shorter == 0:
        return height * width
    scale = shorter / np.minimum(height, width)
    tall = np.where(height < width, float(shorter), scale * height)
    wide = np.where(height < width, scale * width, float(shorter))
    longer = np.maximum(tall, wide)
    shrink = np.where(longer > longest, longest / longer, 1.0)
    return np.floor(tall * shrink + 0.5) * np.floor(wide * shrink + 0.5)


def _cropped(lengths: np.ndarray, axis: int, rule: InputRule) -> list[np.ndarray]:
    """Returns equally likely lengths (n,) of the crop along an axis, 0 for the height."""
    kind, sizes = rule.crop_type, rule.crop_size
    parts = (np.arange(POINTS) + 0.5) / POINTS
    if kind is None:
        return [lengths]
    if kind == "absolute":
        return [np.minimum(lengths, sizes[axis])]
    if kind == "absolute_range":
        low, high = (np.minimum(lengths, size) for size in sizes)
        return [low + np.floor(part * (high - low + 1)) for part in parts]
    fractions = sizes[axis] + parts * (1 - sizes[axis])
    if kind == "relative":
        fractions = np.array(sizes[axis : axis + 1])
    return [np.floor(lengths * fraction + 0.5) for fraction in fractions]


def _visible(
    start: np.ndarray, end: np.ndarray, length: np.ndarray, crops: list[np.ndarray]
) -> np.ndarray:
    """Returns the probability (m,) that some of start..end lies within the crop.

    A crop begins at any whole pixel from which it fits into the image.
    """
    extent = np.minimum(end, length) - np.maximum(start, 0)
    chances = []
    for crop in crops:
        first = np.maximum(np.floor(start - crop) + 1, 0)
        last = np.minimum(np.ceil(end) - 1, length - crop)
        chances.append(np.clip(last - first + 1, 0, None) / (length - crop + 1))
    return np.where(extent > 0, np.mean(chances, axis=0), 0.0)
