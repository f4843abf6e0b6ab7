"""``svp demo``, ``doctor``, ``subset`` and ``check-data``."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.errors import UserError

if TYPE_CHECKING:
    from scratch_vs_pretrain.data.check import DataSet


@opt.command(
    "subset",
    "show what is in a data set or a subset of one, or write it to a file",
    "svp subset coco_2017_train_10k\n"
    "svp subset coco_2017_train_1k_s3 --list\n"
    "svp subset coco_2017_train_10pct --export train_10pct.json\n"
    "svp subset train_500 --study my_study.yaml",
    opt.option(
        "name",
        metavar="NAME",
        help="DATASET_SIZE or DATASET_SIZE_sSEED; a size is 500, 3.5k, 10pct, ...",
    ),
    opt.option(
        "--study",
        type=Path,
        metavar="FILE",
        help="a study file; its own data sets are called train and test",
    ),
    opt.option("--export", type=Path, metavar="FILE.json", help="write COCO JSON"),
    opt.flag("--list", help="print the image ids, one a line"),
)
def _subset(options: argparse.Namespace) -> int:
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
    return 0


def study_sets(file: Path) -> list[DataSet]:
    """Returns every data set of a study file.

    Its own COCO files are taken as they are, so that what is wrong with them can be listed.
    """
    from scratch_vs_pretrain.data.check import DataSet, registered_set
    from scratch_vs_pretrain.data.datasets import register
    from scratch_vs_pretrain.data.judge import MOST_DROPPED
    from scratch_vs_pretrain.data.loading import heads_of
    from scratch_vs_pretrain.study.resolve import run_config
    from scratch_vs_pretrain.study.sections import DataFiles
    from scratch_vs_pretrain.study.spec import load_study

    study = load_study(file)
    data, heads, limit, dropped = study.data, None, 0.0, MOST_DROPPED
    own = data is not None and isinstance(data.test, DataFiles)
    with contextlib.suppress(UserError) if own else contextlib.nullcontext():  # told by the check
        cfg = run_config(study, study.runs()[0])
        heads, limit, dropped = heads_of(cfg), cfg.SVP.MAX_UNREADABLE, cfg.SVP.MAX_DROPPED
    if data is None or not own:
        register(cfg)
        limits = dict.fromkeys(cfg.DATASETS.TRAIN, limit) | dict.fromkeys(cfg.DATASETS.TEST, 0.0)
        return [registered_set(name, heads, share, dropped) for name, share in limits.items()]
    return [
        DataSet(
            name,
            one.annotations,
            one.images,
            heads=heads,
            unreadable=0.0 if name == "test" else limit,
            dropped=dropped,
        )
        for name, one in data.named().items()
        if isinstance(one, DataFiles)
    ]


@opt.command(
    "check-data",
    "read data sets once, images included; say whether a number trained on them can be trusted "
    "(exit 1 if not), and list what is wrong or odd",
    "svp check-data coco_2017_val\n"
    "svp check-data coco_2017_train --no-images\n"
    "svp check-data my_study.yaml --json > report.json",
    opt.option("what", metavar="NAME-or-STUDY", help="a data set's name, or a study file (.yaml)"),
    opt.flag("--json", help="as JSON, with every finding"),
    opt.flag("--no-images", help="look at the annotations alone, in seconds"),
    opt.count("-j", "--jobs", help="threads that decode (default: one a core)"),
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


@opt.command(
    "demo",
    "train a scratch/pretrained pair on a built-in data set and show the comparison",
    "svp demo\nsvp demo --quick\nsvp demo --seeds 3 -o demo-output",
    opt.output(opt.OUTPUT / "demo"),
    opt.count("--seeds", default=1, help="pairs (default: %(default)s)"),
    opt.flag("--quick", help="a much shorter run, in a minute or two: that everything works"),
    opt.VERBOSE,
)
def _demo(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.study.demo import run_demo

    return run_demo(options.output, options.seeds, options.quick, options.verbose)


@opt.command(
    "doctor",
    "show versions, device and data sets, and what is missing with the command that mends it",
    "svp doctor\nDETECTRON2_DATASETS=/data svp doctor",
    opt.JSON,
)
def _doctor(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.doctor import diagnose, report

    return report(diagnose(), options.json)
