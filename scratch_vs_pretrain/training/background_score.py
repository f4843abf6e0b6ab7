"""COCO scoring beside training, in a process of its own (``SVP.EVAL_IN_BACKGROUND``).

An evaluation runs the model while training waits, and writes what it detected to
``pending/<iteration>/`` in the run folder. A second process scores that and writes the evaluation;
the trainer adds its row to metrics.json when it finds it, after rows of later iterations. What a
kill leaves behind is scored first when the run goes on: the files in ``pending/`` are complete once
``about.json`` is there, and a checkpoint is never written before them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.data import catalog
from scratch_vs_pretrain.data.voc import is_voc
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.evaluation.evaluator import (
    TTA,
    CocoScoreEvaluator,
    flat_metrics,
    run_inference,
    score_results,
    tasks_of,
    write_evaluation,
)
from scratch_vs_pretrain.run_folder import RunFolder, read_json, write_json
from scratch_vs_pretrain.training import metrics_log
from scratch_vs_pretrain.training.hooks import EvaluationHook

ABOUT = "about.json"


def in_background(cfg: Any) -> bool:
    """Tells whether a config's evaluations are scored in the background.

    VOC's are not: Detectron2's evaluator of VOC takes a model's outputs, not files.
    """
    return cfg.SVP.EVAL_IN_BACKGROUND and not any(map(is_voc, cfg.DATASETS.TEST))


def detect(
    cfg: Any,
    model: nn.Module,
    place: Path,
    progress: Callable[[Iterable], Iterable] | None = None,
    test_aug: bool = False,
) -> None:
    """Writes a model's detections on every data set of DATASETS.TEST, to be scored later.

    Every process must call it. Args and Raises: see
    :func:`~scratch_vs_pretrain.evaluation.evaluator.evaluate_model`.

    Args:
        place: the folder to be written; one that is there is replaced.
    """
    if comm.is_main_process():
        shutil.rmtree(place, ignore_errors=True)
    ways = ("", TTA) if test_aug and cfg.TEST.AUG.ENABLED else ("",)
    about = []
    for name in cfg.DATASETS.TEST:
        start = time.perf_counter()
        for way in ways:
            evaluator = CocoScoreEvaluator(name, (), predictions_folder=place / f"detections{way}")
            run_inference(cfg, model, name, evaluator, progress, test_aug=bool(way))
        seconds = time.perf_counter() - start
        about.append({"dataset": name, "images": evaluator.images, "seconds": seconds})
    if comm.is_main_process():
        write_json(place / ABOUT, {"ways": ways, "datasets": about})


def score_pending(folder: RunFolder, iteration: int) -> None:
    """Scores what :func:`detect` wrote for an iteration and writes the evaluation."""
    cfg = load_config(folder.config_file)
    catalog.register(cfg)
    place = folder.pending(iteration)
    about = read_json(place / ABOUT)
    evaluations = []
    for each in about["datasets"]:
        start = time.perf_counter()
        tasks: dict[str, Any] = {}
        for way in about["ways"]:
            results = read_json(place / f"detections{way}" / f"{each['dataset']}.json")
            found = score_results(
                each["dataset"], results, tasks_of(cfg), cfg.TEST.KEYPOINT_OKS_SIGMAS
            )
            tasks |= {task + way: numbers for task, numbers in found.items()}
        seconds = round(each["seconds"] + time.perf_counter() - start, 3)
        evaluations.append({**each, "seconds": seconds, "tasks": tasks})
    write_evaluation(folder, iteration, evaluations)


class BackgroundScores(HookBase):
    """Starts scoring, one evaluation at a time, and records what is done; in the main process."""

    def __init__(self, folder: RunFolder, evaluation: EvaluationHook) -> None:
        self._folder = folder
        self._evaluation = evaluation
        self._process: subprocess.Popen | None = None
        self._iteration = 0

    def start(self, iteration: int) -> None:
        """Scores the detections of an iteration, once those before are scored."""
        self.finish()
        command = [sys.executable, "-m", __name__, str(self._folder.path), str(iteration)]
        with self._folder.log_file.open("a") as log:
            # Ctrl-C, which reaches the whole group, is for the trainer to decide on.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        self._iteration = iteration

    def finish(self) -> None:
        """Waits for the evaluation that is being scored, if any, and records it.

        Raises:
            UserError: it could not be scored.
        """
        if self._process is None:
            return
        status = self._process.wait()
        self._close()
        if status:
            raise UserError(
                f"{self._folder.pending(self._iteration)}: scoring ended with status {status}; see "
                f"{self._folder.log_file}, and start the run again to score it again"
            )
        self._record(self._iteration)
        shutil.rmtree(self._folder.pending(self._iteration), ignore_errors=True)

    def before_train(self) -> None:
        """Scores and records what an earlier start of the run left."""
        completed = self.trainer.start_iter
        recorded = metrics_log.scored(self._folder.metrics_file)
        for file in sorted(self._folder.evaluations.glob("[0-9]*.json")):
            if int(file.stem) <= completed and int(file.stem) not in recorded:
                self._record(int(file.stem))
        for place in sorted(self._folder.pending(0).parent.glob("[0-9]*")):
            iteration = int(place.name)
            wanted = iteration <= completed and (place / ABOUT).exists()
            if wanted and not self._folder.evaluation_file(iteration).exists():
                self.start(iteration)
            else:
                shutil.rmtree(place, ignore_errors=True)

    def after_step(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self.finish()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self.finish()
        elif self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _record(self, iteration: int) -> None:
        content = read_json(self._folder.evaluation_file(iteration))
        metrics = flat_metrics([content, *content.get("others", [])])
        metrics_log.append(self._folder.metrics_file, iteration - 1, metrics)
        self._evaluation.latest = metrics


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, however that ends."""

    def wait() -> None:
        # Not sys.stdin, whose lock this thread would hold when the process ends.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder")
    parser.add_argument("iteration", type=int, help="whose detections are pending")
    arguments = parser.parse_args()
    _end_with_parent()
    score_pending(RunFolder(arguments.folder), arguments.iteration)


if __name__ == "__main__":
    main()
