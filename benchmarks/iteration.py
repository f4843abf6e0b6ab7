"""Times training iterations against plain Detectron2's, in one process, and prints the ratio.

Both sides train the same config from the same weights, blocks of iterations in turn: Detectron2's
DefaultTrainer with its own loader, hooks and writers, and this package's Trainer. The data set has
as many pictures as a batch, all of one size, so that each batch of either side holds all of them;
their order and mirroring are each side's own. Evaluation and checkpoints are left out.

The ratio is the median over pairs of blocks. On a CPU it is one of processor time, because other
processes on the machine disturb wall-clock time; on a GPU of wall-clock time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from scratch_vs_pretrain.config import config_text, default_config, merge_file, merge_overrides
from scratch_vs_pretrain.data.datasets import register
from scratch_vs_pretrain.data.shapes import ShapesSpec, make_shapes
from scratch_vs_pretrain.run_folder import RunFolder
from scratch_vs_pretrain.training.kernels import deterministic_kernels
from scratch_vs_pretrain.training.trainer import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
SIDES = ("ours", "plain")
SPEED_TARGET, FAST_TARGET, MEMORY_TARGET = 0.99, {"cpu": 1.3, "cuda": 1.8}, 1.05
WARM_UP, PROFILED, PROFILE_ROWS = 2, 3, 12
EXAMPLES = """examples:
  python benchmarks/iteration.py                              R50-FPN GN, as it is
  python benchmarks/iteration.py --fast                       with all fast options
  python benchmarks/iteration.py --fast BF16                  with one of them
  python benchmarks/iteration.py --size 128 --batch 4 --config demo_mask_rcnn_R_18_FPN_gn.yaml
  python benchmarks/iteration.py --fast none --fast           without any, then with all, one run
  python benchmarks/iteration.py --device cuda --size 800 --batch 16 --workers 8 --fast
  python benchmarks/iteration.py --memory                     peak memory instead of speed
"""


def make_config(arguments: argparse.Namespace, folder: Path) -> Any:
    """Returns the config of both sides, over a data set that is made in `folder`."""
    size = arguments.size
    spec = ShapesSpec(
        train=arguments.batch, test=1, image_size=size, object_size=(size // 8, size // 3)
    )
    make_shapes(folder / "shapes", spec, progress=False)
    sets = [
        (f"iteration_{part}", f"{folder}/shapes/annotations/{part}.json", f"{folder}/shapes/{part}")
        for part in ("train", "test")
    ]
    cfg = default_config()
    merge_file(cfg, CONFIGS / arguments.config)
    values = {
        "MODEL.DEVICE": arguments.device,
        "MODEL.WEIGHTS": "",
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "INPUT.MASK_FORMAT": "bitmask",
        "INPUT.MIN_SIZE_TRAIN": (size,),
        "INPUT.MAX_SIZE_TRAIN": size,
        "SVP.DATASETS": tuple(sets),
        "DATASETS.TRAIN": (sets[0][0],),
        "DATASETS.TEST": (sets[1][0],),
        "DATALOADER.NUM_WORKERS": arguments.workers,
        "SOLVER.IMS_PER_BATCH": arguments.batch,
        # Low enough for any model not to diverge.
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.MAX_ITER": 1_000_000,
        "SOLVER.STEPS": (),
        "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
        "TEST.EVAL_PERIOD": 0,
        "SEED": 0,
        "OUTPUT_DIR": str(folder / "plain"),
    }
    merge_overrides(cfg, values, "the benchmark")
    return cfg


def fast_config(cfg: Any, options: list[str]) -> Any:
    """Returns a config with the fast options on: those named, or all that are on by default."""
    if options == ["none"]:
        return cfg
    cfg = cfg.clone()
    cfg.SVP.FAST.ENABLED = True
    if options:
        for name in set(cfg.SVP.FAST) - {"ENABLED"}:
            cfg.SVP.FAST[name] = name in options
    return cfg


class Side:
    """A trainer whose iterations can be run in blocks."""

    def __init__(self, trainer: Any) -> None:
        from detectron2.utils.events import EventStorage

        self.trainer = trainer
        # As Trainer.train does; plain Detectron2 asks for nothing.
        ours = isinstance(trainer, Trainer)
        self.kernels = deterministic_kernels if ours else contextlib.nullcontext
        self.cuda = trainer.cfg.MODEL.DEVICE.startswith("cuda")
        trainer.iter = trainer.start_iter = 0
        trainer.storage = EventStorage(0)
        # Nobody is to see the progress bar; it is drawn all the same.
        with open(os.devnull, "w") as nowhere, trainer.storage:
            with contextlib.redirect_stderr(nowhere):
                trainer.before_train()
            self.run(1)

    def run(self, iterations: int) -> float:
        """Trains some iterations; returns the seconds of processor time, on a GPU of a clock."""
        clock = time.perf_counter if self.cuda else time.process_time
        start = clock()
        # As TrainerBase.train does.
        with self.trainer.storage, self.kernels(self.trainer.cfg):
            for _ in range(iterations):
                self.trainer.before_step()
                self.trainer.run_step()
                self.trainer.after_step()
                self.trainer.iter += 1
        if self.cuda:
            torch.cuda.synchronize()
        return clock() - start


def build(side: str, cfg: Any, folder: Path) -> Side:
    """Builds one side's trainer."""
    from detectron2.engine import DefaultTrainer
    from detectron2.utils.env import seed_all_rng

    register(cfg)
    if side == "ours":
        run = RunFolder(folder / "ours")
        run.path.mkdir()
        run.config_file.write_text(config_text(cfg))
        run.update(state="running")
        return Side(Trainer(cfg, run))
    cfg = cfg.clone()
    if not cfg.SVP.RESNETS.ALLOW_NARROW:
        # The same network by Detectron2's own builder.
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("build_svp_", "build_")
    Path(cfg.OUTPUT_DIR).mkdir()
    seed_all_rng(cfg.SEED)
    return Side(DefaultTrainer(cfg))


