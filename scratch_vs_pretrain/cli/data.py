"""``svp subset``."""

from __future__ import annotations

import argparse
from pathlib import Path

from scratch_vs_pretrain.cli.options import Commands, add_command


def add_commands(commands: Commands) -> None:
    _add_subset(commands)


def _add_subset(commands: Commands) -> None:
    parser = add_command(
        commands,
        "subset",
        _subset,
        "show what is in a data set or a subset of one, or write it to a file",
        "svp subset coco_2017_train_10k\n"
        "svp subset coco_2017_train_1k_s3 --list\n"
        "svp subset coco_2017_train_10pct --export train_10pct.json",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="DATASET_SIZE or DATASET_SIZE_sSEED; a size is 500, 3.5k, 10pct, ...",
    )
    parser.add_argument("--export", type=Path, metavar="FILE.json", help="write COCO JSON")
    parser.add_argument("--list", action="store_true", help="print the image ids, one a line")


def _subset(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.data.subset_report import export, image_ids, subset_text

    if options.export:
        print(export(options.name, options.export))
    if options.list:
        print("\n".join(map(str, image_ids(options.name))))
    if not (options.export or options.list):
        print(subset_text(options.name))
    return 0
