"""Overfits a detector to eight pictures from random weights, to prove that it can learn.

    uv run python scripts/overfit.py mask_r18 --output output/overfit

trains configs/studies/overfit/mask_r18.yaml, is right when the AP on the very same pictures ends
above 60, and says so. A second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import read_json, write_json
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.sections import Data, DataFiles
from scratch_vs_pretrain.study.spec import Study, load_study

STUDIES = Path(__file__).parents[1] / "configs" / "studies" / "overfit"
PICTURES = ShapesSpec(train=8, test=0)
LEAST_AP = 60.0
KEYPOINTS = ["centre", "left", "top", "right", "bottom"]


def overfit(family: str, output: Path) -> dict[str, float]:
    """Trains a family's study on eight pictures and returns the final AP, mIoU or PQ of its tasks.

    Raises:
        UserError: the run could not be finished.
    """
    (outcome,) = run_study(study_of(family, output), output)
    if outcome.state != "finished":
        raise UserError(f"{outcome.folder.path}: {outcome.state}: {outcome.reason}")
    last = outcome.folder.evaluation_file(outcome.folder.read()["iterations"])
    tasks = read_json(last)["tasks"]
    return {task: next(iter(numbers.values())) for task, numbers in tasks.items()}


def study_of(family: str, output: Path) -> Study:
    """Returns a family's study on eight pictures, which are made below `output`."""
    make_shapes(output / "pictures", PICTURES, progress=False)
    annotations = (output / "pictures" / "annotations" / "train.json").absolute()
    if "keypoint" in family:
        annotations = with_keypoints(annotations)
    files = DataFiles(annotations, (output / "pictures" / "train").absolute())
    return replace(load_study(STUDIES / f"{family}.yaml"), data=Data((files,), files))


def with_keypoints(annotations: Path) -> Path:
    """Writes the same objects as one class with five keypoints, and returns the file."""
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 1, "name": "shape", "keypoints": KEYPOINTS, "skeleton": []}]
    for one in content["annotations"]:
        points = extreme_points(rle.decode(one["segmentation"]))
        flat = [value for x, y in points for value in (int(x), int(y), 2)]
        one |= {"category_id": 1, "keypoints": flat, "num_keypoints": len(points)}
    file = annotations.with_name("keypoints.json")
    write_json(file, content)
    return file


def extreme_points(mask: np.ndarray) -> list[Any]:
    """Returns an object's mean, leftmost, topmost, rightmost and lowest pixel as (x, y)."""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], 1)
    ends = [points[columns.argmin()], points[rows.argmin()]]
    ends += [points[columns.argmax()], points[rows.argmax()]]
    return [points.mean(0).round(), *ends]


def main() -> int:
    families = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=families)
    parser.add_argument("--output", type=Path, default=Path("output/overfit"), metavar="DIR")
    options = parser.parse_args()
    try:
        found = overfit(options.family, options.output)
    except UserError as error:
        print(f"overfit: {error}", file=sys.stderr)
        return 1
    # A keypoint detector is judged by its keypoints as well.
    wanted = [task for task in found if task != "segm"]
    passed = all(found[task] > LEAST_AP for task in wanted)
    for task, ap in found.items():
        print(f"{options.family}: {task} {ap:.1f}")
    print(f"{options.family}: {'overfits' if passed else 'does NOT overfit'}: AP > {LEAST_AP:.0f}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
