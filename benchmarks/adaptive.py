"""What `svp run --until answered` saves, and how often it is wrong: simulated studies, no training.

    python benchmarks/adaptive.py --studies 2000

Each study has schedules of 1, 2, 4 and 8 units and up to 10 seeds. Its launcher looks, decides and
goes on as the real one does: the verdicts are those of analysis/stats, the decisions those of
study/adaptive.py; only the AP of the runs is drawn. Beside it stands the fixed design: 10 seeds of
both arms with the longest schedule alone, of which the study states that it is long enough.

A verdict is wrong if it says "yes" of a lead of 0 or less, or "no" of one of the margin or more.
Of the end, the lead of the longest schedule is the true one.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate  # type: ignore[import-untyped]
from tqdm import tqdm

from scratch_vs_pretrain.analysis.stats.contrast import (
    Contrast,
    Curves,
    Judged,
    judge_contrast,
)
from scratch_vs_pretrain.analysis.stats.verdicts import NO, UNDECIDED, YES, alpha_of
from scratch_vs_pretrain.study.adaptive import (
    Limits,
    Stage,
    next_stage,
    seeds_at_looks,
)

MARGIN = 0.5  # the default of what is judged
UNIT = 9_000
LENGTHS = tuple(UNIT * times for times in (1, 2, 4, 8))
# As in the paper's schedules, the rate first drops this long before the end.
TAIL = UNIT // 3
MOST_SEEDS = 10
# Of a run's variance, what all schedules of one seed share, as they share their trunk.
SHARED = 0.5


@dataclass(frozen=True)
class Truth:
    """What all runs of a simulated study vary around.

    Attributes:
        gap: lead of the pretrained arm that no training takes away, in AP.
        early: lead at the beginning beyond that, which training takes away.
        noise: standard deviation of a run's AP over seeds.
    """

    gap: float
    early: float
    noise: float

    def lead(self, length: float) -> float:
        return self.gap + self.early * float(np.exp(-2.0 * length / UNIT))

    def score(self, length: float) -> float:
        """Returns the pretrained arm's AP after training of this length."""
        return 40.0 - 10.0 * float(np.exp(-3.0 * length / UNIT))


def draw(truth: Truth, rng: np.random.Generator) -> tuple[tuple[Curves, ...], tuple[Curves, ...]]:
    """Draws every run that the study could train, by arm and schedule."""
    arms: list[tuple[Curves, ...]] = []
    seeds = tuple(range(MOST_SEEDS))
    for lead in (1.0, 0.0):
        curves = []
        of_seed = rng.normal(0, truth.noise * math.sqrt(SHARED), (len(seeds), 1))
        for length in LENGTHS:
            # Before its drop a run scores less, and all evaluations of a run share its noise.
            at = np.array([length // 4, length // 2, length])
            mean = [truth.score(i) - lead * truth.lead(i) - 5.0 * (i < length) for i in at]
            own = rng.normal(0, truth.noise * math.sqrt(1 - SHARED), (len(seeds), 1))
            values = np.array(mean) + of_seed + own + rng.normal(0, 0.05, (len(seeds), len(at)))
            curves.append(Curves(f"{length}it", length, seeds, at, values, (length - TAIL,)))
        arms.append(tuple(curves))
    return arms[0], arms[1]


def part(curves: Curves, seeds: int) -> Curves:
    return Curves(
        curves.schedule,
        curves.length,
        curves.seeds[:seeds],
        curves.iterations,
        curves.values[:seeds],
        curves.drops,
    )


def cost(schedules: int, seeds: int) -> int:
    """Returns the iterations of a stage: what schedules share is trained once."""
    trunk = LENGTHS[schedules - 1]
    return 2 * seeds * (trunk + TAIL * (schedules - 1))


def wrong(contrast: Contrast, judged: Judged, truth: Truth, longest: int) -> bool:
    """Tells whether any verdict is; that about the end speaks of the `longest` training."""
    first = contrast.common()[0][0]
    until = [truth.lead(length) for length in first.iterations[:2]]
    true = {"early": np.mean(until), "at": truth.lead(first.length), "end": truth.lead(longest)}
    return any(
        (v.verdict == YES and true[v.claim] <= 0) or (v.verdict == NO and true[v.claim] >= MARGIN)
        for v in judged.verdicts
    )


@dataclass(frozen=True)
class Ending:
    wrong: bool
    answered: int
    iterations: int
    looks: int
    schedules: int


def adaptive(truth: Truth, rng: np.random.Generator) -> Ending:
    ours, theirs = draw(truth, rng)
    limits = Limits(seeds_at_looks(3, MOST_SEEDS), len(LENGTHS))
    stage, look = Stage(1, limits.seeds[0]), 0
    while True:
        look += 1
        contrast = Contrast(
            tuple(part(c, stage.seeds) for c in ours[: stage.schedules]),
            tuple(part(c, stage.seeds) for c in theirs[: stage.schedules]),
        )
        alpha = alpha_of(look=look, looks=limits.looks)
        judged = judge_contrast(contrast, alpha)
        following, _ = next_stage(stage, limits, judged.lacks)
        if following is None:
            answered = sum(v.verdict != UNDECIDED for v in judged.verdicts)
            spent = cost(stage.schedules, stage.seeds)
            return Ending(
                wrong(contrast, judged, truth, LENGTHS[-1]), answered, spent, look, stage.schedules
            )
        stage = following


def fixed(truth: Truth, rng: np.random.Generator) -> Ending:
    ours, theirs = draw(truth, rng)
    contrast = Contrast(ours[-1:], theirs[-1:], converged=True)
    judged = judge_contrast(contrast)
    answered = sum(v.verdict != UNDECIDED for v in judged.verdicts)
    spent = 2 * MOST_SEEDS * LENGTHS[-1]
    return Ending(wrong(contrast, judged, truth, LENGTHS[-1]), answered, spent, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    arguments = parser.parse_args()
    rows = []
    cells = [
        Truth(gap, early, noise)
        for noise in (0.2, 0.5, 1.0)
        for gap, early in (
            (0.0, 0.0),
            (0.0, 8.0),
            (MARGIN / 2, 8.0),
            (MARGIN, 8.0),
            (3 * MARGIN, 0.0),
            (3 * MARGIN, 8.0),
        )
    ]
    for truth in tqdm(cells, unit="cell", mininterval=5):
        rng = np.random.default_rng(0)
        ends = [adaptive(truth, rng) for _ in range(arguments.studies)]
        others = [fixed(truth, rng) for _ in range(arguments.studies)]
        spent = np.mean([end.iterations for end in ends])
        whole = others[0].iterations
        rows.append(
            (
                truth.noise,
                truth.gap,
                truth.early,
                *(100 * np.mean([end.wrong for end in some]) for some in (ends, others)),
                *(np.mean([end.answered for end in some]) for some in (ends, others)),
                np.mean([end.looks for end in ends]),
                np.mean([end.schedules for end in ends]),
                100 * (1 - spent / whole),
            )
        )
    header = ("noise", "gap at the end", "more early", "wrong %", "fixed: wrong %")
    header += ("answered of 3", "fixed: of 3", "looks", "schedules", "iterations saved %")
    print(tabulate(rows, header, tablefmt="github", floatfmt=("g", "g", "g", *[".1f"] * 7)))


if __name__ == "__main__":
    main()
