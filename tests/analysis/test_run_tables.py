import pytest

from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.tables.runs import (
    differences_table,
    provenance_table,
    runs_table,
)
from scratch_vs_pretrain.errors import UserError


@pytest.fixture
def pair(folders):
    """Two seeds from scratch and one pretrained, which failed elsewhere."""
    here = {"device": "cpu", "host": "here", "versions": {"torch": "2.11"}}
    for seed in (0, 1):
        folders.run("scratch", seed, provenance=here)
    there = {**here, "host": "there"}
    folders.run("pretrained", 0, state="failed", iteration=9, reason="disk full", provenance=there)
    return folders


def test_runs_that_only_another_arm_has_are_listed(pair):
    rows = {row[:3]: row[3:] for row in runs_table(load_runs(pair.root)).rows}
    assert rows["scratch", "600it", 0][0] == "finished"
    assert rows["pretrained", "600it", 0][0] == "failed"
    assert rows["pretrained", "600it", 0][-1] == "disk full"
    assert rows["pretrained", "600it", 1] == ("no folder", None, None, None, None)
    assert len(rows) == 4


def test_a_fact_that_differs_has_all_its_values(pair):
    facts = dict(provenance_table(load_runs(pair.root)).rows)
    assert facts["torch"] == "2.11"
    assert set(facts["host"].split("; ")) == {"here", "there"}


def test_final_configs_are_compared_key_by_key(pair):
    runs = load_runs(pair.root)
    assert differences_table(runs).notes == ("Fewer than two arms have a config.yaml here.",)
    for run in runs:
        weights = "" if run.arm == "scratch" else "w.pth"
        text = f"MODEL: {{WEIGHTS: '{weights}', DEPTH: 18}}\nOUTPUT_DIR: {run.arm}\n"
        (run.folder / "config.yaml").write_text(text)
    table = differences_table(runs)
    arms = table.header[1:]
    values = {"scratch": '""', "pretrained": '"w.pth"'}
    assert table.rows == (("MODEL.WEIGHTS", *(values[arm] for arm in arms)),)


@pytest.mark.parametrize("text", ["a: [", "- a", "!!python/object:os.system {}"])
def test_a_config_that_is_none_is_named(pair, text):
    runs = load_runs(pair.root)
    for run in runs:
        (run.folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml: not"):
        differences_table(runs)
