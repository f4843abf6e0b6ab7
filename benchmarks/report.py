"""Time, memory and size of ``svp report`` over 50 runs of the paper's size.

Five schedules (2x to 6x), two arms, five seeds: a line of metrics every 20 iterations with the
keys of Mask R-CNN, an evaluation every 20,000 with 80 categories.

    python benchmarks/report.py [--seeds 5] [--lines-per-1x 4500] [--folder DIR]
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import tempfile
import time
from pathlib import Path

from collect import KEYS

from scratch_vs_pretrain.analysis.report import report

SCHEDULES = (2, 3, 4, 5, 6)
CATEGORIES = 80


def write_run(root: Path, arm: str, multiple: int, seed: int, lines_per_1x: int) -> None:
    """Writes one run; its loss falls, its AP rises, other numbers are random."""
    draw = random.Random(f"{arm} {multiple} {seed}")
    folder = root / "study" / arm / f"{multiple}x" / f"seed{seed}"
    (folder / "evaluations").mkdir(parents=True)
    lines = multiple * lines_per_1x
    iterations = 20 * lines
    steps = [iterations - 40 * lines_per_1x // 3, iterations - 40 * lines_per_1x // 9]
    weights = None if arm == "scratch" else "R-50-GN.pkl"
    content = {
        "format": 1, "study": "study", "arm": arm, "schedule": f"{multiple}x", "seed": seed,
        "state": "finished", "iterations": iterations, "iteration": iterations, "steps": steps,
        "images_per_batch": 16, "init": {"name": arm, "weights": weights},
        "arm_order": ["scratch", "pretrained"], "seconds": 0.5 * iterations,
        "data": {
            "train": {"names": ["coco_2017_train"], "images": 117266, "annotations": 849949},
            "test": {"names": ["coco_2017_val"], "images": 5000},
        },
        "provenance": {"device": "cuda", "host": f"node{seed}", "versions": {"torch": "2.11.0"}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(f"MODEL: {{WEIGHTS: '{weights or ''}'}}\n")
    with (folder / "metrics.json").open("w") as file:
        for line in range(lines):
            row = {key: draw.random() for key in KEYS} | {"iteration": 20 * line + 19}
            row |= {"total_loss": 0.6 + 2 / (1 + line / 200) + 0.1 * draw.random()}
            row["lr"] = 0.02 * 0.1 ** sum(20 * line >= step for step in steps)
            row |= {"samples/images": 320 * (line + 1), "samples/pixels": 3e8 * (line + 1)}
            file.write(json.dumps(row, sort_keys=True) + "\n")
    period = max(1, round(20_000 * lines_per_1x / 4500))
    for done in [*range(period, iterations, period), iterations]:
        write_evaluation(folder, done, iterations, arm, draw)


def write_evaluation(folder: Path, done: int, whole: int, arm: str, draw: random.Random) -> None:
    ap = 38 * (done / whole) ** (0.5 if arm == "scratch" else 0.3) + draw.random()
    task = {
        "AP": ap, "AP50": ap + 20, "AP75": ap + 3, "APs": ap - 15, "APm": ap + 3, "APl": ap + 12,
        "per_iou": {f"{0.5 + 0.05 * k:.2f}": ap + 20 - 5 * k for k in range(10)},
        "per_class": {f"category {k}": ap + draw.random() for k in range(CATEGORIES)},
    }  # fmt: skip
    content = {
        "format": 1, "iteration": done, "dataset": "coco_2017_val", "images": 5000,
        "tasks": {"bbox": task, "segm": task},
    }  # fmt: skip
    (folder / f"evaluations/{done:07d}.json").write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lines-per-1x", type=int, default=4500)
    parser.add_argument("--folder", type=Path, help="where the runs are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        for arm in ("scratch", "pretrained"):
            for multiple in SCHEDULES:
                for seed in range(options.seeds):
                    write_run(root, arm, multiple, seed, options.lines_per_1x)
        size = sum(file.stat().st_size for file in root.rglob("*.json"))
        start, cpu = time.perf_counter(), time.process_time()
        report(root / "study", root / "report.html")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        html = (root / "report.html").read_bytes()
        figures = [len(figure) for figure in re.findall(rb"<svg.*?</svg>", html, re.DOTALL)]
    print(f"{10 * options.seeds} runs, {size / 2**20:.0f} MiB of JSON")
    print(f"{seconds:.1f} s ({cpu:.1f} s of the processor)")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
    print(f"report {len(html) / 2**20:.2f} MiB ({len(gzip.compress(html)) / 2**20:.2f} gzipped)")
    print(f"figures {', '.join(f'{size / 2**10:.0f}' for size in figures)} KiB")


if __name__ == "__main__":
    main()
