"""Which tenants are closed, and who has deleted what it had of deleted ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import not_found
from meshkit.revocations import KEPT_S
from meshkit.tenant_deletion import ClosedTenant

# Who has rows of tenants; each reports by its service's name.
SERVICES = frozenset({"auth_svc", "asset_svc", "maintenance"})
_ALL = 2**31 - 1
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StoredClosing:
    """What is kept of a closed tenant.

    Attributes:
        tenant_id: its id.
        suspend_us: since when it is suspended, microseconds since the epoch.
        is_deleted: whether its deletion was asked for.
        done_by: services that have nothing of it any more.
    """

    tenant_id: str
    suspend_us: int
    is_deleted: bool
    done_by: frozenset[str]


class TenantDeletionStore(Protocol):
    """Where it is kept."""

    async def closed(self, *, after: str, limit: int) -> list[StoredClosing]:
        """Read closed tenants by id, the first after an id."""
        ...

    async def record_done(self, tenant_id: str, service: str, services: frozenset[str]) -> bool | None:
        """Note that a service has nothing of a deleted tenant.

        Returns:
            Whether that was the last of the services; None when no such tenant is deleted.
        """
        ...


class TenantDeletions:
    """Tells services of closed tenants, and hears what they have deleted.

    Args:
        store: where it is kept.
        clock: tells when no token of a tenant is left.
    """

    def __init__(self, *, store: TenantDeletionStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def page(self, service: str, *, after: str, limit: int) -> tuple[Sequence[ClosedTenant], bool]:
        """Return closed tenants by id after an id, for a service, and whether there are more."""
        found = await self._store.closed(after=after, limit=limit + 1)
        return [self._as_seen_by(service, closing) for closing in found[:limit]], len(found) > limit

    async def all(self, service: str) -> Sequence[ClosedTenant]:
        """Return all of them."""
        closed, _ = await self.page(service, after="", limit=_ALL - 1)
        return closed

    async def report(self, service: str, tenant_id: str) -> None:
        """Note that a service has nothing of a deleted tenant any more.

        Raises:
            NotFound: no such tenant is deleted.
        """
        was_last = await self._store.record_done(tenant_id, service, SERVICES)
        if was_last is None:
            raise not_found("deleted tenant", tenant_id)
        if was_last:
            _log.info("tenant deleted", tenant=tenant_id)

    def _as_seen_by(self, service: str, closing: StoredClosing) -> ClosedTenant:
        # Until then somebody who has not heard of the suspension may take a token.
        settled = closing.suspend_us + KEPT_S * MICROS_PER_SECOND <= self._clock.now_us()
        return ClosedTenant(
            id=closing.tenant_id,
            deletion_due=closing.is_deleted and settled,
            reported=service in closing.done_by,
        )
