"""``svp pretrain``, ``convert-weights``, ``predict`` and ``export``."""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from scratch_vs_pretrain.cli.options import command, count, option, written


@command(
    "pretrain",
    "train a config's backbone as a classifier on a folder of images",
    "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml imagenette80 -o backbone.pth "
    "--epochs 5 --image-size 80\n"
    "svp pretrain configs/mask_rcnn_R_50_FPN_gn.yaml /data/imagenet -o R-50-GN.pth --workers 8",
    option("config", type=Path, metavar="CONFIG", help="the detector's config (YAML)"),
    option(
        "images", type=Path, metavar="DIR", help="train/<class>/* and val/<class>/*, or <class>/*"
    ),
    option("-o", "--output", type=Path, required=True, metavar="FILE.pth"),
    count("--epochs", help="default: 100"),
    count("--image-size", help="default: 224", metavar="PIXELS"),
    count("--batch-size", help="default: 256"),
    option(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="default: 0.1 for batches of 256, and in proportion",
    ),
    option("--workers", type=int, metavar="N", help="decoding processes; default: 0"),
    option("--seed", type=int, metavar="N", help="default: 0"),
    option("--device", help="cpu, cuda, ...; default: a GPU if there is one"),
)
def _pretrain(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.config import load_config
    from scratch_vs_pretrain.pretraining import PretrainSpec
    from scratch_vs_pretrain.pretraining.pretrain import pretrain

    names = {field.name for field in dataclasses.fields(PretrainSpec)}
    given = {name: value for name, value in vars(options).items() if value is not None}
    spec = PretrainSpec(**{name: given[name] for name in names & given.keys()})
    result = pretrain(
        load_config(options.config, options.imports), options.images, options.output, spec
    )
    accuracy = "" if result.accuracy is None else f", {result.accuracy:.1f} % accurate"
    print(f"{result.file}: trained in {result.seconds:.0f} s{accuracy}")
    return 0


@command(
    "convert-weights",
    "write a checkpoint's backbone under Detectron2's names, and say what became of the rest",
    "svp convert-weights moco_v2_800ep.pth.tar -o moco.pth --arch resnet50\n"
    "svp convert-weights vgg16-397923af.pth -o vgg16.pth --arch vgg16\n"
    "svp convert-weights detectron2://ImageNetPretrained/FAIR/R-50-GN.pkl -o R-50-GN.pth "
    "--arch resnet50",
    option("source", metavar="SOURCE", help="a file, or a URI that Detectron2 fetches"),
    option("-o", "--output", type=Path, required=True, metavar="OUT.pth"),
    option(
        "--arch",
        required=True,
        metavar="NAME",
        help="resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, "
        "resnext101_32x8d, resnext101_64x4d, resnext152_8x32d or vgg16",
    ),
)
def _convert_weights(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.modeling.conversion import convert_file

    report = convert_file(options.source, options.output, options.arch)
    print(f"{options.output}: {options.arch}, from {report.layout} names")
    print(f"{'loaded':<10} {report.loaded}")
    for what in ("missing", "unexpected", "mismatched"):
        names = getattr(report, what)
        print(f"{what:<10} {len(names)}" + (f": {', '.join(names)}" if names else ""))
    return 0


@command(
    "predict",
    "write a trained run's detections as COCO result files, for an evaluation server",
    "svp predict output/enhanced-r50/scratch/9x/seed0 --dataset coco_2017_test-dev\n"
    "svp predict output/demo/demo/scratch/1200it/seed0 --dataset demo_test -o results/demo",
    option("folder", type=Path, metavar="RUN", help="a run folder with a checkpoint"),
    option(
        "--dataset",
        required=True,
        metavar="NAME",
        help="a COCO-format data set that Detectron2 knows or the run has; no annotations needed",
    ),
    written(None, "writes PREFIX_bbox.json and so on (default: RUN/predictions/NAME)", "PREFIX"),
)
def _predict(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.progress import Bar
    from scratch_vs_pretrain.training.trained import predict

    def bar(batches: Iterable) -> Iterable:
        return Bar(batches, desc="predicting", unit="image")

    for file in predict(options.folder, options.dataset, options.output, bar):
        print(file)
    return 0


@command(
    "export",
    "write a trained run as a plain Detectron2 checkpoint and config",
    "svp export output/demo/demo/scratch/1200it/seed0 -o model_final.pth",
    option("folder", type=Path, metavar="RUN", help="a run folder with a checkpoint"),
    option("-o", "--output", type=Path, required=True, metavar="FILE.pth"),
)
def _export(options: argparse.Namespace) -> int:
    from scratch_vs_pretrain.training.trained import export

    iteration, modules = export(options.folder, options.output)
    print(f"{options.output}: the weights after {iteration:,} iterations")
    needs = f"; needs {', '.join(modules)}, see its first lines" if modules else ""
    print(f"{options.output.with_suffix('.yaml')}: for Detectron2's DefaultPredictor{needs}")
    return 0
