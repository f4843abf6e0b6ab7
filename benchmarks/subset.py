"""Times a 10k subset's registration and loading against the plain way, each in a fresh process.

The annotation file is synthetic, of train2017's size (118,287 images, 860,001 annotations in 80
classes): log-uniform objects whose outlines have COCO's number of corners, and 1 % crowds as run
lengths. The plain way is Detectron2's ``load_coco_json``, which begins with pycocotools' ``COCO``,
on the whole file, and then a filter by image id. Ours ends with what training loads. Ratios are of
CPU time, all on one thread: other work on the machine changes it little.

    python benchmarks/subset.py               # train2017's size; about 450 MB in --folder
    python benchmarks/subset.py --scale 0.05
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import scratch_vs_pretrain  # noqa: F401  (with it, Detectron2 imports)

IMAGES, ANNOTATIONS, CATEGORIES, SUBSET = 118_287, 860_001, 80, 10_000
TARGETS = {"first": (0.35, 0.5), "cached": (0.05, 0.5)}  # parts of the plain time and memory
WAYS = ("plain", "first", "cached")


def write_annotations(file: Path, scale: float, seed: int = 0) -> int:
    """Writes the synthetic annotation file and returns its number of images."""
    random = np.random.default_rng(seed)
    images, annotations = round(IMAGES * scale), round(ANNOTATIONS * scale)
    ids = random.permutation(5 * images)[:images] + 1
    sizes = random.integers(400, 641, (images, 2))
    stated = [
        {
            "license": 1,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.example.org/train2017/{number:012d}.jpg",
            "height": int(height),
            "width": int(width),
            "date_captured": "2013-11-14 17:02:52",
            "id": int(number),
        }
        for number, (height, width) in zip(ids, sizes, strict=True)
    ]
    classes = [
        {"supercategory": "thing", "id": number, "name": f"class {number}"}
        for number in range(1, CATEGORIES + 1)
    ]
    owners = random.integers(images, size=annotations)
    with file.open("w") as opened:
        opened.write('{"info": {"year": 2017}, "licenses": [{"id": 1}], "images": ')
        json.dump(stated, opened)
        opened.write(', "annotations": [')
        bar = tqdm(owners, desc="writing", unit="annotation", mininterval=5)
        for number, owner in enumerate(bar):
            entry = _annotation(random, number + 1, stated[owner])
            opened.write((", " if number else "") + json.dumps(entry))
        opened.write('], "categories": ')
        json.dump(classes, opened)
        opened.write("}")
    return images


def _annotation(random: np.random.Generator, number: int, image: dict[str, Any]) -> dict[str, Any]:
    crowd = bool(random.random() < 0.01)
    diameter = np.exp(random.uniform(np.log(8), np.log(min(image["width"], image["height"]))))
    corners = int(random.lognormal(3.0, 0.6)) + 3  # about 24 on average, as in COCO
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = diameter / 2 * random.uniform(0.6, 1, corners)
    centre = random.uniform(diameter / 2, [image["width"], image["height"]] - diameter / 2)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + centre
    points = points.clip(0, [image["width"], image["height"]]).round(2)
    low, extent = points.min(0), np.ptp(points, axis=0)
    area = image["width"] * image["height"]
    segmentation: Any = [points.ravel().tolist()]
    if crowd:
        cuts = np.sort(random.integers(0, area, 40))
        segmentation = {
            "counts": np.diff(cuts, prepend=0, append=area).tolist(),
            "size": [image["height"], image["width"]],
        }
    return {
        "segmentation": segmentation,
        "area": round(float(extent.prod() * 0.6), 4),
        "iscrowd": int(crowd),
        "image_id": image["id"],
        "bbox": [*low.round(2).tolist(), *extent.round(2).tolist()],
        "category_id": int(random.integers(1, CATEGORIES + 1)),
        "id": number,
    }


def load(way: str, file: Path, count: int) -> dict[str, Any]:
    """Loads the subset one way; returns CPU and wall seconds, peak MB and what was loaded."""
    from detectron2.data.build import filter_images_with_only_crowd_annotations
    from detectron2.data.datasets import load_coco_json, register_coco_instances

    from scratch_vs_pretrain.config import default_config
    from scratch_vs_pretrain.data import datasets
    from scratch_vs_pretrain.data.loading import load_training_records

    base = "synthetic_train"
    register_coco_instances(base, {}, str(file), str(file.parent))
    before = _peak()
    start, wall = time.process_time(), time.perf_counter()
    if way == "plain":
        records = load_coco_json(str(file), str(file.parent), base)
        chosen = set(datasets.draw([record["image_id"] for record in records], count, 0))
        records = [record for record in records if record["image_id"] in chosen]
        records = filter_images_with_only_crowd_annotations(records)
    else:
        cfg = default_config()
        cfg.MODEL.MASK_ON = True
        cfg.DATASETS.TRAIN = (f"{base}_{count}",)
        records = load_training_records(cfg).records
    return {
        "seconds": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "megabytes": _peak() - before,
        "ids": datasets.digest(record["image_id"] for record in records),
        "instances": sum(len(record["annotations"]) for record in records),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(file: Path, count: int, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Runs all ways in turn, each in a process of its own, so often."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=file.parent) as cache:
            for way in WAYS:
                command = [sys.executable, __file__, "--way", way, "--file", str(file)]
                done = subprocess.run(
                    [*command, "--count", str(count)],
                    env={**os.environ, "SVP_CACHE": cache, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the file and of the subset")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of each way counts")
    parser.add_argument("--folder", type=Path, help="for the file, kept; default: a temporary one")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(load(options.way, options.file, options.count)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        file = folder / f"synthetic_{options.scale}.json"
        if not file.exists():
            write_annotations(file, options.scale)
        return report(file, measure(file, round(SUBSET * options.scale), options.repeats))


def report(file: Path, found: dict[str, list[dict[str, Any]]]) -> int:
    """Prints times, memory and ratios; returns 1 where a target is missed or data differ."""
    print(f"{file.stat().st_size / 1e6:.0f} MB, Python {platform.python_version()}, ", end="")
    print(f"pycocotools {version('pycocotools')}, {platform.machine()}, {os.cpu_count()} cores")
    best = {way: min(runs, key=lambda run: run["seconds"]) for way, runs in found.items()}
    plain, status = best["plain"], 0
    for way, run in best.items():
        seconds, memory = (run[key] / plain[key] for key in ("seconds", "megabytes"))
        line = f"{way:6} {run['seconds']:8.2f} s (wall {run['wall']:.2f})"
        line += f"  {run['megabytes']:7.0f} MB"
        if way in TARGETS:
            line += f"  ratio {seconds:.3f} of the time, {memory:.3f} of the memory; at most "
            line += " and ".join(map(str, TARGETS[way]))
            status |= seconds > TARGETS[way][0] or memory > TARGETS[way][1]
        print(line)
    same = len({(run["ids"], run["instances"]) for runs in found.values() for run in runs}) == 1
    print("every way loaded the same" if same else "THE WAYS DIFFER")
    return int(status or not same)


if __name__ == "__main__":
    sys.exit(main())
