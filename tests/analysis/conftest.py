"""Writes run folders as training leaves them, with chosen numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

THRESHOLDS = [f"{0.5 + 0.05 * k:.2f}" for k in range(10)]


def task_scores(ap: float | None) -> dict[str, Any]:
    """Numbers of one task; each metric differs from the others by a known offset."""

    def at(offset: float) -> float | None:
        return None if ap is None else ap + offset

    return {
        "AP": at(0), "AP50": at(20), "AP75": at(-2), "APs": at(-10), "APm": at(1), "APl": at(9),
        "AR1": at(-5), "AR10": at(5), "AR100": at(6), "ARs": at(-9), "ARm": at(6), "ARl": at(11),
        "per_iou": {t: at(20 - 4 * k) for k, t in enumerate(THRESHOLDS)},
        "per_class": {"disc": at(3), "star": at(-3)},
    }  # fmt: skip


class Folders:
    """Writes run folders below `root`."""

    def __init__(self, root: Path):
        self.root = root

    def run(
        self,
        arm: str = "scratch",
        seed: int = 0,
        *,
        curve: dict[int, float | None] | None = None,
        iterations: int = 600,
        schedule: str | None = None,
        study: str = "demo",
        output: str = "output",
        losses: bool = True,
        **changes: Any,
    ) -> Path:
        """Writes one run whose box AP after k iterations is curve[k], mask AP 1 less."""
        schedule = schedule or f"{iterations}it"
        folder = self.root / output / study / arm / schedule / f"seed{seed}"
        (folder / "evaluations").mkdir(parents=True)
        drops = [iterations * 2 // 3, iterations * 8 // 9]
        curve = {iterations: 30.0} if curve is None else curve
        content = {
            "format": 1, "study": study, "arm": arm, "schedule": schedule, "seed": seed,
            "state": "finished", "reason": None, "iterations": iterations,
            "iteration": iterations, "steps": drops, "images_per_batch": 8,
            "init": {"name": arm, "weights": None if arm == "scratch" else "w.pth"},
            "arm_order": ["scratch", "pretrained"], "allowed_differences": {},
            "data": {
                "train": {"names": ["train"], "images": 2000, "sha256": "a"},
                "test": {"names": ["val"], "images": 300, "sha256": "b"},
            },
        }  # fmt: skip
        content.update(changes)
        (folder / "run.json").write_text(json.dumps(content))
        for iteration, ap in curve.items():
            self.evaluation(folder, iteration, ap)
        if losses:
            done = content["iteration"]
            self.metrics(folder, range(19, done, 20), drops=drops)
        return folder

    def evaluation(self, folder: Path, iteration: int, ap: float | None, **changes: Any) -> Path:
        """Writes one evaluation."""
        content = {
            "format": 1, "iteration": iteration, "dataset": "val", "images": 300, "seconds": 1.5,
            "tasks": {
                "bbox": task_scores(ap), "segm": task_scores(None if ap is None else ap - 1)
            },
        }  # fmt: skip
        content.update(changes)
        file = folder / "evaluations" / f"{iteration:07d}.json"
        file.write_text(json.dumps(content))
        return file

    def metrics(self, folder: Path, iterations: Any, drops: Any = (), **scores: float) -> Path:
        """Appends training rows at 0-based `iterations`."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "metrics.json"
        with file.open("a") as lines:
            for i in iterations:
                rate = 0.02 * 0.1 ** sum(i >= drop for drop in drops)
                row = {"iteration": i, "lr": rate, "total_loss": 3 / (1 + i / 100), "time": 0.5}
                lines.write(json.dumps({**row, **scores}, sort_keys=True) + "\n")
        return file

    def detections(self, folder: Path, found: Any = (), iteration: int = 600) -> Path:
        """Writes what a run found in a grey picture with a disc and a star."""
        picture = self.root / "picture.png"
        Image.new("RGB", (64, 48), "gray").save(picture)
        objects = [
            {"category": "disc", "box": [8, 8, 16, 16]},
            {"category": "star", "box": [40, 8, 16, 16]},
        ]
        sizes = {"file": str(picture), "width": 64, "height": 48}
        pictures = [{**sizes, "objects": objects, "detections": list(found)}]
        content = {"format": 1, "iteration": iteration, "dataset": "val", "pictures": pictures}
        file = folder / "detections.json"
        file.write_text(json.dumps(content))
        return file


@pytest.fixture(scope="session")
def folders_in() -> type[Folders]:
    """For fixtures that are made once for a module."""
    return Folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def three_pairs(folders: Folders) -> Folders:
    """Two arms, three seeds, 600 iterations."""
    for seed in range(3):
        folders.run("scratch", seed, curve={100: 5.0 + seed, 300: 15.0, 600: 30.0})
        folders.run("pretrained", seed, curve={100: 12.0, 300: 22.0, 600: 31.0 + seed})
    return folders
