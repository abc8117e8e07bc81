"""How each service deletes what it has of deleted tenants.

auth_svc keeps the tenants, and tells which are closed: suspended, or deleted for good. A service that has
rows of tenants asks every ten seconds, deletes what is due, a batch in each transaction, and reports. Whoever
dies half-way begins again with what is left.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from meshkit.tasks import background

SWEEP_EVERY_S = 10.0
# What was under way when a tenant was deleted may come to light later; a day on, auth_svc names it no more.
_AGAIN_AFTER_S = 3600.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ClosedTenant:
    """A tenant that is suspended or deleted.

    Attributes:
        id: its id.
        deletion_due: whether all that it has is to be deleted now.
        reported: whether the service that asks has reported that it has nothing of it.
    """

    id: str
    deletion_due: bool
    reported: bool


class TenantSweep:
    """Deletes what a service has of deleted tenants.

    Args:
        closed: answers the tenants that are closed.
        delete: deletes all that the service has of a tenant; returns how much that was.
        report: says that nothing of a tenant is left.
    """

    def __init__(
        self,
        *,
        closed: Callable[[], Awaitable[Sequence[ClosedTenant]]],
        delete: Callable[[str], Awaitable[int]],
        report: Callable[[str], Awaitable[None]],
    ) -> None:
        self._closed = closed
        self._delete = delete
        self._report = report
        self._swept_at: dict[str, float] = {}

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Take turns in the background while the context is open; one that fails is tried again."""
        async with background(self._sweep_on(), name="deleted tenants"):
            yield

    async def turn(self) -> None:
        """Delete what is due, and report it; those that were reported are looked at again every hour.

        Raises:
            ExceptionGroup: of some tenants not all could be deleted; the others were.
        """
        failures = []
        for tenant in await self._closed():
            if not tenant.deletion_due or self._is_done(tenant):
                continue
            try:
                await self._sweep(tenant)
            except Exception as error:  # One tenant must not keep the others' rows.
                error.add_note(f"tenant {tenant.id}")
                failures.append(error)
        if failures:
            raise ExceptionGroup("deleted tenants still have something", failures)

    async def _sweep_on(self) -> None:
        while True:
            try:
                await self.turn()
            except Exception as error:
                _log.warning("deleted tenants wait", error=repr(error))
            await asyncio.sleep(SWEEP_EVERY_S)

    def _is_done(self, tenant: ClosedTenant) -> bool:
        now = asyncio.get_running_loop().time()
        return tenant.reported and now - self._swept_at.get(tenant.id, float("-inf")) < _AGAIN_AFTER_S

    async def _sweep(self, tenant: ClosedTenant) -> None:
        deleted = await self._delete(tenant.id)
        if deleted:
            _log.info("rows of a deleted tenant deleted", tenant=tenant.id, rows=deleted)
        if not tenant.reported:
            await self._report(tenant.id)
        self._swept_at[tenant.id] = asyncio.get_running_loop().time()
