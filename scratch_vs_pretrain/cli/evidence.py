"""The commands that read run folders: tables, figures, the answer, the report, a run's model."""

import argparse
import functools
from pathlib import Path

from scratch_vs_pretrain.analysis import AXES, BANDS, registry
from scratch_vs_pretrain.analysis.registry import FIGURES, KINDS, PUBLISHED, TABLES
from scratch_vs_pretrain.analysis.runs import RESTARTS
from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.cli.options import command, option
from scratch_vs_pretrain.errors import say
from scratch_vs_pretrain.run_folder import is_replaced
from scratch_vs_pretrain.text import counted, printable


@command(
    "print the comparison of finished runs",
    "svp table output/demo\n"
    "svp table output/baseline-r50-gn --against paper\n"
    "svp table output/demo --kind catch-up\n"
    "svp table output/demo --kind gaps --format csv > gaps.csv\n"
    "svp table output/demo --kind metrics --format latex > table.tex\n"
    "svp table output/less-data-* --kind less-data",
    opt.FOLDERS,
    option(
        f"--kind  of each study: {', '.join(TABLES)}; of all together: the others", KINDS, KINDS[0]
    ),
    opt.FORMAT,
    option("--against  beside the numbers that were published", PUBLISHED),
    option("--best  of each run's best evaluation, not its final one; the table says so"),
)
def _table(options: argparse.Namespace) -> None:
    asked = {"against": options.against, "best": options.best}
    print(registry.tables_text(options.folders, options.kind, options.format, **asked))


@command(
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
    option(
        "--figure  " + "; ".join(f"{name}: {FIGURES[name][1]}" for name in FIGURES), FIGURES, "ap"
    ),
    option("--x  of curves; pixels include those of pre-training (default: iterations)", AXES),
    option("--metric NAME  such as keypoints/AP; may be repeated", action="append", dest="metrics"),
    option("--band  of curves over seeds (default: range)", BANDS),
    option("--schedule NAME  of ap, loss and detections (default: each arm's longest)"),
    option("--images N  of detections (default: 6, at most 12)", opt.positive),
    opt.pairs("--label STUDY=TEXT  what a study is called under its bars", dest="labels"),
    option("-o --output FILE  a .png, .svg or .pdf file", Path, Path("curves.png")),
)
def _plot(options: argparse.Namespace) -> None:
    names = ("labels", "x", "metrics", "band", "schedule", "images")
    asked = {name: getattr(options, name) for name in names}
    registry.draw(options.folders, options.figure, [options.output], **asked)
    _wrote(options.output)


@command(
    "say what each type of error costs each arm: classification, localization, both, "
    "duplicate, background, missed",
    "svp errors output/demo\n"
    "svp errors output/demo --format markdown\n"
    "svp errors output/demo --json > errors.json",
    opt.FOLDERS,
    opt.FORMAT,
    option("--json  as --format json", dest="format", action="store_const", const="json"),
)
def _errors(options: argparse.Namespace) -> None:
    print(registry.tables_text(options.folders, "errors", options.format))


@command(
    "write every number of run folders, also of plain Detectron2 ones, as one tidy table",
    "svp collect output/demo -o runs.csv\n"
    "svp collect /data/other_detectron2_runs --restarts split -o runs.csv\n"
    "svp collect output /data/other_detectron2_runs -o runs.parquet",
    opt.FOLDERS,
    option(
        "-o --output FILE  a .csv or .parquet file; beside it FILE.index makes the next time fast",
        Path,
        Path("runs.csv"),
    ),
    option(
        "--restarts  a log in which training begins again: last: what the last start went on "
        "from and wrote; split: each start as a run of its own",
        RESTARTS,
        "last",
    ),
    option("--strict  refuse all for one folder that cannot be read, instead of leaving it out"),
)
def _collect(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.analysis.runs.frame import collect_into

    done = collect_into(
        options.folders, options.output, strict=options.strict, restarts=options.restarts
    )
    for line in (*done.restarted, *(f"left out: {reason}" for reason in done.skipped)):
        say(line)
    news = f"{done.read} of them new or changed" if done.read else "up to date"
    _wrote(done.output, f": {counted(done.runs, 'run')}, {news}")
    return 1 if done.skipped else 0


def _wrote(output: Path, about: str = "") -> None:
    """Names the file that was written, not on stdout where that is the file."""
    if is_replaced(output):
        print(printable(f"{output}{about}"))
    else:
        say(f"{output}{about}")


@command(
    "say whether pre-training helps: early, at the end, for what it costs",
    "svp answer output/demo\n"
    "svp answer output/demo --format json\n"
    "svp answer output/demo --metric segm/AP",
    opt.FOLDERS,
    opt.TEXT_OR_JSON,
    option(
        "--metric NAME  what decides, more of which is better (default: the study's "
        "answer.metric, or the main AP)"
    ),
)
def _answer(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.stats.answer import answers_text

    print(answers_text(options.folders, options.format, options.metric))


@command(
    "judge the paper's six conclusions by your own runs",
    "svp conclude output/demo\n"
    "svp conclude output/baseline-r50-gn output/less-data\n"
    "svp conclude output/demo --format json",
    opt.FOLDERS,
    opt.TEXT_OR_JSON,
)
def _conclude(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.stats.conclusions import conclusions_text

    print(conclusions_text(options.folders, options.format))


@command(
    "say how many seeds a difference needs to be seen",
    "svp power --gap 0.5 --noise 0.2\nsvp power --gap 0.5 --noise 0.2 --power 0.9",
    option("--gap AP  true difference", float, required=True),
    option(
        "--noise AP  standard deviation of the difference between paired runs over seeds",
        float,
        required=True,
    ),
    option("--power P  chance to see it", float, 0.8),
)
def _power(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.stats.verdicts import power_text

    print(power_text(options.gap, options.noise, options.power))


@command(
    "write one HTML file with tables, figures, conclusions and provenance",
    "svp report output/demo\nsvp report output -o report.html",
    opt.FOLDER,
    option("-o --output FILE  (default: %(default)s)", Path, Path("report.html")),
)
def _report(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.report import report

    _wrote(report(options.folder, options.output))


@command(
    "write a trained run's detections as COCO result files, for an evaluation server",
    "svp predict output/enhanced-r50/scratch/9x/seed0 --dataset coco_2017_test-dev\n"
    "svp predict output/demo/demo/scratch/1200it/seed0 --dataset demo_test -o results/demo",
    opt.RUN,
    option(
        "--dataset NAME  a COCO-format data set that Detectron2 knows or the run has; no "
        "annotations needed",
        required=True,
    ),
    option(
        "-o --output PREFIX  writes PREFIX_bbox.json and so on (default: RUN/predictions/NAME)",
        Path,
    ),
)
def _predict(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.progress import Bar
    from scratch_vs_pretrain.training.trained import predict

    bar = functools.partial(Bar, desc="predicting", unit="image")
    for file in predict(options.folder, options.dataset, options.output, bar):
        print(file)


@command(
    "write a trained run as a plain Detectron2 checkpoint and config",
    "svp export output/demo/demo/scratch/1200it/seed0 -o model_final.pth",
    opt.RUN,
    opt.CHECKPOINT,
)
def _export(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.training.trained import export

    iteration, modules = export(options.folder, options.output)
    print(f"{options.output}: the weights after {iteration:,} iterations")
    needs = f"; needs {', '.join(modules)}, see its first lines" if modules else ""
    print(f"{options.output.with_suffix('.yaml')}: for Detectron2's DefaultPredictor{needs}")
