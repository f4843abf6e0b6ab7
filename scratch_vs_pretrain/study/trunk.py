"""What schedules of one arm share: they differ only in when their tail begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from scratch_vs_pretrain.config import Schedule


@dataclass(frozen=True)
class Trunk:
    """The constant-rate part that some schedules share, trained once.

    Attributes:
        schedules: shortest first.
    """

    schedules: tuple[Schedule, ...]

    def start_of(self, schedule: Schedule) -> int:
        """Returns the iteration at which a schedule leaves the trunk."""
        return schedule.iterations - schedule.tail

    @property
    def length(self) -> int:
        """Iterations of the trunk itself."""
        return max(self.start_of(schedule) for schedule in self.schedules)

    @property
    def iterations(self) -> int:
        """Iterations in all, trunk and tails."""
        return self.length + sum(schedule.tail for schedule in self.schedules)

    @property
    def iterations_alone(self) -> int:
        """Iterations in all if every schedule were trained alone."""
        return sum(schedule.iterations for schedule in self.schedules)


def share_trunk(schedules: Iterable[Schedule]) -> tuple[Trunk, ...]:
    """Returns the trunks of schedules that are otherwise of one recipe; one for each rate."""

    def rate(schedule: Schedule) -> float:
        return schedule.rate_factor

    ordered = sorted(schedules, key=lambda schedule: (rate(schedule), schedule.iterations))
    return tuple(Trunk(tuple(group)) for _, group in itertools.groupby(ordered, rate))
