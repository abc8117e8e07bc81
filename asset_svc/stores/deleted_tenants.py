"""What goes of schema asset when a tenant is deleted."""

import asyncpg

from meshkit.db import tenant_transaction

_BATCH = 1_000

# Each before those that it references; of those that reference each other the outermost first.
_DELETE_BATCHES = (
    """
    DELETE FROM asset.device WHERE ctid = ANY (ARRAY (
        SELECT gone.ctid FROM asset.device AS gone
        WHERE tenant_id = $1
          AND NOT EXISTS (SELECT FROM asset.device WHERE tenant_id = gone.tenant_id AND parent_id = gone.id)
        LIMIT $2
    )) RETURNING 1
    """,
    """
    DELETE FROM asset.asset WHERE ctid = ANY (ARRAY (
        SELECT gone.ctid FROM asset.asset AS gone
        WHERE tenant_id = $1
          AND NOT EXISTS (SELECT FROM asset.asset WHERE tenant_id = gone.tenant_id AND parent_id = gone.id)
        LIMIT $2
    )) RETURNING 1
    """,
    """
    DELETE FROM asset.device_type WHERE ctid = ANY (ARRAY (
        SELECT gone.ctid FROM asset.device_type AS gone
        WHERE tenant_id = $1
          AND NOT EXISTS (
              SELECT FROM asset.device_type
              WHERE tenant_id = gone.tenant_id AND child_device_type_id = gone.id AND id <> gone.id
          )
        LIMIT $2
    )) RETURNING 1
    """,
    """
    DELETE FROM asset.asset_type WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM asset.asset_type WHERE tenant_id = $1 LIMIT $2
    )) RETURNING 1
    """,
)


class DeletedTenants:
    """Deletes what deleted tenants had.

    Args:
        pool: of the service's role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def delete_rows(self, tenant_id: str) -> int:
        """Delete what schema asset has of a tenant, a batch in each transaction; returns how many rows."""
        total = 0
        for statement in _DELETE_BATCHES:
            while deleted := await self._delete_batch(statement, tenant_id):
                total += deleted
        return total

    async def _delete_batch(self, statement: str, tenant_id: str) -> int:
        async with tenant_transaction(self._pool, tenant_id) as connection:
            return len(await connection.fetch(statement, tenant_id, _BATCH))
