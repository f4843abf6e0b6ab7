"""``python -m scratch_vs_pretrain.training RUN_FOLDER``: trains what a run folder describes.

Everything a run needs is in its folder; `svp run` starts this once per run. With ``--processes N``,
or in torchrun's environment, several processes train one run: the main one alone (RANK 0) holds the
folder's lock and writes its files.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from scratch_vs_pretrain.data import datasets
from scratch_vs_pretrain.data.check import check_decodable
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.evaluation.evaluator import check_test_sets
from scratch_vs_pretrain.reproducibility import module_versions, provenance
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.training import checkpoint, distributed
from scratch_vs_pretrain.training.distributed import Ending, Endings, Interrupted
from scratch_vs_pretrain.training.kernels import inexact_because, numerics
from scratch_vs_pretrain.training.trained import config_of
from scratch_vs_pretrain.training.trainer import Trainer

logger = logging.getLogger("scratch_vs_pretrain")

# Exit status: what the launcher is told about the run.
FINISHED, FAILED, BUSY, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def train(folder: RunFolder) -> None:
    """Trains a run to its end and records it in run.json.

    Raises:
        UserError: the run cannot be trained as it is described.
        FloatingPointError: the loss is not finite.
        Interrupted: the process was asked to stop.
    """
    run = folder.read()
    cfg = config_of(folder.config_file)
    datasets.register(cfg)
    datasets.check_files((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    origin = {**provenance(cfg.MODEL.DEVICE), **numerics(cfg)}
    origin["versions"] |= module_versions(cfg.SVP.IMPORTS)
    inexact = inexact_because(run.provenance, origin)
    if comm.is_main_process():  # which alone reads the ground truth
        check_test_sets(cfg)
        check_decodable(cfg.DATASETS.TEST)
        parts = (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST))
        now = run.with_changes(data={part: datasets.describe(names) for part, names in parts})
        run.data.refuse_change(now.data, folder.path)
        folder.update(data=now.data, provenance=origin)
        checkpoint.take(folder)
    comm.synchronize()
    switch = run.switch
    if switch and completed(folder) < switch.at:
        train_part(config_of(folder.before_switch_file), folder, inexact, until=switch.at)
        comm.synchronize()
    train_part(cfg, folder, inexact)
    if comm.is_main_process():
        folder.update(state="finished", reason=None)


def completed(folder: RunFolder) -> int:
    """Returns the iterations after which a run would go on."""
    newest = checkpoint.load_newest(folder)
    return newest["iteration"] if newest else 0


def train_part(
    cfg: CfgNode, folder: RunFolder, inexact: list[str], until: int | None = None
) -> None:
    """Trains what is left of a run, or `until` the iteration of its switch.

    `inexact` says why a resume, if this is one, is not exact.
    """
    run = folder.read()
    trainer = Trainer(cfg, folder, until)
    if comm.is_main_process():
        if not (run.switch and trainer.iter == run.switch.at):
            trainer.note_resume(inexact)
        folder.update(**trainer.described)
    try:
        trainer.train()
    except FloatingPointError as error:
        if comm.is_main_process():
            folder.update(iteration=trainer.iter)
        raise FloatingPointError(f"after {trainer.iter} iterations: {error}") from None


def run_and_record(folder: RunFolder) -> int:
    """Trains a run that the main process has locked, records how it ends, returns the status."""
    endings = Endings()
    if comm.is_main_process():
        folder.update(state="running", reason=None, host=socket.gethostname())
    try:
        with endings.watched(lambda ending: os._exit(_record(folder, ending))):
            train(folder)
    except (Exception, KeyboardInterrupt) as error:
        ending = _ending(error)
        if ending.state == "failed" and not isinstance(error, UserError):
            logger.exception("The run failed")
        return _record(folder, endings.first(ending))
    return FINISHED


def _ending(error: BaseException) -> Ending:
    reason = " ".join(str(error).split())
    if isinstance(error, FloatingPointError):
        return Ending("diverged", reason, DIVERGED)
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return Ending("interrupted", reason or "stopped", INTERRUPTED)
    if isinstance(error, UserError):
        return Ending("failed", reason, FAILED)
    return Ending("failed", f"{type(error).__name__}: {reason}", FAILED)


def _record(folder: RunFolder, ending: Ending) -> int:
    if not comm.is_main_process():
        return ending.status
    say(f"{folder.path}: {ending.state}: {ending.reason}")
    try:
        folder.update(state=ending.state, reason=ending.reason)
    except OSError as error:  # a full disk must not hide the reason
        say(f"{folder.run_file}: cannot record it: {error}")
    except UserError as error:  # run.json was damaged meanwhile
        if str(error) != ending.reason:
            say(str(error))
    return ending.status


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Prints no traceback: a full disk is told of by what cannot do without it."""


@contextlib.contextmanager
def logging_to(folder: RunFolder | None, verbose: bool) -> Iterator[None]:
    """Sends Detectron2's and this package's log to log.txt, with `verbose` to stderr as well."""
    root = logging.getLogger()
    handlers: list[logging.Handler] = [_LogFile(folder.log_file)] if folder else []
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
            with contextlib.suppress(OSError):
                handler.close()


def train_folder(folder: RunFolder, verbose: bool) -> int:
    """Trains a run in this process, or in all of its group; returns the exit status."""
    with contextlib.ExitStack() as held:
        problem = state = None
        try:
            distributed.join(config_of(folder.config_file).MODEL.DEVICE)
            if comm.is_main_process():
                held.enter_context(folder.lock())
                for file in folder.leftovers():
                    file.unlink(missing_ok=True)
                state = folder.read().state
        except UserError as error:
            problem = str(error)
        problem, state = distributed.agreed((problem, state))
        if problem is not None:
            if comm.is_main_process():
                say(problem)
            return BUSY
        if state == "finished":
            return FINISHED
        held.enter_context(logging_to(folder if comm.is_main_process() else None, verbose))
        status = run_and_record(folder)
    if status == FINISHED:
        distributed.leave()
    return status


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m scratch_vs_pretrain.training",
        description=__doc__,
        epilog="examples:\n"
        "  python -m scratch_vs_pretrain.training output/demo/scratch/600it/seed0 --processes 2\n"
        "  torchrun --nproc-per-node 8 -m scratch_vs_pretrain.training RUN_FOLDER",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a run folder that `svp run` made")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="train in N processes on this machine, on a GPU each if there are some (default: 1)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show Detectron2's log")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.folder)
    if options.processes > 1:
        return distributed.train_in_processes(folder, options.processes, options.verbose)
    return train_folder(folder, options.verbose)


if __name__ == "__main__":
    sys.exit(main())
