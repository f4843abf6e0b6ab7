"""The commands before a study: what is installed and missing, data sets, and weights.

`svp doctor` works where torch and Detectron2 are absent: saying so is its purpose.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.cli.options import command, option, positive
from scratch_vs_pretrain.errors import UserError, reason_of

if TYPE_CHECKING:
    from scratch_vs_pretrain.data.check import DataSet

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


@command(
    "show versions, device and data sets, and what is missing with the command that mends it",
    "svp doctor\nDETECTRON2_DATASETS=/data svp doctor",
    option("--json  as JSON"),
)
def _doctor(options: argparse.Namespace) -> int:
    return report(diagnose(), options.json)


@command(
    "show what is in a data set or a subset of one, or write it to a file",
    "svp subset coco_2017_train_10k\n"
    "svp subset coco_2017_train_1k_s3 --list\n"
    "svp subset coco_2017_train_10pct --export train_10pct.json\n"
    "svp subset train_500 --study my_study.yaml",
    option("name NAME  DATASET_SIZE or DATASET_SIZE_sSEED; a size is 500, 3.5k, 10pct, ..."),
    option("--study FILE  a study file; its own data sets are called train and test", Path),
    option("--export FILE.json  write COCO JSON", Path),
    option("--list  print the image ids, one a line"),
)
def _subset(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.data.datasets import coco_of, export, register, subset_text

    name = options.name
    if options.study:
        from scratch_vs_pretrain.study.resolve import run_config
        from scratch_vs_pretrain.study.spec import load_study

        study = load_study(options.study)
        register(run_config(study, study.runs()[0]))
        if re.match("(train|test)(-|_|$)", name):
            name = f"{study.name}_{name}"
    file = coco_of(name)
    if options.export:
        print(export(file, options.export))
    if options.list:
        print("\n".join(map(str, file.ids())))
    if not (options.export or options.list):
        print(subset_text(name, file))


def study_sets(file: Path) -> list[DataSet]:
    """Returns every data set of a study file.

    Its own COCO files are taken as they are, so that what is wrong with them can be listed.
    """
    from scratch_vs_pretrain.data import check, datasets, judge, loading
    from scratch_vs_pretrain.study import resolve, sections, spec

    study = spec.load_study(file)
    data, heads, limit, dropped = study.data, None, 0.0, judge.MOST_DROPPED
    own = data is not None and isinstance(data.test, sections.DataFiles)
    with contextlib.suppress(UserError) if own else contextlib.nullcontext():  # told by the check
        cfg = resolve.run_config(study, study.runs()[0])
        heads, limit, dropped = loading.heads_of(cfg), cfg.SVP.MAX_UNREADABLE, cfg.SVP.MAX_DROPPED
    if data is None or not own:
        datasets.register(cfg)
        limits = dict.fromkeys(cfg.DATASETS.TRAIN, limit) | dict.fromkeys(cfg.DATASETS.TEST, 0.0)
        return [check.registered_set(name, heads, most, dropped) for name, most in limits.items()]
    found = []
    for name, one in data.named().items():
        if isinstance(one, sections.DataFiles):
            most = 0.0 if name == "test" else limit
            place = (one.annotations, one.images)
            found.append(check.DataSet(name, *place, False, heads, most, dropped))
    return found


@command(
    "read data sets once, images included; say whether a number trained on them can be trusted "
    "(exit 1 if not), and list what is wrong or odd",
    "svp check-data coco_2017_val\n"
    "svp check-data coco_2017_train --no-images\n"
    "svp check-data my_study.yaml --json > report.json",
    option("what NAME-or-STUDY  a data set's name, or a study file (.yaml)"),
    option("--json  as JSON, with every finding"),
    option("--no-images  look at the annotations alone, in seconds"),
    option("-j --jobs N  threads that decode (default: one a core)", positive),
)
def _check_data(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.data.check import check, registered_set

    if options.what.endswith((".yaml", ".yml")):
        sets = study_sets(Path(options.what))
    else:
        sets = [registered_set(options.what)]
    report = check(sets, options.jobs, images=not options.no_images)
    print(json.dumps(report.to_json(), indent=1) if options.json else report.text())
    return int(report.breaks)


@command(
    "train a config's backbone as a classifier on a folder of images",
    "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml imagenette80 -o backbone.pth "
    "--epochs 5 --image-size 80\n"
    "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml /data/imagenet -o R-50-GN.pth --workers 8",
    option("config CONFIG  the detector's config (YAML)", Path),
    option("images DIR  train/<class>/* and val/<class>/*, or <class>/*", Path),
    opt.CHECKPOINT,
    option("--epochs N  default: 100", positive),
    option("--image-size PIXELS  default: 224", positive),
    option("--batch-size N  default: 256", positive),
    option("--learning-rate RATE  default: 0.1 for batches of 256, and in proportion", float),
    option("--workers N  decoding processes; default: 0", int),
    option("--seed N  default: 0", int),
    option("--device DEVICE  cpu, cuda, ...; default: a GPU if there is one"),
)
def _pretrain(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.config import load_config
    from scratch_vs_pretrain.pretraining import PretrainSpec
    from scratch_vs_pretrain.pretraining.pretrain import pretrain

    names = {field.name for field in fields(PretrainSpec)}
    given = {name: value for name, value in vars(options).items() if value is not None}
    spec = PretrainSpec(**{name: given[name] for name in names & given.keys()})
    result = pretrain(
        load_config(options.config, options.imports), options.images, options.output, spec
    )
    accuracy = "" if result.accuracy is None else f", {result.accuracy:.1f} % accurate"
    print(f"{result.file}: trained in {result.seconds:.0f} s{accuracy}")


@command(
    "write a checkpoint's backbone under Detectron2's names, and say what became of the rest",
    "svp convert-weights moco_v2_800ep.pth.tar -o moco.pth --arch resnet50\n"
    "svp convert-weights vgg16-397923af.pth -o vgg16.pth --arch vgg16\n"
    "svp convert-weights detectron2://ImageNetPretrained/FAIR/R-50-GN.pkl -o R-50-GN.pth "
    "--arch resnet50",
    option("source SOURCE  a file, or a URI that Detectron2 fetches"),
    option("-o --output OUT.pth", Path, required=True),
    option(
        "--arch NAME  resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, "
        "resnext101_32x8d, resnext101_64x4d, resnext152_8x32d or vgg16",
        required=True,
    ),
)
def _convert_weights(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.modeling.conversion import convert_file

    report = convert_file(options.source, options.output, options.arch)
    print(f"{options.output}: {options.arch}, from {report.layout} names")
    print(f"{'loaded':<10} {report.loaded}")
    for what in ("missing", "unexpected", "mismatched"):
        names = getattr(report, what)
        print(f"{what:<10} {len(names)}" + (f": {', '.join(names)}" if names else ""))
