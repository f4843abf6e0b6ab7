"""Every example of a help text, and of the README, that reads runs does so, on recorded studies."""

import argparse
import contextlib
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from scratch_vs_pretrain.cli import build_parser, main

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "notebooks" / "data"
READING = (
    "answer", "collect", "conclude", "errors", "plot", "power", "report", "prune", "status",
    "table",
)  # fmt: skip

# The examples' studies: which recorded one stands for each. COCO's names go with its numbers.
STUDIES = {
    "demo": "demo/.",
    "my-question": "demo/.",
    "baseline-r50-gn": "demo/.",
    "enhanced-r50": "demo/.",
    "less-data": "demo_regimes/less-shapes-100",
    "less-data-1k": "demo_regimes/less-shapes-1000",
}


def examples():
    (commands,) = [
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    for name in READING:
        epilog = commands.choices[name].epilog.replace("\\\n", " ")
        yield from re.findall(r"^ +svp (.*)$", epilog, re.MULTILINE)
    for line in re.findall(r"^ {4}uv run svp (.*)$", (REPOSITORY / "README.md").read_text(), re.M):
        if line.split()[0] in READING:
            yield line.partition(" #")[0].strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `output/` as the examples have it, and somebody else's runs."""
    root = tmp_path_factory.mktemp("examples")
    for study, recorded in STUDIES.items():
        folder = root / "output" / study
        shutil.copytree(DATA / recorded, folder)
        for file in folder.rglob("run.json"):
            text = re.sub(r'"study": "[^"]*"', f'"study": "{study}"', file.read_text())
            if study in ("baseline-r50-gn", "enhanced-r50"):
                text = text.replace("demo_train", "coco_2017_train")
                text = text.replace("demo_test", "coco_2017_val").replace(": 200,", ": 5000,")
            file.write_text(text)
        for file in folder.rglob("evaluations/*.json"):
            if study in ("baseline-r50-gn", "enhanced-r50"):
                file.write_text(file.read_text().replace("demo_test", "coco_2017_val"))
    picture = {"file": str(root / "picture.png"), "width": 64, "height": 48}
    Image.new("RGB", (64, 48), "gray").save(picture["file"])
    found = {"iteration": 1200, "dataset": "val", "pictures": [picture]}
    for folder in (root / "output" / "demo").rglob("1200it/seed0"):
        (folder / "detections.json").write_text(json.dumps(found))
    theirs = root / "data" / "other_detectron2_runs" / "run"
    theirs.mkdir(parents=True)
    recorded = DATA / "demo/scratch/1200it/seed0/metrics.json"
    lines = [line for line in recorded.read_text().splitlines() if '"total_loss"' in line]
    (theirs / "metrics.json").write_text("\n".join(lines[:20]) + "\n")
    return root


@pytest.mark.parametrize("example", list(examples()))
def test_an_example_of_the_help_works(example, place, capsys):
    with contextlib.chdir(place):
        words = []
        for word in shlex.split(example.partition(">")[0]):
            word = word.replace("/data/other", "data/other")
            words += sorted(map(str, Path().glob(word))) if "*" in word else [word]
        assert main(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip()
        for flag, file in itertools.pairwise(words):
            if flag == "-o":
                assert Path(file).stat().st_size > 100


def test_examples_are_found():
    assert len(list(examples())) > 25
