"""Tables auth.tenant and auth.user_account."""

from collections.abc import Sequence

import asyncpg

from auth_svc.grants import held_in_session
from auth_svc.rights import NewPassword
from auth_svc.roles import Role
from auth_svc.sessions import User
from auth_svc.stores.sessions import SessionStore
from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection, tenant_transaction
from meshkit.errors import AlreadyExists
from twinmesh.auth.v1 import user_service_pb2 as pb
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_FIND = """
SELECT username, password_hash, user_account.role, role.permissions, disabled, one_time_expire_time,
       user_account.version, tenant.suspend_time IS NOT NULL AS tenant_suspended
FROM auth.user_account
JOIN auth.tenant USING (tenant_id)
LEFT JOIN auth.role ON role.tenant_id = user_account.tenant_id AND role.id = user_account.custom_role
WHERE user_account.tenant_id = $1 AND username = $2
"""

_INSERT_TENANT = """
INSERT INTO auth.tenant (tenant_id, create_time)
VALUES ($1, $2)
ON CONFLICT DO NOTHING
"""

_INSERT_ABSENT = """
INSERT INTO auth.user_account (tenant_id, username, password_hash, role, create_time, update_time)
SELECT $1, $2, $3, $4, $5, $5
WHERE NOT EXISTS (SELECT FROM auth.tenant WHERE tenant_id = $1 AND delete_time IS NOT NULL)
ON CONFLICT DO NOTHING
RETURNING true
"""

_GET = """
SELECT username, display_name, role, disabled, version, create_time, update_time, one_time_expire_time
FROM auth.user_account
WHERE tenant_id = $1 AND username = $2
"""

_PAGE = """
SELECT username, display_name, role, disabled, version, create_time, update_time, one_time_expire_time
FROM auth.user_account
WHERE tenant_id = $1 AND username > $2 AND ($3 = '' OR role = $3)
ORDER BY username
LIMIT $4
"""

_INSERT = """
INSERT INTO auth.user_account
    (tenant_id, username, display_name, role, disabled, password_hash, one_time_expire_time, create_time,
     update_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
RETURNING username, display_name, role, disabled, version, create_time, update_time, one_time_expire_time
"""

_UPDATE = """
UPDATE auth.user_account
SET display_name = $3, role = $4, disabled = $5, update_time = $6, version = version + 1
WHERE tenant_id = $1 AND username = $2
RETURNING username, display_name, role, disabled, version, create_time, update_time, one_time_expire_time
"""

_REPLACE_HASH = """
UPDATE auth.user_account
SET password_hash = $3, one_time_expire_time = $4, update_time = $5, version = version + 1
WHERE tenant_id = $1 AND username = $2 AND ($6::text IS NULL OR password_hash = $6)
RETURNING true
"""

_DELETE = "DELETE FROM auth.user_account WHERE tenant_id = $1 AND username = $2"

_ROLE_CHANGED = """
UPDATE auth.user_account SET update_time = $3, version = version + 1
WHERE tenant_id = $1 AND role = $2
RETURNING username
"""

_HAS_ADMINISTRATOR = """
SELECT EXISTS (
    SELECT FROM auth.user_account
    LEFT JOIN auth.role ON role.tenant_id = user_account.tenant_id AND role.id = user_account.custom_role
    WHERE user_account.tenant_id = $1 AND NOT disabled AND one_time_expire_time IS NULL
      AND (user_account.role = ANY ($3) OR $2 = ANY (role.permissions))
)
"""


