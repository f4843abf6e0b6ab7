import argparse
import collections
import io
import os
import pickle
import pickletools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling import checkpoint_file
from scratch_vs_pretrain.modeling.checkpoint_file import (
    load,
    local_file,
    read_checkpoint,
    read_metadata,
    weights_sha256,
)

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
    assert content["model"]["half"].dtype == torch.float16


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


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.pth"])
def test_safetensors_files_load_under_any_name(name, tmp_path):
    tensors = {"conv1.weight": torch.randn(2, 3), "bn1.num_batches_tracked": torch.tensor(7)}
    save_file(tensors, tmp_path / name, metadata={"format": "pt"})
    loaded = read_checkpoint(tmp_path / name)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert read_metadata(tmp_path / name) == {}
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-3])
    with pytest.raises(UserError, match="truncated, or not a checkpoint"):
        read_checkpoint(tmp_path / name)


def test_a_checkpoint_is_opened_and_hashed_once_while_it_is_unchanged(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        checkpoint_file, "load", lambda path, source: opened.append(path) or load(path, source)
    )
    path = tmp_path / "w.pth"
    torch.save({"model": {"w": torch.ones(2)}, "svp": {"format": 1}}, path)
    for _ in range(3):
        assert read_checkpoint(path)["w"].tolist() == [1, 1]
        assert read_metadata(path) == {"format": 1}
    first = weights_sha256(path)
    assert len(opened) == 1
    torch.save({"model": {"w": torch.zeros(3)}}, path)
    assert read_checkpoint(path)["w"].tolist() == [0, 0, 0]
    assert read_metadata(path) == {}
    assert weights_sha256(path) != first
    assert len(opened) == 2


@pytest.mark.parametrize("notes", [{"w": torch.ones(1)}, {"loss": float("nan")}, {"b": b"1"}])
def test_notes_that_are_no_plain_values_are_one_sentence(notes, tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "svp": notes}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: truncated, or not a checkpoint"):
        read_metadata(tmp_path / "w.pth")


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
    torch.save(RunsCommand(trap), inner, _use_new_zipfile_serialization=False)

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


