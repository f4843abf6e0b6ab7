"""Agreement of several processes, as forks of this one over gloo."""

import os
import socket

import pytest

from scratch_vs_pretrain.training import process_group
from scratch_vs_pretrain.training.process_group import Ending, Endings, Vote, agreed


@pytest.fixture
def in_group(tmp_path):
    """Runs a function in some forked processes; returns the text that each returned."""

    def run(function, count=2):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        children = [
            _fork(function, rank, count, port, tmp_path / f"{rank}") for rank in range(count)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * count
        return [(tmp_path / f"{rank}").read_text() for rank in range(count)]

    return run


def _fork(function, rank, count, port, output):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process_group.join("cpu")
        output.write_text(str(function(rank)))
        process_group.leave()
        status = 0
    finally:
        os._exit(status)


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
        return endings.first(Ending("failed", f"lost by {rank}", 1)).reason

    assert in_group(end) == ["process 1 of 2: no such image"] * 2


def test_a_process_that_hangs_after_a_failure_is_told(in_group, monkeypatch):
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(process_group, "WATCH_SECONDS", 0.1)

    def hang(rank):
        endings, told = Endings(), []
        agreed(None)
        if rank == 1:
            return endings.first(Ending("diverged", "loss", 3)).state
        import time

        with endings.watched(told.append):
            time.sleep(2)
        return told[0].reason

    assert in_group(hang) == ["process 1 of 2: loss", "diverged"]
