"""``svp run`` on real photographs, from a backbone that ``svp pretrain`` makes; ``svp budget``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, write_backbone
from scratch_vs_pretrain.run_folder import RunFolder

DATASETS = Path(__file__).parents[2].parent / "shared" / "datasets"
SVP = (sys.executable, "-m", "scratch_vs_pretrain.cli")


# CI trains both arms on photographs by the README's commands; more arms are for `pytest -m slow`.
@pytest.mark.slow
@pytest.mark.skipif(not DATASETS.is_dir(), reason=f"needs the real data sets in {DATASETS}")
def test_several_arms_train_and_evaluate_on_photographs(write_study, tiny_backbone, tmp_path):
    """A short version of configs/studies/coco_smoke.yaml, with the demo's small network and a
    second pre-trained arm."""
    colleagues = tmp_path / "colleagues.pth"
    state = read_checkpoint(tiny_backbone)
    write_backbone(colleagues, {name: tensor * 0.9 for name, tensor in state.items()}, {})
    study = write_study(
        arms={
            "scratch": {"init": "scratch"},
            "pretrained": {"init": "required"},
            "colleagues": {"init": str(colleagues)},
        },
        schedules=[{"iterations": 3, "name": "short"}],
        data=None,
        overrides={
            "DATASETS.TRAIN": ["coco_2017_train"],
            "DATASETS.TEST": ["coco_2017_val"],
            "MODEL.ROI_HEADS.NUM_CLASSES": 80,
            "INPUT.MAX_SIZE_TRAIN": 96,
            "INPUT.MAX_SIZE_TEST": 96,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        },
    )
    done = subprocess.run(
        [*SVP, "run", study, "--weights", f"pretrained={tiny_backbone}", "-o", tmp_path / "out"],
        env={**os.environ, "DETECTRON2_DATASETS": str(DATASETS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "scratch - pretrained" in done.stdout
    assert "scratch - colleagues" in done.stdout
    digests = set()
    for arm in ("scratch", "pretrained", "colleagues"):
        run = RunFolder(tmp_path / "out/tiny" / arm / "short/seed0")
        assert run.read().data.train.images == 343
        evaluation = json.loads(run.evaluation_file(3).read_text())
        assert evaluation["images"] == 206
        assert 0 <= evaluation["tasks"]["segm"]["AP"] < 100
        assert len(evaluation["tasks"]["bbox"]["per_class"]) == 80
        digests.add(run.read().init.sha256)
    assert len(digests) == 3


def test_a_folder_of_pictures_becomes_a_backbone(tmp_path, run_python):
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
    config = Path(__file__).parents[2] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml"
    options = ["--epochs", "1", "--image-size", "32", "--batch-size", "4"]
    command = ["pretrain", config, "pictures", "-o", "backbone.pth", *options]
    done = run_python("-m", "scratch_vs_pretrain.cli", *command)
    assert done.returncode == 0, done.stderr
    assert "% accurate" in done.stdout
    assert (tmp_path / "backbone.pth").is_file()


def test_the_budget_of_a_study_as_table_and_figure(write_study, tmp_path, capsys):
    study, figure = str(write_study()), tmp_path / "budget.svg"
    assert main(["budget", study, "--format", "csv", "-o", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "arm,schedule,part,images,instances,pixels,notes"
    assert lines[1].startswith("scratch,short,training,12,")
    assert lines[1].split(",")[5] == str(12 * 64 * 64)
    assert "</svg>" in figure.read_text()


def test_the_budget_of_no_study_is_one_sentence(tmp_path, capsys):
    assert main(["budget", str(tmp_path / "none.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("svp: error: ")
    assert said.count("\n") == 1


SCRATCH = {"scratch": {"init": "scratch"}}
BAD_STUDIES = {
    "a VGG with a norm": (
        {"base": "faster_rcnn_VGG_16", "overrides": {"MODEL.ROI_BOX_HEAD.NORM": "GN"}},
        'MODEL.ROI_BOX_HEAD.NORM GN; set it to ""',
    ),
    "a switch later than the schedule's length": (
        {
            "base": "mask_rcnn_R_50_FPN_gn",
            "schedules": ["2x"],
            "switch": {"config": "cascade_mask_rcnn_R_50_FPN_gn.yaml", "last": 270_000},
        },
        "switch.last: 270,000 iterations leave none before the switch in schedule 2x",
    ),
    "test augmentation of PASCAL VOC": (
        {"base": "faster_rcnn_R_101_FPN_gn_voc", "overrides": {"TEST.AUG.ENABLED": True}},
        "set TEST.AUG.ENABLED to False for voc_2012_val",
    ),
    "pixels that the weights were not trained with": (
        {
            "base": "mask_rcnn_R_50_FPN_gn",
            "arms": {
                **SCRATCH,
                "torch": {"init": "detectron2://ImageNetPretrained/torchvision/R-50.pkl"},
            },
        },
        "R-50.pkl was trained with INPUT.FORMAT RGB",
    ),
}


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_a_study_that_cannot_be_is_one_sentence_and_writes_nothing(name, tmp_path, capsys):
    fields, message = BAD_STUDIES[name]
    configs = Path(__file__).parents[2] / "configs"
    study = {"name": "bad", "arms": SCRATCH, "schedules": ["6x"], **fields}
    study["base"] = str(configs / f"{study['base']}.yaml")
    if "switch" in study:
        study["switch"] |= {"config": str(configs / study["switch"]["config"])}
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(study))
    for command in (["plan", str(file)], ["run", str(file), "-o", str(tmp_path / "out")]):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"svp: error: {file}: ")
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [file]
