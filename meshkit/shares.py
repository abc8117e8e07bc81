"""What a process has for all tenants together, so that none of them uses it up."""

from collections import Counter
from dataclasses import dataclass


class Shares:
    """So much of something: a tenant gets another one while more is free than it has.

    So a tenant alone gets half of it, whoever comes next half of the rest, and of a few there is one left.

    Attributes:
        limit: what all may use together.
        used: what all use now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._of: Counter[str] = Counter()

    def share(self, tenant: str) -> "Share":
        """Return what a tenant has of it."""
        return Share(self, tenant)

    def of(self, tenant: str) -> int:
        """Return what a tenant uses now."""
        return self._of[tenant]

    def most(self, tenant: str) -> int:
        """Return how much a tenant may use as long as the others use what they do."""
        return (self.limit - self.used + self._of[tenant] + 1) // 2

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
class Share:
    """A tenant's part of something."""

    _shares: Shares
    _tenant: str

    @property
    def used(self) -> int:
        """What the tenant uses now."""
        return self._shares.of(self._tenant)

    @property
    def most(self) -> int:
        """How much it may use as long as the others use what they do."""
        return self._shares.most(self._tenant)

    def take(self, amount: int) -> bool:
        """Take an amount and say so, or take nothing when it is more than the tenant gets."""
        return self._shares.take(self._tenant, amount)

    def give_back(self, amount: int) -> None:
        """Give back what was taken."""
        self._shares.give_back(self._tenant, amount)
