"""The metrics that a run writes: metrics.json, TensorBoard's events, and lines in log.txt."""

import contextlib
import functools
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from detectron2.utils import events
from fvcore.common.history_buffer import HistoryBuffer

from scratch_vs_pretrain.run_folder import RunFolder, write_atomically

logger = logging.getLogger(__name__)

# JSONWriter's window_size: metrics.json has the median of so many values.
WINDOW = 20


class _Events(events.TensorboardXWriter):
    """TensorBoard's events, on disk when a write returns, as metrics.json is."""

    def __init__(self, folder: Path, completed: int) -> None:
        # TensorBoard drops what an earlier start wrote of iterations that this one repeats. Its
        # writer's thread would flush by itself, and print a traceback if the disk is full.
        super().__init__(str(folder), WINDOW, purge_step=completed, flush_secs=10**9)

    def write(self) -> None:
        super().write()
        self._writer.flush()


def make_writers(
    folder: RunFolder, cfg: Any, completed: int, last: int
) -> list[events.EventWriter]:
    """Returns what writes a run's metrics: metrics.json, TensorBoard's events, log.txt.

    `completed` is the iterations before this start, `last` those at the end, for the log's ETA.
    """
    writers: list[events.EventWriter] = [events.JSONWriter(str(folder.metrics_file))]
    if cfg.SVP.TENSORBOARD and importlib.util.find_spec("tensorboard"):
        writers.append(_Events(folder.path / "tensorboard", completed))
    # The last, because it puts the ETA among the metrics.
    return [*writers, events.CommonMetricPrinter(last)]


def keep_recent(storage: events.EventStorage) -> None:
    """Lets a fresh storage keep of each metric the values that are smoothed over, not all."""
    storage.histories().default_factory = functools.partial(HistoryBuffer, WINDOW)


def recent_values(storage: events.EventStorage) -> dict[str, list[list[float]]]:
    """Returns the last values of each metric as [value, iteration] pairs, for a checkpoint."""
    return {
        name: [[float(value), float(iteration)] for value, iteration in history.values()[-WINDOW:]]
        for name, history in storage.histories().items()
    }


def restore_values(storage: events.EventStorage, values: dict[str, list[list[float]]]) -> None:
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
