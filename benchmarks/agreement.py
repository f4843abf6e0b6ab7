"""What it costs two processes to agree in every iteration on whether to stop.

    python benchmarks/agreement.py

Two processes over gloo, in turns: Detectron2's all_gather of an object, and this package's vote,
whose answer comes an iteration later. Prints milliseconds per call of the main process: CPU time,
which other work on the machine hardly changes, and elapsed time.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Callable

from detectron2.utils import comm

from scratch_vs_pretrain.training import distributed as process_group

CALLS = 300
ROUNDS = 5


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Returns milliseconds per call: CPU time of this process, and elapsed time."""
    cpu, elapsed = time.process_time(), time.perf_counter()
    for _ in range(CALLS):
        call()
    spent = time.process_time() - cpu, time.perf_counter() - elapsed
    return 1000 * spent[0] / CALLS, 1000 * spent[1] / CALLS


def main() -> None:
    warnings.simplefilter("ignore")
    process_group.join("cpu")
    vote = process_group.Vote()
    ways = {
        "all_gather": lambda: any(comm.all_gather(False)),
        "vote": lambda: vote.any(False),
    }
    best = {name: (float("inf"), float("inf")) for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            found = measure(call)
            best[name] = min(best[name][0], found[0]), min(best[name][1], found[1])
    if comm.is_main_process():
        for name, (cpu, elapsed) in best.items():
            print(f"{name:10}  {cpu:.3f} ms CPU  {elapsed:.3f} ms elapsed, best of {ROUNDS}")
        print(f"vote / all_gather: {best['vote'][0] / best['all_gather'][0]:.2f} of the CPU time")
    process_group.leave()


def start(count: int) -> int:
    """Runs :func:`main` in `count` processes; returns the first exit status that is not 0, or 0."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            main()
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(start(2))
