"""Transactions over a tenant's users and roles."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from auth_svc.rights import Rights
from auth_svc.stores.roles import RoleRows
from auth_svc.stores.users import UserRows
from meshkit.db import tenant_transaction

# New rows may refer to it meanwhile: their foreign keys lock its key only.
_LOCK_TENANT = "SELECT FROM auth.tenant WHERE tenant_id = $1 FOR NO KEY UPDATE"


class RightsStore:
    """Users and roles of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def reading(self, tenant: str) -> AsyncIterator[Rights]:
        """Open a transaction that sees one tenant."""
        async with tenant_transaction(self._pool, tenant) as connection:
            yield Rights(tenant, UserRows(connection, tenant), RoleRows(connection, tenant))

    @asynccontextmanager
    async def changing(self, tenant: str) -> AsyncIterator[Rights]:
        """Open one that also keeps all others from changing that tenant's rights; an error undoes it."""
        # Not on a later snapshot than the lock: what the one before committed is to be seen.
        async with tenant_transaction(self._pool, tenant, isolation="read_committed") as connection:
            await connection.execute(_LOCK_TENANT, tenant)
            yield Rights(tenant, UserRows(connection, tenant), RoleRows(connection, tenant))
