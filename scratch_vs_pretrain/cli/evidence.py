"""The commands that read run folders: tables, figures, the answer, the conclusions, the report."""

import argparse
from pathlib import Path

from scratch_vs_pretrain.analysis import AXES, BANDS
from scratch_vs_pretrain.analysis.registry import (
    FIGURES,
    KINDS,
    PUBLISHED,
    TABLES,
    draw,
    tables_text,
)
from scratch_vs_pretrain.analysis.runs import RESTARTS
from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.errors import say
from scratch_vs_pretrain.run_folder import is_replaced
from scratch_vs_pretrain.text import printable, printable_lines

TEXT_OR_JSON = opt.option("--format", choices=("text", "json"), default="text")


@opt.command(
    "table",
    "print the comparison of finished runs",
    "svp table output/demo\n"
    "svp table output/baseline-r50-gn --against paper\n"
    "svp table output/demo --kind catch-up\n"
    "svp table output/demo --kind gaps --format csv > gaps.csv\n"
    "svp table output/demo --kind metrics --format latex > table.tex\n"
    "svp table output/less-data-* --kind less-data",
    opt.FOLDERS,
    opt.option(
        "--kind",
        choices=KINDS,
        default="schedules",
        help=f"of each study: {', '.join(TABLES)}; of all together: the others "
        "(default: %(default)s)",
    ),
    opt.FORMAT,
    opt.option("--against", choices=PUBLISHED, help="beside the numbers that were published"),
    opt.flag(
        "--best",
        help="of each run's best evaluation, not its final one; the table says so",
    ),
)
def _table(options: argparse.Namespace) -> int:
    asked = {"against": options.against, "best": options.best}
    print(tables_text(options.folders, options.kind, options.format, **asked))
    return 0


@opt.command(
    "plot",
    "draw AP versus the length of training, and other figures",
    "svp plot output/demo -o curves.png\n"
    "svp plot output/demo --x pixels --metric bbox/AP --metric bbox/AP75 -o curves.pdf\n"
    "svp plot output/baseline-r50-gn --figure overlay -o overlay.svg\n"
    "svp plot output/less-data-* --figure loss -o less_data.pdf\n"
    "svp plot output/baseline-r50-gn output/enhanced-r50 --figure bars "
    "--label baseline-r50-gn=baseline -o bars.pdf\n"
    "svp plot output/demo --figure samples -o samples.svg\n"
    "svp plot output/demo --figure iou -o iou.svg\n"
    "svp plot output/demo --figure detections --images 6 -o detections.png",
    opt.FOLDERS,
    opt.option(
        "--figure",
        choices=FIGURES,
        default="ap",
        help="; ".join(f"{name}: {what}" for name, (_, what) in FIGURES.items())
        + " (default: %(default)s)",
    ),
    opt.option(
        "--x",
        choices=AXES,
        help="of curves; pixels include those of pre-training (default: iterations)",
    ),
    opt.option(
        "--metric", action="append", metavar="NAME", help="such as keypoints/AP; may be repeated"
    ),
    opt.option("--band", choices=BANDS, help="of curves over seeds (default: range)"),
    opt.option(
        "--schedule",
        metavar="NAME",
        help="of ap, loss and detections (default: each arm's longest)",
    ),
    opt.count("--images", help="of detections (default: 6, at most 12)"),
    opt.pairs("--label", "STUDY=TEXT", "what a study is called under its bars"),
    opt.written("curves.png", "a .png, .svg or .pdf file (default: %(default)s)"),
)
def _plot(options: argparse.Namespace) -> int:
    draw(
        options.folders,
        options.figure,
        [options.output],
        labels=options.label,
        x=options.x,
        metrics=options.metric,
        band=options.band,
        schedule=options.schedule,
        images=options.images,
    )
    _wrote(options.output)
    return 0


