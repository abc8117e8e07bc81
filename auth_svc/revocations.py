"""Revocations of credentials of one kind, by whichever process, told to those here who let them in."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from auth_svc.exchanged_tokens import CACHE_LIFE_S

# Whatever was remembered of a credential when it began to be revoked is forgotten by itself later.
LOOK_BACK_S = CACHE_LIFE_S + 30


class Revoked(Protocol):
    """Knows which credentials were revoked."""

    async def revoked_within(self, period_s: int) -> Iterable[tuple[str, str]]:
        """Return tenant and id of those revoked, by any process, in the last seconds."""
        ...


class Revocations:
    """Tells followers of revoked credentials, again and again for a minute.

    Args:
        credentials: knows them.
        followers: told tenant and id.
    """

    def __init__(self, *, credentials: Revoked, followers: Sequence[Callable[[str, str], None]]) -> None:
        self._credentials = credentials
        self._followers = followers

    async def poll(self) -> None:
        """Tell of the last minute's revocations."""
        for tenant, credential_id in await self._credentials.revoked_within(LOOK_BACK_S):
            self.tell(tenant, credential_id)

    def tell(self, tenant: str, credential_id: str) -> None:
        """Tell of one."""
        for follower in self._followers:
            follower(tenant, credential_id)
