"""The commands before a study: what is installed and missing, data sets, and weights."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.cli.options import command, option, positive
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    from scratch_vs_pretrain.data.check import DataSet


@command(
    "show versions, device and data sets, and what is missing with the command that mends it",
    "svp doctor\nDETECTRON2_DATASETS=/data svp doctor",
    option("--json  as JSON"),
)
def _doctor(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.cli.doctor import diagnose, report

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
