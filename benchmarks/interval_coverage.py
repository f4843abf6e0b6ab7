"""True coverage of the paired gap's intervals at few seeds, by simulation.

A simulated study draws n paired differences around a known gap; an interval covers if it holds
that gap. Nominal coverage is 95 %. Besides normal differences, two that are not: skewed
(exponential) and heavy-tailed (Student's t with 3 degrees of freedom).

    python benchmarks/interval_coverage.py [--studies 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from scratch_vs_pretrain.analysis.stats.paired import bca_interval, t_interval

GAP = -0.4
NOISE = 0.3
SEEDS = (3, 5, 10)

DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "heavy-tailed": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
}


def coverage(interval: Callable, differences: np.ndarray, gap: float) -> float:
    """Returns the share of studies, rows of `differences`, whose interval holds `gap`."""
    low, high = interval(differences)
    return float(np.mean((low <= gap) & (gap <= high)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.studies} studies, seed {options.seed}, nominal 95 %")
    print(f"{'differences':<14}{'n':>4}{'t':>10}{'BCa':>10}")
    for name, draw in DRAWS.items():
        for n in SEEDS:
            rng = np.random.default_rng([options.seed, n])
            differences = GAP + NOISE * draw(rng, (options.studies, n))
            t = coverage(t_interval, differences, GAP)
            bca = coverage(bca_interval, differences, GAP)
            print(f"{name:<14}{n:>4}{t:>10.1%}{bca:>10.1%}")


if __name__ == "__main__":
    main()
