from pathlib import Path

import pytest

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.study.audit import audit, check_switch
from scratch_vs_pretrain.study.resolve import run_config, switched_study
from scratch_vs_pretrain.study.sections import Switch, paper_schedule, short_schedule
from scratch_vs_pretrain.study.spec import Arm, Study

CONFIGS = Path(__file__).parents[2] / "configs"
CASCADE = CONFIGS / "cascade_mask_rcnn_R_50_FPN_gn.yaml"


def study(last=270_000, config=CASCADE, schedule=None, **overrides):
    schedule = schedule or paper_schedule(6)
    return Study(
        name="tiny",
        file=Path("tiny.yaml"),
        base=CONFIGS / "mask_rcnn_R_50_FPN_gn.yaml",
        arms=(Arm("scratch", "scratch", (schedule,)),),
        overrides=overrides,
        switch=Switch(config, last),
    )


def test_switch_is_counted_from_the_end_and_scaled_with_the_schedule():
    spec = paper_schedule(6)
    switch = Switch(CASCADE, 270_000)
    assert switch.start(spec.resolve(16, 16)) == 270_000
    # Half the images in a batch: everything takes twice the iterations.
    assert switch.start(spec.resolve(8, 16)) == 540_000
    literal = short_schedule(600, "short")
    assert Switch(CASCADE, 200).start(literal.resolve(8, 16)) == 400


def test_switch_later_than_the_schedules_length_is_refused():
    check_switch(study())
    for last in (540_000, 600_000):
        with pytest.raises(UserError, match=r"tiny\.yaml: switch\.last: .* in schedule 6x of arm"):
            audit(study(last))
    with pytest.raises(UserError, match=r"switch\.last: 270,000 .* which has 600; choose fewer"):
        audit(study(schedule=short_schedule(600, "short")))


def test_switch_may_add_the_cascade_alone(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f'_BASE_: "{CASCADE}"\nMODEL:\n  FPN:\n    NORM: "SyncBN"\n')
    with pytest.raises(UserError, match=r"more than the cascade: MODEL\.FPN\.NORM; give"):
        audit(study(config=other))
    with pytest.raises(UserError, match=r"is no Cascade R-CNN; set MODEL\.ROI_HEADS\.NAME"):
        audit(study(config=CONFIGS / "mask_rcnn_R_50_FPN_gn.yaml"))


def test_runs_after_the_switch_keep_everything_else():
    plain = study(**{"INPUT.MAX_SIZE_TRAIN": 1000})
    after = switched_study(plain)
    assert after.switch is None
    cfg = run_config(after, after.runs()[0])
    assert cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.SOLVER.MAX_ITER) == (1000, 540_000)
