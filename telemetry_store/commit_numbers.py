"""Commits by their numbers: one's place, and which of them somebody has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class CommitNumbers:
    """A commit's place in the feed, (instance, commit_no), and in the order of all commits."""

    instance: int
    commit_no: int
    order_no: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Commits that somebody has: a fleet, or the caller of a watch, who was told of them.

    Attributes:
        base: of every instance up to this one that `numbers` does not name, all.
        numbers: of other instances, up to which commit.
    """

    base: int = 0
    numbers: Mapping[int, int] = field(default_factory=dict)

    def of(self, instance: int) -> float:
        """Return up to which of an instance's commits it goes, infinity for all that there will be."""
        number = self.numbers.get(instance)
        if number is not None:
            return number
        return float("inf") if instance <= self.base else 0

    def covers(self, other: "Coverage") -> bool:
        """Say whether every commit of the other one is here, too."""
        if other.base > self.base:
            return False
        named = {*self.numbers, *other.numbers}
        return all(self.of(instance) >= other.of(instance) for instance in named)

    def told(self, instances: npt.NDArray[np.int32], commits: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return of each (instance, commit) whether it is here; those of instance 0 are taken to be not."""
        told = (instances <= self.base) & (instances > 0)
        for instance, number in self.numbers.items():
            mine = instances == instance
            told[mine] = commits[mine] <= number
        return told
