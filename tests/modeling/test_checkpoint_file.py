import argparse
import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch
from torch import nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import load, local_file

CONTENT = {
    "model": collections.OrderedDict(
        conv1_w=np.arange(6, dtype=np.float32).reshape(2, 3), half=np.ones(2, np.float16)
    ),
    "iteration": np.int64(7),
    "__author__": "someone",
    "matching_heuristics": True,
}


class RunsCommand:
    """A pickle of this creates `path` when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def open_file(path):
    return load(path, str(path))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_load_in_every_protocol(protocol, tmp_path):
    content = open_file(write_pickle(tmp_path / "w.pkl", CONTENT, protocol))
    assert content["__author__"] == "someone"
    assert content["iteration"] == 7
    np.testing.assert_array_equal(content["model"]["conv1_w"], CONTENT["model"]["conv1_w"])
    assert content["model"]["half"].dtype == np.float16


def test_pickles_with_the_names_of_old_numpy_load(tmp_path):
    data = pickle.dumps(CONTENT, protocol=0)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    path = tmp_path / "w.pkl"
    path.write_bytes(old)
    assert b"numpy.core" in old
    np.testing.assert_array_equal(open_file(path)["model"]["half"], [1, 1])


def test_pickles_of_python_2_load(tmp_path):
    # A Python 2 str is the opcode STRING; array bytes in it are latin1.
    raw = np.array([1.5, -2], "<f4").tobytes()
    python3 = pickle.dumps({"w": np.array([1.5, -2], "<f4")}, protocol=2)
    encoded = [op for op in pickletools.genops(python3) if op[0].name == "BINUNICODE"]
    assert any(op[1] == raw.decode("latin1") for op in encoded)
    quoted = b"(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    quoted += b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    quoted += b"S" + repr(raw)[1:].encode() + b"\ntbs."
    path = tmp_path / "w.pkl"
    path.write_bytes(quoted)
    np.testing.assert_array_equal(open_file(path)["w"], [1.5, -2])


def test_pickles_of_tensors_load(tmp_path):
    content = {"w": torch.arange(6.0).reshape(2, 3).t(), "p": nn.Parameter(torch.ones(2))}
    loaded = open_file(write_pickle(tmp_path / "w.pkl", content))
    assert torch.equal(loaded["w"], content["w"])
    assert torch.equal(loaded["p"], content["p"])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pth.tar", "w.pkl"])
def test_torch_files_load_under_any_name(name, zipped, tmp_path):
    content = {
        "state_dict": {"w": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(70.1),
    }
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    loaded = open_file(tmp_path / name)
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(2))
    assert loaded["best"] == 70.1


@pytest.mark.parametrize("name", ["w.pkl", "w.pth"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_a_command_is_refused(name, protocol, tmp_path):
    trap = tmp_path / "executed"
    path = write_pickle(tmp_path / name, {"model": {"w": RunsCommand(trap)}}, protocol)
    with pytest.raises(UserError, match=r"w\.p.*(posix\.system|not a checkpoint)"):
        open_file(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap itself does not work"


def test_a_torch_file_that_would_run_a_command_is_refused(tmp_path):
    trap = tmp_path / "executed"
    torch.save({"w": torch.ones(1), "x": RunsCommand(trap)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: refused, nothing executed: .*posix\.system"):
        open_file(tmp_path / "w.pth")
    assert not trap.exists()


def test_a_pickled_storage_is_not_a_back_door(tmp_path):
    """torch.storage._load_from_bytes unpickles freely; its stand-in here does not."""
    trap = tmp_path / "executed"
    inner = io.BytesIO()
    torch.save(RunsCommand(trap), inner)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    path = write_pickle(tmp_path / "w.pkl", {"w": Storage()})
    with pytest.raises(UserError, match="refused, nothing executed"):
        open_file(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "torch.hub.load", "numpy.load", "codecs.encode"])
def test_other_globals_are_refused_by_name(name, tmp_path):
    module, _, function = name.rpartition(".")
    path = tmp_path / "w.pkl"
    path.write_bytes(f"c{module}\n{function}\n.".encode())
    with pytest.raises(UserError, match=name):
        open_file(path)


def test_a_whole_model_is_refused_with_advice(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match="save the state dict alone"):
        open_file(tmp_path / "w.pth")


def test_missing_empty_and_no_file_are_named(tmp_path):
    (tmp_path / "empty.pth").touch()
    for path, message in (
        (tmp_path / "none.pth", "No such file"),
        (tmp_path / "empty.pth", "empty"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(UserError, match=f"{path}: .*{message}"):
            local_file(path)


@pytest.mark.parametrize(
    "uri",
    [
        "https://localhost:9/weights.pkl",
        "catalog://ImageNetPretrained/none-such",
        "catalog://elsewhere",
    ],
)
def test_uris_that_cannot_be_fetched_are_named(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"{uri}: cannot be fetched"):
        local_file(uri)


def test_detectron2s_uris_resolve_to_what_was_fetched(tmp_path, monkeypatch):
    """A file in the download cache stands for the network."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    folder = tmp_path / "detectron2" / "ImageNetPretrained" / "FAIR"
    folder.mkdir(parents=True)
    write_pickle(folder / "tiny.pkl", {"w": np.ones(1)})
    path = local_file("detectron2://ImageNetPretrained/FAIR/tiny.pkl")
    assert path == folder / "tiny.pkl"
    np.testing.assert_array_equal(open_file(path)["w"], [1])


def test_groupnorm_models_are_found_in_detectron2s_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    # Where the catalogue's address, https://dl.fbaipublicfiles.com/detectron/..., is cached.
    file = tmp_path / "detectron" / "ImageNetPretrained" / "47261647" / "R-50-GN.pkl"
    file.parent.mkdir(parents=True)
    write_pickle(file, {"w": np.ones(1)})
    for address in ("catalog://{}", "catalog://{}.pkl", "detectron2://{}.pkl"):
        assert local_file(address.format("ImageNetPretrained/FAIR/R-50-GN")) == file
