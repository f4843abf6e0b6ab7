"""The paper's 91 published numbers, written as the run folders that would have scored them."""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.run_folder import RunFolder

FULL = {"images": 117_266, "annotations": 849_949}
TRAIN_SETS = {
    "coco_2017_train": FULL,
    # Persons, with keypoints or without.
    "keypoints_coco_2017_train": {"images": 56_599, "annotations": 4 * 56_599},
    "coco_35k": {"images": 35_000, "annotations": 7 * 35_000},
    "coco_10k": {"images": 10_000, "annotations": 7 * 10_000},
    "coco_3.5k": {"images": 3_500, "annotations": 7 * 3_500},
    "coco_1k": {"images": 1_000, "annotations": 7 * 1_000},
    "voc_2007_trainval+voc_2012_train": {"images": 10_728, "annotations": 24_674},
}
NOISE = {"sd": 0.2, "because": "two runs of one config on COCO usually differ by less"}
CONVERGED = "the authors searched for the length"
# Not published, so those of this project's studies.
LENGTHS = {"scratch": 220_000, "pretrained": 60_000}


def rows() -> list[dict[str, str]]:
    """Returns the published numbers."""
    package = importlib.resources.files("scratch_vs_pretrain.analysis.tables")
    return list(csv.DictReader((package / "paper_results.csv").read_text().splitlines()))


def write(root: Path, numbers: Iterable[dict[str, str]] | None = None) -> int:
    """Writes every number into the evaluation of its run; returns how many there were."""
    runs: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    written = 0
    for row in rows() if numbers is None else numbers:
        written += 1
        runs.setdefault((_study(row), row["init"], _iterations(row)), []).append(row)
    for (study, arm, iterations), scores in runs.items():
        _write_run(root, study, arm, iterations, scores)
    return written


def _study(row: dict[str, str]) -> str:
    if row["experiment"] in ("baseline", "metrics"):
        return f"baseline-{row['backbone']}"
    size = row["train_set"].partition("coco_")[2] if row["experiment"] == "less_data" else ""
    kind = "-cascade" if "cascade" in row["note"] else ""
    kind += "-test-aug" if "test aug" in row["note"] else ""
    kind += "-challenge" if row["eval_set"] == "coco_test_challenge" else ""
    kind += "-tuned-on-scratch" if "on the scratch arm" in row["note"] else ""
    return "-".join(part for part in (row["experiment"], row["backbone"], size) if part) + kind


def _iterations(row: dict[str, str]) -> int:
    if row["iterations"]:
        return int(row["iterations"])
    times = {"best": 6}.get(row["schedule"]) or int(row["schedule"].rstrip("x") or 0)
    return 90_000 * times or LENGTHS[row["init"]]


def _write_run(
    root: Path, study: str, arm: str, iterations: int, scores: list[dict[str, str]]
) -> None:
    row = scores[0]
    schedule = f"{iterations // 90_000}x" if iterations % 90_000 == 0 else f"{iterations}it"
    folder = RunFolder(root / study / arm / schedule / "seed0")
    folder.evaluations.mkdir(parents=True)
    train = {"names": [row["train_set"]], "sha256": "a", **TRAIN_SETS[row["train_set"]]}
    content: dict[str, Any] = {
        "study": study, "arm": arm, "schedule": schedule, "seed": 0, "state": "finished",
        "iterations": iterations, "iteration": iterations,
        "steps": [iterations - iterations // 3, iterations - iterations // 9],
        "init": {"name": "scratch" if arm == "scratch" else "checkpoint"},
        "arm_order": ["scratch", "pretrained"], "noise": NOISE, "converged": CONVERGED,
        "data": {"train": train, "test": {"names": [row["eval_set"]], "sha256": "b"}},
    }  # fmt: skip
    folder.update(**content)
    tasks: dict[str, dict[str, float]] = {}
    for number in scores:
        task, metric = number["metric"].split("/")
        tasks.setdefault(task, {})[metric] = float(number["value"])
    evaluation = {
        "format": 1, "iteration": iterations, "dataset": row["eval_set"], "tasks": tasks
    }  # fmt: skip
    folder.evaluation_file(iterations).write_text(json.dumps(evaluation))
