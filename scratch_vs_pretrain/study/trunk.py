"""What schedules of one arm share: they differ only in when their tail begins.

Two runs of one arm and seed that differ in their schedule alone are the same run until the shorter
one's tail begins. The run that stays longest at the constant rate is the trunk; the others branch
off from its checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from scratch_vs_pretrain.config import Schedule
from scratch_vs_pretrain.study.spec import Switch


@dataclass(frozen=True)
class Branch:
    """Where a run begins that does not begin at iteration 0.

    Attributes:
        of: the schedule of the run, of the same arm and seed, that is its trunk.
        at: iterations that are the trunk's.
    """

    of: str
    at: int


@dataclass(frozen=True)
class Trunk:
    """Schedules of one recipe, of which the longest constant-rate part is trained once.

    Attributes:
        schedules: shortest first.
        switch: another config for the last iterations of each, which are its own then.
    """

    schedules: tuple[Schedule, ...]
    switch: Switch | None = None

    def start_of(self, schedule: Schedule) -> int:
        """Returns the iteration at which what is a schedule's own begins: its last at least."""
        start = schedule.iterations - max(schedule.tail, 1)
        return min(start, self.switch.start(schedule)) if self.switch else start

    def longest(self, among: Collection[str] = ()) -> Schedule:
        """Returns the schedule that leaves last, of those `among` which it has to be if any is."""
        eligible = [one for one in self.schedules if one.name in among] or self.schedules
        return max(eligible, key=lambda one: (self.start_of(one), one.iterations))

    def branches(self, there: Collection[str] = ()) -> dict[str, Branch]:
        """Returns where each schedule but the trunk's branches off; none that shares nothing.

        Args:
            there: schedules of runs that have begun, one of which is to be the trunk.
        """
        trunk = self.longest(there)
        starts = {
            one.name: min(self.start_of(one), self.start_of(trunk))
            for one in self.schedules
            if one is not trunk
        }
        return {name: Branch(trunk.name, at) for name, at in starts.items() if at > 0}

    @property
    def length(self) -> int:
        """Iterations of the trunk itself."""
        return self.start_of(self.longest())

    @property
    def iterations(self) -> int:
        """Iterations in all, what is shared counted once."""
        shared = sum(branch.at for branch in self.branches().values())
        return self.iterations_alone - shared

    @property
    def iterations_alone(self) -> int:
        """Iterations in all if every schedule were trained alone."""
        return sum(schedule.iterations for schedule in self.schedules)


def share_trunk(schedules: Iterable[Schedule], switch: Switch | None = None) -> tuple[Trunk, ...]:
    """Returns the trunks of schedules that are otherwise of one recipe; one for each rate."""

    def rate(schedule: Schedule) -> float:
        return schedule.rate_factor

    ordered = sorted(schedules, key=lambda schedule: (rate(schedule), schedule.iterations))
    return tuple(Trunk(tuple(group), switch) for _, group in itertools.groupby(ordered, rate))


def branches_of(
    schedules: Iterable[Schedule],
    switch: Switch | None = None,
    begun: Collection[str] = (),
) -> Mapping[str, Branch]:
    """Returns the branches of all trunks by schedule name; see :meth:`Trunk.branches`."""
    trunks = share_trunk(schedules, switch)
    return {name: branch for trunk in trunks for name, branch in trunk.branches(begun).items()}
