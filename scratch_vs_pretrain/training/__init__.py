"""One run: trainer, metrics, checkpoints, several processes.

Here is how a process that trains a run is started, and told to stop; without torch.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scratch_vs_pretrain.run_folder import RunFolder


def start_training(
    folder: RunFolder,
    options: Iterable[str],
    told: Mapping[str, str],
    before: Callable[[], Any] | None = None,
) -> subprocess.Popen:
    """Starts a process that trains a run, which is `told` more by its environment.

    Ctrl-C does not reach it: it reaches this process, which passes it on. `before` is called in the
    new process first.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "scratch_vs_pretrain.training", str(folder.path), *options],
        env={**os.environ, **told},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=before,
    )


@contextlib.contextmanager
def signals_to(handler: Any) -> Iterator[None]:
    """Lets a handler have Ctrl-C and SIGTERM."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
