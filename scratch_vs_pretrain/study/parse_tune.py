"""Reads a study's ``tune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scratch_vs_pretrain.config import nearest
from scratch_vs_pretrain.study.spec import Tune
from scratch_vs_pretrain.study.yaml_fields import (
    Place,
    read_list,
    read_mapping,
    read_text,
    refuse_repeated,
)

TASKS = ("bbox", "segm", "keypoints")
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS = tuple(f"{task}/{number}" for task in TASKS for number in NUMBERS)

# Each point is a training.
MOST_POINTS = 1000


def read_tune(value: Any, place: Place, arms: Sequence[str], taken: Mapping[str, str]) -> Tune:
    """Returns the search that plain YAML content describes.

    Args:
        value: the content.
        place: of it.
        arms: the study's.
        taken: config keys that the study sets elsewhere, and where.

    Raises:
        UserError: whatever is wrong, in one sentence that names file and key.
    """
    fields = read_mapping(value, place, ("on", "grid", "metric"), required=("on", "grid"))
    on = read_text(fields["on"], place / "on")
    if on not in arms:
        raise (place / "on").error(
            f"no arm is named {on}{nearest(on, arms) or '; known are ' + ', '.join(arms)}"
        )
    metric = read_text(fields.get("metric", "bbox/AP"), place / "metric")
    if metric not in METRICS:
        raise (place / "metric").error(f"unknown metric {metric}{nearest(metric, METRICS)}")
    grid_at = place / "grid"
    grid = {}
    for key, values in read_mapping(fields["grid"], grid_at).items():
        at = grid_at / key
        if key in taken:
            raise at.error(f"is set by {taken[key]} already; remove one of them")
        grid[key] = tuple(read_list(values, at, least=1))
        if any(isinstance(item, dict) for item in grid[key]):
            raise at.error("list the values to try, and write dotted keys")
        refuse_repeated(grid[key], at)
    if not grid:
        raise grid_at.error("has nothing to try; for example SOLVER.BASE_LR: [0.02, 0.04]")
    points = math.prod(len(values) for values in grid.values())
    if points > MOST_POINTS:
        raise grid_at.error(f"has {points:,} points, more than {MOST_POINTS:,}; try fewer values")
    return Tune(on, grid, metric)
