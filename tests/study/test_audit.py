import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from scratch_vs_pretrain.config import default_config, merge_overrides
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.audit import audit, missing_data, missing_weights, recipe_problems
from scratch_vs_pretrain.study.launch import run_study
from scratch_vs_pretrain.study.resolve import PRESETS
from scratch_vs_pretrain.study.sections import Answer, Tune, paper_schedule, short_schedule
from scratch_vs_pretrain.study.spec import Arm, Study, parse_study

SHORT = short_schedule(9000)
LONG = short_schedule(18000)
TWICE = paper_schedule(2)


@pytest.fixture
def base(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(
        "MODEL:\n"
        "  BACKBONE: {NAME: build_svp_resnet_fpn_backbone, FREEZE_AT: 0}\n"
        "  RESNETS: {NORM: GN}\n"
        "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}\n"
        "VERSION: 2\n"
    )
    return file


def pair(base: Path, scratch=None, tuned=None, schedules=((SHORT,), (SHORT,)), **fields) -> Study:
    """Returns a study of two arms with these overrides."""
    arms = (
        Arm("scratch", "scratch", schedules[0], scratch or {}),
        Arm("tuned", "/weights.pth", schedules[1], tuned or {}),
    )
    return Study("pair", base.parent / "study.yaml", base, arms, **fields)


class TestAudit:
    def test_a_fair_pair_differs_in_its_weights(self, base):
        audited = audit(pair(base))
        assert audited.differing == ("MODEL.WEIGHTS",)
        assert (audited.allowed, audited.notices) == ({}, ())
        assert audited.text() == "arms differ in: MODEL.WEIGHTS"

    def test_arms_may_have_their_own_schedules(self, base):
        audited = audit(pair(base, schedules=((LONG,), (SHORT,))))
        assert audited.differing == ("MODEL.WEIGHTS", "SOLVER.MAX_ITER", "SOLVER.STEPS")

    def test_every_other_difference_is_listed(self, base):
        study = pair(base, {"SOLVER.BASE_LR": 0.01}, {"MODEL.PIXEL_STD": [57.0, 57.0, 58.0]})
        with pytest.raises(UserError) as error:
            audit(study)
        message = str(error.value)
        assert "SOLVER.BASE_LR (scratch: 0.01, tuned: 0.001)" in message
        assert "MODEL.PIXEL_STD (scratch: [1.0, 1.0, 1.0], tuned: [57.0, 57.0, 58.0])" in message
        assert "allow_differences: [MODEL.PIXEL_STD, SOLVER.BASE_LR]" in message

    def test_differences_can_be_admitted(self, base):
        study = pair(base, {"SOLVER.BASE_LR": 0.01}, allow_differences=("SOLVER.BASE_LR",))
        audited = audit(study)
        assert audited.allowed == {"SOLVER.BASE_LR": {"scratch": 0.01, "tuned": 0.001}}
        assert audited.differing == ("MODEL.WEIGHTS", "SOLVER.BASE_LR")
        assert audited.text().splitlines() == [
            "arms differ in: MODEL.WEIGHTS, SOLVER.BASE_LR",
            "allowed difference SOLVER.BASE_LR: scratch 0.01, tuned 0.001",
        ]

    def test_admitting_one_key_admits_no_other(self, base):
        study = pair(
            base,
            {"SOLVER.BASE_LR": 0.01, "SOLVER.GAMMA": 0.5},
            allow_differences=("SOLVER.BASE_LR",),
        )
        with pytest.raises(UserError, match=r"in SOLVER\.GAMMA \(scratch: 0\.5, tuned: 0\.1\)"):
            audit(study)

    def test_an_unknown_key_cannot_be_admitted(self, base):
        study = pair(base, allow_differences=("SOLVER.BASELR",))
        with pytest.raises(UserError, match=r"allow_differences: .* did you mean SOLVER\.BASE_LR"):
            audit(study)

    def test_an_unused_permission_is_noted(self, base):
        audited = audit(pair(base, allow_differences=("SOLVER.BASE_LR",)))
        assert audited.notices == (
            "allow_differences names SOLVER.BASE_LR, in which the arms do not differ",
        )
        assert "note: allow_differences names" in audited.text()

    def test_a_difference_under_any_schedule_counts(self, base):
        # A multiple of 1x is scaled at this batch size and a literal length is not: at the same
        # MAX_ITER the arms would train at different rates.
        study = pair(
            base,
            schedules=((SHORT, TWICE), (SHORT, LONG)),
            overrides={"SOLVER.IMS_PER_BATCH": 32},
        )
        with pytest.raises(UserError, match=r"SOLVER\.BASE_LR \(scratch: 0\.002, tuned: 0\.001\)"):
            audit(study)

    def test_arms_without_other_weights_are_noted(self, base):
        arms = tuple(Arm(name, "scratch", (SHORT,)) for name in "ab")
        audited = audit(Study("s", base.parent / "study.yaml", base, arms))
        assert audited.notices == ("arms a and b start from random weights",)
        assert audited.text().startswith("arms differ in: nothing")

    def test_one_arm_has_nothing_to_compare(self, base):
        study = Study("s", base.parent / "study.yaml", base, (Arm("a", "scratch", (SHORT,)),))
        assert audit(study).differing == ()

    def test_compares_three_arms(self, base):
        study = pair(base)
        third = Arm("self-supervised", "/moco.pth", (SHORT,), {"SOLVER.GAMMA": 0.5})
        three = Study("s", study.file, base, (*study.arms, third))
        with pytest.raises(UserError, match=r"scratch: 0\.1, tuned: 0\.1, self-supervised: 0\.5"):
            audit(three)

    def test_a_warm_up_longer_than_the_first_stretch_is_noted(self, base):
        audited = audit(pair(base, schedules=((short_schedule(9),),) * 2))
        assert "the rate drops after 6 iterations, before its warm-up" in audited.notices[0]

    def test_recipe_problems_name_arm_and_schedule(self, base):
        study = pair(base, overrides={"MODEL.BACKBONE.FREEZE_AT": 2})
        with pytest.raises(UserError, match=r"arm scratch, schedule 9000it: .*FREEZE_AT is 2"):
            audit(study)


class TestRecipeProblems:
    @pytest.fixture
    def cfg(self):
        cfg = default_config()
        cfg.MODEL.BACKBONE.NAME = "build_svp_resnet_fpn_backbone"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.NORM = "GN"
        return cfg

    def test_a_fit_recipe_has_none(self, cfg):
        assert recipe_problems(cfg) == []

    def test_detectron2s_default_has_two(self):
        problems = recipe_problems(default_config())
        assert [problem.split(" is ")[0] for problem in problems] == [
            "MODEL.BACKBONE.FREEZE_AT",
            "MODEL.RESNETS.NORM",
        ]

    @pytest.mark.parametrize("key", ["FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"])
    def test_finds_frozen_norms_in_every_part(self, cfg, key):
        cfg.MODEL.MASK_ON = True
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 4
        cfg.MODEL[key].NORM = "FrozenBN"
        (problem,) = recipe_problems(cfg)
        assert problem.startswith(f"MODEL.{key}.NORM is FrozenBN")
        assert "set it to GN or SyncBN" in problem

    def test_finds_batch_norm_at_small_batch(self, cfg):
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.SOLVER.IMS_PER_BATCH = 2
        assert recipe_problems(cfg) == [
            "MODEL.RESNETS.NORM is BN at 2 images per batch, fewer than 16; set it to GN or SyncBN"
        ]
        cfg.SOLVER.IMS_PER_BATCH = 32
        assert recipe_problems(cfg) == []

    def test_finds_missing_warm_up(self, cfg):
        cfg.SOLVER.WARMUP_ITERS = 0
        (problem,) = recipe_problems(cfg)
        assert "no warm-up" in problem

    def test_a_network_without_norm_is_allowed(self, cfg):
        # MODEL.RESNETS keeps its default, FrozenBN, and no part of a VGG reads it.
        cfg.MODEL.BACKBONE.NAME = "build_vgg16_backbone"
        cfg.MODEL.RESNETS.NORM = "FrozenBN"
        assert recipe_problems(cfg) == []

    @pytest.mark.parametrize(
        ("address", "wrong", "preset"),
        [
            (
                "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
                "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN .*, MODEL.PIXEL_STD .*",
                "torchvision",
            ),
            (
                "https://download.pytorch.org/models/vgg16-397923af.pth",
                "INPUT.FORMAT RGB, .*",
                "torchvision",
            ),
            (
                "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
                "MODEL.RESNETS.STRIDE_IN_1X1 True",
                "detectron2",
            ),
        ],
    )
    def test_finds_pixels_that_weights_were_not_trained_with(self, cfg, address, wrong, preset):
        merge_overrides(cfg, PRESETS["detectron2-gn"], "test")
        cfg.MODEL.WEIGHTS = address
        (problem,) = recipe_problems(cfg)
        assert re.fullmatch(f"{address} was trained with {wrong}; set preset: {preset}", problem)
        merge_overrides(cfg, PRESETS[preset], "test")
        assert recipe_problems(cfg) == []

    def test_knows_both_addresses_of_groupnorm_models(self, cfg):
        for address in ("catalog://{}", "detectron2://{}.pkl"):
            cfg.MODEL.WEIGHTS = address.format("ImageNetPretrained/FAIR/R-50-GN")
            merge_overrides(cfg, PRESETS["torchvision"], "test")
            assert recipe_problems(cfg)[0].endswith("set preset: detectron2-gn")
            merge_overrides(cfg, PRESETS["detectron2-gn"], "test")
            assert recipe_problems(cfg) == []


class TestRecipePerArm:
    """What is refused for random weights may be allowed for others."""

    FROZEN: ClassVar = {"MODEL.BACKBONE.FREEZE_AT": 2, "MODEL.RESNETS.NORM": "FrozenBN"}

    def test_the_usual_recipe_is_an_arm_when_the_study_names_its_keys(self, base):
        audited = audit(pair(base, tuned=self.FROZEN, allow_differences=tuple(self.FROZEN)))
        assert audited.allowed == {
            "MODEL.BACKBONE.FREEZE_AT": {"scratch": 0, "tuned": 2},
            "MODEL.RESNETS.NORM": {"scratch": "GN", "tuned": "FrozenBN"},
        }

    @pytest.mark.parametrize("left_out", FROZEN)
    def test_each_key_has_to_be_named(self, base, left_out):
        allowed = tuple(key for key in self.FROZEN if key != left_out)
        with pytest.raises(UserError) as error:
            audit(pair(base, tuned=self.FROZEN, allow_differences=allowed))
        message = str(error.value)
        assert f"allow_differences: [{left_out}]" in message
        assert "arm tuned" in message
        assert "usual for pre-trained weights" in message
        assert "random stages random" not in message

    def test_it_stays_a_mistake_from_scratch(self, base):
        with pytest.raises(UserError) as error:
            audit(pair(base, scratch=self.FROZEN, allow_differences=tuple(self.FROZEN)))
        assert "arm scratch, schedule 9000it: MODEL.BACKBONE.FREEZE_AT is 2" in str(error.value)
        assert "arm scratch, schedule 9000it: MODEL.RESNETS.NORM is FrozenBN" in str(error.value)
        assert "arm tuned" not in str(error.value)

    def test_heads_are_random_in_every_arm(self, base):
        keys = {"MODEL.FPN.NORM": "FrozenBN"}
        with pytest.raises(UserError, match=r"arm tuned.*MODEL\.FPN\.NORM is FrozenBN"):
            audit(pair(base, tuned=keys, allow_differences=tuple(keys)))

    def test_frozen_features(self, base):
        keys = {"SVP.FREEZE": "backbone"}
        audited = audit(pair(base, tuned=keys, allow_differences=("SVP.FREEZE",)))
        assert audited.allowed == {"SVP.FREEZE": {"scratch": "", "tuned": "backbone"}}
        with pytest.raises(UserError, match=r"admit it with allow_differences: \[SVP\.FREEZE\]"):
            audit(pair(base, tuned=keys))
        with pytest.raises(UserError, match="freeze: backbone keeps random features random"):
            audit(pair(base, keys, keys, allow_differences=("SVP.FREEZE",)))

    def test_a_whole_detector_is_initial_weights(self, base):
        audited = audit(pair(base, tuned={"SVP.LOAD": "detector"}))
        assert audited.differing == ("MODEL.WEIGHTS", "SVP.LOAD")

    @pytest.mark.parametrize(
        ("check", "keys"),
        [
            ("frozen-stages-from-scratch", {"MODEL.BACKBONE.FREEZE_AT": 2}),
            ("frozen-norm-from-scratch", {"MODEL.RESNETS.NORM": "FrozenBN"}),
            ("small-batch-norm", {"MODEL.RESNETS.NORM": "BN", "SOLVER.IMS_PER_BATCH": 8}),
            ("no-warm-up", {"SOLVER.WARMUP_ITERS": 0}),
        ],
    )
    def test_a_study_of_mistakes_names_what_it_admits(self, base, check, keys):
        # Both arms are wrong alike, or the study would have to allow the difference, too.
        allowed = ("MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM")
        with pytest.raises(UserError):
            audit(pair(base, overrides=keys, allow_differences=allowed))
        admitted = keys | {"SVP.ADMIT": [check]}
        audited = audit(pair(base, overrides=admitted, allow_differences=allowed))
        assert audited.admitted == (check,)
        assert f"wrong on purpose, admitted: {check}" in audited.text()

    def test_an_unknown_check_is_named_with_its_neighbour(self, base):
        with pytest.raises(UserError, match="no check 'no-warmup'; did you mean no-warm-up"):
            audit(pair(base, overrides={"SVP.ADMIT": ["no-warmup"]}))
        with pytest.raises(
            UserError,
            match=r"study\.yaml: admit: .* no check 'x'; known are frozen-stages-from-scratch, ",
        ):
            audit(pair(base, overrides={"SVP.ADMIT": ["x"]}))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("segm/AP", "is segm/AP, but MODEL.MASK_ON is False; choose another metric"),
        ("keypoints_TTA/AP", "is keypoints_TTA/AP, but MODEL.KEYPOINT_ON is False"),
        ("bbbox/AP", "nothing measures bbbox/AP; did you mean bbox"),
        ("foo/bar", "nothing measures foo/bar; choose another, such as bbox/AP, or name what"),
        ("bbox/AP75", ""),
    ],
)
def test_a_metric_that_no_detector_here_has_is_refused(base, metric, message):
    tune = Tune("tuned", {"SOLVER.GAMMA": (0.1, 0.2)}, metric)
    for key, fields in (("answer", {"answer": Answer(metric=metric)}), ("tune", {"tune": tune})):
        if message:
            with pytest.raises(UserError, match=f"{key}.metric: {message}"):
                audit(pair(base, **fields))
        else:
            audit(pair(base, **fields))
    mine = {"SVP.EVALUATORS": ("mine",)}
    audit(pair(base, overrides=mine, answer=Answer(metric="mine/score")))


