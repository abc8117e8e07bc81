"""Budgets that all streams of a process share, so that its memory is bounded whatever clients do."""

from collections import Counter
from dataclasses import dataclass, field

INFLIGHT_BYTES = 512 * 1024 * 1024
DEFINITIONS = 2_000_000


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


class Shares:
    """So much of something for all tenants: one gets more while it leaves as much free as it then has.

    So a tenant alone gets half of it, and whoever comes next finds half of the rest.

    Attributes:
        used: what all use now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of: Counter[str] = Counter()
        self.used = 0

    def of(self, tenant: str) -> int:
        """Return what a tenant uses now."""
        return self._of[tenant]

    def most(self, tenant: str) -> int:
        """Return how much a tenant may use as long as the others use what they do."""
        return (self._limit - self.used + self._of[tenant]) // 2

    def take(self, tenant: str, amount: int) -> bool:
        """Take an amount and say so, or take nothing when it is more than a tenant gets."""
        if amount and self._of[tenant] + amount > self.most(tenant):
            return False
        self._change(tenant, amount)
        return True

    def give_back(self, tenant: str, amount: int) -> None:
        """Give back what was taken."""
        self._change(tenant, -amount)

    def _change(self, tenant: str, by: int) -> None:
        self.used += by
        self._of[tenant] += by
        if not self._of[tenant]:
            del self._of[tenant]


@dataclass(frozen=True, slots=True)
class Budgets:
    """The budgets of a process.

    Attributes:
        inflight_bytes: serialized batches in flight.
        definitions: places of series tables.
    """

    inflight_bytes: Budget = field(default_factory=lambda: Budget(INFLIGHT_BYTES))
    definitions: Shares = field(default_factory=lambda: Shares(DEFINITIONS))
