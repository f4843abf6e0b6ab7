"""What happens between iterations: evaluation, metrics, checkpoints, progress, heartbeat."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from fvcore.common.history_buffer import HistoryBuffer

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.run_folder import SAME_REQUEST, RunFolder, write_atomically
from scratch_vs_pretrain.training.distributed import Vote
from scratch_vs_pretrain.training.start import signals_to

logger = logging.getLogger(__name__)

# Runs that train side by side each have a line.
BAR_POSITION = int(os.environ.get("SVP_BAR_POSITION", "0"))
# The launcher may show them all in a table of its own.
NO_BARS = os.environ.get("SVP_BARS") == "0"

# Around the batches of an evaluation.
EVALUATION_BAR = functools.partial(
    Bar, desc="  evaluating", unit="image", leave=False, position=BAR_POSITION + 1, disable=NO_BARS
)

# torchrun and terminals send the processes of a run the same request twice.
SAME_REQUEST_SECONDS = float(os.environ.get(SAME_REQUEST, "1"))

# JSONWriter's window_size: metrics.json has the median of so many values.
WINDOW = 20

# How often run.json is told the progress, at most.
RECORD_SECONDS = 10


class Interrupted(Exception):
    """Training was asked to stop, and saved a checkpoint first."""


def is_due(completed: int, period: int, at: Collection[int], last: int) -> bool:
    """Tells whether something is due: every `period` (0: never), at those of `at`, and last."""
    return completed == last or completed in at or (period > 0 and completed % period == 0)


@dataclass(eq=False)
class EvaluationHook(HookBase):
    """Evaluates after the iterations that are due, and puts the numbers into the storage.

    `evaluate` maps the completed iterations to flat metrics such as ``bbox/AP``.
    """

    evaluate: Callable[[int], dict[str, float]]
    period: int
    at: Collection[int]
    latest: dict[str, float] = field(default_factory=dict)

    def due(self, completed: int) -> bool:
        return is_due(completed, self.period, self.at, self.trainer.max_iter)

    def after_step(self) -> None:
        completed = self.trainer.iter + 1
        if self.due(completed):
            self.latest = self.evaluate(completed)
            self.trainer.storage.put_scalars(smoothing_hint=False, **self.latest)


@dataclass(eq=False)
class MetricsHook(HookBase):
    """Writes a line of metrics every period, and at once after an evaluation.

    Detectron2's PeriodicWriter keeps only the latest value of each metric, so an evaluation that
    is no multiple of its period can be lost. `evaluation` is registered before this hook; only the
    main process has `writers`.
    """

    writers: Sequence[EventWriter]
    period: int
    evaluation: EvaluationHook
    recorded: float = field(default_factory=time.monotonic)

    def after_step(self) -> None:
        completed = self.trainer.iter + 1
        due = is_due(completed, self.period, (), self.trainer.max_iter)
        if not (due or self.evaluation.due(completed)):
            return
        totals = self.trainer.count_samples()
        self.trainer.storage.put_scalars(
            smoothing_hint=False, **{f"samples/{name}": count for name, count in totals.items()}
        )
        if not self.writers:
            return
        for writer in self.writers:
            writer.write()
        if time.monotonic() - self.recorded > RECORD_SECONDS:
            self.recorded = time.monotonic()
            with contextlib.suppress(UserError):  # a damaged run.json is told of at a checkpoint
                self.trainer.folder.update(**self.trainer.progress(completed))


@dataclass(eq=False)
class CheckpointHook(HookBase):
    """Saves every period, at given iterations and at the end.

    On SIGTERM or SIGINT it saves at once and stops. `save` is given the completed iterations;
    `goes_on`: another part of the run follows.
    """

    save: Callable[[int], None]
    period: int
    at: Collection[int] = ()
    goes_on: bool = False
    asked_to_stop_at: float | None = None
    signals: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def before_train(self) -> None:
        self._stop = Vote()
        self.signals.enter_context(signals_to(self._ask_to_stop))

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked_to_stop_at is None:
            self.asked_to_stop_at = now
        elif now - self.asked_to_stop_at > SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt

    def after_step(self) -> None:
        completed = self.trainer.iter + 1
        stop = self._stop.any(self.asked_to_stop_at is not None)
        if stop or is_due(completed, self.period, self.at, self.trainer.max_iter):
            self.save(completed)
        if stop and (completed < self.trainer.max_iter or self.goes_on):
            raise Interrupted(f"asked to stop after {completed} iterations")

    def after_train(self) -> None:
        self.signals.close()


@dataclass(eq=False)
class ProgressHook(HookBase):
    """A progress bar with the loss and the latest box AP."""

    title: str
    evaluation: EvaluationHook

    def before_train(self) -> None:
        self._bar = Bar(
            desc=self.title,
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            unit="it",
            position=BAR_POSITION,
            disable=NO_BARS,
        )

    def after_step(self) -> None:
        shown = {"loss": f"{self.trainer.storage.history('total_loss').latest():.3f}"}
        if "bbox/AP" in self.evaluation.latest:
            shown["box AP"] = f"{self.evaluation.latest['bbox/AP']:.1f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


class _Events(TensorboardXWriter):
    """TensorBoard's events, on disk when a write returns, as metrics.json is."""

    def __init__(self, folder: Path, completed: int) -> None:
        # TensorBoard drops what an earlier start wrote of iterations that this one repeats. Its
        # writer's thread would flush by itself, and print a traceback if the disk is full.
        super().__init__(str(folder), WINDOW, purge_step=completed, flush_secs=10**9)

    def write(self) -> None:
        super().write()
        self._writer.flush()


