"""One run's trainer: Detectron2's loop with this package's stream and exact checkpoints."""

import contextlib
import datetime
import errno
import functools
import importlib.util
import logging
import os
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import IterationTimer, LRScheduler
from detectron2.modeling import build_model
from detectron2.utils import comm, events
from detectron2.utils.env import seed_all_rng
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.data.stream import TrainingStream
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import (
    evaluate_model,
    write_detections,
    write_evaluation,
)
from scratch_vs_pretrain.modeling.checkpoint_file import forget_checkpoints, weights_sha256
from scratch_vs_pretrain.modeling.checks import check_trainable, use_runnable_norms
from scratch_vs_pretrain.modeling.initial import freeze, match_initial
from scratch_vs_pretrain.progress import Bar
from scratch_vs_pretrain.reproducibility import restore_random_states
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.run_info import Resume, Taken
from scratch_vs_pretrain.training import checkpoint, kernels
from scratch_vs_pretrain.training.distributed import Interrupted, share_buffers, stop_requests
from scratch_vs_pretrain.training.kernels import deterministic_kernels, is_deterministic
from scratch_vs_pretrain.training.recipe import build_mapper, build_optimizer, rate_factor

logger = logging.getLogger(__name__)

# Runs that train side by side each have a line.
BAR_POSITION = int(os.environ.get("SVP_BAR_POSITION", "0"))
# The launcher may show them all in a table of its own.
NO_BARS = os.environ.get("SVP_BARS") == "0"
# Around the batches of an evaluation.
EVALUATION_BAR = functools.partial(
    Bar, desc="  evaluating", unit="image", leave=False, position=BAR_POSITION + 1, disable=NO_BARS
)
# How often run.json is told the progress, at most.
RECORD_SECONDS = 10
# JSONWriter's window_size: metrics.json has the median of so many values.
WINDOW = 20
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def build_run_model(cfg: Any, begins: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model of a run, fills it with its initial weights if it `begins` with them, and
    freezes what is to be.

    Returns it, and what run.json says of it: ``norms``, ``parameters``, ``init_report``.
    """
    seed_all_rng(cfg.SEED)
    model = build_model(cfg)
    described: dict[str, Any] = {
        "norms": use_runnable_norms(model, cfg.MODEL.DEVICE, comm.get_world_size()),
        "parameters": sum(p.numel() for p in model.parameters()),
        **({} if cfg.MODEL.WEIGHTS else {"init_report": None}),
    }
    if cfg.MODEL.WEIGHTS and begins:
        described["init_report"], part, tensors = match_initial(model, cfg)
        part.load_state_dict(tensors, strict=False)
        forget_checkpoints()
    freeze(model, cfg)
    # The arms may have drawn differently so far; from here on they draw alike.
    seed_all_rng(cfg.SEED + comm.get_rank())
    return model, described


def _check_weights(weights: str, planned: str | None) -> None:
    if planned and weights_sha256(weights) != planned:
        raise UserError(
            f"{weights}: has changed since the run was planned (sha256 was {planned}); restore it, "
            "or use another output folder"
        )


def is_due(completed: int, period: int, at: Collection[int] = (), *, last: int) -> bool:
    """Tells whether something is due: every `period` (0: never), at those of `at`, and last."""
    return completed == last or completed in at or (period > 0 and completed % period == 0)


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


def recent_values(storage: events.EventStorage) -> dict[str, list[list[float]]]:
    """Returns the last values of each metric as [value, iteration] pairs, for a checkpoint."""
    return {
        name: [[float(value), float(iteration)] for value, iteration in history.values()[-WINDOW:]]
        for name, history in storage.histories().items()
    }


def restore_values(storage: events.EventStorage, values: dict[str, list[list[float]]]) -> None:
    """Puts the values of :func:`recent_values` into a fresh storage.

    It then keeps of each metric the values that are smoothed over, not all.
    """
    storage.histories().default_factory = functools.partial(HistoryBuffer, WINDOW)
    for name, pairs in values.items():
        for value, iteration in pairs:
            storage.histories()[name].update(value, iteration)


class Trainer(SimpleTrainer):
    """Trains one run folder's config from its newest checkpoint, or from the start.

    Attributes:
        described: what run.json is told about the model and the data.
        totals: samples seen by all processes, as of the last :meth:`count_samples`.
    """

    iter: int

    def __init__(self, cfg: Any, folder: RunFolder, until: int | None = None) -> None:
        """
        Args:
            cfg: the run's config, with the device that is really there.
            folder: the run folder.
            until: the iteration at which another config takes over, None for the last part.
        """
        self.cfg = cfg
        self.folder = folder
        run = folder.read()
        self._title = run.name
        self._branch_points = run.branch_points
        found = checkpoint.load_newest(folder)
        start = found["iteration"] if found else 0
        switches = bool(found and run.switch and until is None and start == run.switch.at)
        begins = found is None or switches
        if begins and cfg.MODEL.WEIGHTS:
            _check_weights(cfg.MODEL.WEIGHTS, run.init.sha256)
        self.network, self.described = build_run_model(cfg, begins)
        options = kernels.options_in_force(cfg)
        self.described["fast"] = options
        if "BF16" in options and next(self.network.parameters()).is_cuda:
            kernels.keep_norms_narrow(self.network)
        if "OVERLAP" in options:
            kernels.overlap(self.network)
        self.stream = TrainingStream(cfg, build_mapper(cfg), "PREFETCH" in options, start)
        self.described["repaired"] = dict(self.stream.repaired)
        optimizer = build_optimizer(cfg, self.network)
        if "FUSED_OPTIMIZER" in options:
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        check_trainable(self.network, cfg, share, optimizer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda iteration: rate_factor(cfg, iteration)
        )
        if found and switches:
            found = checkpoint.switched_state(found, self.network, optimizer)
        model = _distributed(cfg, self.network)
        if "BF16" in options:
            model = kernels.Autocast(model, cfg.MODEL.DEVICE)
        super().__init__(model, self.stream, optimizer)
        self.max_iter = until or cfg.SOLVER.MAX_ITER
        self.totals: dict[str, int] = {}
        self._recent: dict[str, Any] = {}
        self._seconds_before = 0.0
        if found:
            self._restore(found)
        self._writers: list[events.EventWriter] = []
        if comm.is_main_process():
            checkpoint.truncate_metrics(folder.metrics_file, self.iter)
            self._writers = make_writers(folder, cfg, self.iter, self.max_iter)
        self._latest: dict[str, float] = {}
        self._while_training = contextlib.ExitStack()
        self._started = self._recorded = time.monotonic()
        self.register_hooks([IterationTimer(), LRScheduler(optimizer, self.scheduler)])

    def train(self) -> None:  # type: ignore[override]
        """Trains what is left of the run, as Detectron2's ``TrainerBase.train`` does.

        That one logs a traceback of whatever ends a training, and keeps all metrics in memory.
        """
        self.start_iter = self.iter
        logger.info("Starting training from iteration %d", self.start_iter)
        with (
            deterministic_kernels(self.cfg),
            events.EventStorage(self.iter) as self.storage,
            self._while_training,
        ):
            restore_values(self.storage, self._recent)
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = self.max_iter
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                raise UserError(
                    f"{self.folder.path}: {error.strerror}; make room, and start the run again"
                ) from error
            finally:
                self.after_train()
                self.close_writers()

    def before_train(self) -> None:
        super().before_train()
        bar = Bar(
            desc=self._title,
            total=self.max_iter,
            initial=self.start_iter,
            unit="it",
            position=BAR_POSITION,
            disable=NO_BARS or not comm.is_main_process(),
        )
        self._bar = self._while_training.enter_context(bar)
        self._asked_to_stop = self._while_training.enter_context(stop_requests())

    def after_step(self) -> None:
        """Evaluates, logs and saves as it is due; on SIGTERM or SIGINT saves at once and stops."""
        super().after_step()
        cfg, completed = self.cfg, self.iter + 1
        due = functools.partial(is_due, completed, last=self.max_iter)
        evaluates = due(cfg.TEST.EVAL_PERIOD, cfg.SVP.EVAL_ITERATIONS)
        if evaluates:
            self._latest = self._evaluate(completed)
            self.storage.put_scalars(smoothing_hint=False, **self._latest)
        if evaluates or due(cfg.SVP.LOG_PERIOD):
            self._log(completed)
        self._show_progress()
        stops = self._asked_to_stop()
        if stops or due(cfg.SOLVER.CHECKPOINT_PERIOD, self._branch_points):
            self._save(completed)
        if stops and completed < cfg.SOLVER.MAX_ITER:
            raise Interrupted(f"asked to stop after {completed} iterations")

    def _log(self, completed: int) -> None:
        """Writes a line of metrics.

        Detectron2's PeriodicWriter keeps only the latest value of each metric, so an evaluation
        that is no multiple of its period can be lost.
        """
        samples = {f"samples/{name}": count for name, count in self.count_samples().items()}
        self.storage.put_scalars(smoothing_hint=False, **samples)
        for writer in self._writers:
            writer.write()
        if self._writers and time.monotonic() - self._recorded > RECORD_SECONDS:
            self._recorded = time.monotonic()
            with contextlib.suppress(UserError):  # a damaged run.json is told of at a checkpoint
                self.folder.update(**self.progress(completed))

    def _show_progress(self) -> None:
        if not comm.is_main_process():
            return
        shown = {"loss": f"{self.storage.history('total_loss').latest():.3f}"}
        if "bbox/AP" in self._latest:
            shown["box AP"] = f"{self._latest['bbox/AP']:.1f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def count_samples(self) -> dict[str, int]:
        """Updates and returns the totals over all processes, all of which must call it."""
        parts = comm.all_gather(dict(self.stream.samples))
        self.totals = {name: sum(part[name] for part in parts) for name in parts[0]}
        return self.totals

    def progress(self, completed: int) -> dict[str, Any]:
        """Returns what run.json says after `completed` iterations."""
        return {
            "iteration": completed,
            "seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            "samples": self.totals,
            "unreadable_images": sorted(self.stream.unreadable),
        }

    def close_writers(self) -> None:
        """Closes the files of metrics, which :meth:`train` does at its end."""
        for writer in self._writers:
            # Each write was flushed: what is left is what failed to be written, and ended the run.
            with contextlib.suppress(OSError):
                writer.close()

    def _evaluate(self, completed: int) -> dict[str, float]:
        # Test augmentation takes many times as long: at the end alone, not at a switch.
        last = completed == self.cfg.SOLVER.MAX_ITER
        share_buffers(self.network)

        def keep(dataset: str, results: list[dict[str, Any]]) -> None:
            if dataset == self.cfg.DATASETS.TEST[0]:
                write_detections(self.folder, completed, dataset, results)

        evaluations, flat = evaluate_model(self.cfg, self.network, EVALUATION_BAR, last, keep)
        if comm.is_main_process():
            write_evaluation(self.folder, completed, evaluations)
        return flat

    def _save(self, completed: int) -> None:
        self.count_samples()
        self.stream.unreadable = self.stream.unreadable.union(*comm.gather(self.stream.unreadable))
        progress = self.progress(completed)
        checkpoint.save(
            self.folder,
            completed,
            {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "samples": self.totals,
                "unreadable": sorted(self.stream.unreadable),
                "seconds": progress["seconds"],
                "recent": recent_values(self.storage),
                "loss_normalizers": comm.gather(_detectron2.loss_normalizer(self.network)),
            },
            self.cfg.SVP.KEEP_CHECKPOINTS,
            self._branch_points,
        )
        if comm.is_main_process():
            self.folder.update(**progress)

    def _restore(self, found: dict[str, Any]) -> None:
        self.network.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.scheduler.load_state_dict(found["scheduler"])
        self.iter = found["iteration"]
        # A trunk's checkpoint holds the trunk's next rate; a branch's may have dropped by then.
        for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = base * rate_factor(self.cfg, self.iter)
        self.totals = found["samples"]
        self._seconds_before = found["seconds"]
        self._recent = found["recent"]
        normalizers = found.get("loss_normalizers", ())
        _detectron2.restore_loss_normalizer(self.network, normalizers, comm.get_rank())
        states, rank = found["random"], comm.get_rank()
        if len(states) == comm.get_world_size():
            restore_random_states(states[rank])
        else:  # Another number of processes goes on, though not exactly.
            seed_all_rng(self.cfg.SEED + self.iter + rank)
        if comm.is_main_process():
            self.stream.samples = Counter(self.totals)
            self.stream.unreadable = set(found["unreadable"])
        logger.info("Resumed after %d iterations", self.iter)

    def note_resume(self, inexact: list[str]) -> None:
        """Records in run.json where this start goes on, if it does, and why `inexact`; in the main
        process."""
        if self.iter == 0:
            return
        run = self.folder.read()
        if run.branch and run.branch.taken == Taken(iteration=self.iter):
            # Not a resume: the branch begins here, and what is before is not its own cost.
            checkpoint.note_taken(self.folder, self.iter, self._seconds_before)
            return
        if inexact:
            logger.warning("This resume is not exact: %s", "; ".join(inexact))
        resume = Resume(
            iteration=self.iter,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            exact=not inexact,
            inexact_because=tuple(inexact),
        )
        self.folder.update(resumes=(*run.resumes, resume))


def _distributed(cfg: Any, model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
    return nn.parallel.DistributedDataParallel(
        model,
        devices,
        broadcast_buffers=False,
        # Without it the gradients are packed anew after the first iteration. Where a number lies
        # in its pack decides in which order more than two processes add it, so that iterations
        # after a resume would differ in the last bits.
        find_unused_parameters=is_deterministic(cfg) and comm.get_world_size() > 2,
    )