@opt.command(
    "errors",
    "say what each type of error costs each arm: classification, localization, both, "
    "duplicate, background, missed",
    "svp errors output/demo\n"
    "svp errors output/demo --format markdown\n"
    "svp errors output/demo --json > errors.json",
    opt.FOLDERS,
    opt.FORMAT,
    opt.option(
        "--json", dest="format", action="store_const", const="json", help="as --format json"
    ),
)
def _errors(options: argparse.Namespace) -> int:
    print(tables_text(options.folders, "errors", options.format))
    return 0


@opt.command(
    "collect",
    "write every number of run folders, also of plain Detectron2 ones, as one tidy table",
    "svp collect output/demo -o runs.csv\n"
    "svp collect /data/other_detectron2_runs --restarts split -o runs.csv\n"
    "svp collect output /data/other_detectron2_runs -o runs.parquet",
    opt.FOLDERS,
    opt.written(
        "runs.csv",
        "a .csv or .parquet file; beside it FILE.index makes the next time fast "
        "(default: %(default)s)",
    ),
    opt.option(
        "--restarts",
        choices=RESTARTS,
        default="last",
        help="a log in which training begins again: last: what the last start went on from and "
        "wrote; split: each start as a run of its own (default: %(default)s)",
    ),
    opt.flag(
        "--strict",
        help="refuse all for one folder that cannot be read, instead of leaving it out",
    ),
)
def _collect(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.runs.frame import collect_into

    done = collect_into(
        options.folders, options.output, strict=options.strict, restarts=options.restarts
    )
    for line in (*done.restarted, *(f"left out: {reason}" for reason in done.skipped)):
        say(line)
    news = f"{done.read} of them new or changed" if done.read else "up to date"
    _wrote(done.output, f": {done.runs} runs, {news}")
    return 1 if done.skipped else 0


def _wrote(output: Path, about: str = "") -> None:
    """Names the file that was written, not on stdout where that is the file."""
    if is_replaced(output):
        print(printable(f"{output}{about}"))
    else:
        say(f"{output}{about}")


@opt.command(
    "answer",
    "say whether pre-training helps: early, at the end, for what it costs",
    "svp answer output/demo\nsvp answer output/demo --format json\n"
    "svp answer output/demo --metric segm/AP",
    opt.FOLDERS,
    TEXT_OR_JSON,
    opt.option(
        "--metric",
        metavar="NAME",
        help="what decides, more of which is better (default: the study's answer.metric, or the "
        "main AP)",
    ),
)
def _answer(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.stats.answer import answers_text

    print(printable_lines(answers_text(options.folders, options.format, options.metric)))
    return 0


@opt.command(
    "conclude",
    "judge the paper's six conclusions by your own runs",
    "svp conclude output/demo\nsvp conclude output/baseline-r50-gn output/less-data\n"
    "svp conclude output/demo --format json",
    opt.FOLDERS,
    TEXT_OR_JSON,
)
def _conclude(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.stats.conclusions import conclusions_text

    print(printable_lines(conclusions_text(options.folders, options.format)))
    return 0


@opt.command(
    "power",
    "say how many seeds a difference needs to be seen",
    "svp power --gap 0.5 --noise 0.2\nsvp power --gap 0.5 --noise 0.2 --power 0.9",
    opt.option("--gap", type=float, required=True, metavar="AP", help="true difference"),
    opt.option(
        "--noise",
        type=float,
        required=True,
        metavar="AP",
        help="standard deviation of the difference between paired runs over seeds",
    ),
    opt.option(
        "--power", type=float, default=0.8, metavar="P", help="chance to see it (default: 0.8)"
    ),
)
def _power(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.stats.verdicts import power_text

    print(power_text(options.gap, options.noise, options.power))
    return 0


@opt.command(
    "report",
    "write one HTML file with tables, figures, conclusions and provenance",
    "svp report output/demo\nsvp report output -o report.html",
    opt.FOLDER,
    opt.written("report.html", "(default: %(default)s)"),
)
def _report(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.report import report

    _wrote(report(options.folder, options.output))
    return 0
