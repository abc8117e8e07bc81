"""Table auth.tenant, as the operators of the installation see it."""

import asyncpg

from auth_svc.revocations import kept_until
from auth_svc.rights import NewPassword
from auth_svc.stores.revocations import insert_revocation
from auth_svc.stores.users import UserRows
from meshkit.clock import to_datetime
from meshkit.db import Connection, tenant_transaction
from meshkit.errors import AlreadyExists
from meshkit.revocations import RevocationKind
from twinmesh.auth.v1.tenant_service_pb2 import Tenant
from twinmesh.auth.v1.user_service_pb2 import User
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_INSERT = """
INSERT INTO auth.tenant (tenant_id, create_time)
VALUES ($1, $2)
ON CONFLICT DO NOTHING
RETURNING tenant_id, create_time, suspend_time
"""

_GET = "SELECT tenant_id, create_time, suspend_time FROM auth.tenant WHERE tenant_id = $1"

_PAGE = "SELECT tenant_id, create_time, suspend_time FROM auth.tenants_after($1, $2)"

_SUSPEND = """
UPDATE auth.tenant SET suspend_time = coalesce(suspend_time, clock_timestamp())
WHERE tenant_id = $1
RETURNING tenant_id, create_time, suspend_time
"""

_RESUME = """
UPDATE auth.tenant SET suspend_time = NULL
WHERE tenant_id = $1
RETURNING tenant_id, create_time, suspend_time
"""


class TenantStore:
    """All tenants; see `auth_svc.tenants.TenantStore`.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(self, tenant_id: str, administrator: User, password: NewPassword, now_us: int) -> Tenant:
        """Add one with its first user.

        Raises:
            AlreadyExists: the id is taken.
        """
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_INSERT, tenant_id, to_datetime(now_us))
            if row is None:
                raise AlreadyExists(
                    f"tenant {tenant_id!r} exists already",
                    reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
                    metadata={"resource": "tenant", "id": tenant_id},
                )
            await UserRows(connection, tenant_id).insert(administrator, password, now_us)
        return _tenant(row)

    async def get(self, tenant_id: str) -> Tenant | None:
        """Read one, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_GET, tenant_id)
        return None if row is None else _tenant(row)

    async def page(self, *, after: str, limit: int) -> list[Tenant]:
        """Read by id, the first after an id."""
        return [_tenant(row) for row in await self._pool.fetch(_PAGE, after, limit)]

    async def suspend(self, tenant_id: str, now_us: int) -> Tenant | None:
        """Suspend one and revoke all that was issued in it, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_SUSPEND, tenant_id)
            if row is None:
                return None
            await _revoke(connection, tenant_id, now_us)
        # Once more: until the commit tokens were issued to whom was read as not suspended. Only what is
        # read after it is later than this.
        async with tenant_transaction(self._pool, tenant_id) as connection:
            await _revoke(connection, tenant_id, now_us)
        return _tenant(row)

    async def resume(self, tenant_id: str) -> Tenant | None:
        """Resume one, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_RESUME, tenant_id)
        return None if row is None else _tenant(row)


async def _revoke(connection: Connection, tenant_id: str, now_us: int) -> None:
    await insert_revocation(
        connection, tenant=tenant_id, kind=RevocationKind.TENANT, id=tenant_id, until=kept_until(now_us)
    )


def _tenant(row: asyncpg.Record) -> Tenant:
    tenant = Tenant(id=row["tenant_id"], create_time=row["create_time"])
    if row["suspend_time"] is not None:
        tenant.suspend_time.FromDatetime(row["suspend_time"])
    return tenant
