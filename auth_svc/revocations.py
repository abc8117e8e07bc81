"""Revocations of API keys, by whichever process, told to those here who let keys in."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from auth_svc.key_exchange import CACHE_LIFE_S

# Whatever was remembered of a key when it began to be revoked is forgotten by itself later.
LOOK_BACK_S = CACHE_LIFE_S + 30


class Revoked(Protocol):
    """Knows which keys were revoked."""

    async def revoked_within(self, period_s: int) -> Iterable[tuple[str, str]]:
        """Return tenant and id of the keys revoked, by any process, in the last seconds."""
        ...


class Revocations:
    """Tells followers of revoked keys, again and again for a minute.

    Args:
        keys: knows them.
        followers: told tenant and id.
    """

    def __init__(self, *, keys: Revoked, followers: Sequence[Callable[[str, str], None]]) -> None:
        self._keys = keys
        self._followers = followers

    async def poll(self) -> None:
        """Tell of the last minute's revocations."""
        for tenant, key_id in await self._keys.revoked_within(LOOK_BACK_S):
            self.tell(tenant, key_id)

    def tell(self, tenant: str, key_id: str) -> None:
        """Tell of one."""
        for follower in self._followers:
            follower(tenant, key_id)
