"""``svp demo``: data, pre-training, both arms, table and curves, in one command."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from scratch_vs_pretrain.analysis.registry import draw, tables_text
from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.data.shapes import ClassificationSpec, ShapesSpec, make_shapes
from scratch_vs_pretrain.errors import say
from scratch_vs_pretrain.pretraining import PretrainSpec
from scratch_vs_pretrain.pretraining.pretrain import pretrain
from scratch_vs_pretrain.run_folder import write_atomically
from scratch_vs_pretrain.study.launch import make_slots, report, run_study
from scratch_vs_pretrain.study.sections import Data, DataFiles, Evaluation, Schedule, short_schedule
from scratch_vs_pretrain.study.spec import Study, load_study

STUDY_FILE = Path(__file__).parents[1] / "configs/studies/demo.yaml"


@dataclass(frozen=True)
class DemoSize:
    """How much of everything the demo does."""

    shapes: ShapesSpec
    classification: ClassificationSpec
    pretraining: PretrainSpec
    schedule: Schedule | None = None
    evaluation: Evaluation | None = None


# Crops keep most of the picture: a smaller part of one shape could be any shape's.
FULL = DemoSize(
    ShapesSpec(train=3000, test=200),
    ClassificationSpec(train=6000, test=600),
    PretrainSpec(epochs=10, image_size=64, batch_size=64, learning_rate=0.02, min_area=0.6),
)
QUICK = DemoSize(
    ShapesSpec(train=300, test=40),
    ClassificationSpec(train=1200, test=120),
    PretrainSpec(epochs=3, image_size=64, batch_size=64, learning_rate=0.02, min_area=0.6),
    short_schedule(100),
    Evaluation(period=50),
)


def run_demo(output: Path, seeds: int = 1, quick: bool = False, verbose: bool = False) -> int:
    """Runs the demo, or the rest of one that was interrupted, and returns the exit status.

    `seeds` pairs are trained. A `quick` run is much shorter, and its AP means little.
    """
    started = time.monotonic()
    size = QUICK if quick else FULL
    data, images, backbone = (
        output / name for name in ("shapes", "classification", "backbone.pth")
    )
    say("1/4 making the data sets")
    make_shapes(data, size.shapes)
    make_shapes(images, size.classification)
    say("2/4 pre-training the backbone as a classifier")
    if not backbone.exists():
        cfg = load_config(load_study(STUDY_FILE).base)
        result = pretrain(cfg, images, backbone, size.pretraining)
        say(f"the classifier is right on {result.accuracy:.1f} % of the validation pictures")
    study = demo_study(size, data, backbone, seeds)
    say(f"3/4 training both arms, {len(study.runs())} runs")
    outcomes = run_study(study, output, make_slots(2), verbose)
    say("4/4 table and figures")
    if report(study, output, outcomes):
        return 1
    runs = output / study.name
    write_atomically(output / "table.md", tables_text(runs, "schedules", "markdown"))
    write_atomically(output / "table.csv", tables_text(runs, "schedules", "csv"))
    draw(runs, "ap", [output / "curves.png", output / "curves.svg"])
    for name in ("table.md", "table.csv", "curves.png", "curves.svg"):
        print(output / name)
    say(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    if quick:
        print("this shows that everything works; for numbers: svp demo, in about 7 minutes")
    print("next: docs/miniature.md, which asks the paper's question of these pictures in earnest")
    return 0


def demo_study(size: DemoSize, data: Path, backbone: Path, seeds: int) -> Study:
    """Returns the demo's study over data and backbone that were just made."""
    study = load_study(STUDY_FILE, {"pretrained": str(backbone)})
    files = {
        part: DataFiles((data / f"annotations/{part}.json").absolute(), (data / part).absolute())
        for part in ("train", "test")
    }
    arms = study.arms
    if size.schedule:
        arms = tuple(dataclasses.replace(arm, schedules=(size.schedule,)) for arm in arms)
    return dataclasses.replace(
        study,
        arms=arms,
        seeds=tuple(range(seeds)),
        data=Data((files["train"],), files["test"]),
        evaluation=size.evaluation or study.evaluation,
    )
