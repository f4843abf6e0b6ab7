"""The paper's 91 published numbers, as the run folders that would have scored them, are judged."""

from __future__ import annotations

import csv
import importlib.resources
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.conclusions import (
    CONTRADICTED,
    IN_PART,
    NOT_ENOUGH,
    SUPPORTED,
    conclude,
)
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import RunInfo

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


def write_published(root: Path, numbers: Iterable[dict[str, str]] | None = None) -> int:
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
        "format": 2,
        "study": study, "arm": arm, "schedule": schedule, "seed": 0, "state": "finished",
        "iterations": iterations, "iteration": iterations,
        "steps": [iterations - iterations // 3, iterations - iterations // 9],
        "init": {"name": "scratch" if arm == "scratch" else "checkpoint"},
        "arm_order": ["scratch", "pretrained"], "noise": NOISE, "converged": CONVERGED,
        "data": {"train": train, "test": {"names": [row["eval_set"]], "sha256": "b"}},
    }  # fmt: skip
    info = RunInfo.from_json(json.dumps(content).encode(), folder.run_file)
    folder.run_file.write_text(info.to_json())
    tasks: dict[str, dict[str, float]] = {}
    for number in scores:
        task, metric = number["metric"].split("/")
        tasks.setdefault(task, {})[metric] = float(number["value"])
    evaluation = {
        "format": 1, "iteration": iterations, "dataset": row["eval_set"], "tasks": tasks
    }  # fmt: skip
    folder.evaluation_file(iterations).write_text(json.dumps(evaluation))


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper")
    assert write_published(root) == 91
    return conclude(load_runs(root))


def by_study(conclusion):
    return {f.study: f.verdict for f in conclusion.findings}


def test_the_papers_numbers_give_the_papers_conclusions(paper):
    readings = [conclusion.reading.split("; ")[:2] for conclusion in paper]
    assert readings[0] == [
        "supported in 11 of 12 settings", "not for less_data-R50-1k (1,000 images)"
    ]  # fmt: skip
    assert readings[1][0] == "supported in 2 of 2 settings"
    assert readings[2] == [
        "supported in 8 of 11 settings",
        "not for less_data-R50-1k (1,000 images), less_data-R50-3.5k (3,500 images), "
        "voc-R101 (10,728 images, 2.3 instances an image)",
    ]
    # Its early evaluations are figures, of which no number was published.
    assert paper[3].reading.startswith("no setting decides")
    assert readings[4][0] == "supported in 9 of 9 settings"
    assert readings[5][0] == "supported in 1 of 1 setting"
    assert {c.verdict for c in paper} == {IN_PART, SUPPORTED, NOT_ENOUGH}


def test_what_the_paper_concludes_of_each_setting(paper):
    third, fifth = by_study(paper[2]), by_study(paper[4])
    for name in ("baseline-R50", "baseline-R101", "keypoints-R50", "less_data-R50-10k"):
        assert third[name] == SUPPORTED
    for name in ("less_data-R50-3.5k", "less_data-R50-1k", "voc-R101"):
        assert (third[name], fifth[name]) == (CONTRADICTED, SUPPORTED)
    assert third["vgg-VGG16"] == NOT_ENOUGH  # 35.2 against 35.6: within the noise of the margin.


def test_what_is_assumed_is_said_everywhere(paper):
    for conclusion in paper:
        decided = [f for f in conclusion.findings if f.verdict != NOT_ENOUGH]
        assert all("assuming" in finding.evidence for finding in decided)
        assert bool(decided) == conclusion.assuming.startswith("a noise of 0.2 AP")
