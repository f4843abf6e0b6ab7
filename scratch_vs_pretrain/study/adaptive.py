"""What to train next so that a study's question is answered: ``svp run STUDY --until answered``.

For each size of the training data, a path of looks at the evidence: first the shortest schedule
with the fewest seeds, then more seeds while noise leaves a verdict open, then longer schedules
while training is too short for one about the end. A path has a fixed greatest number of looks, over
which its error is divided. Where it stands follows from the finished runs alone, so that it goes on
wherever it was left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.analysis.runs import RunRecord, load_runs
from scratch_vs_pretrain.analysis.stats.answer import answer, plain
from scratch_vs_pretrain.analysis.stats.contrast import Lack
from scratch_vs_pretrain.errors import UserError, say
from scratch_vs_pretrain.run_folder import ADAPTIVE_FILE, RunFolder, write_json
from scratch_vs_pretrain.run_info import Look, Looks, RunInfo
from scratch_vs_pretrain.study.launch import Outcome
from scratch_vs_pretrain.study.plan import check_parts, plan
from scratch_vs_pretrain.study.resolve import (
    arm_branches,
    schedules_of,
    search_study,
    with_recipe,
)
from scratch_vs_pretrain.study.sections import Answer
from scratch_vs_pretrain.study.spec import SCRATCH, Study
from scratch_vs_pretrain.training.checkpoint import ENDED

# Each look has so many times the seeds of the one before, at least: a look costs certainty.
GROWTH = 1.7


@dataclass(frozen=True)
class Stage:
    """What is trained before a look: the shortest schedules of every arm, with the first seeds."""

    schedules: int
    seeds: int


@dataclass(frozen=True)
class Limits:
    """How far a path may go: the seeds at each look, growing, and how many schedules there are."""

    seeds: tuple[int, ...]
    schedules: int

    @property
    def looks(self) -> int:
        """The most looks of a path, each of which goes a step further in one of both."""
        return len(self.seeds) + self.schedules - 1


def seeds_at_looks(least: int, most: int) -> tuple[int, ...]:
    """Returns how many seeds there are at each look."""
    found = [least]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, math.floor(GROWTH * found[-1]))))
    return tuple(found)


def next_stage(stage: Stage, limits: Limits, undecided: Sequence[Lack]) -> tuple[Stage | None, str]:
    """Returns what follows a look, None if nothing does, and why."""
    if not undecided:
        return None, "every line is answered"
    more = next((n for n in limits.seeds if n > stage.seeds), None)
    # The noise that the first look sees is too uncertain to give up on.
    most = math.inf if stage.seeds == limits.seeds[0] else limits.seeds[-1]
    likely = [one for one in undecided if one.seeds <= most]
    noisy = [one for one in likely if not one.longer]
    longer = [one for one in likely if one.longer and stage.schedules < limits.schedules]
    if more and noisy and not (longer and all(one.claim == "end" for one in noisy)):
        return replace(stage, seeds=more), f"more seeds for {_named(noisy)}"
    if longer:
        step = replace(stage, schedules=stage.schedules + 1)
        return step, f"longer training for {_named(longer)}"
    return None, f"no run within the limits is likely to decide {_named(undecided)}"


def _named(undecided: Sequence[Lack]) -> str:
    return ", ".join(dict.fromkeys(one.claim for one in undecided))


def part_of(study: Study, stage: Stage) -> Study:
    """Returns the study of what is trained before a look."""
    seeds = itertools.chain(study.seeds, (n for n in itertools.count() if n not in study.seeds))
    arms = []
    for arm in study.arms:
        lengths = {one.name: one.iterations for one in schedules_of(study, arm)}
        ordered = sorted(arm.schedules, key=lambda one: lengths[one.name])
        arms.append(replace(arm, schedules=tuple(ordered[: stage.schedules])))
    return replace(study, arms=tuple(arms), seeds=tuple(itertools.islice(seeds, stage.seeds)))


@dataclass
class Adaptive:
    """Trains a study stage by stage until every line is answered or nothing more can be done.

    ``<output>/<study>/answer.json`` tells each look with the verdicts that it rests on.
    """

    study: Study  # with all its schedules and sizes; its ``answer`` says how many seeds it may have
    output: Path  # below which the run folders lie
    # Trains the runs of a part of the study and returns each one's outcome.
    train: Callable[[Study], Sequence[Outcome]]
    budget: float = math.inf  # in hours of all slots; a stage that would exceed it is not begun
    # The runs of the stages so far, by folder.
    seen: dict[Path, RunRecord] = field(default_factory=dict)
    searched: list[RunInfo] = field(default_factory=list)  # of the search for the recipe
    looks: list[Look] = field(default_factory=list)  # what was found

    def __post_init__(self) -> None:
        arms = self.study.arms
        if len(arms) < 2 or all(arm.init != SCRATCH for arm in arms):
            raise UserError(
                f"{self.study.file}: --until answered needs an arm from scratch and another one"
            )
        self.file = self.output / self.study.name / ADAPTIVE_FILE
        asked = self.study.answer or Answer()
        # The largest first: it is what the question is about.
        self.sizes = self.study.by_size()[::-1]
        seeds = seeds_at_looks(asked.seeds.least, asked.seeds.most)
        lengths = [len(arm.schedules) for one in self.sizes for arm in one.arms]
        self.limits = Limits(seeds, max(lengths))
        self.error = (1 - asked.level) / len(self.sizes)

    def run(self) -> Sequence[Outcome]:
        """Trains; returns the outcomes of the last stage, among them any run that did not end."""
        if self.file.is_dir():
            raise UserError(f"{self.file}: is a folder, where the looks are told; rename it")
        check_parts(self.study)
        outcomes: Sequence[Outcome] = ()
        if self.study.tune is not None:
            outcomes = self.train(search_study(self.study))
            if any(outcome.state not in ENDED for outcome in outcomes):
                return outcomes
            self.searched = [outcome.folder.read() for outcome in outcomes]
            self.sizes = with_recipe(self.study, self.output).by_size()[::-1]
        for size in self.sizes:
            stage: Stage | None = Stage(1, self.limits.seeds[0])
            look = 0
            while stage is not None:
                look += 1
                part = part_of(size, stage)
                if (hours := self.spent() + self._hours_left(part)) > self.budget:
                    say(f"the next stage would bring the hours to {hours:.1f}, over the budget")
                    return outcomes
                if self.budget < math.inf and not (self.seen or self.searched):
                    say("no iteration's seconds are known: this stage trains, whatever the budget")
                outcomes = self.train(part)
                if any(outcome.state not in ENDED for outcome in outcomes):
                    return outcomes
                stage, why = self._look([one.folder for one in outcomes], stage, look)
                say(f"look {look} of at most {self.limits.looks}: {why}")
        return outcomes

    def _look(
        self, folders: Sequence[RunFolder], stage: Stage, look: int
    ) -> tuple[Stage | None, str]:
        there = {folder.path for folder in folders}
        runs = [run for run in load_runs(self.output / self.study.name) if run.folder in there]
        self.seen |= {run.folder: run for run in runs}
        found = answer(runs, level=1 - self.error, look=look, looks=self.limits.looks)
        undecided = [lack for one in found.parts for lack in one.judged.lacks]
        following, why = next_stage(stage, self.limits, undecided)
        self.looks.append(
            Look(
                look=look,
                looks=self.limits.looks,
                size=runs[0].size,
                schedules=tuple(dict.fromkeys(run.schedule for run in runs)),
                seeds=stage.seeds,
                hours=round(self.spent(), 3),
                verdicts=tuple(plain(v) for one in found.parts for v in one.judged.verdicts),
                next=why,
            )
        )
        told: dict[str, Any] = {"format": 1, "study": self.study.name, "looks": tuple(self.looks)}
        if self.searched:
            told["search"] = {
                "runs": len(self.searched),
                "iterations": iterations_of(self.searched),
                "hours": round(hours_of(self.searched), 3),
            }
        write_json(self.file, Looks(**told).model_dump(exclude_unset=True))
        return following, why

    def spent(self) -> float:
        """Returns the hours that training has taken, with those of the search for the recipe."""
        return hours_of([*self.searched, *self.seen.values()])

    def _hours_left(self, part: Study) -> float:
        """Returns how long a part's runs still train, at the rate so far."""
        left = 0
        for arm, seed in itertools.product(part.arms, part.seeds):
            planned = [part.run(arm, one, seed) for one in arm.schedules]
            folders = {run.schedule.name: run.folder(self.output) for run in planned}
            # What these share is what they say; a plan does not know with what they were started.
            begun = {name: at.read() for name, at in folders.items() if at.state() != "planned"}
            branches = arm_branches(part, arm, begun)
            for one in schedules_of(part, arm):
                run, branch = begun.get(one.name), branches.get(one.name)
                if run is None:
                    left += one.iterations - (branch.at if branch else 0)
                elif run.state not in ENDED:
                    left += one.iterations - run.iteration
        done = iterations_of([*self.searched, *self.seen.values()])
        return left * self.spent() / done if done else 0.0

    def text(self) -> str:
        """Returns the answer, and what it took of all that the limits allow."""
        sizes = len({run.size for run in self.seen.values()})
        level = 1 - self.error * sizes
        runs = list(self.seen.values())
        lines = answer(runs, level=level, look=1, looks=self.limits.looks).text()
        search = iterations_of(self.searched)
        trained = search + iterations_of(runs)
        all_of_it = Stage(self.limits.schedules, self.limits.seeds[-1])
        whole = search + sum(plan(part_of(one, all_of_it)).iterations for one in self.sizes)
        took = f"{search:,} iterations and {hours_of(self.searched):.1f} hours"
        part = f" (of them {took} for the search of the recipe)" if self.searched else ""
        return (
            f"{lines}\n{trained:,} iterations, {self.spent():.1f} hours{part}; all seeds, "
            f"schedules and sizes would take {whole:,}: {1 - trained / whole:.0%} saved"
        )


def iterations_of(runs: Iterable[RunInfo]) -> int:
    """Returns the iterations that were trained, what runs share counted once."""
    return sum(run.iteration - run.branch_at for run in runs)


def hours_of(runs: Iterable[RunInfo]) -> float:
    """Returns the hours that training took, what runs share counted once."""
    return sum((run.seconds or 0.0) - run.trunk_seconds for run in runs) / 3600
