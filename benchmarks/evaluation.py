"""Times COCO scoring of boxes and masks against pycocotools, in one process, and compares them.

The images are synthetic, with COCO's proportions: about seven objects an image of log-uniform
size, drawn as polygons with some crowds as RLE; 30 to 100 detections an image, most of them near
an object. Both sides get the same parsed JSON and start from it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import trange

from scratch_vs_pretrain.evaluation.scores import NUMBERS, score

WIDTH, HEIGHT, CATEGORIES = 640, 480, 80
TARGET_RATIO, TOLERANCE = 4, 1e-9


def make_case(images: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns ground truth and results in COCO's formats."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in trange(1, images + 1, desc="drawing", unit="image", mininterval=5):
        objects = [
            (int(random.integers(1, CATEGORIES + 1)), outline(random))
            for _ in range(random.poisson(7))
        ]
        for category, corners in objects:
            annotations.append(
                annotation(len(annotations) + 1, image_id, category, corners, random)
            )
        for _ in range(random.integers(30, 101)):
            near = objects and random.random() < 0.7
            category, corners = objects[random.integers(len(objects))] if near else (0, None)
            if corners is None:
                corners = outline(random)
            extent = np.ptp(corners, axis=0)
            corners = corners + random.normal(0, random.choice([0.02, 0.1, 0.3]), 2) * extent
            if not category or random.random() < 0.2:
                category = int(random.integers(1, CATEGORIES + 1))
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "score": round(float(random.random()), 4),  # with ties
                    "bbox": box_of(corners),
                    "segmentation": encode(corners),
                }
            )
    ground_truth = {
        "images": [
            {"id": number, "width": WIDTH, "height": HEIGHT} for number in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CATEGORIES + 1)],
    }
    return ground_truth, results


def outline(random: np.random.Generator) -> np.ndarray:
    """Returns the corners of a star-shaped polygon inside the image, (n, 2) in pixels."""
    size = np.exp(random.uniform(np.log(8), np.log(300), 2))
    corner = random.uniform(0, (WIDTH, HEIGHT) - size)
    angles = np.linspace(0, 2 * np.pi, int(random.integers(12, 60)), endpoint=False)
    radii = random.uniform(0.6, 1, len(angles))[:, None]
    unit = 0.5 + 0.5 * radii * np.column_stack([np.cos(angles), np.sin(angles)])
    return np.round(corner + size * unit, 2)


def annotation(
    number: int, image_id: int, category: int, corners: np.ndarray, random: np.random.Generator
) -> dict[str, Any]:
    rle = encode(corners)
    crowd = random.random() < 0.02
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": box_of(corners),
        "area": int(mask_api.area(rle)),
        "iscrowd": int(crowd),
        "segmentation": rle if crowd else [corners.ravel().tolist()],
    }


def box_of(corners: np.ndarray) -> list[float]:
    return [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()]


def encode(corners: np.ndarray) -> dict[str, Any]:
    [rle] = mask_api.frPyObjects([corners.ravel().tolist()], HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def score_with_pycocotools(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], task: str
) -> tuple[np.ndarray, float]:
    """Returns COCO's 12 numbers, 0 to 1 or -1, and the seconds it took."""
    # It writes into what it is given; the copies are not timed.
    ground_truth, results = copy.deepcopy(ground_truth), copy.deepcopy(results)
    if task == "segm":
        for result in results:
            del result["bbox"]
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, time.process_time() - start


def score_with_ours(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], task: str
) -> tuple[np.ndarray, float]:
    """Returns the same as :func:`score_with_pycocotools`."""
    start = time.process_time()
    numbers = score(ground_truth, results, task)
    seconds = time.process_time() - start
    values = [numbers[name] for name in NUMBERS[task]]
    return np.array([-1 if value is None else value / 100 for value in values]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  uv run python benchmarks/evaluation.py --images 500",
    )
    parser.add_argument("--images", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error("--images must be at least 1")

    ground_truth, results = make_case(arguments.images, arguments.seed)
    case = {
        "images": arguments.images,
        "annotations": len(ground_truth["annotations"]),
        "detections": len(results),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, faster-coco-eval {version('faster-coco-eval')}, "
        f"pycocotools {version('pycocotools')}",
    }
    print("\n".join(f"{key}: {value}" for key, value in case.items()))
    print(f"{'':8}{'ours':>10}{'pycocotools':>14}{'ratio':>8}  largest difference")
    seconds = np.zeros(2)
    difference = 0.0
    for task in ("bbox", "segm"):
        ours, ours_seconds = score_with_ours(ground_truth, results, task)
        theirs, their_seconds = score_with_pycocotools(ground_truth, results, task)
        report(task, ours_seconds, their_seconds, float(np.abs(ours - theirs).max()))
        seconds += ours_seconds, their_seconds
        difference = max(difference, float(np.abs(ours - theirs).max()))
    report("both", *seconds, difference)
    ratio = seconds[1] / seconds[0]
    print(f"at least {TARGET_RATIO}x faster: {'yes' if ratio >= TARGET_RATIO else 'NO'}")
    print(f"equal to {TOLERANCE}: {'yes' if difference <= TOLERANCE else 'NO'}")
    if arguments.json:
        figures = {"ours": seconds[0], "pycocotools": seconds[1], "ratio": ratio}
        with open(arguments.json, "w") as file:
            json.dump({**case, **figures, "difference": difference}, file, indent=1)


def report(task: str, ours: float, theirs: float, difference: float) -> None:
    print(f"{task:8}{ours:9.2f}s{theirs:13.2f}s{theirs / ours:7.1f}x  {difference:.1e}")


if __name__ == "__main__":
    main()
