#!/usr/bin/env python
"""Copies finished runs to a folder small enough to be kept in git.

    uv run python scripts/record_runs.py output/miniature notebooks/data/miniature

A copy is run.json, evaluations/ and metrics.json without what no table or figure reads: single
losses, times of an iteration, diagnostics, the samples seen between evaluations, AP that stands in
evaluations/. AP keeps six decimals, losses and rates five digits. Checkpoints, configs and logs
stay behind, and so do the host's name and the folder of the initial weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.run_folder import RunFolder, find_run_folders, write_atomically

KEPT = ("iteration", "total_loss", "lr")
DIGITS, DECIMALS = 5, 6


def record(runs: Path, destination: Path) -> list[Path]:
    """Copies finished runs below `runs` that `destination` has not, and returns the copies."""
    copied = []
    for folder in find_run_folders(runs):
        copy = RunFolder(destination / folder.path.relative_to(runs))
        if folder.state() != "finished" or copy.run_file.exists():
            continue
        run = json.loads(folder.run_file.read_text())
        (run.get("provenance") or {})["host"] = run["host"] = "recorded"
        init = run["init"]
        if init["weights"]:
            init["weights"] = Path(init["weights"]).name
            (init["pretraining"] or {}).pop("config", None)
        copy.evaluations.mkdir(parents=True, exist_ok=True)  # of a call that was killed
        for file in sorted(folder.evaluations.iterdir()):
            numbers = _rounded(json.loads(file.read_text()))
            (copy.evaluations / file.name).write_text(_line(numbers))
        lines = folder.metrics_file.read_text().splitlines()
        copy.metrics_file.write_text("".join(map(_thinned, lines)))
        write_atomically(copy.run_file, _line(run))
        copied.append(copy.path)
    return copied


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, DECIMALS) if isinstance(value, float) else value


def _thinned(line: str) -> str:
    row: dict[str, Any] = json.loads(line)
    evaluated = any("/AP" in key for key in row)
    kept = {
        key: float(f"{value:.{DIGITS}g}") if key in ("total_loss", "lr") else _rounded(value)
        for key, value in row.items()
        if key.startswith(KEPT) or (evaluated and key.startswith("samples/"))
    }
    return _line(kept)


def main() -> None:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Copy finished runs without their bulk.")
    parser.add_argument("runs", type=Path, help="holds run folders")
    parser.add_argument("destination", type=Path, help="what is there already is left as it is")
    options = parser.parse_args()
    if not options.runs.is_dir():
        parser.error(f"{options.runs}: no such folder")
    for path in record(options.runs, options.destination):
        print(path)


if __name__ == "__main__":
    main()
