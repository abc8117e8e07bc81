"""Tenants that are closed: their SQL users read nothing, and of deleted ones nothing is kept."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg
import structlog

from meshkit.tasks import background
from meshkit.tenant_deletion import ClosedTenant
from telemetry_store.tiers.archive_store import ArchiveStore

_BATCH = 1_000
_STATEMENT_S = 600.0  # It looks at each hot day and each sealed month.
_EVERY_S = 0.5
_log = structlog.get_logger()


class SqlUserDoor:
    """Keeps SQL users of closed tenants out: they read nothing, and their connections end.

    While auth_svc is away, what is known holds.

    Args:
        pool: of the maintenance role.
        closed: answers the tenants that are closed.
    """

    def __init__(
        self, *, pool: asyncpg.Pool, closed: Callable[[], Awaitable[Sequence[ClosedTenant]]]
    ) -> None:
        self._pool = pool
        self._closed = closed

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Look twice a second while the context is open."""
        async with background(self._keep(), name="sql users"):
            yield

    async def turn(self) -> None:
        """Shut out SQL users of tenants that are closed now, and let those of all others in."""
        tenants = [tenant.id for tenant in await self._closed()]
        await self._pool.execute("SELECT telemetry.close_sql_users($1)", tenants)

    async def _keep(self) -> None:
        was_kept = True
        while True:
            try:
                await self.turn()
                was_kept = True
            except Exception as error:
                # Twice a second it would be told too often.
                if was_kept:
                    _log.warning("SQL users of suspended tenants may not be shut out", error=repr(error))
                was_kept = False
            await asyncio.sleep(_EVERY_S)


async def delete_tenant(pool: asyncpg.Pool, store: ArchiveStore | None, tenant: str) -> int:
    """Delete what the store has of a deleted tenant, in every tier, until nothing is found.

    Objects that no row names are deleted with all such (`delete_orphans`).

    Args:
        pool: of the maintenance role.
        store: the archive; None: there is none.
        tenant: the tenant's id.

    Returns:
        How many rows and objects that were.

    Raises:
        StoreError: the archive does not answer.
        RuntimeError: the tenant has objects in an archive that is not configured any more.
    """
    total, before = 0, -1
    while total != before:
        before = total
        while rows := await pool.fetchval(
            "SELECT telemetry.delete_tenant_rows($1, $2)", tenant, _BATCH, timeout=_STATEMENT_S
        ):
            total += rows
        total += await _delete_objects(pool, store, tenant)
    return total


async def _delete_objects(pool: asyncpg.Pool, store: ArchiveStore | None, tenant: str) -> int:
    """Delete archive objects at once: who may read them is shut out for longer than any answer takes."""
    rows = await pool.fetch("SELECT day, path FROM telemetry.archive_object WHERE tenant_id = $1", tenant)
    if rows and store is None:
        raise RuntimeError(
            f"TWINMESH_ARCHIVE_URL is not set, and tenant {tenant} has {len(rows)} objects there"
        )
    for row in rows:
        assert store is not None  # noqa: S101 - told above
        # The row goes last: who dies in between finds it again.
        await store.remove(row["path"])
        await pool.execute(
            "DELETE FROM telemetry.archive_object WHERE tenant_id = $1 AND day = $2 AND path = $3",
            tenant,
            *row,
        )
    return len(rows)