def make_writers(folder: RunFolder, cfg: Any, completed: int, last: int) -> list[EventWriter]:
    """Returns what writes a run's metrics: metrics.json, TensorBoard's events, log.txt.

    `completed` is the iterations before this start, `last` those at the end, for the log's ETA.
    """
    writers: list[EventWriter] = [JSONWriter(str(folder.metrics_file))]
    if cfg.SVP.TENSORBOARD and importlib.util.find_spec("tensorboard"):
        writers.append(_Events(folder.path / "tensorboard", completed))
    # The last, because it puts the ETA among the metrics.
    return [*writers, CommonMetricPrinter(last)]


def keep_recent(storage: EventStorage) -> None:
    """Lets a fresh storage keep of each metric the values that are smoothed over, not all."""
    storage.histories().default_factory = functools.partial(HistoryBuffer, WINDOW)


def recent_values(storage: EventStorage) -> dict[str, list[list[float]]]:
    """Returns the last values of each metric as [value, iteration] pairs, for a checkpoint."""
    return {
        name: [[float(value), float(iteration)] for value, iteration in history.values()[-WINDOW:]]
        for name, history in storage.histories().items()
    }


def restore_values(storage: EventStorage, values: dict[str, list[list[float]]]) -> None:
    """Puts the values of :func:`recent_values` into a fresh storage."""
    for name, pairs in values.items():
        for value, iteration in pairs:
            storage.histories()[name].update(value, iteration)


def truncate_metrics(path: Path, completed: int) -> None:
    """Drops the lines of metrics.json that a run resumed after `completed` iterations repeats.

    So are lines that a kill cut short or somebody damaged; of iterations that somebody repeated or
    turned round, those that a line further down goes back behind.
    """
    kept: list[tuple[int, bytes]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            iteration = json.loads(line)["iteration"]
            if type(iteration) is int and iteration < completed:
                while kept and kept[-1][0] >= iteration:
                    logger.warning("%s: iteration %d is repeated", path, kept.pop()[0])
                kept.append((iteration, line))
    if path.exists():
        write_atomically(path, b"".join(line + b"\n" for _, line in kept))
