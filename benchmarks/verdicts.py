"""How often the verdicts of `svp answer` and `svp conclude` are wrong, by simulation.

A simulated study has two arms, n seeds and three lengths of comparison: early, at the end of the
shorter schedule, at the end of the longer. Of each run, half of the noise's variance is its own
and half new at each evaluation. The true lead of pre-training is the same at all three; the gain
from the shorter schedule to the longer is the same in both arms. "Helps" is wrong if the lead is 0,
"helps by less than the margin" if it is the margin or more, and both are wrong at the end if the
gain is the margin or more: such training is too short. "Skewed" noise is exponential.

    python benchmarks/verdicts.py [--studies 2000] [--seed 0] [--every-cell] [--catch-up]

Then: of five settings with a lead of 0 or of the margin, how often a conclusion is wrongly said to
be supported in one or contradicted in one. The second table: how often the region of catch-up holds
the noise-free crossing (nominal 95 %).
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scratch_vs_pretrain.analysis.stats.contrast import regions, smoothed
from scratch_vs_pretrain.analysis.stats.verdicts import (
    ALPHA,
    Claim,
    Gate,
    decide,
    gate,
    holm,
    spread,
)

MARGIN = 0.5
GAPS = (0.0, 0.5 * MARGIN, MARGIN, 3 * MARGIN)
NOISES = (0.2, 1.0, 3.0)
SEEDS = (1, 3, 5, 10)
STUDIES = (1, 5)
GAINS = (0.0, MARGIN)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, tuple[Draw, Draw]] = {
    "normal": (np.random.Generator.standard_normal, np.random.Generator.standard_normal),
    "skewed": (lambda g, s: g.exponential(size=s) - 1, lambda g, s: g.exponential(size=s) - 1),
    "one arm skewed": (lambda g, s: g.exponential(size=s) - 1, lambda g, s: np.zeros(s)),
}


@dataclass(frozen=True)
class Cell:
    """One simulated design.

    Attributes:
        seeds: pairs.
        studies: judged together by `svp conclude`.
        gap: true lead.
        noise: standard deviation of a run's AP.
        shape: of the noise.
        gain: true gain of both arms from the shorter to the longer schedule.
        stated: the study states its noise, truly.
    """

    seeds: int
    studies: int
    gap: float
    noise: float
    shape: str
    gain: float = 0.0
    stated: bool = False

    @property
    def sd(self) -> float | None:
        """The stated noise of the difference between two runs."""
        return self.noise * math.sqrt(2) if self.stated else None


def cells(shapes: tuple[str, ...] = ("normal", "skewed")) -> Iterator[Cell]:
    """Yields every design."""
    designs = itertools.product(SEEDS, STUDIES, GAPS, NOISES, shapes, GAINS)
    for seeds, studies, gap, noise, shape, gain in designs:
        yield Cell(seeds, studies, gap, noise, shape, gain)
        if seeds == 1:
            yield Cell(seeds, studies, gap, noise, shape, gain, stated=True)


# Studies at a time, so that memory does not grow with their number.
CHUNK = 10_000


def in_chunks(count: int, share: Callable[[int], np.ndarray]) -> np.ndarray:
    """Returns the mean over `count` studies of what `share` says of so many of them."""
    sizes = [min(CHUNK, count - done) for done in range(0, count, CHUNK)]
    return np.average([share(size) for size in sizes], axis=0, weights=sizes)


def simulate(cell: Cell, count: int, rng: np.random.Generator) -> dict[str, float]:
    """Returns how often each verdict is wrong: the share of `count` answers or conclusions."""
    runs = []
    for draw, lead in zip(SHAPES[cell.shape], (0.0, cell.gap), strict=True):
        own = draw(rng, (count, cell.studies, cell.seeds, 1))
        new = draw(rng, (count, cell.studies, cell.seeds, 3))
        level = np.array([20.0, 40.0, 40.0 + cell.gain]) + lead
        runs.append(level + cell.noise * math.sqrt(0.5) * (own + new))
    scratch, other = runs
    lead = other - scratch
    early, at, end = (spread(lead[..., k], cell.sd) for k in range(3))
    gains = [spread(arm[..., 2] - arm[..., 1], cell.sd) for arm in (scratch, other)]
    sd = None if cell.sd is None else cell.sd * math.sqrt(2)
    door = gate(gains[0], gains[1], spread(lead[..., 2] - lead[..., 1], sd), MARGIN)
    short = cell.gain >= MARGIN
    found = {"answer": 0.0}
    if cell.studies == 1:
        claims = [Claim("early", early), Claim("at", at), Claim("end", end, door)]
        yes, no, _ = decide(claims, MARGIN, ALPHA)
        wrong_yes = np.array([cell.gap <= 0, cell.gap <= 0, cell.gap <= 0 or short])
        wrong_no = np.array([cell.gap >= MARGIN, cell.gap >= MARGIN, cell.gap >= MARGIN or short])
        found["answer"] = float(((yes & wrong_yes) | (no & wrong_no)).any(axis=-1).mean())
    fine = spread(_localization(cell, count, rng), cell.sd)
    for name, value, opened in (("2", at, None), ("3", end, door), ("4", early, None)):
        found[name] = _wrong(cell, value.p_above(0.0), value.p_below(MARGIN), opened)
    sides = [np.minimum(1.0, 2 * p) for p in (fine.p_above(0.0), fine.p_below(0.0))]
    found["6"] = float(np.mean(_any(sides[0]) | _any(sides[1])))
    return found


def _localization(cell: Cell, count: int, rng: np.random.Generator) -> np.ndarray:
    """Leads at AP50 less those at AP75 that are truly 0, so that any verdict is wrong."""
    arms = [
        draw(rng, (count, cell.studies, cell.seeds)) * cell.noise for draw in SHAPES[cell.shape]
    ]
    return arms[1] - arms[0]


def _wrong(cell: Cell, yes: np.ndarray, no: np.ndarray, door: Gate | None) -> float:
    """Judges a conclusion over the studies of one reading; wrong if any of them is."""
    short = door is not None and cell.gain >= MARGIN
    if door is not None:
        yes, no = (
            np.minimum(1.0, 2 * np.maximum(p, opened))
            for p, opened in ((yes, door.yes), (no, door.no))
        )
    wrong = np.zeros(len(yes), bool)
    if cell.gap <= 0 or short:
        wrong |= _any(yes)
    if cell.gap >= MARGIN or short:
        wrong |= _any(no)
    return float(wrong.mean())


def mixed(seeds: int, noise: float, count: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Returns how often any setting is wrongly decided, on both bounds: for, against, either."""
    gaps = np.array([0.0, 0.0, MARGIN, MARGIN, MARGIN])
    noises = rng.standard_normal((count, len(gaps), seeds)) * noise * math.sqrt(2)
    value = spread(gaps[:, None] + noises)
    sides = ((value.p_above(0.0), gaps <= 0), (value.p_below(MARGIN), gaps >= MARGIN))
    one, other = (((holm(p) <= ALPHA) & wrong).any(axis=-1) for p, wrong in sides)
    return float(one.mean()), float(other.mean()), float((one | other).mean())


