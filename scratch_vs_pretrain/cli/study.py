"""The commands on a study and its run folders, from the plan to the clearing up, and the demo."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scratch_vs_pretrain.cli import options as opt
from scratch_vs_pretrain.cli.options import command, option, positive
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.study.slurm import Cluster, minutes_of, parameter

if TYPE_CHECKING:
    from scratch_vs_pretrain.study.launch import Outcome
    from scratch_vs_pretrain.study.spec import Study

STUDY = option("study STUDY  a study file (YAML)", Path)
WEIGHTS = opt.pairs("--weights ARM=PATH  the checkpoint of an arm, in place of the study file's")
OUTPUT = option("-o --output DIR  where the run folders lie", Path, Path("output"))
VERBOSE = option("-v --verbose  show Detectron2's log")
SHARING = option(
    "--no-sharing  train every schedule alone, not from the longest one's checkpoints",
    dest="sharing",
    action="store_false",
)


def _read_study(options: argparse.Namespace) -> Study:
    """Reads the study that :data:`STUDY` and :data:`WEIGHTS` name."""
    from scratch_vs_pretrain.study.spec import load_study

    for path in (options.study, getattr(options, "output", None) or options.study):
        try:
            os.path.realpath(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: is not UTF-8, which run folders are; rename it") from None
    study = load_study(options.study, options.weights)
    imports = tuple(dict.fromkeys((*study.imports, *options.imports)))
    return replace(study, imports=imports, sharing=getattr(options, "sharing", True))


def _hours(text: str) -> float:
    with contextlib.suppress(ValueError):
        hours = float(text.removesuffix("h"))
        if 0 < hours < math.inf:
            return hours
    raise UserError(f"--budget {text}: is no number of hours such as 40h")


@command(
    "show every run of a study, and what its arms differ in; with --check, what it will take",
    "svp plan configs/studies/paper/baseline_r50_gn.yaml\n"
    "svp plan my_study.yaml --weights pretrained=backbone.pth --check",
    STUDY,
    WEIGHTS,
    SHARING,
    option(
        "--check  also try what `svp run` would refuse and a few iterations of each arm, and "
        "print hours, disk and memory of the whole study; writes nothing"
    ),
    OUTPUT,
)
def _plan(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.study.audit import missing_data, missing_weights, unfit
    from scratch_vs_pretrain.study.plan import check_evaluations, plan

    study = _read_study(options)
    check_evaluations(study)
    print(plan(study).text())
    if options.check:
        from scratch_vs_pretrain.study.rehearsal import rehearsal_text

        print(rehearsal_text(study, options.output))
        return
    for missing in (*missing_weights(study), *missing_data(study), *unfit(study, options.output)):
        print(f"note: before it runs: {missing}")
    if any(arm.load == "detector" for arm in study.arms):
        print("note: --check lists what of a detector is loaded, at random and left over")


@command(
    "print the JSON schema of study files, for editors",
    "svp schema > study.schema.json",
    option("--format", ("json", "markdown"), "json"),
)
def _schema(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.study.spec import schema_markdown, study_schema

    schema = study_schema()
    markdown = options.format == "markdown"
    print(schema_markdown(schema) if markdown else json.dumps(schema, indent=1))


@command(
    "show the images, instances and pixels that each arm will see, pre-training included; "
    "trains nothing",
    "svp budget configs/studies/paper/baseline_r50_gn.yaml\n"
    "svp budget my_study.yaml --format csv > budget.csv\n"
    "svp budget my_study.yaml --weights pretrained=backbone.pth -o budget.svg",
    STUDY,
    WEIGHTS,
    opt.FORMAT,
    option("-o --output FILE  also draw it, into a .png, .svg or .pdf file", Path),
)
def _budget(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.stats.cost import budget_table
    from scratch_vs_pretrain.analysis.tables import render
    from scratch_vs_pretrain.study.audit import missing_data, missing_weights
    from scratch_vs_pretrain.study.plan import study_budgets

    study = _read_study(options)
    found = study_budgets(study)
    for missing in (*missing_weights(study), *missing_data(study)):
        say(f"note: before it runs: {missing}")
    print(render(budget_table(found), options.format), end="")
    if options.output:
        from scratch_vs_pretrain.analysis.figures.finals import budget_figure
        from scratch_vs_pretrain.analysis.figures.panels import save_figure

        save_figure(budget_figure(found), options.output)
        print(options.output)


@command(
    "train a study: finished runs are skipped, interrupted ones resumed",
    "svp run configs/studies/coco_smoke.yaml --weights pretrained=backbone.pth\n"
    "svp run my_study.yaml -o /data/runs --jobs 2\n"
    "svp run my_study.yaml --gpus 0,1,2,3 --gpus-per-run 2\n"
    "svp run my_study.yaml --until answered --budget 40h\n"
    "svp run my_study.yaml -o /shared/runs --launcher slurm --partition P --gpus-per-run 8 \\\n"
    "    --time 24:00:00 --max-parallel 4 --slurm account=A",
    STUDY,
    WEIGHTS,
    OUTPUT,
    option(
        "--until  train no more than the study's question needs: first few seeds of the shortest "
        "schedule, then more, then longer schedules (docs/answer.md)",
        ("answered",),
    ),
    option(
        "--budget 40h  hours of all jobs that --until answered may spend (default: no end)", _hours
    ),
    option("-j --jobs N  runs that train at the same time, sharing the processor", positive, 1),
    option(
        "--gpus 0,1,...  GPUs to train on, each run on its own (default: every run on the first)",
        lambda text: [gpu.strip() for gpu in text.split(",") if gpu.strip()],
        [],
    ),
    option("--gpus-per-run N  GPUs that train one run together", positive, 1),
    SHARING,
    VERBOSE,
    "a cluster's jobs (docs/clusters.md)",
    option("--launcher  submit every run as a job", ("slurm",)),
    option("--partition P  of SLURM"),
    option("--nodes N  machines that train one run together", positive, 1),
    option(
        "--time 24:00:00  after which a job is stopped and put back into the queue "
        "(default: a day)",
        minutes_of,
        24 * 60,
    ),
    option("--max-parallel N  jobs at the same time (default: all)", positive),
    option(
        "--slurm KEY=VALUE  a further option of sbatch, such as account=A or mem=64GB; "
        "may be repeated",
        parameter,
        [],
        action="append",
    ),
)
def _run(options: argparse.Namespace) -> int:
    study = _read_study(options)  # before torch is imported
    if options.budget is not None and not options.until:
        raise UserError("--budget goes with --until answered; add it, or leave the budget out")
    from scratch_vs_pretrain.study.adaptive import Adaptive
    from scratch_vs_pretrain.study.launch import make_slots, report, run_study
    from scratch_vs_pretrain.study.plan import check_evaluations
    from scratch_vs_pretrain.training.checkpoint import ENDED

    cluster = None
    if options.launcher:
        cluster = Cluster(
            options.gpus_per_run,
            options.nodes,
            options.time,
            options.partition,
            options.max_parallel,
            dict(options.slurm),
        )
    slots = make_slots(options.jobs, options.gpus, options.gpus_per_run)
    check_evaluations(study)

    def train(part: Study) -> list[Outcome]:
        return run_study(part, options.output, slots, options.verbose, cluster)

    search = None
    if options.until:
        search = Adaptive(study, options.output, train, options.budget or math.inf)
    outcomes = search.run() if search else train(study)
    if cluster and any(outcome.state not in ENDED for outcome in outcomes):
        again = "; give the command again when they have ended" if search else ""
        print(f"svp status {options.output} shows how far the runs are{again}")
        return 0
    return report(study, options.output, outcomes, search)


@command(
    "show the state of every run in a folder, from its files alone",
    "svp status output\nsvp status output/demo --watch",
    opt.FOLDER,
    option("--watch  show it anew until nothing runs or waits any more"),
)
def _status(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.analysis.tables.runs import status_text, watch

    if options.watch:
        watch(options.folder)
    else:
        print(status_text(options.folder))


@command(
    "list what no unfinished or future run needs, above all old checkpoints; deletes it with --yes",
    "svp prune output\nsvp prune output --yes",
    opt.FOLDER,
    option(
        "--final  also the final models of finished runs, which can then be neither exported nor "
        "made longer"
    ),
    option("--yes  delete it"),
)
def _prune(options: argparse.Namespace) -> None:
    from scratch_vs_pretrain.study.folders import delete, find_waste, freed_bytes

    found = find_waste(options.folder, options.final)
    for path, why in found.items():
        print(f"{path}: {why}")
    size = freed_bytes(found)
    power = min(max(len(str(size)) - 1, 0) // 3, 3)
    amount = f"{len(found)} {{}}, {size / 1000**power:.1f} {('bytes', 'kB', 'MB', 'GB')[power]}"
    if not found:
        print("nothing to delete")
    elif options.yes:
        delete(found)
        print(amount.format("deleted"))
    else:
        final = " --final" if options.final else ""
        print(amount.format("would be deleted") + f"; svp prune {options.folder}{final} --yes")


@command(
    "train a scratch/pretrained pair on a built-in data set and show the comparison",
    "svp demo\nsvp demo --quick\nsvp demo --seeds 3 -o demo-output",
    option("-o --output DIR  where the run folders lie", Path, Path("output/demo")),
    option("--seeds N  pairs", positive, 1),
    option("--quick  a much shorter run, in a minute or two: that everything works"),
    VERBOSE,
)
def _demo(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.study.demo import run_demo

    return run_demo(options.output, options.seeds, options.quick, options.verbose)
