import json
from dataclasses import replace

import pytest

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study import data_sets
from scratch_vs_pretrain.study.plan import (
    check_evaluations,
    plan,
    study_budgets,
    training_images,
)
from scratch_vs_pretrain.study.sections import (
    Data,
    DataFiles,
    Evaluation,
    Tune,
    paper_schedule,
    short_schedule,
)
from scratch_vs_pretrain.study.spec import Arm, Study

TWICE = paper_schedule(2)
SHORT = short_schedule(600, "short")


@pytest.fixture
def base(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(
        "MODEL: {BACKBONE: {FREEZE_AT: 0}, RESNETS: {NORM: GN}}\n"
        "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}\n"
        "SOLVER: {BASE_LR: 0.02, WARMUP_ITERS: 100}\n"
        "VERSION: 2\n"
    )
    return file


def pair(base, schedules, **fields):
    arms = (Arm("scratch", "scratch", schedules), Arm("pretrained", "/w.pth", schedules))
    return Study("pair", base.parent / "study.yaml", base, arms, **fields)


def test_rows_hold_length_rate_drops_images_and_epochs(base):
    planned = plan(pair(base, (TWICE,)))
    assert [(row.arm, row.schedule, row.seed) for row in planned.rows] == [
        ("scratch", "2x", 0),
        ("pretrained", "2x", 0),
    ]
    row = planned.rows[0]
    assert (row.iterations, row.drops, row.base_rate) == (180_000, (120_000, 160_000), 0.02)
    assert row.images == 2_880_000
    assert row.epochs == pytest.approx(24.3, abs=0.05)


def test_text_is_a_table_and_the_audit(base):
    study = pair(base, (TWICE, SHORT))
    text = plan(replace(study, sharing=False)).text()
    assert text.splitlines() == [
        "arm         schedule      iterations  rate drops at       images    epochs",
        "scratch     2x               180,000  120,000 160,000  2,880,000      24.3",
        "scratch     short                600  400 533              9,600       0.1",
        "pretrained  2x               180,000  120,000 160,000  2,880,000      24.3",
        "pretrained  short                600  400 533              9,600       0.1",
        "4 runs, 361,200 iterations",
        "arms differ in: MODEL.WEIGHTS",
    ]


def test_text_shows_what_is_shared(base):
    text = plan(pair(base, (TWICE, SHORT))).text()
    shown = [" ".join(line.split()) for line in text.splitlines()]
    assert shown[:3] == [
        "arm schedule iterations rate drops at shares trunk to images epochs",
        "scratch 2x 180,000 120,000 160,000 - 2,880,000 24.3",
        "scratch short 600 400 533 400 9,600 0.1",
    ]
    assert shown[5:8] == [
        "scratch: 180,200 iterations instead of 180,600 (0.998x)",
        "pretrained: 180,200 iterations instead of 180,600 (0.998x)",
        "4 runs, 360,400 iterations",
    ]


def test_the_papers_schedules_cost_less_than_half(base):
    schedules = tuple(paper_schedule(n) for n in (2, 3, 4, 5, 6))
    planned = plan(pair(base, schedules))
    assert [row.shared for row in planned.rows[:5]] == [120_000, 210_000, 300_000, 390_000, 0]
    assert "scratch: 780,000 iterations instead of 1,800,000 (0.433x)" in planned.text()


def test_runs_that_differ_by_seed_alone_are_one_row(base):
    heading, scratch, pretrained, runs, _ = (
        plan(pair(base, (SHORT,), seeds=(0, 12))).text().splitlines()
    )
    assert heading.split()[2] == "seeds"
    assert scratch.split()[:4] == ["scratch", "short", "0", "12"]
    assert pretrained.split()[:4] == ["pretrained", "short", "0", "12"]
    assert runs == "4 runs, 2,400 iterations"
    assert "seeds" not in plan(pair(base, (SHORT,))).text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("INPUT.MIN_SIZE_TRAIN", sides) for sides in (["a", "a"], ["0it"], [], [-5], [[64]])),
        *(("SOLVER.IMS_PER_BATCH", images) for images in (10**30, 0, -1)),
        *(("SVP.EVALUATORS", names) for names in ([5], [None], [["a"]])),
        *(("SOLVER.BASE_LR", rate) for rate in (0, -0.1, float("inf"))),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0),
        ("MODEL.RETINANET.NUM_CLASSES", -1),
        ("TEST.EVAL_PERIOD", -1),
        ("SOLVER.CHECKPOINT_PERIOD", -5),
        ("SVP.LOG_PERIOD", -20),
        ("SVP.KEEP_CHECKPOINTS", 0),
        ("SVP.MAX_DROPPED", 1.5),
        ("INPUT.MAX_SIZE_TRAIN", 0),
        ("DATALOADER.NUM_WORKERS", -1),
        ("SOLVER.WEIGHT_DECAY", -0.1),
        ("SVP.ADMIT", [5]),
        ("INPUT.FORMAT", "XYZ"),
        ("DATALOADER.SAMPLER_TRAIN", "x"),
        ("MODEL.DEVICE", "banana"),
        ("SOLVER.AMP.ENABLED", True),
        *(("SOLVER.GAMMA", factor) for factor in (0, -1, 1.5, float("inf"))),
        *(("SOLVER.WARMUP_FACTOR", factor) for factor in (-0.1, 1.5)),
        *(("SOLVER.MOMENTUM", factor) for factor in (-1, 1, 1.5)),
        ("SOLVER.WEIGHT_DECAY_NORM", -1),
        ("SOLVER.BIAS_LR_FACTOR", -1),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        ("SOLVER.WARMUP_METHOD", "constant"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 8),
        ("TEST.PRECISE_BN.ENABLED", True),
        ("TEST.EXPECTED_RESULTS", [["bbox", "AP", 38.5, 0.2]]),
        ("CUDNN_BENCHMARK", True),
        ("SVP.VGG.WIDTH", 0),
        ("SVP.LOAD", "neck"),
        ("SVP.FREEZE", "neck"),
        ("SVP.NORM_WEIGHTS", "some"),
        ("SVP.TIMM.NORM", "XN"),
    ],
)
def test_a_value_that_is_none_is_told_by_file_and_key(base, key, value):
    study = pair(base, (SHORT,), overrides={key: value})
    for told in (plan, study_budgets):
        with pytest.raises(UserError, match=rf"study\.yaml: {key} is .*; .*(set|write|must be)"):
            told(study)


