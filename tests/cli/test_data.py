"""The commands about data, as a user calls them."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from scratch_vs_pretrain.cli import main

START = "from scratch_vs_pretrain.cli import main; exit(main())"


@pytest.fixture
def svp(tmp_path, run_code):
    """Runs `svp` in a process of its own, where COCO's val2017 is a small file."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(30)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
            for i in range(30)
        ],
        "categories": [{"id": 1, "name": "disc"}],
    }
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))

    return lambda *arguments: run_code(START, *arguments)


def test_subset_is_listed_and_exported_by_name_alone(svp, tmp_path):
    done = svp("subset", "coco_2017_val_5_s1", "--list", "--export", "five.json")
    assert done.returncode == 0, done.stderr
    file, *ids = done.stdout.splitlines()
    assert file == "five.json"
    content = json.loads((tmp_path / "five.json").read_text())
    assert [str(image["id"]) for image in content["images"]] == ids
    assert len(set(ids)) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco_2017_val_0", "size 0"),
        ("coco_2017_val_-3", "-3 is no size of a subset"),
        ("coco_2017_val_10kk", "10kk is no size of a subset"),
        ("coco_2017_val_200pct", "more than the whole"),
        ("nothing_10k", "nothing, which is not registered"),
        ("coco_2017_vall", "did you mean coco_2017_val"),
        ("voc_2007_trainval_10", "not in COCO format"),
    ],
)
def test_bad_names_are_a_sentence_and_exit_2(capsys, name, message):
    assert main(["subset", name]) == 2
    assert message in capsys.readouterr().err


def test_check_data_exits_1_where_training_would_break(svp, tmp_path):
    done = svp("check-data", "coco_2017_val", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["trust"] == "no: coco_2017_val: missing image (30)"
    finding = report["findings"][0]
    assert (finding["kind"], finding["count"]) == ("missing image", 30)


def test_check_data_of_the_annotations_alone(svp):
    done = svp("check-data", "coco_2017_val", "--no-images")
    assert done.returncode == 0, done.stderr
    assert "no image was opened" in done.stdout


def test_check_data_of_a_studys_own_files(svp, tmp_path):
    annotations = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    for number in range(30):
        Image.new("RGB", (16, 12), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    (tmp_path / "study.yaml").write_text(
        "{name: own, base: base.yaml, arms: {scratch: {init: scratch}}, schedules: [2x],\n"
        f"data: {{train: {{annotations: {annotations}, images: .}},\n"
        f"  test: {{annotations: {annotations}, images: .}}}}}}"
    )
    done = svp("check-data", "study.yaml")
    assert done.returncode == 0, done.stderr
    assert "train: 30 images, test: 30 images" in done.stdout
    assert "same image in several data sets" in done.stdout


def test_check_data_of_nothing(capsys):
    assert main(["check-data", "coco_2017_vall"]) == 2
    assert "did you mean coco_2017_val" in capsys.readouterr().err


def test_subset_of_a_studys_own_data(svp, tmp_path):
    annotations = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    (tmp_path / "study.yaml").write_text(
        "{name: own, base: base.yaml, arms: {scratch: {init: scratch}}, schedules: [2x],\n"
        f"data: {{train: {{annotations: {annotations}, images: .}},\n"
        f"  test: {{annotations: {annotations}, images: .}}}}}}"
    )
    done = svp("subset", "train_5", "--study", "study.yaml", "--list")
    assert done.returncode == 0, done.stderr
    built_in = svp("subset", "coco_2017_val_5", "--list")
    assert done.stdout == built_in.stdout
    assert "images                   30" in svp("subset", "test", "--study", "study.yaml").stdout


def test_subset_parses_a_file_once_and_needs_no_torch(svp, tmp_path):
    code = (
        "import sys\n"
        "from scratch_vs_pretrain.data import coco\n"
        "parsed, parse = [], coco.parse\n"
        "coco.parse = lambda path, data: parsed.append(path) or parse(path, data)\n"
        "from scratch_vs_pretrain.cli import main\n"
        "assert main(['subset', 'coco_2017_val', '--list', '--export', 'all.json']) == 0\n"
        "assert len(parsed) == 1, parsed\n"
        "assert main(['subset', 'coco_2017_val_7']) == 0\n"
        "del parsed[:]\n"
        "assert main(['subset', 'coco_2017_val_7', '--list']) == 0\n"
        "assert len(parsed) == 1, parsed\n"
        "assert not {'torch', 'detectron2.data'} & sys.modules.keys()\n"
    )
    told = {"DETECTRON2_DATASETS": str(tmp_path), "SVP_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **told}, check=True)
