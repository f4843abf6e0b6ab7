"""``python -m scratch_vs_pretrain.training RUN_FOLDER``: trains what a run folder describes.

Everything a run needs is in its folder; `svp run` starts this once per run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from scratch_vs_pretrain.config import load_config
from scratch_vs_pretrain.data import catalog
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.weights import weights_sha256
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.training.evaluation import check_test_sets
from scratch_vs_pretrain.training.hooks import Interrupted
from scratch_vs_pretrain.training.provenance import provenance
from scratch_vs_pretrain.training.trainer import Trainer

logger = logging.getLogger("scratch_vs_pretrain")

# Exit status: what the launcher is told about the run.
FINISHED, FAILED, BUSY, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def config_of(folder: RunFolder) -> CfgNode:
    """Returns the run's frozen config, on the CPU where there is no CUDA device."""
    cfg = load_config(folder.config_file).clone()
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
    return cfg


def train(folder: RunFolder) -> None:
    """Trains a run to its end and records it in run.json.

    Raises:
        UserError: the run cannot be trained as it is described.
        FloatingPointError: the loss is not finite.
        Interrupted: the process was asked to stop.
    """
    run = folder.read()
    cfg = config_of(folder)
    _check_weights_unchanged(cfg, run)
    catalog.register(cfg)
    catalog.check_files((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    check_test_sets(cfg)
    trainer = Trainer(cfg, folder, f"{run['arm']} {run['schedule']} seed {run['seed']}")
    folder.update(
        data={
            part: catalog.describe(names).to_json()
            for part, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST))
        },
        provenance=provenance(cfg.MODEL.DEVICE),
        **trainer.described,
    )
    try:
        trainer.train()
    except FloatingPointError as error:
        folder.update(iteration=trainer.iter)
        raise FloatingPointError(f"after {trainer.iter} iterations: {error}") from None
    folder.update(state="finished", reason=None)


def _check_weights_unchanged(cfg: CfgNode, run: dict[str, Any]) -> None:
    planned = run["init"]["sha256"]
    if cfg.MODEL.WEIGHTS and planned and weights_sha256(cfg.MODEL.WEIGHTS) != planned:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS}: has changed since the run was planned (sha256 was {planned}); "
            "restore it, or use another output folder"
        )


def run_and_record(folder: RunFolder) -> int:
    """Trains a run that this process has locked, records how it ends, returns the exit status."""
    if folder.read().get("state") == "finished":
        return FINISHED
    folder.update(state="running", reason=None, host=socket.gethostname())
    try:
        train(folder)
    except FloatingPointError as error:
        return _record(folder, "diverged", " ".join(str(error).split()), DIVERGED)
    except (Interrupted, KeyboardInterrupt) as error:
        return _record(folder, "interrupted", str(error) or "stopped", INTERRUPTED)
    except UserError as error:
        return _record(folder, "failed", str(error), FAILED)
    except Exception as error:
        logger.exception("The run failed")
        return _record(folder, "failed", f"{type(error).__name__}: {error}", FAILED)
    return FINISHED


def _record(folder: RunFolder, state: str, reason: str, status: int) -> int:
    print(f"svp: {folder.path}: {state}: {reason}", file=sys.stderr)
    try:
        folder.update(state=state, reason=reason)
    except OSError as error:  # a full disk must not hide the reason
        print(f"svp: {folder.run_file}: cannot record it: {error}", file=sys.stderr)
    return status


@contextlib.contextmanager
def logging_to(folder: RunFolder, verbose: bool) -> Iterator[None]:
    """Sends Detectron2's and this package's log to log.txt, with `verbose` to stderr as well."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [logging.FileHandler(folder.log_file)]
    if verbose:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s"))
        root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scratch_vs_pretrain.training", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="a run folder that `svp run` made")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Detectron2's log")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.folder)
    try:
        with folder.lock(), logging_to(folder, options.verbose):
            return run_and_record(folder)
    except UserError as error:
        print(f"svp: {error}", file=sys.stderr)
        return BUSY


if __name__ == "__main__":
    sys.exit(main())