class TestWhatIsNotThere:
    def test_names_of_data_sets(self, base):
        study = pair(base, overrides={"DATASETS.TRAIN": ["coco_2017_trian"]})
        assert missing_data(study) == [
            "no data set is called coco_2017_trian; did you mean coco_2017_train?",
        ]
        assert missing_data(pair(base)) == []

    def test_checkpoints(self, base, tmp_path):
        study = pair(base)
        (missing,) = missing_weights(study)
        assert missing.startswith("arms.tuned.init: /weights.pth: no such checkpoint; give one")
        scratch, tuned = sorted(study.arms, key=lambda arm: arm.name == "tuned")
        for init in (str(base), "catalog://x"):
            assert missing_weights(replace(study, arms=(scratch, replace(tuned, init=init)))) == []
        required = replace(study, arms=(scratch, replace(tuned, init="required")))
        with pytest.raises(UserError, match=r"tuned\.init: .* --weights tuned=PATH"):
            run_study(required, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_keys_of_own_modules_may_be_in_the_base_and_differ(tmp_path, monkeypatch, tiny_shapes):
    (tmp_path / "own_keys.py").write_text("def add_config(cfg):\n    cfg.MODEL.OWN = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    network = Path(__file__).parents[2] / "configs" / "mask_rcnn_R_50_FPN_gn.yaml"
    (tmp_path / "base.yaml").write_text(f'_BASE_: "{network}"\nMODEL: {{OWN: 4}}\n')
    data = {
        part: {
            "annotations": f"{tiny_shapes}/annotations/{part}.json",
            "images": f"{tiny_shapes}/{part}",
        }
        for part in ("train", "test")
    }
    content = {
        "name": "own",
        "base": "base.yaml",
        "imports": ["own_keys"],
        "arms": {
            "scratch": {"init": "scratch", "overrides": {"MODEL.OWN": 5}},
            "pretrained": {"init": "w.pth"},
        },
        "schedules": ["600it"],
        "data": data,
        "allow_differences": ["MODEL.OWN"],
    }
    study = parse_study(content, tmp_path / "study.yaml", {})
    assert audit(study).allowed == {"MODEL.OWN": {"scratch": 5, "pretrained": 4}}
