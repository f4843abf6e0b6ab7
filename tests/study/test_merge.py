import json
from pathlib import Path

import pytest

from scratch_vs_pretrain.config import config_text, differences, flatten, load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.resolve import arm_config, run_config
from scratch_vs_pretrain.study.sections import (
    Data,
    DataFiles,
    Evaluation,
    paper_schedule,
    short_schedule,
)
from scratch_vs_pretrain.study.spec import Arm, Study

SHORT = short_schedule(90, "short")
TWICE = paper_schedule(2)


@pytest.fixture
def base(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(
        "MODEL: {BACKBONE: {FREEZE_AT: 0}, RESNETS: {NORM: GN}}\n"
        "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}\n"
        "SOLVER: {BASE_LR: 0.02, MAX_ITER: 5, STEPS: [3]}\n"
        "VERSION: 2\n"
    )
    return file


def study_of(base: Path, *arms: Arm, **fields) -> Study:
    arms = arms or (Arm("scratch", "scratch", (SHORT,)), Arm("tuned", "/w.pth", (SHORT,)))
    return Study("tiny", base.parent / "study.yaml", base, arms, **fields)


def coco(file: Path, categories: int = 2) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "categories": [{"id": number, "name": f"c{number}"} for number in range(categories)],
        "annotations": [],
    }
    file.write_text(json.dumps(content))
    return file


def configs_of(study: Study):
    return [run_config(study, run) for run in study.runs()]


class TestRunConfig:
    def test_owns_weights_schedule_seed_and_folder(self, base):
        scratch, tuned = configs_of(study_of(base, seeds=(7,)))
        assert (scratch.MODEL.WEIGHTS, tuned.MODEL.WEIGHTS) == ("", "/w.pth")
        assert (scratch.SOLVER.MAX_ITER, scratch.SOLVER.STEPS) == (90, (60, 80))
        assert (scratch.SEED, scratch.OUTPUT_DIR) == (7, "")
        assert scratch.is_frozen()
        assert list(differences({"a": scratch, "b": tuned})) == ["MODEL.WEIGHTS"]

    def test_later_layers_win(self, base):
        arm = Arm("a", "scratch", (SHORT,), {"SOLVER.MOMENTUM": 0.5, "INPUT.FORMAT": "L"})
        (cfg,) = configs_of(
            study_of(
                base,
                arm,
                preset="torchvision",
                overrides={"SOLVER.MOMENTUM": 0.7, "SOLVER.NESTEROV": True, "INPUT.FORMAT": "BGR"},
            )
        )
        assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV, cfg.INPUT.FORMAT) == (0.5, True, "L")
        assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
        assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False

    def test_evaluation_is_written(self, base):
        (cfg, _) = configs_of(study_of(base, evaluation=Evaluation(0, (5, 9))))
        assert cfg.TEST.EVAL_PERIOD == 0
        assert cfg.SVP.EVAL_ITERATIONS == (5, 9)

    def test_a_multiple_is_scaled_by_the_studys_batch_size(self, base):
        arm = Arm("a", "scratch", (TWICE,), {"SOLVER.IMS_PER_BATCH": 32})
        (cfg,) = configs_of(study_of(base, arm))
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90_000, (60_000, 80_000))
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS) == (0.04, 500)

    def test_own_data_sets_names_and_classes(self, base, tmp_path):
        train = DataFiles(coco(tmp_path / "train.json"), tmp_path)
        test = DataFiles(coco(tmp_path / "test.json"), tmp_path)
        (cfg, _) = configs_of(study_of(base, data=Data((train,), test)))
        assert cfg.DATASETS.TRAIN == ("tiny_train",)
        assert cfg.DATASETS.TEST == ("tiny_test",)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
        assert [list(triple) for triple in cfg.SVP.DATASETS] == [
            ["tiny_train", str(train.annotations), str(tmp_path)],
            ["tiny_test", str(test.annotations), str(tmp_path)],
        ]

    def test_own_data_must_agree_on_categories(self, base, tmp_path):
        train = DataFiles(coco(tmp_path / "train.json"), tmp_path)
        test = DataFiles(coco(tmp_path / "test.json", categories=3), tmp_path)
        with pytest.raises(UserError, match=r"test\.json has other categories .* \(3 and 2\)"):
            configs_of(study_of(base, data=Data((train,), test)))

    def test_own_data_must_have_categories(self, base, tmp_path):
        files = DataFiles(coco(tmp_path / "train.json", categories=0), tmp_path)
        with pytest.raises(UserError, match=r"train\.json: lists no categories"):
            configs_of(study_of(base, data=Data((files,), files)))

    def test_is_the_same_text_every_time_and_reads_back(self, base, tmp_path):
        files = DataFiles(coco(tmp_path / "train.json"), tmp_path)
        study = study_of(base, data=Data((files,), files), overrides={"SOLVER.BASE_LR": 1e-05})
        cfg = configs_of(study)[0]
        assert config_text(cfg) == config_text(configs_of(study)[0])
        (tmp_path / "config.yaml").write_text(config_text(cfg))
        again = load_config(tmp_path / "config.yaml")
        assert differences({"written": cfg, "read": again}) == {}
        assert config_text(again) == config_text(cfg)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"overrides": {"TEST.EVAL_PERIODS": 1}}, r"overrides: .* did you mean TEST\.EVAL_PER"),
            ({"overrides": {"DATASETS.TRAIN": []}}, r"DATASETS\.TRAIN names no data set"),
            ({"overrides": {"DATASETS.TEST": [5]}}, r"DATASETS\.TEST names no data set"),
            ({"overrides": {"DATASETS.TRAIN": ["coco_2017_train_10kk"]}}, "10kk is no size"),
            ({"overrides": {"DATASETS.TRAIN": ["nothing_1k"]}}, "nothing, which is not registered"),
            ({"overrides": {"DATASETS.TEST": ["coco_2017_val_1k"]}}, "evaluate on the full set"),
            ({"overrides": {"SOLVER.IMS_PER_BATCH": 0}}, "at least 1"),
        ],
    )
    def test_says_what_is_wrong(self, base, fields, message):
        with pytest.raises(UserError, match=message):
            configs_of(study_of(base, **fields))

    def test_names_the_arm_of_an_unknown_key(self, base):
        arm = Arm("odd", "scratch", (SHORT,), {"SOLVER.MOMENTUMM": 0.5})
        with pytest.raises(UserError, match=r"arms\.odd\.overrides: .*mean SOLVER\.MOMENTUM\?"):
            configs_of(study_of(base, arm))

    def test_needs_data_sets(self, tmp_path):
        empty = tmp_path / "empty.yaml"
        empty.write_text("VERSION: 2\n")
        with pytest.raises(UserError, match=r"DATASETS\.TRAIN names no data set"):
            configs_of(study_of(empty))


def test_arm_config_is_the_run_config_without_its_seed(base):
    study = study_of(base, seeds=(3,))
    shared = arm_config(study, study.arms[1], SHORT)
    assert shared is arm_config(study, study.arms[1], SHORT)
    run = run_config(study, study.runs()[1])
    assert differences({"arm": shared, "run": run}) == {"SEED": {"arm": -1, "run": 3}}
    assert flatten(shared)["MODEL.WEIGHTS"] == "/w.pth"
