import subprocess

import torch

from scratch_vs_pretrain.reproducibility import git_commit, provenance


def test_names_what_a_number_depends_on():
    record = provenance("cpu")
    assert record["device"] == "cpu"
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert len(record["versions"]["detectron2_sha256"]) == 64
    assert record["versions"]["cuda"] is None


def test_commit_says_whether_the_tree_is_clean(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    assert git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == commit + "+changes"
