"""Tables auth.tenant and auth.tenant_deletion, as the deletion of tenants needs them."""

import asyncpg

from auth_svc.tenant_deletion import StoredClosing
from meshkit.clock import from_datetime
from meshkit.db import tenant_transaction

_BATCH = 1_000

_CLOSED = """
SELECT tenant_id, suspend_time, delete_time IS NOT NULL AS is_deleted, done_by
FROM auth.closed_tenants_after($1, $2)
"""

_LOCK = "SELECT true FROM auth.tenant WHERE tenant_id = $1 AND delete_time IS NOT NULL FOR UPDATE"

_DONE = """
INSERT INTO auth.tenant_deletion (tenant_id, service, done_time)
VALUES ($1, $2, clock_timestamp())
ON CONFLICT DO NOTHING
"""

_PURGED = """
UPDATE auth.tenant SET purge_time = clock_timestamp()
WHERE tenant_id = $1 AND purge_time IS NULL
  AND $2::text[] <@ ARRAY (SELECT service FROM auth.tenant_deletion WHERE tenant_id = $1)
RETURNING true
"""


class TenantDeletionStore:
    """Deleted tenants; see `auth_svc.tenant_deletion.TenantDeletionStore`.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def closed(self, *, after: str, limit: int) -> list[StoredClosing]:
        """Read closed tenants by id, the first after an id."""
        return [
            StoredClosing(
                tenant_id=row["tenant_id"],
                suspend_us=from_datetime(row["suspend_time"]),
                is_deleted=row["is_deleted"],
                done_by=frozenset(row["done_by"]),
            )
            for row in await self._pool.fetch(_CLOSED, after, limit)
        ]

    async def record_done(self, tenant_id: str, service: str, services: frozenset[str]) -> bool | None:
        """Note that a service has nothing of a deleted tenant; None when no such tenant is deleted."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            if not await connection.fetchval(_LOCK, tenant_id):
                return None
            await connection.execute(_DONE, tenant_id, service)
            return bool(await connection.fetchval(_PURGED, tenant_id, sorted(services)))

    async def delete_rows(self, tenant_id: str) -> int:
        """Delete what schema auth has of a deleted tenant; returns how many rows."""
        total = 0
        while rows := await self._pool.fetchval("SELECT auth.delete_tenant_rows($1, $2)", tenant_id, _BATCH):
            total += rows
        return total
