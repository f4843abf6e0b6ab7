"""What training had cost at each of a run's iterations."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from scratch_vs_pretrain.analysis import AXES
from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.analysis.runs.numbers import curve
from scratch_vs_pretrain.analysis.stats.samples import pretraining
from scratch_vs_pretrain.errors import check_choice

PIXELS = "samples/pixels"


def cost(run: RunRecord, x: str, iterations: np.ndarray) -> np.ndarray:
    """Returns where completed iterations lie on an axis of :data:`AXES`, NaN where unknown.

    Pixels include those of pre-training. GPU hours are seconds of training and evaluation times
    devices; a branch's include its trunk's.

    Raises:
        UserError: there is no such axis.
    """
    check_choice("x axis", x, AXES)
    at = np.asarray(iterations, float)
    if x == "iterations":
        return at
    if x == "pixels":
        return _pixels(run, at)
    if x == "gpu-hours":
        hours = run.devices / 3600 * _seconds(run, at) if run.seconds and run.iteration else np.nan
        return np.full(len(at), hours)
    images = at * (run.images_per_batch or np.nan)
    return images if x == "images" else images / (run.train_images or np.nan)


def _seconds(run: RunRecord, at: np.ndarray) -> np.ndarray:
    """Returns the seconds up to each iteration: every iteration of one start takes as long."""
    knots = {0: 0.0, run.iteration: run.seconds or 0.0}
    if run.trunk_seconds:
        knots[run.branch_at] = run.trunk_seconds
    x = sorted(knots)
    return np.interp(at, x, [knots[iteration] for iteration in x])


def _pixels(run: RunRecord, at: np.ndarray) -> np.ndarray:
    """Returns the pixels seen at each iteration: between logged counts, evenly."""
    counted = curve(run, PIXELS)
    x, y = counted.iterations.astype(float), counted.values
    total = run.samples.pixels
    if total is not None and run.iteration > x.max(initial=0):
        x, y = np.append(x, run.iteration), np.append(y, total)
    before = pretraining(run.init).pixels
    if before is None or len(x) == 0:
        return np.full(len(at), np.nan)
    seen = np.interp(at, np.append(0, x), np.append(0, y))
    return np.where(at <= x[-1], before + seen, np.nan)


def mean_hours(runs: Iterable[RunRecord]) -> float | None:
    """Returns the mean device hours of finished runs, each alone; None where unknown."""
    hours = [r.seconds * r.devices / 3600 for r in runs if r.state == "finished" and r.seconds]
    return float(np.mean(hours)) if hours else None


def total_hours(runs: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Returns the GPU hours of runs, a shared trunk counted once, and of each alone, if known."""
    if not runs or any(run.seconds is None for run in runs):
        return None
    alone = sum((run.seconds or 0) * run.devices for run in runs)
    shared = sum(run.trunk_seconds * run.devices for run in runs)
    return (alone - shared) / 3600, alone / 3600


def hours_text(hours: float, cpu: bool) -> str:
    """Returns hours as one says them."""
    unit = "CPU" if cpu else "GPU"
    if hours < 0.095:
        minutes = max(1, round(60 * hours))
        return f"{minutes} {unit} minute{'s' * (minutes != 1)}"
    return f"{hours:.1f} {unit} hours" if hours < 100 else f"{hours:,.0f} {unit} hours"


def on_processors(runs: Sequence[RunRecord]) -> bool:
    """Tells whether all runs trained without a GPU, so that their hours are a processor's."""
    devices = {run.device for run in runs if run.device}  # none of runs that have not begun
    return devices == {"cpu"}


def axis_title(x: str, runs: Sequence[RunRecord]) -> str:
    """Returns what stands under an axis."""
    return "CPU hours" if x == "gpu-hours" and on_processors(runs) else AXES[x]


def axis_sentences(x: str, runs: Sequence[RunRecord]) -> Iterator[str]:
    """Yields what a caption must say about an axis."""
    arms = dict.fromkeys(run.arm for run in runs if pretraining(run.init).assumed)
    if x == "pixels" and arms:
        yield (
            f"Assumed of {', '.join(arms)}: pre-training on ImageNet, 100 epochs of 224 x 224 "
            "pixels."
        )
    if x == "gpu-hours":
        yield "Hours include evaluations."