def compare_speed(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields images per second of both sides and the ratio, for each set of fast options."""
    cfg = make_config(arguments, folder)
    plain = build("plain", cfg, folder)
    weights = {k: v.clone() for k, v in plain.trainer._trainer.model.state_dict().items()}
    for number, options in enumerate(arguments.fast):
        (folder / str(number)).mkdir()
        ours = build("ours", fast_config(cfg, options), folder / str(number))
        sides = {"ours": ours, "plain": plain}
        figures = compare_sides(sides, weights, arguments)
        if arguments.profile and options is arguments.fast[-1]:
            for name, side in sides.items():
                figures[f"profile of {name}"] = "\n" + profile_of(side)
        yield figures
        # With its loader's workers.
        del ours, sides
        gc.collect()


def compare_sides(
    sides: dict[str, Side], weights: dict[str, torch.Tensor], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Times two sides in turn, from the same weights."""
    sides["ours"].trainer.network.load_state_dict(weights)
    sides["plain"].trainer._trainer.model.load_state_dict(weights)
    for side in sides.values():
        side.run(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for block in tqdm(range(arguments.blocks), unit="pair of blocks", mininterval=5):
        # Whoever is first has the caches to itself for longer: in turn.
        for name in SIDES if block % 2 else SIDES[::-1]:
            seconds[name].append(sides[name].run(arguments.iterations))
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    images = arguments.batch * arguments.iterations
    return {
        "fast options in force": list(sides["ours"].trainer.described["fast"]),
        "clock": "wall" if sides["ours"].cuda else "processor",
        **{
            f"{name}, images/s": round(images / statistics.median(seconds[name]), 3)
            for name in SIDES
        },
        "ratio": round(statistics.median(ratios), 4),
        "ratios of blocks": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def profile_of(side: Side) -> str:
    """Returns where a few iterations spend their time, by operator, on a GPU by kernel."""
    with torch.profiler.profile() as profiler:
        wall = side.run(PROFILED)
    rows = profiler.key_averages()
    if side.cuda:
        times = [
            (row.self_device_time_total, row.count, row.key)
            for row in rows
            if row.device_type == torch.autograd.DeviceType.CUDA
        ]
    else:
        times = [(row.self_cpu_time_total, row.count, row.key) for row in rows]
    total = sum(spent for spent, _, _ in times)
    lines = [
        f"{spent / total:6.1%} in {count // PROFILED:4} of {name[:100]}"
        for spent, count, name in sorted(times, reverse=True)[:PROFILE_ROWS]
    ]
    where = f"{total / PROFILED / 1e3:.0f} ms of {wall / PROFILED * 1e3:.0f} ms an iteration:"
    return "\n".join([("GPU busy " if side.cuda else "") + where, *lines])


def compare_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the peak memory of each side in a process of its own, in bytes, and the ratio."""
    peaks: dict[str, list[int]] = {name: [] for name in SIDES}
    for _ in tqdm(range(arguments.blocks), unit="pair of processes"):
        for name in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks[name].append(int(done.stdout.split()[-1]))
    medians = {name: int(statistics.median(values)) for name, values in peaks.items()}
    return {
        **{f"{name}, peak MB": round(value / 1e6) for name, value in medians.items()},
        "ratio": round(medians["ours"] / medians["plain"], 4),
        "all, MB": {name: [round(value / 1e6) for value in peaks[name]] for name in SIDES},
    }


def peak_of(side: str, arguments: argparse.Namespace, folder: Path) -> int:
    """Trains one side in this process and returns the process's peak memory in bytes."""
    cfg = make_config(arguments, folder)
    if side == "ours":
        cfg = fast_config(cfg, arguments.fast[0])
    build(side, cfg, folder).run(arguments.iterations)
    # Of this program alone; ru_maxrss would count what forked it.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    if found is None:
        raise SystemExit("/proc/self/status tells no VmHWM: --memory needs Linux")
    return int(found[1]) * 1024


def machine(device: str) -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    name = torch.cuda.get_device_name() if device == "cuda" else found[1] if found else "CPU"
    return (
        f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    add = parser.add_argument
    add("--config", default="mask_rcnn_R_50_FPN_gn.yaml", help="of configs/, default: %(default)s")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--size", type=int, default=320, help="of the square images, default: %(default)s pixels")
    add("--batch", type=int, default=2, help="images, default: %(default)s")
    add("--workers", type=int, default=0, help="of each side's loader, default: %(default)s")
    add("--iterations", type=int, default=2, help="in a block, default: %(default)s")
    add("--blocks", type=int, default=10, help="of each side, default: %(default)s")
    add(
        "--fast",
        nargs="*",
        action="append",
        metavar="OPTION",
        help="ours with SVP.FAST, or these of its options, or none; may be given several times",
    )
    add("--profile", action="store_true", help="also print where time is spent, of the last set")
    add("--memory", action="store_true", help="compare peak memory; --blocks processes of each")
    add("--only", choices=SIDES, help=argparse.SUPPRESS)
    add("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    if min(arguments.size, arguments.batch, arguments.iterations, arguments.blocks) < 1:
        parser.error("--size, --batch, --iterations and --blocks must be at least 1")
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    if arguments.workers and arguments.device == "cpu":
        parser.error("--workers: the workers' processor time would not be counted on a CPU")
    arguments.fast = arguments.fast or [["none"]]
    known = set(default_config().SVP.FAST)
    unknown = {one for options in arguments.fast if options != ["none"] for one in options} - known
    if unknown:
        parser.error(f"--fast: there is no option {', '.join(sorted(unknown))} in SVP.FAST")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="detectron2")
    with tempfile.TemporaryDirectory() as name:
        if arguments.only:
            print(peak_of(arguments.only, arguments, Path(name)))
            return
        what = f"{arguments.config}, {arguments.batch} images of {arguments.size} pixels"
        print(f"what: {what}\nmachine: {machine(arguments.device)}")
        results = []
        speed = () if arguments.memory else compare_speed(arguments, Path(name))
        for figures in [compare_memory(arguments)] if arguments.memory else speed:
            print("\n".join(f"{key}: {value}" for key, value in figures.items()))
            print(verdict(figures, arguments), flush=True)
            results.append(figures)
    if arguments.json:
        figures = {"what": what, "machine": machine(arguments.device), "results": results}
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


def verdict(figures: dict[str, Any], arguments: argparse.Namespace) -> str:
    ratio = figures["ratio"]
    if arguments.memory:
        met, target = ratio <= MEMORY_TARGET, f"at most {MEMORY_TARGET}x the memory"
    else:
        fast = bool(figures["fast options in force"])
        least = FAST_TARGET[arguments.device] if fast else SPEED_TARGET
        met, target = ratio >= least, f"at least {least}x the speed"
    return f"{target} of plain Detectron2: {'yes' if met else 'NO'}\n"


if __name__ == "__main__":
    main()
