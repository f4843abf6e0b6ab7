"""Trains the demo from scratch with the fast options and compares its AP with the recorded demo.

The recorded runs, three seeds without the options, are in notebooks/data/demo. A difference within
the range of their seeds is no difference.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from scratch_vs_pretrain.data.shapes import make_shapes
from scratch_vs_pretrain.run_folder import RunFolder, find_run_folders, read_json
from scratch_vs_pretrain.study.demo import FULL, STUDY_FILE
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.sections import Data, DataFiles, Evaluation
from scratch_vs_pretrain.study.spec import Study, load_study

RECORDED = Path(__file__).parents[1] / "notebooks/data/demo/scratch"
TASKS = ("bbox", "segm")


def fast_study(data: Path, seeds: int) -> Study:
    """Returns the demo's study with the scratch arm alone and the fast options on."""
    study = load_study(STUDY_FILE)
    files = {
        part: DataFiles((data / f"annotations/{part}.json").absolute(), (data / part).absolute())
        for part in ("train", "test")
    }
    return dataclasses.replace(
        study,
        arms=tuple(arm for arm in study.arms if arm.name == "scratch"),
        seeds=tuple(range(seeds)),
        data=Data(**files),
        # At the end alone: it leaves the training as it is.
        evaluation=Evaluation(),
        overrides={**study.overrides, "SVP.FAST.ENABLED": True},
    )


def final_ap(folder: RunFolder) -> dict[str, float]:
    """Returns the AP of each task after the last iteration."""
    content = read_json(folder.evaluation_file(folder.read()["iterations"]))
    return {task: content["tasks"][task]["AP"] for task in TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python benchmarks/fast_ap.py --seeds 3",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs, default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep data and runs there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = arguments.output or Path(scratch)
        make_shapes(output / "shapes", FULL.shapes)
        outcomes = run_study(fast_study(output / "shapes", arguments.seeds), output)
        fast = [outcome.folder for outcome in outcomes if outcome.state == "finished"]
        print(f"options in force: {[folder.read()['fast'] for folder in fast]}")
        for name, folders in {"recorded": find_run_folders(RECORDED), "fast": fast}.items():
            for task in TASKS:
                values = ", ".join(f"{final_ap(folder)[task]:.2f}" for folder in folders)
                print(f"{name}, {task} AP by seed: {values}")


if __name__ == "__main__":
    main()