class UserStore:
    """Users of all tenants as log-in and the bootstrap need them, one tenant at a time.

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
        one_time = row["one_time_expire_time"]
        return User(
            username=row["username"],
            password_hash=row["password_hash"],
            role=row["role"],
            permissions=held_in_session(row["role"], row["permissions"], one_time=one_time is not None),
            disabled=row["disabled"],
            one_time_expire_us=None if one_time is None else from_datetime(one_time),
            version=row["version"],
            tenant_suspended=row["tenant_suspended"],
        )

    async def create(
        self, tenant: str, username: str, password_hash: str, role: Role, create_us: int
    ) -> bool:
        """Store a user, and its tenant when that is new; False when it exists, or is of a deleted tenant."""
        create_time = to_datetime(create_us)
        async with tenant_transaction(self._pool, tenant) as connection:
            await connection.execute(_INSERT_TENANT, tenant, create_time)
            created = await connection.fetchval(
                _INSERT_ABSENT, tenant, username, password_hash, role, create_time
            )
        return bool(created)


class UserRows:
    """One tenant's users, inside of a transaction; see `auth_svc.rights.UserRows`.

    Args:
        connection: in a transaction of the tenant.
        tenant: whose users.
    """

    def __init__(self, connection: Connection, tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant

    async def get(self, username: str) -> pb.User | None:
        """Read one, None when there is none."""
        row = await self._connection.fetchrow(_GET, self._tenant, username)
        return None if row is None else _user(row)

    async def page(self, *, role: str, after: str, limit: int) -> list[pb.User]:
        """Read those of a role ("": any) by name, the first after a name."""
        return [_user(row) for row in await self._connection.fetch(_PAGE, self._tenant, after, role, limit)]

    async def insert(self, user: pb.User, password: NewPassword, now_us: int) -> pb.User:
        """Add one.

        Raises:
            AlreadyExists: the name is taken.
        """
        try:
            (row,) = await self._connection.fetch(
                _INSERT,
                self._tenant,
                user.username,
                user.display_name,
                user.role,
                user.disabled,
                password.hash,
                _expiry(password),
                to_datetime(now_us),
            )
        except asyncpg.UniqueViolationError as error:
            raise AlreadyExists(
                f"user {user.username!r} exists already",
                reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
                metadata={"resource": "user", "id": user.username},
            ) from error
        return _user(row)

    async def update(self, user: pb.User, now_us: int) -> pb.User:
        """Write one; its password stays."""
        (row,) = await self._connection.fetch(
            _UPDATE,
            self._tenant,
            user.username,
            user.display_name,
            user.role,
            user.disabled,
            to_datetime(now_us),
        )
        return _user(row)

    async def set_password(
        self, username: str, password: NewPassword, now_us: int, *, replaces: str | None
    ) -> bool:
        """Write one's password; False when there is no such user, or another password."""
        return bool(
            await self._connection.fetchval(
                _REPLACE_HASH,
                self._tenant,
                username,
                password.hash,
                _expiry(password),
                to_datetime(now_us),
                replaces,
            )
        )

    async def delete(self, username: str) -> None:
        """Remove one."""
        await self._connection.execute(_DELETE, self._tenant, username)

    async def role_changed(self, role: str, now_us: int) -> list[str]:
        """Give all users of a role a new version, and return their names."""
        rows = await self._connection.fetch(_ROLE_CHANGED, self._tenant, role, to_datetime(now_us))
        return [row["username"] for row in rows]

    async def end_sessions(self, usernames: Sequence[str], now_us: int) -> None:
        """End all sessions of users."""
        await SessionStore.end_all(self._connection, self._tenant, usernames, now_us)

    async def has_administrator(self, permission: str, roles: Sequence[str]) -> bool:
        """Say whether an enabled user with a password of their own holds a permission."""
        return bool(await self._connection.fetchval(_HAS_ADMINISTRATOR, self._tenant, permission, roles))


def _expiry(password: NewPassword) -> object:
    expire_us = password.one_time_expire_us
    return None if expire_us is None else to_datetime(expire_us)


def _user(row: asyncpg.Record) -> pb.User:
    user = pb.User(
        username=row["username"],
        display_name=row["display_name"],
        role=row["role"],
        disabled=row["disabled"],
        etag=f'"{row["version"]}"',
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
    if row["one_time_expire_time"] is not None:
        user.one_time_password_expire_time.FromDatetime(row["one_time_expire_time"])
    return user
