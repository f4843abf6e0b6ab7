"""What `svp plan` says of checkpoints and names before anything imports torch."""

import io
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import backbone  # noqa: F401  registers ours
from scratch_vs_pretrain.study.audit import PARTS, look_at, unfit
from scratch_vs_pretrain.study.plan import plan
from scratch_vs_pretrain.study.spec import load_study

STATE = {"layer1.0.bn1.running_mean": torch.zeros(3), "conv1.weight": torch.ones(2, 3)}
WITHOUT = {"conv1.weight": torch.ones(20, 3)}


def write_archive(state, path):
    torch.save({"model": state}, path)


def write_old_torch(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_pickle(state, path):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps(arrays, protocol=2))


@pytest.mark.parametrize("write", [write_archive, write_old_torch, write_pickle, save_file])
def test_a_batch_norm_is_seen_in_any_format(write, tmp_path):
    for state, batch_norm in ((STATE, True), (WITHOUT, False)):
        write(state, tmp_path / "file")
        assert look_at(tmp_path / "file") == (False, batch_norm)


@pytest.mark.parametrize("write", [write_archive, write_pickle, save_file])
def test_a_truncated_file_is_damaged(write, tmp_path):
    write(WITHOUT, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in (0, 1, 20, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        assert look_at(tmp_path / "cut") == (True, False), length


def archive(method=zipfile.ZIP_DEFLATED, flags=0, content=b"\xff" * 9):
    """A zip file of one data.pkl whose header says something else than its content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("a/data.pkl", content)
    whole = bytearray(file.getvalue())
    for start, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = whole.index(start) + at
        whole[place : place + 4] = struct.pack("<HH", flags, method)
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 25) + b'{"a":{"data_offsets":[]}}',
        struct.pack("<Q", 500_000) + b'{"a":' * 100_000,
        archive(),  # bytes that are not deflated
        archive(method=77),
        archive(method=0, flags=1),  # encrypted
    ],
    ids=["offsets", "deep", "deflate", "method", "encrypted"],
)
def test_bytes_that_json_or_zip_cannot_bear_are_damaged(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert look_at(tmp_path / "file") == (True, False)


def test_weights_that_a_run_would_refuse(write_study, tmp_path):
    files = {name: tmp_path / f"{name}.pth" for name in ("cut", "bn")}
    torch.save(STATE, files["bn"])
    files["cut"].write_bytes(files["bn"].read_bytes()[:-9])
    arms = {name: {"init": str(file)} for name, file in files.items()}
    arms["msra"] = {"init": "detectron2://ImageNetPretrained/MSRA/R-18.pkl"}
    arms["staged"] = {"init": "run://other/scratch/short/seed"}
    study = load_study(write_study(arms=arms))
    said = unfit(study, tmp_path)
    assert (
        said[0]
        == f"arms.cut.init: {files['cut']}: truncated, or not a checkpoint; copy or make it again"
    )
    for name, text in zip(("bn", "msra"), said[1:3], strict=True):
        assert text.startswith(f"arms.{name}.init: ")
        assert "trained with BatchNorm, but MODEL.RESNETS.NORM is GN" in text
    folder = tmp_path / "other/scratch/short/seed0"
    assert said[3:] == [
        f"arms.staged.init: the run in {folder} is not there; train it to its end first"
    ]
    affine = write_study(arms=arms, overrides={"SVP.NORM_WEIGHTS": "affine_only"})
    assert len(unfit(load_study(affine), tmp_path)) == 2


def test_names_of_parts_that_nobody_registers(write_study, tmp_path):
    names = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbon",
        "MODEL.META_ARCHITECTURE": "RetinaNets",
        "SVP.EVALUATORS": ["Counting"],
        "SVP.MAPPER": "Mapper",
        "SVP.OPTIMIZER": "Adam",
    }
    said = unfit(load_study(write_study(overrides=names)), tmp_path)
    assert len(said) == len(names)
    for name in names:
        assert any(text.startswith(f"{name}: no '") for text in said), name
    assert "did you mean build_resnet_fpn_backbone" in said[1]


@pytest.mark.parametrize("part", PARTS)
def test_names_are_those_that_the_registries_hold(part):
    from detectron2 import modeling

    from scratch_vs_pretrain.evaluation import others
    from scratch_vs_pretrain.training import recipe

    _, registry = PARTS[part]
    holds = next(r for m in (modeling, others, recipe) if (r := getattr(m, registry, None)))
    own = ("detectron2.", "scratch_vs_pretrain.")
    expected = {name for name, one in holds if one.__module__.startswith(own)}
    found = _detectron2._built_in_parts().get(registry, set())
    assert expected <= found


def test_a_circle_of_runs_is_no_plan(write_study, capsys):
    arms = {"a": {"init": "run://tiny/b/short/seed"}, "b": {"init": "run://tiny/a/short/seed"}}
    study = write_study(arms=arms)
    with pytest.raises(UserError, match=r"arms\.a\.init: .*circle \(a from b from a\)"):
        plan(load_study(study))
    assert main(["plan", str(study)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