def test_a_rate_that_is_no_number_in_the_base_is_refused_too(tmp_path, base):
    config = tmp_path / "nan.yaml"
    config.write_text(f'_BASE_: "{base}"\nSOLVER: {{BASE_LR: .nan}}\n')
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR is nan; it must be above 0"):
        plan(pair(config, (SHORT,)))


def test_what_is_ignored_is_refused_in_the_base_too(tmp_path, base):
    config = tmp_path / "cosine.yaml"
    config.write_text(f'_BASE_: "{base}"\nSOLVER: {{LR_SCHEDULER_NAME: WarmupCosineLR}}\n')
    told = r"'WarmupCosineLR'; rates drop as `schedules` say; set it to 'WarmupMultiStepLR'"
    with pytest.raises(UserError, match=told):
        plan(pair(config, (SHORT,)))


def test_an_evaluation_that_no_run_reaches_is_refused(base):
    evaluation = Evaluation(at=(100, 601))
    with pytest.raises(UserError, match=r"evaluation\.at: no run has 601 iterations, the long"):
        check_evaluations(pair(base, (SHORT,), evaluation=evaluation))
    check_evaluations(pair(base, (SHORT, short_schedule(601)), evaluation=evaluation))


def test_images_of_any_usual_kind_are_planned(base):
    values = {"INPUT.MIN_SIZE_TRAIN": [0, 64.5], "INPUT.FORMAT": "L", "SOLVER.IMS_PER_BATCH": 1}
    assert plan(pair(base, (SHORT,), overrides=values)).rows[0].images == 600


def test_a_key_of_the_search_is_told_by_its_place(base):
    study = pair(base, (SHORT,), tune=Tune("scratch", {"NOPE": (1,)}))
    with pytest.raises(UserError, match=r"study\.yaml: tune\.grid: unknown config key NOPE"):
        plan(study)


def test_unknown_epochs_are_a_dash(base):
    overrides = {"DATASETS.TRAIN": ["somebodys_data"]}
    text = plan(pair(base, (SHORT,), overrides=overrides)).text()
    assert text.splitlines()[1].endswith("-")


class TestTrainingImages:
    @pytest.fixture
    def cfg(self):
        return default_config()

    def annotations(self, file, images):
        image = {"file_name": "a.jpg", "height": 4, "width": 4}
        content = {
            "images": [{"id": number, **image} for number in range(images)],
            "categories": [{"id": 1, "name": "c"}],
            "annotations": [
                {"id": 1 + n, "image_id": n, "category_id": 1, "bbox": [0, 0, 2, 2]}
                for n in range(images)
            ],
        }
        file.write_text(json.dumps(content))
        return file

    def test_are_counted_in_the_studys_own_files(self, base):
        files = DataFiles(self.annotations(base.parent / "a.json", 48), base.parent)
        planned = plan(pair(base, (SHORT,), data=Data((files,), files)))
        assert planned.rows[0].epochs == pytest.approx(600 * 16 / 48)

    def test_of_official_sets_are_known_without_their_files(self, cfg, monkeypatch):
        monkeypatch.setattr(data_sets, "registered", lambda name: None)
        cfg.DATASETS.TRAIN = ("voc_2007_trainval", "voc_2012_train")
        assert training_images(cfg) == 5_011 + 5_717

    def test_of_a_part_under_an_official_name_are_counted(self, cfg, tmp_path, monkeypatch):
        file = self.annotations(tmp_path / "a.json", 7)
        monkeypatch.setattr(data_sets, "registered", lambda name: {"json_file": str(file)})
        cfg.DATASETS.TRAIN = ("coco_2017_train",)
        assert training_images(cfg) == 7
        monkeypatch.setattr(data_sets, "OFFICIAL_BYTES", file.stat().st_size)
        assert training_images(cfg) == 118_287

    def test_of_registered_names_are_looked_up(self, cfg, tmp_path):
        from detectron2.data import DatasetCatalog, MetadataCatalog

        cfg.DATASETS.TRAIN = ("svp_test_plan",)
        DatasetCatalog.register("svp_test_plan", list)
        try:
            assert training_images(cfg) is None
            file = self.annotations(tmp_path / "a.json", 5)
            MetadataCatalog.get("svp_test_plan").json_file = str(file)
            assert training_images(cfg) == 5
        finally:
            DatasetCatalog.remove("svp_test_plan")
            MetadataCatalog.remove("svp_test_plan")

    def test_are_unknown_if_one_of_several_is(self, cfg):
        cfg.DATASETS.TRAIN = ("voc_2012_train", "somebodys_data")
        assert training_images(cfg) is None


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("coco_2017_train_1k", 9.6),
        ("coco_2017_train_10pct_s2", 0.81),
        ("coco_35k", 0.27),
        ("coco_35k_10k", 0.96),
    ],
)
def test_epochs_of_subsets(base, name, epochs):
    study = pair(base, (SHORT,), overrides={"DATASETS.TRAIN": [name]})
    assert plan(study).rows[0].epochs == pytest.approx(epochs, abs=0.01)
