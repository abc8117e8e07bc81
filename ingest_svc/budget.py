"""Budgets that all streams of a process share, so that its memory is bounded whatever clients do."""

from dataclasses import dataclass, field

INFLIGHT_BYTES = 512 * 1024 * 1024
DEFINITIONS = 1_000_000


class Budget:
    """So much of something for everybody together.

    Attributes:
        limit: most that may be used at once.
        used: what is used now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, amount: int) -> bool:
        """Take an amount and say so, or take nothing when not so much is left."""
        if self.used + amount > self.limit:
            return False
        self.used += amount
        return True

    def give_back(self, amount: int) -> None:
        """Give back what was taken."""
        self.used -= amount


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of a process.

    Attributes:
        inflight_bytes: serialized batches in flight.
        definitions: places of series tables.
    """

    inflight_bytes: Budget = field(default_factory=lambda: Budget(INFLIGHT_BYTES))
    definitions: Budget = field(default_factory=lambda: Budget(DEFINITIONS))
