"""Times `svp check-data --no-images` against pycocotools reading the same annotation file.

The file is that of ``subset.py``: synthetic, of train2017's size. The peer only loads it,
``COCO(file)``, and checks nothing. Each runs in a process of its own, in turn; the ratio is of CPU
time, all on one thread: other work on the machine changes it little.

    python benchmarks/check_data.py               # train2017's size; about 500 MB in --folder
    python benchmarks/check_data.py --scale 0.05
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subset import write_annotations

TARGET = 1.0
WAYS = ("pycocotools", "check-data")


def read(way: str, file: Path) -> dict[str, Any]:
    """Reads the file one way; returns CPU and wall seconds and what was read."""
    from pycocotools.coco import COCO

    from scratch_vs_pretrain.data.check import DataSet, check

    with contextlib.redirect_stdout(None):
        start, wall = time.process_time(), time.perf_counter()
        if way == "pycocotools":
            coco = COCO(str(file))
            read = {"images": len(coco.imgs)}
        else:
            report = check([DataSet("synthetic", file, file.parent)], images=False)
            found = {kind: len(where) for (_, kind), where in report.found.items()}
            read = {"images": report.images["synthetic"], "found": found}
        seconds = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    return seconds | read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the file")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of each way counts")
    parser.add_argument("--folder", type=Path, help="for the file, kept; default: a temporary one")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(read(options.way, options.file)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        file = (options.folder or Path(temporary)) / f"synthetic_{options.scale}.json"
        if not file.exists():
            write_annotations(file, options.scale)
        return report(file, options.repeats)


def report(file: Path, repeats: int) -> int:
    """Prints times and ratio; returns 1 where the target is missed or the images differ."""
    print(f"{file.stat().st_size / 1e6:.0f} MB, Python {platform.python_version()}, ", end="")
    print(f"pycocotools {version('pycocotools')}, {platform.machine()}, {os.cpu_count()} cores")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--file", str(file)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    best = {way: min(runs, key=lambda run: run["seconds"]) for way, runs in found.items()}
    for way, run in best.items():
        print(f"{way:12} {run['seconds']:6.2f} s (wall {run['wall']:.2f})")
    ratio = best["check-data"]["seconds"] / best["pycocotools"]["seconds"]
    print(f"ratio {ratio:.3f}; at most {TARGET}; found {best['check-data']['found']}")
    same = best["check-data"]["images"] == best["pycocotools"]["images"]
    print("both read the same images" if same else "THE IMAGES DIFFER")
    return int(ratio > TARGET or not same)


if __name__ == "__main__":
    sys.exit(main())
