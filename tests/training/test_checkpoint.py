import random

import numpy as np
import pytest
import torch

from scratch_vs_pretrain.reproducibility import random_states, restore_random_states
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.training import checkpoint
from scratch_vs_pretrain.training.checkpoint import load_newest, newest_first, path_of, save

MODEL = {"model": {"weight": torch.ones(2)}}


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()


def test_random_states_go_on_where_they_were(tmp_path):
    np.random.randn()  # leaves a cached second value behind
    folder = RunFolder(tmp_path)
    save(folder, 1, MODEL, keep=2)
    expected = draw()
    restore_random_states(load_newest(folder)["random"][0])
    assert draw() == expected
    restore_random_states(random_states())
    assert draw() != expected


def test_the_newest_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for iteration in (5, 10, 100, 20):
        save(folder, iteration, MODEL | {"value": torch.tensor(iteration)}, keep=2)
        (folder.checkpoints / "0000003 (copy).pth").write_bytes(b"a user's own")
    assert [file.name for file in newest_first(folder)] == ["0000100.pth", "0000020.pth"]
    assert (folder.checkpoints / "0000003 (copy).pth").exists()
    assert load_newest(folder)["value"] == 100


def test_none_without_checkpoints(tmp_path):
    assert load_newest(RunFolder(tmp_path)) is None


DAMAGED = {
    "other format": {"format": -1},
    "no model": {"format": 1, "iteration": 2},
    "no iteration": {"format": 1, **MODEL},
    "a list": {"format": 1, "iteration": 2, "model": [1]},
    "no tensors": {"format": 1, "iteration": 2, "model": {"a": "b"}},
}


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", *DAMAGED])
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path, damage, caplog):
    folder = RunFolder(tmp_path)
    for iteration in (1, 2):
        save(folder, iteration, MODEL | {"value": torch.arange(1000)}, keep=3)
    file = path_of(folder, 2)
    if damage in DAMAGED:
        torch.save(DAMAGED[damage], file)
    else:
        whole = file.read_bytes()
        kept = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage]
        file.write_bytes(kept)
    assert load_newest(folder)["iteration"] == 1
    assert "0000002.pth is skipped" in caplog.text


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    torch.save({"format": checkpoint.FORMAT, "trap": Trap()}, path_of(folder, 3))
    assert load_newest(folder) is None
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_others_and_no_litter(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    save(folder, 1, MODEL, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(folder, 2, MODEL, keep=1)
    assert [file.name for file in folder.checkpoints.iterdir()] == ["0000001.pth"]
