import contextlib
import json
import math
import signal

import pytest
from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage, JSONWriter
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.config import default_config
from scratch_vs_pretrain.training import distributed
from scratch_vs_pretrain.training.checkpoint import truncate_metrics
from scratch_vs_pretrain.training.distributed import Interrupted
from scratch_vs_pretrain.training.trainer import (
    WINDOW,
    Trainer,
    is_due,
    recent_values,
    restore_values,
)


@given(st.integers(1, 500), st.integers(0, 50), st.sets(st.integers(1, 500)), st.integers(1, 500))
def test_due(completed, period, at, last):
    expected = completed in {*range(period, 501, period or 501), *at, last} - {0}
    assert is_due(completed, period, at, last=last) == expected


class Steps(Trainer):
    """Training without a network, which notes after how many iterations it did what."""

    def __init__(self, last, period=0, at=(), stop_in=()):
        TrainerBase.__init__(self)
        self.max_iter, self.stop_in = last, list(stop_in)
        self.cfg = default_config()
        self.cfg.MODEL.DEVICE = "cpu"
        self.cfg.SOLVER.MAX_ITER = last
        self.cfg.SOLVER.CHECKPOINT_PERIOD = self.cfg.TEST.EVAL_PERIOD = period
        self.cfg.SVP.EVAL_ITERATIONS = at
        self._title, self._branch_points, self._recent, self._latest = "", (), {}, {}
        self._writers, self._while_training = [], contextlib.ExitStack()
        self.evaluated, self.saved, self.logged = [], [], []
        self._save, self._log = self.saved.append, self.logged.append

    def run_step(self):
        self.storage.put_scalar("total_loss", 1.0)
        for iteration, number in self.stop_in:
            if iteration == self.iter:
                signal.raise_signal(number)

    def _evaluate(self, completed):
        self.evaluated.append(completed)
        return {"bbox/AP": float(completed)}


def test_evaluates_and_saves_when_due_and_after_the_last_iteration():
    steps = Steps(10, period=4, at=(1,))
    steps.cfg.SVP.LOG_PERIOD = 3
    steps.train()
    assert steps.evaluated == [1, 4, 8, 10]
    assert steps.logged == [1, 3, 4, 6, 8, 9, 10]
    assert steps.saved == [4, 8, 10]
    assert steps.storage.latest()["bbox/AP"] == (10.0, 9)


def test_a_signal_saves_and_stops():
    steps = Steps(9, stop_in=[(4, signal.SIGTERM)])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after 5 iterations"):
        steps.train()
    assert steps.saved == [5]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_in_the_last_iteration_lets_the_run_finish():
    steps = Steps(3, stop_in=[(2, signal.SIGTERM)])
    steps.train()
    assert steps.saved == [3]


def test_a_signal_at_a_switch_stops():
    steps = Steps(3, stop_in=[(2, signal.SIGTERM)])
    steps.cfg.SOLVER.MAX_ITER = 9
    with pytest.raises(Interrupted, match="after 3 iterations"):
        steps.train()


def test_the_same_request_twice_is_one():
    """torchrun passes Ctrl-C on, which the terminal has sent to the processes, too."""
    steps = Steps(9, stop_in=[(4, signal.SIGINT), (4, signal.SIGTERM)])
    with pytest.raises(Interrupted, match="after 5 iterations"):
        steps.train()


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(distributed, "SAME_REQUEST_SECONDS", -1)
    steps = Steps(9, stop_in=[(4, signal.SIGINT), (4, signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        steps.train()
    assert steps.saved == []


def test_smoothed_values_do_not_notice_a_resume(tmp_path):
    """The writer's medians after a resume equal those of an uninterrupted run."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]

    def log(storage, start, stop):
        for iteration in range(start, stop):
            storage.iter = iteration
            storage.put_scalar("loss", losses[iteration])

    def last_line(storage, name):
        writer = JSONWriter(str(tmp_path / name))
        writer.write()
        writer.close()
        return json.loads((tmp_path / name).read_text().splitlines()[-1])

    with EventStorage(0) as storage:
        log(storage, 0, 5)
        saved = recent_values(storage)
        log(storage, 5, 8)
        whole = last_line(storage, "whole.json")
    with EventStorage(5) as storage:
        restore_values(storage, saved)
        log(storage, 5, 8)
        resumed = last_line(storage, "resumed.json")
    assert resumed == whole == {"iteration": 7, "loss": 3.5}


def test_a_storage_keeps_what_is_smoothed_over(tmp_path):
    """Not every value ever logged; metrics.json is the same to the last bit."""

    def log(name, bounded):
        with EventStorage(0) as storage:
            if bounded:
                restore_values(storage, {})
            writer = JSONWriter(str(tmp_path / name))
            for storage.iter in range(2000):
                storage.put_scalar("loss", math.sin(storage.iter))
                with storage.name_scope("stage0"):
                    storage.put_scalar("accuracy", 1 / (1 + storage.iter))
                if storage.iter % 20 == 19:
                    writer.write()
            writer.close()
            return storage

    storage = log("bounded.json", bounded=True)
    kept = {name: len(history.values()) for name, history in storage.histories().items()}
    assert kept == {"loss": WINDOW, "stage0/accuracy": WINDOW}
    assert recent_values(storage)["loss"][-1] == [math.sin(1999), 1999.0]
    log("whole.json", bounded=False)
    assert (tmp_path / "bounded.json").read_text() == (tmp_path / "whole.json").read_text()


@pytest.mark.parametrize("end", ["\n", '\n{"iteration": 39, "lo'])
def test_lines_that_will_be_repeated_are_dropped(tmp_path, end):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 9}\n{"iteration": 19, "x": NaN}\n{"iteration": 29}' + end)
    truncate_metrics(file, completed=20)
    assert file.read_text() == '{"iteration": 9}\n{"iteration": 19, "x": NaN}\n'


def test_lines_that_somebody_repeated_turned_or_damaged_are_dropped(tmp_path, caplog):
    file = tmp_path / "metrics.json"
    rows = ['{"iteration": NaN}', "5", "[" * 9999, "{}", '{"iteration": 1.5}']
    rows += [json.dumps({"iteration": at, "line": n}) for n, at in enumerate([0, 4, 2, 2, 6, 8])]
    file.write_bytes("\n".join(rows).encode() + b'\n{"iteration": 7, "\xff": 1}\n')
    truncate_metrics(file, completed=8)
    left = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["iteration"], row["line"]) for row in left] == [(0, 0), (2, 3), (6, 4)]
    assert "iteration 4 is repeated" in caplog.text


def test_nothing_to_truncate(tmp_path):
    truncate_metrics(tmp_path / "metrics.json", 5)
    assert list(tmp_path.iterdir()) == []