def _any(p: np.ndarray) -> np.ndarray:
    return (holm(p) <= ALPHA).any(axis=-1)


# Catch-up: true leads over iterations, and evaluations every so many.
LENGTH = 540_000
LEADS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fast": lambda t: 12 * np.exp(-t / 60_000),
    "slow": lambda t: 8 * np.exp(-t / 120_000),
}
EVERY = (5_000, 20_000, 60_000)
CURVE_NOISES = (0.2, 1.5)


def coverage(
    lead: str, every: int, noise: float, seeds: int, count: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Returns how often the region holds the true crossing, and how often it has an end."""
    at = np.arange(every, LENGTH + 1, every)
    own, new = rng.standard_normal((count, seeds, 1)), rng.standard_normal((count, seeds, len(at)))
    leads = LEADS[lead](at) + noise * (own + new)  # sqrt(2) for two arms, sqrt(1/2) for each part
    low, high, _ = regions(*smoothed(at, leads), MARGIN)
    fine = np.linspace(1, LENGTH, 1_000_001)
    true = fine[np.argmax(LEADS[lead](fine) <= MARGIN)]
    return float(np.mean((low <= true) & (true <= high))), float(np.isfinite(high).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-cell", action="store_true", help="not only the worst ones")
    parser.add_argument("--catch-up", action="store_true", help="the last table alone")
    options = parser.parse_args()
    if not options.catch_up:
        print_verdicts(options)
    print_catch_up(options)


def print_verdicts(options: argparse.Namespace) -> None:
    print(f"{options.studies} of each cell, seed {options.seed}: wrong verdicts, the worst cell")
    head = f"{'noise':<16}{'seeds':>10}{'studies':>9}"
    names = ("answer", "2", "3", "4", "6")
    print(head + "".join(f"{name:>9}" for name in names))
    worst: dict[tuple[str, str, int], dict[str, float]] = {}
    for number, cell in enumerate(cells(tuple(SHAPES))):
        rng = np.random.default_rng([options.seed, number])
        shares = in_chunks(
            options.studies, lambda n, c=cell, r=rng: [simulate(c, n, r)[name] for name in names]
        )
        rates = dict(zip(names, shares.tolist(), strict=True))
        seeds = f"{cell.seeds}{' stated' * cell.stated}"
        if options.every_cell:
            print(cell, {name: round(rate, 4) for name, rate in rates.items()})
        key = (cell.shape, seeds, cell.studies)
        before = worst.setdefault(key, dict.fromkeys(names, 0.0))
        worst[key] = {name: max(before[name], rates[name]) for name in names}
    for (shape, seeds, studies), rates in worst.items():
        numbers = "".join(f"{rates[name]:>9.1%}" for name in names)
        print(f"{shape:<16}{seeds:>10}{studies:>9}{numbers}")
    print("\nfive settings, leads of 0 and of the margin: wrong for, against, either")
    for seeds, noise in itertools.product(SEEDS[1:], NOISES[:2]):
        rng = np.random.default_rng([options.seed, seeds])
        rates = in_chunks(options.studies, lambda n, s=seeds, e=noise, r=rng: mixed(s, e, n, r))
        print(f"{seeds:>3} seeds, noise {noise:g}" + "".join(f"{rate:>9.1%}" for rate in rates))


def print_catch_up(options: argparse.Namespace) -> None:
    print(f"catch-up, {options.studies} of each cell: coverage (share with a latest iteration)")
    print(f"{'lead':<8}{'every':>8}{'noise':>7}{'3 seeds':>12}{'5':>15}{'10':>15}")
    for lead, every, noise in itertools.product(LEADS, EVERY, CURVE_NOISES):
        shown = []
        for seeds in (3, 5, 10):
            rng = np.random.default_rng([options.seed, every, seeds])
            cell = (lead, every, noise, seeds)
            shown.append(in_chunks(options.studies, lambda n, c=cell, r=rng: coverage(*c, n, r)))
        numbers = "".join(f"{held:>9.1%} ({ends:.0%})" for held, ends in shown)
        print(f"{lead:<8}{every:>8}{noise:>7}{numbers}", flush=True)


if __name__ == "__main__":
    main()
