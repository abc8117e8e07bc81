"""Tables auth.tenant and auth.user_account."""

from datetime import datetime

import asyncpg

from auth_svc.roles import Role
from auth_svc.sessions import User
from meshkit.db import tenant_transaction

_FIND = """
SELECT username, password_hash, role
FROM auth.user_account
WHERE tenant_id = $1 AND username = $2
"""

_TENANT_EXISTS = """
SELECT EXISTS (SELECT FROM auth.tenant WHERE tenant_id = $1)
"""

_INSERT_TENANT = """
INSERT INTO auth.tenant (tenant_id, create_time)
VALUES ($1, $2)
ON CONFLICT DO NOTHING
"""

_INSERT_USER = """
INSERT INTO auth.user_account (tenant_id, username, password_hash, role, create_time)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING
RETURNING true
"""


class UserStore:
    """Users of all tenants, one tenant at a time.

    Args:
        pool: as role twinmesh_auth.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, tenant: str, username: str) -> User | None:
        """Return a user, None when there is none."""
        async with tenant_transaction(self._pool, tenant) as connection:
            row = await connection.fetchrow(_FIND, tenant, username)
        if row is None:
            return None
        return User(username=row["username"], password_hash=row["password_hash"], role=Role(row["role"]))

    async def tenant_exists(self, tenant: str) -> bool:
        """Tell whether there is such a tenant."""
        async with tenant_transaction(self._pool, tenant) as connection:
            return bool(await connection.fetchval(_TENANT_EXISTS, tenant))

    async def create(self, tenant: str, user: User, create_time: datetime) -> bool:
        """Store a user, and its tenant when that is new; False when the user exists already."""
        async with tenant_transaction(self._pool, tenant) as connection:
            await connection.execute(_INSERT_TENANT, tenant, create_time)
            created = await connection.fetchval(
                _INSERT_USER, tenant, user.username, user.password_hash, user.role, create_time
            )
        return bool(created)
