"""Table auth.role."""

import asyncpg

from meshkit.clock import to_datetime
from meshkit.db import Connection
from meshkit.errors import AlreadyExists, FailedPrecondition
from twinmesh.auth.v1 import role_service_pb2 as pb
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_GET = """
SELECT id, display_name, permissions, version, create_time, update_time
FROM auth.role
WHERE tenant_id = $1 AND id = $2
"""

_PAGE = """
SELECT id, display_name, permissions, version, create_time, update_time
FROM auth.role
WHERE tenant_id = $1 AND id > $2
ORDER BY id
LIMIT $3
"""

_INSERT = """
INSERT INTO auth.role (tenant_id, id, display_name, permissions, create_time, update_time)
VALUES ($1, $2, $3, $4, $5, $5)
RETURNING id, display_name, permissions, version, create_time, update_time
"""

_UPDATE = """
UPDATE auth.role
SET display_name = $3, permissions = $4, update_time = $5, version = version + 1
WHERE tenant_id = $1 AND id = $2
RETURNING id, display_name, permissions, version, create_time, update_time
"""

_DELETE = "DELETE FROM auth.role WHERE tenant_id = $1 AND id = $2"


class RoleRows:
    """One tenant's own roles, inside of a transaction; see `auth_svc.rights.RoleRows`.

    Args:
        connection: in a transaction of the tenant.
        tenant: whose roles.
    """

    def __init__(self, connection: Connection, tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant

    async def get(self, role_id: str) -> pb.Role | None:
        """Read one, None when there is none."""
        row = await self._connection.fetchrow(_GET, self._tenant, role_id)
        return None if row is None else _role(row)

    async def page(self, *, after: str, limit: int) -> list[pb.Role]:
        """Read by id, the first after an id."""
        return [_role(row) for row in await self._connection.fetch(_PAGE, self._tenant, after, limit)]

    async def insert(self, role: pb.Role, now_us: int) -> pb.Role:
        """Add one.

        Raises:
            AlreadyExists: the id is taken.
        """
        try:
            return await self._write(_INSERT, role, now_us)
        except asyncpg.UniqueViolationError as error:
            raise AlreadyExists(
                f"role {role.id!r} exists already",
                reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
                metadata={"resource": "role", "id": role.id},
            ) from error

    async def update(self, role: pb.Role, now_us: int) -> pb.Role:
        """Write one."""
        return await self._write(_UPDATE, role, now_us)

    async def delete(self, role_id: str) -> None:
        """Remove one.

        Raises:
            FailedPrecondition: IN_USE.
        """
        try:
            await self._connection.execute(_DELETE, self._tenant, role_id)
        except asyncpg.ForeignKeyViolationError as error:
            raise FailedPrecondition(
                f"role {role_id!r} still has users",
                reason=ErrorReason.ERROR_REASON_IN_USE,
                metadata={"resource": "role", "id": role_id},
            ) from error

    async def _write(self, statement: str, role: pb.Role, now_us: int) -> pb.Role:
        (row,) = await self._connection.fetch(
            statement,
            self._tenant,
            role.id,
            role.display_name,
            sorted(role.permissions),
            to_datetime(now_us),
        )
        return _role(row)


def _role(row: asyncpg.Record) -> pb.Role:
    return pb.Role(
        id=row["id"],
        display_name=row["display_name"],
        permissions=row["permissions"],
        etag=f'"{row["version"]}"',
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
