"""The public functions, as docs/api.md shows them."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import scratch_vs_pretrain as svp

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "notebooks" / "data"


@pytest.fixture(scope="module")
def demo():
    return svp.load_runs(DATA / "demo")


def test_the_import_is_light_and_every_name_is_there():
    script = (
        "import sys, scratch_vs_pretrain as svp;"
        "assert not {'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules);"
        "assert all(callable(getattr(svp, name)) for name in svp.__all__);"
        "assert set(svp.__all__) <= set(dir(svp));"
        "assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        svp.trian  # noqa: B018


def test_runs_are_a_tuple_a_frame_and_a_table(demo):
    assert len(demo) == 6
    frame = demo.frame()
    assert isinstance(frame, pd.DataFrame)
    assert set(frame.arm) == {"scratch", "pretrained"}
    assert demo._repr_html_().count("<tr>") == 1 + 6
    assert len(list(svp.load_runs(DATA / "demo", DATA / "demo_regimes").studies())) == 5


def test_table_and_figure_and_answer(demo):
    assert "47.7 ± 2.6" in svp.table(demo)._repr_html_()
    drawn = svp.figure(demo, "ap", metrics=["bbox/AP"])
    assert isinstance(drawn, Figure)
    png, metadata = drawn._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert metadata["width"] > 300
    assert "Does pre-training help?" in svp.answer(demo).text()
    assert len(svp.conclude(demo)) == 6


def test_a_table_is_of_one_study():
    several = svp.load_runs(DATA / "demo_regimes")
    with pytest.raises(svp.UserError, match=r"4 studies, and a table of kind gaps is of one"):
        svp.table(several, "gaps")
    assert len(svp.table(several, "less-data").rows) == 4


def test_what_is_no_study_is_said_to_be_none(demo):
    for function in (svp.answer, svp.table, svp.figure):
        with pytest.raises(svp.UserError, match=r"none|0 studies|no runs"):
            function([])
    with pytest.raises(svp.UserError, match="one study is expected, these are less-shapes-3000, "):
        svp.answer(svp.load_runs(DATA / "demo_regimes")[::-1])
    with pytest.raises(svp.UserError, match="labels: give a text for each study"):
        svp.figure(demo, "bars", labels=["x"])


def test_a_study_is_planned():
    study = svp.load_study(REPOSITORY / "configs/studies/paper/baseline_r50_gn.yaml")
    assert "scratch" in svp.plan(study).text()


def test_detectron2_gets_keys_and_data_sets(tiny_shapes):
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import BACKBONE_REGISTRY

    cfg = get_cfg()
    svp.add_svp_config(cfg)
    files = [str(tiny_shapes / "annotations/test.json"), str(tiny_shapes / "test")]
    cfg.SVP.DATASETS = [["api_test", *files]]
    svp.register_all(cfg)
    assert len(DatasetCatalog.get("api_test")) == 4
    assert "build_vgg_fpn_backbone" in BACKBONE_REGISTRY or len(list(BACKBONE_REGISTRY)) > 5


def whole_study():
    text = (REPOSITORY / "docs/api.md").read_text()
    return re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


def test_a_whole_study_in_15_lines(write_study, tiny_backbone, tmp_path, monkeypatch, quick_starts):
    arms = {"scratch": {"init": "scratch"}, "pretrained": {"init": "required"}}
    file = write_study("my_study.yaml", arms=arms)
    (tmp_path / "backbone.pth").write_bytes(tiny_backbone.read_bytes())
    monkeypatch.chdir(tmp_path)
    code = whole_study()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert file.parent == tmp_path
    exec(compile(code, "docs/api.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "output/tiny/scratch/short/seed0/run.json").exists()
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "curves.pdf").exists()
