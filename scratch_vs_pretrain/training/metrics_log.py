"""metrics.json across a resume: each iteration once, and the same smoothed values.

Detectron2's JSONWriter appends, so a resume would repeat iterations, and it writes the median of
the last 20 values, so a resume would start from an empty window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage

from scratch_vs_pretrain.run_folder import write_atomically

# JSONWriter's window_size.
WINDOW = 20


def recent(storage: EventStorage) -> dict[str, list[list[float]]]:
    """Returns the last values of each metric as [value, iteration] pairs, for a checkpoint."""
    return {
        name: [[float(value), float(iteration)] for value, iteration in history.values()[-WINDOW:]]
        for name, history in storage.histories().items()
    }


def restore(storage: EventStorage, values: dict[str, list[list[float]]]) -> None:
    """Puts the values of :func:`recent` into a fresh storage."""
    for name, pairs in values.items():
        for value, iteration in pairs:
            storage.histories()[name].update(value, iteration)


def truncate(path: Path, completed: int) -> None:
    """Drops the lines of metrics.json that a run resumed after `completed` iterations repeats."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _iteration(line) < completed]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def append(path: Path, iteration: int, metrics: Mapping[str, float]) -> None:
    """Adds a row of its own, as JSONWriter writes it; `iteration` is 0-based."""
    if metrics:
        with path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **metrics}, sort_keys=True) + "\n")


def scored(path: Path) -> set[int]:
    """Returns the completed iterations for which metrics.json has an AP."""
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["iteration"] + 1 for row in rows if any(key.endswith("/AP") for key in row)}


def _iteration(line: str) -> float:
    """Returns a line's 0-based iteration; a line cut short by a kill counts as infinitely late."""
    try:
        content: Any = json.loads(line)
    except json.JSONDecodeError:
        return float("inf")
    return content["iteration"]
