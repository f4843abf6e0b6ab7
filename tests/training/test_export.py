"""Exported runs are read by Detectron2 in a process that knows nothing of this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import config_text
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.training.trained import export

# It begins with what Detectron2 v0.6 needs on today's Pillow and NumPy, where it was not compiled.
UPSTREAM = """
import json, sys, types
import numpy as np
from PIL import Image
Image.LINEAR = Image.BILINEAR
for name in ("bool", "float", "int", "object", "str"):
    setattr(np, name, np.__dict__.get(name, getattr(__import__("builtins"), name)))
sys.modules.setdefault("detectron2._C", types.ModuleType("detectron2._C"))
from detectron2.config import get_cfg
cfg = get_cfg()
{before}
cfg.merge_from_file(sys.argv[1])
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
from detectron2.engine import DefaultPredictor
predictor = DefaultPredictor(cfg)
image = np.asarray(Image.open(sys.argv[2]))[:, :, ::-1]
found = predictor(image)["instances"]
assert ("scratch_vs_pretrain.config" in sys.modules) == {needs_us}
print(json.dumps([found.scores.tolist(), found.pred_boxes.tensor.tolist()]))
"""


WIDE = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "SVP.RESNETS.ALLOW_NARROW": False,
}


@pytest.fixture
def trained(shapes, tmp_path, config_of, make_run):
    """Writes a run whose checkpoint holds random weights; returns it and its model."""

    def make(base, **overrides):
        cfg = config_of(base, shapes, overrides)
        folder = make_run(tmp_path / "run", cfg)
        torch.manual_seed(3)
        model = build_model(cfg)
        folder.checkpoints.mkdir()
        content = {"format": 1, "iteration": 3, "model": model.state_dict()}
        torch.save(content, folder.checkpoints / "0000003.pth")
        return folder, model.eval()

    return make


def predictions(config, picture, run, header=()):
    """Scores and boxes that upstream's DefaultPredictor finds in a process of its own."""
    code = UPSTREAM.format(before="\n".join(header), needs_us=bool(header))
    done = run(code, str(config), str(picture))
    assert done.returncode == 0, done.stderr
    return [torch.tensor(values) for values in json.loads(done.stdout.splitlines()[-1])]


def expected(model, picture):
    image = np.asarray(Image.open(picture))[:, :, ::-1].transpose(2, 0, 1).copy()
    with torch.no_grad():
        found = model([{"image": torch.from_numpy(image), "height": 64, "width": 64}])
    return [found[0]["instances"].scores, found[0]["instances"].pred_boxes.tensor]


def with_nothing_imported(*arguments):
    return subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True)


def test_detectron2_alone_finds_the_same(trained, shapes, tmp_path, capsys):
    folder, model = trained("mask_rcnn_R_50_FPN_gn", **WIDE)
    target = tmp_path / "out" / "model_final.pth"
    assert main(["export", str(folder.path), "-o", str(target)]) == 0
    config = target.with_suffix(".yaml")
    said = capsys.readouterr().out
    assert str(target) in said
    assert str(config) in said
    assert "SVP" not in config.read_text()
    assert "build_resnet_fpn_backbone" in config.read_text()
    assert set(torch.load(target, weights_only=True)) == {"model"}
    picture = sorted(Path(shapes[1][2]).iterdir())[0]
    alone = predictions(config, picture, with_nothing_imported)
    for found, wanted in zip(alone, expected(model, picture), strict=True):
        assert len(found)
        torch.testing.assert_close(found, wanted)


def test_a_network_of_this_package_says_what_to_import(trained, shapes, tmp_path, run_code):
    folder, model = trained("faster_rcnn_VGG_16")
    _, modules = export(folder.path, tmp_path / "vgg.pth")
    assert modules == ("scratch_vs_pretrain.modeling",)
    config = tmp_path / "vgg.yaml"
    lines = config.read_text().splitlines()
    header = [line.removeprefix("#").strip() for line in lines if line.startswith("#   ")]
    assert header[0] == "import scratch_vs_pretrain.modeling"
    picture = sorted(Path(shapes[1][2]).iterdir())[0]
    found = predictions(config, picture, run_code, header)
    for one, wanted in zip(found, expected(model, picture), strict=True):
        torch.testing.assert_close(one, wanted)


def test_what_no_export_wrote_is_not_replaced(trained, tmp_path):
    folder, _ = trained("mask_rcnn_R_50_FPN_gn", **WIDE)
    (checkpoint,) = folder.checkpoints.iterdir()
    (tmp_path / "link").symlink_to(folder.checkpoints)
    before = folder.config_file.read_text(), checkpoint.read_bytes()
    for target in (checkpoint, folder.path / "config.pth", tmp_path / "link" / "new.pth"):
        with pytest.raises(UserError, match=f"{target}: lies in the run folder {folder.path};"):
            export(folder.path, target)
    assert before == (folder.config_file.read_text(), checkpoint.read_bytes())
    study, config, weights = (tmp_path / name for name in ("a.yaml", "b.yaml", "c.pth"))
    study.write_text("name: a")
    config.write_text(f"MODEL: {{WEIGHTS: {tmp_path / 'other.pth'}}}")
    weights.write_text("mine")
    for there in (study, config, weights):
        before = there.read_text()
        with pytest.raises(UserError, match=f"{there}: is there, and svp export did not write it"):
            export(folder.path, there.with_suffix(".pth"))
        assert there.read_text() == before
    assert not (tmp_path / "a.pth").exists()
    for _ in range(2):  # An earlier export is replaced.
        export(folder.path, tmp_path / "new.pth")


def test_what_cannot_be_exported_is_a_sentence(trained, shapes, tmp_path, config_of, make_run):
    folder, _ = trained("mask_rcnn_R_50_FPN_gn", **WIDE)
    with pytest.raises(UserError, match=r"model.pkl: a checkpoint's name ends in .pth"):
        export(folder.path, tmp_path / "model.pkl")
    cfg = config_of("mask_rcnn_R_50_FPN_gn", shapes, WIDE | {"MODEL.FPN.OUT_CHANNELS": 64})
    folder.config_file.write_text(config_text(cfg))
    with pytest.raises(UserError, match="is not of the model that"):
        export(folder.path, tmp_path / "model.pth")
    text = folder.config_file.read_text()
    folder.config_file.write_text(text.replace(cfg.MODEL.META_ARCHITECTURE, "NoSuchModel"))
    with pytest.raises(UserError, match=r"config.yaml: its model cannot be built .*NoSuchModel"):
        export(folder.path, tmp_path / "model.pth")
    for file in folder.checkpoints.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no readable checkpoint; train the run first"):
        export(folder.path, tmp_path / "model.pth")
    assert not (tmp_path / "model.pth").exists()
