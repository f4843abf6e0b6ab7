"""``svp``: thin commands over the package's parts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain import __version__
from scratch_vs_pretrain.errors import UserError

# Commands import what they need themselves: `svp table` must not wait for torch.
if TYPE_CHECKING:
    from scratch_vs_pretrain.study.spec import Study

OUTPUT = Path("output")
BAD_INPUT = 2


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="svp",
        description="Does pre-training help my detector on my data? Paired scratch/pretrained "
        "experiments over Detectron2.",
        epilog="Begin with: svp demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"svp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_plan(commands)
    _add_run(commands)
    _add_status(commands)
    _add_table(commands)
    _add_plot(commands)
    _add_pretrain(commands)
    _add_doctor(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (it ran, and something in it failed) or 2 (bad input)."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"svp: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our output is gone (`svp table | head`); nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _command(commands, name: str, run, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ARM=PATH",
        help="the checkpoint of an arm, in place of the study file's",
    )


def _add_output(parser: argparse.ArgumentParser, default: Path = OUTPUT) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=default,
        metavar="DIR",
        help="where the run folders lie (default: %(default)s)",
    )


def _read_study(options: argparse.Namespace, need_weights: bool = True) -> Study:
    from scratch_vs_pretrain.study.parse import check_weights, load_study, parse_weights

    weights = parse_weights(options.weights)
    study = load_study(options.study, weights, need_weights=need_weights)
    if need_weights:
        check_weights(study)
    return study


def _add_plan(commands) -> None:
    parser = _command(
        commands,
        "plan",
        _plan,
        "show every run of a study, and what its arms differ in; trains nothing",
        "svp plan configs/studies/paper/baseline_r50_gn.yaml",
    )
    _add_study(parser)


def _plan(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.study.plan import plan

    print(plan(_read_study(options, need_weights=False)).text())
    return 0


def _add_run(commands) -> None:
    parser = _command(
        commands,
        "run",
        _run,
        "train a study: finished runs are skipped, interrupted ones resumed",
        "svp run configs/studies/coco_smoke.yaml --weights pretrained=backbone.pth\n"
        "svp run my_study.yaml -o /data/runs --jobs 2",
    )
    _add_study(parser)
    _add_output(parser)
    parser.add_argument(
        "-j",
        "--jobs",
        type=_positive,
        default=1,
        metavar="N",
        help="runs that train at the same time, sharing the processor (default: %(default)s)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show Detectron2's log")


def _run(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.present import tables_text
    from scratch_vs_pretrain.study.launch import run_study

    study = _read_study(options)
    outcomes = run_study(study, options.output, options.jobs, options.verbose)
    unfinished = [outcome for outcome in outcomes if outcome.state != "finished"]
    if len(unfinished) < len(outcomes):
        print(tables_text(options.output / study.name, "schedules", "text"))
    for outcome in unfinished:
        print(f"svp: {outcome.folder.path}: {outcome.state}: {outcome.reason}", file=sys.stderr)
    return 1 if unfinished else 0


def _add_status(commands) -> None:
    parser = _command(
        commands,
        "status",
        _status,
        "show the state of every run in a folder, from its files alone",
        "svp status output\nsvp status output/demo",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds run folders")


def _status(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.present import status_text

    print(status_text(options.folder))
    return 0


def _add_table(commands) -> None:
    parser = _command(
        commands,
        "table",
        _table,
        "print the comparison of finished runs",
        "svp table output/demo\n"
        "svp table output/baseline-r50-gn --against paper\n"
        "svp table output/demo --kind metrics --format latex > table.tex",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds run folders")
    parser.add_argument("--kind", choices=("schedules", "metrics"), default="schedules")
    parser.add_argument(
        "--format", choices=("text", "markdown", "csv", "latex", "html"), default="text"
    )
    parser.add_argument(
        "--against", choices=("paper",), help="beside the numbers that were published"
    )


def _table(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.present import tables_text

    kind = "paper" if options.against else options.kind
    print(tables_text(options.folder, kind, options.format))
    return 0


def _add_plot(commands) -> None:
    parser = _command(
        commands,
        "plot",
        _plot,
        "draw AP versus the length of training, and other figures",
        "svp plot output/demo -o curves.png\n"
        "svp plot output/demo --figure iou -o iou.svg\n"
        "svp plot output/demo --x images -o curves.pdf",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds run folders")
    parser.add_argument("--figure", choices=("ap", "loss", "overlay", "iou"), default="ap")
    parser.add_argument("--x", choices=("iterations", "images", "epochs"), default="iterations")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="a .png, .svg or .pdf file (default: %(default)s)",
    )


def _plot(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.present import draw

    draw(options.folder, options.figure, options.x, [options.output])
    print(options.output)
    return 0


def _add_pretrain(commands) -> None:
    parser = _command(
        commands,
        "pretrain",
        _pretrain,
        "train a config's backbone as a classifier on a folder of images",
        "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml imagenette80 -o backbone.pth "
        "--epochs 5 --image-size 80\n"
        "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml /data/imagenet -o R-50-GN.pth --workers 8",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the detector's config (YAML)")
    parser.add_argument(
        "images", type=Path, metavar="DIR", help="train/<class>/* and val/<class>/*, or <class>/*"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pth")
    # Options that are not given keep the default of training/pretrain_spec.py.
    parser.add_argument("--epochs", type=_positive, metavar="N", help="default: 100")
    parser.add_argument("--image-size", type=_positive, metavar="PIXELS", help="default: 224")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="default: 256")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="default: 0.1")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes; default: 0")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument("--device", help="cpu, cuda, ...; default: a GPU if there is one")


PRETRAIN_OPTIONS = (
    "epochs",
    "image_size",
    "batch_size",
    "learning_rate",
    "workers",
    "seed",
    "device",
)


def _pretrain(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.config import load_config
    from scratch_vs_pretrain.training.pretrain import pretrain
    from scratch_vs_pretrain.training.pretrain_spec import PretrainSpec

    given = {name: getattr(options, name) for name in PRETRAIN_OPTIONS}
    spec = PretrainSpec(**{name: value for name, value in given.items() if value is not None})
    result = pretrain(load_config(options.config), options.images, options.output, spec)
    accuracy = "" if result.accuracy is None else f", {result.accuracy:.1f} % accurate"
    print(f"{result.file}: trained in {result.seconds:.0f} s{accuracy}")
    return 0


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "train a scratch/pretrained pair on a built-in data set and show the comparison",
        "svp demo\nsvp demo --quick\nsvp demo --seeds 3 -o demo-output",
    )
    _add_output(parser, OUTPUT / "demo")
    parser.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="pairs (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a shorter run, in 3 minutes")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Detectron2's log")


def _demo(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.study.demo import run_demo

    return run_demo(options.output, options.seeds, options.quick, options.verbose)


def _add_doctor(commands) -> None:
    parser = _command(
        commands,
        "doctor",
        _doctor,
        "show versions, device and data sets, and what is missing with the command that mends it",
        "svp doctor\nDETECTRON2_DATASETS=/data svp doctor",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _doctor(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.doctor import diagnose, report

    return report(diagnose(), options.json)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number
