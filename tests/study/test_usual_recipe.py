"""The paper's comparison with what people run: scratch, pretrained, pretrained and frozen."""

import json

import torch

from scratch_vs_pretrain.analysis.registry import tables_text
from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.modeling.backbone import build_bottom_up
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, write_backbone
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.spec import load_study
from scratch_vs_pretrain.training import __main__ as worker
from scratch_vs_pretrain.training.checkpoint import load_newest

RECIPE = {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.BACKBONE.FREEZE_AT": 2}


def test_three_arms_stand_in_one_table_that_says_what_is_frozen(
    write_study, tiny_backbone, tmp_path
):
    study_file = write_study(
        arms={
            "scratch": {"init": "scratch"},
            "pretrained": {"init": str(tiny_backbone)},
            "usual": {"init": str(tmp_path / "bn.pth"), "overrides": RECIPE},
        },
        allow_differences=list(RECIPE),
        schedules=[{"iterations": 2, "name": "short"}],
    )
    cfg = load_config(load_study(study_file).base).clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "BN"
    write_backbone(tmp_path / "bn.pth", build_bottom_up(cfg).state_dict(), {})
    folders = prepare(load_study(study_file), tmp_path / "out")
    assert [worker.main([str(folder.path)]) for folder in folders] == [worker.FINISHED] * 3

    runs = {folder.read().arm: folder for folder in folders}
    assert {arm: set(folder.read().norms) for arm, folder in runs.items()} == {
        "scratch": {"GN"},
        "pretrained": {"GN"},
        "usual": {"FrozenBN", "GN"},
    }
    before = read_checkpoint(tmp_path / "bn.pth")
    before = {name: tensor for name, tensor in before.items() if "num_batches" not in name}
    after = load_newest(runs["usual"])["model"]
    names = {name: after[f"backbone.bottom_up.{name}"] for name in before}
    still = {name for name, tensor in names.items() if torch.equal(before[name], tensor)}
    assert {name for name in before if name.startswith(("stem", "res2"))} <= still
    assert {n for n in before if "norm" not in n and not n.startswith(("stem", "res2"))}.isdisjoint(
        still
    )
    text = " ".join(tables_text(tmp_path / "out", "schedules", "text").split())
    for arm in runs:
        assert f"{arm} short" in text
    assert "scratch - usual" in text
    for key, value in RECIPE.items():
        assert key in text
        assert f"usual {json.dumps(value)}" in text