class Calls:
    """Is pickled as a call of a function, and a state for its result."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


# Detectron2's arrays as pickles hold them; each with a dtype whose state was made by hand. Before,
# the first read memory beyond the four bytes, the second took them for an object's address.
HAND_MADE = {
    "subarray": (3, "|", (np.dtype("f4"), (1024,)), None, None, 4, 1, 0),
    "object flags": (3, "|", None, None, None, 8, 8, 63),
    "fields": (3, "|", None, ("a",), {"a": (np.dtype("f4"), 4096)}, 4, 1, 16),
    "another size": (3, "<", None, None, None, 4096, 1, 0),
}


def array_of(dtype, shape=(4,), data=b"\0" * 16):
    rebuild, arguments, _ = np.zeros(1).__reduce__()
    return Calls(rebuild, arguments, (1, shape, dtype, False, data))


@pytest.mark.parametrize("name", ["w.pkl", "w.pth", "old.pth"])
@pytest.mark.parametrize("attack", HAND_MADE)
def test_a_numpy_dtype_made_by_hand_reads_no_memory(attack, name, tmp_path):
    dtype = Calls(np.dtype, ("f4", False, True), HAND_MADE[attack])
    path, content = tmp_path / name, {"model": {"w": array_of(dtype)}}
    if name == "w.pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name == "w.pth")
    with pytest.raises(UserError, match="refused, nothing executed: it holds a numpy dtype with a"):
        open_file(path)


@pytest.mark.parametrize("code", ["O", "O8", "V4", "S4", "f4,f4", "(1024,)f4", "c8"])
def test_dtypes_that_are_no_numbers_are_refused(code, tmp_path):
    path = write_pickle(tmp_path / "w.pkl", {"w": array_of(Calls(np.dtype, (code, False, True)))})
    with pytest.raises(UserError, match="refused, nothing executed: it holds a numpy dtype '"):
        open_file(path)


@pytest.mark.parametrize("shape", [(5,), (3,), (-4,), (2**62, 4), (4.0,), (True, 4), "4"])
def test_arrays_of_another_size_than_their_bytes_are_refused(shape, tmp_path):
    dtype = Calls(np.dtype, ("f4", False, True))
    path = write_pickle(tmp_path / "w.pkl", {"w": array_of(dtype, shape)})
    with pytest.raises(UserError, match="not a checkpoint"):
        open_file(path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "view", [(1, (4,), (1,)), (0, (3, 2), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
def test_tensors_beyond_their_storage_are_refused(view, zipped, tmp_path):
    class View:
        def __reduce__(self):
            with warnings.catch_warnings(action="ignore"):
                storage = torch.ones(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, *view, False, {})

    torch.save({"w": View()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a checkpoint"):
        open_file(tmp_path / "w.pth")


def test_a_module_function_cannot_be_changed(tmp_path):
    """BUILD sets attributes of whatever is on the stack; here of nothing."""
    path = tmp_path / "w.pkl"
    path.write_bytes(b"ccollections\nOrderedDict\n(NV__defaults__\nNsd\x86b.".replace(b"sd", b"d"))
    with pytest.raises(UserError):
        open_file(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_training_leaves_beside_weights_is_read(zipped, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    tied = torch.arange(6.0)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(70.5),
        "counts": collections.Counter("abb"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "type": torch.float32,
        "set": {1, 2},
        "views": {"a": tied[:3], "b": tied[1:].flip(0).view(5, 1).t(), "none": tied[:0]},
        "bits": torch.tensor([True, False]),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    loaded = open_file(tmp_path / "w.pth")
    for name, tensor in content["model"].items():
        assert torch.equal(loaded["model"][name], tensor)
    for name, tensor in content["views"].items():
        assert torch.equal(loaded["views"][name], tensor)
    assert loaded["views"]["a"].untyped_storage().data_ptr() == (
        loaded["views"]["none"].untyped_storage().data_ptr()
    )
    state, expected = loaded["optimizer"]["state"][0], content["optimizer"]["state"][0]
    assert torch.equal(state["exp_avg"], expected["exp_avg"])
    for name in ("bits", "bf16", "scalar", "best"):
        found = loaded[name]
        assert (
            torch.equal(found, content[name])
            if isinstance(found, torch.Tensor)
            else (found == content[name])
        )


def test_mutated_checkpoints_are_refused_or_read_and_nothing_else(run_python):
    """2,000 files, changed opcode by opcode, in a process of their own that may crash alone."""
    done = run_python("-c", Path(__file__).with_name("mutate_checkpoints.py").read_text(), "2000")
    assert (done.returncode, done.stderr) == (0, "")
    counts = dict(line.split() for line in done.stdout.splitlines())
    # Both ends are reached often, or this test says little.
    assert sum(map(int, counts.values())) == 2000
    assert int(counts["read"]) > 200
    assert int(counts["refused"]) > 200


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


def doubled(value, wrap):
    for _ in range(40):
        value = wrap(value)
    return value


CYCLE = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize(
    "more",
    [
        {"svp": {"a": doubled([], lambda one: [one, one])}},
        {"svp": {"a": ["x" * 10**5] * 10**4}},
        {"more": doubled({"w": torch.ones(1)}, lambda one: {"a": one, "b": one})},
        {"more": CYCLE},
        {"more": torch.zeros(1).expand(10**13)},
    ],
)
def test_what_a_few_bytes_say_many_times_is_one_sentence(more, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "MOST_PARTS", 10**5)
    torch.save({"w": torch.ones(1), **more}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: truncated, or not a checkpoint"):
        read_metadata(tmp_path / "w.pth")
    torch.save({"w": torch.ones(1), "small": torch.ones(1).expand(1000)}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")["small"].sum() == 1000


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    for path in (tmp_path / "w.pth", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path}: .*a pipe or a device, not a file"):
            read_checkpoint(path)
