import json

import pytest

from scratch_vs_pretrain.cli.setup import study_sets
from scratch_vs_pretrain.errors import UserError

STUDY = "name: own\nbase: base.yaml\narms: {scratch: {init: scratch}}\nschedules: [2x]\n"


def test_own_files_are_taken_even_if_they_cannot_be_trained_on(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    (tmp_path / "broken.json").write_text(json.dumps({"images": 5}))
    files = "{annotations: broken.json, images: .}"
    (tmp_path / "study.yaml").write_text(STUDY + f"data: {{train: {files}, test: {files}}}")
    found = study_sets(tmp_path / "study.yaml")
    assert [(one.name, one.annotations, one.images) for one in found] == [
        (part, tmp_path / "broken.json", tmp_path) for part in ("train", "test")
    ]


def test_registered_sets_are_looked_up(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\n")
    overrides = "overrides: {DATASETS.TRAIN: [coco_2017_trian], DATASETS.TEST: [coco_2017_val]}"
    (tmp_path / "study.yaml").write_text(STUDY + overrides)
    with pytest.raises(UserError, match="did you mean coco_2017_train"):
        study_sets(tmp_path / "study.yaml")
