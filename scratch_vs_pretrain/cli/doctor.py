"""What `svp doctor` looks at: what is installed, what is missing, and the command that mends it.

It works where torch and Detectron2 are absent: saying so is its purpose.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.errors import reason_of

DISTRIBUTION = "scratch-vs-pretrain"
# Detectron2 itself is looked for by module, as it comes under more than one distribution's name.
TRAINING_EXTRA = "train-upstream"

COCO = "http://images.cocodataset.org"
MINIVAL = "https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz"
VOC = {
    "VOC2007": "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar",
    "VOC2012": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
}

# What the data set names of the paper's experiments need below DETECTRON2_DATASETS, images first,
# as detectron2/data/datasets/builtin.py registers them.
DATASETS: dict[str, tuple[str, ...]] = {
    name: (f"coco/{images}", f"coco/annotations/{annotations}.json")
    for name, images, annotations in (
        ("coco_2017_train", "train2017", "instances_train2017"),
        ("coco_2017_val", "val2017", "instances_val2017"),
        ("keypoints_coco_2017_train", "train2017", "person_keypoints_train2017"),
        ("keypoints_coco_2017_val", "val2017", "person_keypoints_val2017"),
        ("coco_2014_valminusminival", "val2014", "instances_valminusminival2014"),
    )
} | {
    f"voc_{year}_{split}": tuple(
        f"VOC{year}/{part}" for part in ("JPEGImages", "Annotations", f"ImageSets/Main/{split}.txt")
    )
    for year, split in ((2007, "trainval"), (2012, "train"), (2012, "val"))
}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str  # what was looked at
    found: str  # what was found, mostly a version
    # "missing" is needed for training and fails the report, "note" does not.
    status: Literal["ok", "note", "missing"] = "ok"
    remedy: str | None = None  # the command that mends it, None if nothing needs mending


def _missing(name: str, found: str) -> Check:
    return Check(name, found, "missing", _detectron2.INSTALL_COMMAND)


def diagnose() -> tuple[Check, ...]:
    """Looks at this Python environment, its device and the data sets at hand."""
    return (
        Check("Python", f"{platform.python_version()} ({sys.executable})"),
        *_requirements(),
        *_imports(),
        _detectron2_source(),
        _device(),
        *_data_sets(Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))),
    )


def report(checks: Sequence[Check], as_json: bool = False) -> int:
    """Prints the checks, as a table or as JSON; returns 1 if something needed is missing."""
    ok = all(check.status != "missing" for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=1))
        return int(not ok)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:8}{check.name:{width}}  {check.found}")
    remedies = defaultdict(list)
    for check in checks:
        if check.remedy:
            remedies[check.remedy].append(check.name)
    for remedy, names in remedies.items():
        print(f"\nFor {', '.join(names)}:\n    {remedy}")
    return int(not ok)


def _requirements() -> Iterator[Check]:
    """Compares the installed versions with those that the package's own metadata asks for."""
    try:
        from packaging.requirements import Requirement

        requirements = [DISTRIBUTION, *(importlib.metadata.requires(DISTRIBUTION) or ())]
    except ImportError as error:  # PackageNotFoundError is one
        name = error.name or DISTRIBUTION
        yield _missing(name, "not installed")
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": TRAINING_EXTRA}):
            continue
        name, needed = requirement.name, requirement.specifier
        version = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
        if version is not None and needed.contains(version, prereleases=True):
            yield Check(name, version)
        else:
            yield _missing(name, f"{version or 'not installed'} (needs {needed})")


def _imports() -> Iterator[Check]:
    """Imports what is installed: two packages can each be there and yet not fit together."""
    for module in ("torch", "torchvision", "detectron2.engine"):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(module)
        except Exception as error:
            yield _missing(f"import {module}", reason_of(error))
        else:
            yield Check(f"import {module}", "works")


def _detectron2_source() -> Check:
    folder = _detectron2.source_folder()
    if folder is None:
        return _missing("Detectron2", "not installed")
    if not _detectron2.is_v06(folder):
        return Check("Detectron2", f"upstream main ({folder})")
    digest, modules = _detectron2.modules_digest(folder)
    if digest == _detectron2.V06_DIGEST:
        return Check("Detectron2", f"v0.6, its {modules} modules byte-identical to upstream's tag")
    found = f"v0.6, but its {modules} modules differ from upstream's tag (digest {digest[:12]})"
    return Check("Detectron2", found, "note", "uv sync --reinstall-package pb1-detectron2")


def _device() -> Check:
    torch = sys.modules.get("torch")
    if torch is None:
        return Check("device", "unknown without torch", "note")
    cpu = f"CPU, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("device", f"{', '.join(names)} (CUDA {torch.version.cuda}); {cpu}")
    if Path("/proc/driver/nvidia/version").exists():
        found = f"{cpu}; a GPU driver is there, but torch (CUDA {torch.version.cuda}) cannot use it"
        return Check("device", found, "note", "nvidia-smi")
    return Check("device", f"{cpu}; no GPU (torch is built for CUDA {torch.version.cuda})")


def _data_sets(root: Path) -> Iterator[Check]:
    if not root.is_dir():
        found = f"{root}: no such folder; COCO and VOC need it, the demo and your own data do not"
        yield Check("DETECTRON2_DATASETS", found, "note", "export DETECTRON2_DATASETS=FOLDER")
        return
    yield Check("DETECTRON2_DATASETS", str(root.resolve()))
    for name, paths in DATASETS.items():
        # An empty folder is none.
        absent = [p for p in paths if not ((root / p).is_file() or any((root / p).glob("*")))]
        if absent:
            fetch = " && ".join(dict.fromkeys(_download(path, root) for path in absent))
            yield Check(name, f"no {', '.join(absent)}", "note", fetch)
        else:
            with os.scandir(root / paths[0]) as files:
                yield Check(name, f"{sum(1 for _ in files):,} files in {paths[0]}")


def _download(path: str, root: Path) -> str:
    """Returns the command that fetches one of :data:`DATASETS`' paths, from its publisher."""
    if tree := VOC.get(path[:7]):
        # The archive's folders are below VOCdevkit.
        return f"curl -L {tree} | tar -x --strip-components=1 -C {shlex.quote(str(root))}"
    coco = shlex.quote(str(root / "coco"))
    if "minival" in path:
        unpack = f"tar -xz -C {coco}/annotations --transform 's|.*/||' --wildcards '*.json'"
        return f"mkdir -p {coco}/annotations && curl -L {MINIVAL} | {unpack}"
    split = Path(path).stem.rpartition("_")[2]
    zips, archive = "zips", f"{split}.zip"
    if path.endswith(".json"):
        zips, archive = "annotations", f"annotations_trainval{split[-4:]}.zip"
    fetch = f"curl -L --create-dirs --output-dir {coco} -O {COCO}/{zips}/{archive}"
    return f"{fetch} && python3 -m zipfile -e {coco}/{archive} {coco}"
