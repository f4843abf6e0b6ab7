"""What a detector finds in the first test pictures, kept for `svp plot --figure detections`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from pycocotools import mask as coco_mask

from scratch_vs_pretrain.data.loading import load_test_records
from scratch_vs_pretrain.evaluation.ground_truth import load_ground_truth
from scratch_vs_pretrain.evaluation.scores import by_image
from scratch_vs_pretrain.pictures import DEEP
from scratch_vs_pretrain.run_folder import RunFolder, write_atomically
from scratch_vs_pretrain.run_info import Detections, Found, Picture

PICTURES = 12
PER_PICTURE = 30
# Outlines are as exact as a printed picture of so many pixels.
OUTLINE_SIZE = 160


def write_detections(
    folder: RunFolder, iteration: int, dataset: str, results: Iterable[Mapping[str, Any]]
) -> None:
    """Writes the objects of the first test pictures of a run, and the best detections in them.

    `results` are COCO results, found after an iteration, with the categories of the data set.
    """
    truth = load_ground_truth(dataset)
    names = {one["id"]: str(one["name"]) for one in truth["categories"]}
    objects = by_image(one for one in truth["annotations"] if not one.get("iscrowd"))
    shown = [one for one in load_test_records(dataset) if one["image_id"] in objects][:PICTURES]
    found = by_image(results)
    pictures = []
    for one in shown:
        size = (one["height"], one["width"])
        best = sorted(found[one["image_id"]], key=lambda result: -result["score"])[:PER_PICTURE]
        pictures.append(
            Picture(
                file=one["file_name"].removeprefix(DEEP),
                height=size[0],
                width=size[1],
                objects=tuple(_found(each, names, size) for each in objects[one["image_id"]]),
                detections=tuple(_found(each, names, size) for each in best),
            )
        )
    content = Detections(iteration=iteration, dataset=dataset, pictures=tuple(pictures))
    write_atomically(folder.detections_file, content.model_dump_json() + "\n")


def _found(one: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int]) -> Found:
    x, y, width, height = (round(float(value), 1) for value in one["bbox"])
    return Found(
        category=names[one["category_id"]],
        score=round(float(one.get("score", 1)), 3),
        box=(x, y, width, height),
        outline=_outline(one.get("segmentation"), size),
    )


def _outline(mask: Any, size: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """Returns the polygons (x, y, x, y, ...) around a mask, given as polygons or encoded."""
    if not mask:
        return ()
    step = math.ceil(max(size) / OUTLINE_SIZE)
    # With a border, so that what leaves the picture is closed.
    inside = np.pad(decoded(mask, *size)[::step, ::step], 1)
    lines: Sequence[Any] = contour_generator(z=inside).lines(0.5)
    return tuple(
        tuple(round(float(value), 1) for value in ((line - 0.5) * step).ravel()) for line in lines
    )


def decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Returns a mask, given as polygons or encoded, as (height, width) bool."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation).astype(bool)
