import signal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_vs_pretrain.training import hooks
from scratch_vs_pretrain.training.hooks import (
    CheckpointHook,
    EvaluationHook,
    Interrupted,
    is_due,
)


@given(st.integers(1, 500), st.integers(0, 50), st.sets(st.integers(1, 500)), st.integers(1, 500))
def test_due(completed, period, at, last):
    expected = completed in {*range(period, 501, period or 501), *at, last} - {0}
    assert is_due(completed, period, at, last) == expected


def trained(hook, last, stop_at=None):
    """Calls a hook as Detectron2's loop does; returns the storage's scalars by iteration."""
    scalars = {}
    trainer = SimpleNamespace(max_iter=last, storage=SimpleNamespace())
    trainer.storage.put_scalars = lambda smoothing_hint, **kw: scalars.update({trainer.iter: kw})
    hook.trainer = trainer
    hook.before_train()
    try:
        for trainer.iter in range(last):
            if trainer.iter == stop_at:
                signal.raise_signal(signal.SIGTERM)
            hook.after_step()
    finally:
        hook.after_train()
    return scalars


def test_evaluates_when_due_and_after_the_last_iteration():
    hook = EvaluationHook(lambda completed: {"bbox/AP": float(completed)}, period=4, at=[1])
    assert trained(hook, 10) == {n - 1: {"bbox/AP": float(n)} for n in (1, 4, 8, 10)}
    assert hook.latest == {"bbox/AP": 10.0}


def test_checkpoints_each_period_and_at_the_end():
    saved = []
    trained(CheckpointHook(saved.append, period=3), 7)
    assert saved == [3, 6, 7]


def test_a_signal_saves_and_stops():
    saved = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after 5 iterations"):
        trained(CheckpointHook(saved.append, period=100), 9, stop_at=4)
    assert saved == [5]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_in_the_last_iteration_lets_the_run_finish():
    saved = []
    trained(CheckpointHook(saved.append, period=100), 3, stop_at=2)
    assert saved == [3]


def test_the_same_request_twice_is_one():
    """torchrun passes Ctrl-C on, which the terminal has sent to the processes, too."""
    hook = CheckpointHook(lambda completed: None, period=1)
    hook.before_train()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    finally:
        hook.after_train()


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(hooks, "SAME_REQUEST_SECONDS", -1)
    hook = CheckpointHook(lambda completed: None, period=1)
    hook.before_train()
    try:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        hook.after_train()
