"""``svp demo`` and ``doctor``."""

from __future__ import annotations

import argparse

from scratch_vs_pretrain.cli.options import OUTPUT, command, option, output, positive


@command(
    "demo",
    "train a scratch/pretrained pair on a built-in data set and show the comparison",
    "svp demo\nsvp demo --quick\nsvp demo --seeds 3 -o demo-output",
    output(OUTPUT / "demo"),
    option("--seeds", type=positive, default=1, metavar="N", help="pairs (default: %(default)s)"),
    option("--quick", action="store_true", help="a shorter run, in 3 minutes"),
    option("-v", "--verbose", action="store_true", help="show Detectron2's log"),
)
def _demo(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.study.demo import run_demo

    return run_demo(options.output, options.seeds, options.quick, options.verbose)


@command(
    "doctor",
    "show versions, device and data sets, and what is missing with the command that mends it",
    "svp doctor\nDETECTRON2_DATASETS=/data svp doctor",
    option("--json", action="store_true", help="as JSON"),
)
def _doctor(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.doctor import diagnose, report

    return report(diagnose(), options.json)
