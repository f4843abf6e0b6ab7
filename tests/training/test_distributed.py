"""Agreement of several processes, as forks of this one over gloo."""

import os
import queue

import pytest

from scratch_vs_pretrain.training import distributed
from scratch_vs_pretrain.training.distributed import Ending, Endings, Vote, agreed


@pytest.fixture
def in_group(ranks, ended, tmp_path):
    """Runs a function in two processes; returns the text that each returned."""

    def run(function):
        def rank():
            distributed.join("cpu")
            number = int(os.environ["RANK"])
            (tmp_path / f"{number}").write_text(str(function(number)))
            distributed.leave()

        assert ended(*ranks(rank)) == [0, 0], (tmp_path / "forks.log").read_text()
        return [(tmp_path / f"{number}").read_text() for number in range(2)]

    return run


def test_alone():
    ending = Ending("failed", "why", 1)
    endings = Endings()
    with endings.watched(lambda _: pytest.fail("nobody else")):
        assert endings.first(ending) == ending
    assert agreed("mine") == "mine"
    vote = Vote()
    assert [vote.any(said) for said in (False, True, False)] == [False, True, False]


def test_the_main_process_decides(in_group):
    assert in_group(lambda rank: agreed(f"from {rank}")) == ["from 0", "from 0"]


def test_one_vote_is_enough_and_counts_an_iteration_later(in_group):
    def votes(rank):
        vote = Vote()
        return [vote.any(rank == 1 and iteration == 2) for iteration in range(5)]

    assert in_group(votes) == [str([False, False, False, True, False])] * 2


def test_what_failed_first_is_what_failed(in_group):
    def end(rank):
        endings = Endings()
        if rank == 1:
            endings.first(Ending("failed", "no such image", 1))
        agreed(None)
        first = endings.first(Ending("failed", f"lost by {rank}", 1))
        agreed(None)  # the store is the main process's and ends with it
        return first.reason

    assert in_group(end) == ["process 1 of 2: no such image"] * 2


def test_a_process_that_hangs_after_a_failure_is_told(in_group, monkeypatch):
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "WATCH_SECONDS", 0.1)

    def hang(rank):
        endings, told = Endings(), queue.SimpleQueue()
        agreed(None)
        if rank == 1:
            return endings.first(Ending("diverged", "loss", 3)).state
        with endings.watched(told.put):
            return told.get(timeout=60).reason

    assert in_group(hang) == ["process 1 of 2: loss", "diverged"]
