"""Speed and memory of reading many runs, against reading every line with ``json.loads``.

Writes run folders like those of 3x schedules (13,500 lines each, the keys of Mask R-CNN), then, in
a process of its own for each and on one core:

- baseline: ``json.loads`` line by line, a DataFrame per run, all runs in one;
- baseline to CSV: the same, and each DataFrame (one row per line, a column per key) as a CSV file;
- frame: `analysis.runs.frame.tidy`; with its peak memory;
- command: `svp collect -o runs.csv` (one row per number), again with nothing new, and again with
  new lines in one run; `svp collect -o runs.parquet`, likewise.

    python benchmarks/collect.py [--runs 300] [--lines 13500] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOSSES = ("loss_box_reg", "loss_cls", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "total_loss")
KEYS = (
    *LOSSES, "data_time", "eta_seconds", "fast_rcnn/cls_accuracy", "fast_rcnn/false_negative",
    "fast_rcnn/fg_cls_accuracy", "lr", "mask_rcnn/accuracy", "mask_rcnn/false_negative",
    "mask_rcnn/false_positive", "roi_head/num_bg_samples", "roi_head/num_fg_samples",
    "rpn/num_neg_anchors", "rpn/num_pos_anchors", "samples/images", "time",
)  # fmt: skip

DISTINCT = 10

BASELINE = """
import json, pandas as pd
from pathlib import Path
frames = []
for file in sorted(Path(root).rglob("metrics.json")):
    with file.open() as lines:
        frames.append(pd.DataFrame([json.loads(line) for line in lines]))
frame = pd.concat(frames)
"""
BASELINE_CSV = BASELINE.replace(
    "frame = pd.concat(frames)",
    """
frame = None
with (Path(root) / "baseline.csv").open("w") as out:
    for part in frames:
        part.to_csv(out, index=False)
""",
)
COLLECT = """
from pathlib import Path
from scratch_vs_pretrain.analysis.runs.frame import tidy
from scratch_vs_pretrain.analysis.runs import load_runs
frame = tidy(load_runs(Path(root), plain=True))
"""
COMMAND = """
from pathlib import Path
from scratch_vs_pretrain.analysis.runs.frame import collect_into
frame = None
print(collect_into(Path(root) / "study", Path(root) / "runs.csv"), file=sys.stderr)
"""
PARQUET = COMMAND.replace("runs.csv", "runs.parquet")
MEASURE = """
import sys, time, resource
root = sys.argv[1]
import numpy, pandas, scratch_vs_pretrain.analysis.runs.frame
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, cpu = time.perf_counter(), time.process_time()
{code}
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) * 1024
size = 0 if frame is None else int(frame.memory_usage(deep=False).sum())
print(seconds, cpu, peak, size)
"""


def write_runs(root: Path, runs: int, lines: int) -> None:
    """Writes `runs` run folders; the numbers of the first ten are random, the others copy them."""
    values = random.Random(0)
    for run in range(runs):
        folder = root / "study" / f"arm{run % 2}" / "3x" / f"seed{run // 2}"
        folder.mkdir(parents=True)
        content = {
            "format": 1, "study": "study", "arm": f"arm{run % 2}", "schedule": "3x",
            "seed": run // 2, "state": "finished", "iterations": 20 * lines,
            "iteration": 20 * lines, "images_per_batch": 16, "data": {"train": {"images": 117266}},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(content))
        if run < DISTINCT:
            append_rows(folder, 0, lines, values)
        else:
            one = run % DISTINCT
            source = root / "study" / f"arm{one % 2}" / "3x" / f"seed{one // 2}"
            shutil.copyfile(source / "metrics.json", folder / "metrics.json")


def append_rows(folder: Path, first: int, last: int, values: random.Random) -> None:
    with (folder / "metrics.json").open("a") as file:
        for line in range(first, last):
            row = {key: values.random() for key in KEYS} | {"iteration": 20 * line + 19}
            file.write(json.dumps(row, sort_keys=True) + "\n")


def measure(code: str, root: Path) -> tuple[float, float, float, float]:
    """Returns seconds, processor seconds, peak memory beyond idle and the frame's size in bytes."""
    script = MEASURE.format(code=code)
    run = subprocess.run(
        [sys.executable, "-c", script, str(root)], check=True, capture_output=True, text=True
    )
    seconds, cpu, peak, size = map(float, run.stdout.split())
    return seconds, cpu, peak, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--lines", type=int, default=13_500)
    parser.add_argument("--folder", type=Path, help="where the runs are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        write_runs(root, options.runs, options.lines)
        print(f"{options.runs} runs of {options.lines} lines with {len(KEYS) + 1} keys")
        print(f"{'':<24}{'wall s':>9}{'cpu s':>9}{'ratio':>9}{'peak MB':>9}{'of frame':>9}")
        whole = measure(BASELINE, root)
        show("baseline", whole, whole)
        first = measure(COLLECT, root)
        show("frame", first, whole)
        command = measure(COMMAND, root)
        show("command, first", command, whole)
        show("command, nothing new", measure(COMMAND, root), command)
        changed = root / "study/arm0/3x/seed0"
        append_rows(changed, options.lines, options.lines + 20, random.Random(1))
        show("command, one run grew", measure(COMMAND, root), command)
        (root / "runs.csv").unlink()
        parquet = measure(PARQUET, root)
        show("command, Parquet", parquet, whole)
        show("Parquet, nothing new", measure(PARQUET, root), parquet)
        append_rows(changed, options.lines + 20, options.lines + 40, random.Random(2))
        show("Parquet, one run grew", measure(PARQUET, root), parquet)
        show("baseline to CSV", measure(BASELINE_CSV, root), whole)
        (root / "baseline.csv").unlink()
        print(
            "ratio: of processor time; to the baseline; of what finds nothing new or new lines, "
            "to the first time"
        )


def show(name: str, measured: tuple[float, ...], against: tuple[float, ...]) -> None:
    seconds, cpu, peak, size = measured
    share = f"{peak / size:.2f}" if size else ""
    ratio = cpu / against[1]
    print(
        f"{name:<24}{seconds:>9.2f}{cpu:>9.2f}{ratio:>9.3f}{peak / 2**20:>9.0f}{share:>9}",
        flush=True,
    )


if __name__ == "__main__":
    main()
