"""Table auth.tenant, as the operators of the installation see it."""

import asyncpg

from auth_svc.revocations import kept_until
from auth_svc.rights import NewPassword
from auth_svc.stores.revocations import insert_revocations
from auth_svc.stores.users import UserRows
from meshkit.clock import to_datetime
from meshkit.db import Connection, tenant_transaction
from meshkit.errors import AlreadyExists
from meshkit.revocations import RevocationKind
from twinmesh.auth.v1.tenant_service_pb2 import Tenant
from twinmesh.auth.v1.user_service_pb2 import User
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_INSERT = """
INSERT INTO auth.tenant (tenant_id, create_time, request_id)
VALUES ($1, $2, nullif($3, ''))
ON CONFLICT DO NOTHING
RETURNING tenant_id, create_time, suspend_time, delete_time, purge_time
"""

_GET = """
SELECT tenant_id, create_time, suspend_time, delete_time, purge_time
FROM auth.tenant WHERE tenant_id = $1
"""

_PAGE = """
SELECT tenant_id, create_time, suspend_time, delete_time, purge_time
FROM auth.tenants_after($1, $2)
"""

_SUSPEND = """
UPDATE auth.tenant SET suspend_time = coalesce(suspend_time, clock_timestamp())
WHERE tenant_id = $1
RETURNING tenant_id, create_time, suspend_time, delete_time, purge_time
"""

_RESUME = """
UPDATE auth.tenant SET suspend_time = NULL
WHERE tenant_id = $1 AND delete_time IS NULL
RETURNING tenant_id, create_time, suspend_time, delete_time, purge_time
"""

_DELETE = """
UPDATE auth.tenant
SET delete_time = coalesce(delete_time, clock_timestamp()), export_digest = coalesce(export_digest, $2)
WHERE tenant_id = $1 AND suspend_time IS NOT NULL
RETURNING tenant_id, create_time, suspend_time, delete_time, purge_time
"""

# Whoever has logged in has got an answer; a user who was made later by that name got one of their own.
_RETRIED = """
SELECT tenant_id, create_time, suspend_time, delete_time, purge_time
FROM auth.tenant
WHERE tenant_id = $1 AND request_id = $2 AND delete_time IS NULL
  AND EXISTS (
      SELECT FROM auth.user_account
      WHERE tenant_id = $1 AND username = $3 AND one_time_expire_time IS NOT NULL
          AND user_account.create_time = tenant.create_time
  )
  AND NOT EXISTS (SELECT FROM auth.session WHERE tenant_id = $1 AND username = $3)
FOR UPDATE
"""


class TenantStore:
    """All tenants; see `auth_svc.tenants.TenantStore`.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(
        self, tenant_id: str, administrator: User, password: NewPassword, now_us: int, *, request_id: str
    ) -> Tenant:
        """Add one with its first user; again with the same request id it gives that user the password.

        Raises:
            AlreadyExists: the id is taken, by another request or by a user who has logged in.
        """
        async with tenant_transaction(self._pool, tenant_id) as connection:
            users = UserRows(connection, tenant_id)
            row = await connection.fetchrow(_INSERT, tenant_id, to_datetime(now_us), request_id)
            if row is not None:
                await users.insert(administrator, password, now_us)
                return _tenant(row)
            row = await connection.fetchrow(_RETRIED, tenant_id, request_id, administrator.username)
            if row is None:
                raise AlreadyExists(
                    f"tenant {tenant_id!r} exists already",
                    reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
                    metadata={"resource": "tenant", "id": tenant_id},
                )
            await users.set_password(administrator.username, password, now_us, replaces=None)
        return _tenant(row)

    async def get(self, tenant_id: str) -> Tenant | None:
        """Read one, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_GET, tenant_id)
        return None if row is None else _tenant(row)

    async def is_deleted(self, tenant_id: str) -> bool:
        """Tell whether there was one by that id that was deleted."""
        tenant = await self.get(tenant_id)
        return tenant is not None and tenant.HasField("delete_time")

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
        """Resume one that is not deleted, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_RESUME, tenant_id)
        return None if row is None else _tenant(row)

    async def delete(self, tenant_id: str, export_digest: str) -> Tenant | None:
        """Have all deleted that a suspended one has, None when there is none."""
        async with tenant_transaction(self._pool, tenant_id) as connection:
            row = await connection.fetchrow(_DELETE, tenant_id, export_digest)
        return None if row is None else _tenant(row)


async def _revoke(connection: Connection, tenant_id: str, now_us: int) -> None:
    await insert_revocations(
        connection, tenant=tenant_id, kind=RevocationKind.TENANT, ids=[tenant_id], until=kept_until(now_us)
    )


def _tenant(row: asyncpg.Record) -> Tenant:
    tenant = Tenant(id=row["tenant_id"], create_time=row["create_time"])
    for field in ("suspend_time", "delete_time", "purge_time"):
        if row[field] is not None:
            getattr(tenant, field).FromDatetime(row[field])
    return tenant
