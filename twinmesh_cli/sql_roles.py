"""Roles of people who ask the database in SQL, each mapped to a tenant (docs/sql.md).

No service may make roles, so this is the migrator's work. A password leaves this process as the
verifier of SCRAM-SHA-256 only: neither the server's log nor its statistics ever have it.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from meshkit.database_doors import are_doors_open, closing_statements
from twinmesh_cli.owners import OWNERS

GROUP = "twinmesh_sql"
PREFIX = "sql_"
# Defaults, which their sessions may change: only the number of connections is a limit.
SETTINGS: Mapping[str, str] = {
    "default_transaction_read_only": "on",
    "statement_timeout": "30s",
    "transaction_timeout": "60s",
    "idle_in_transaction_session_timeout": "30s",
    "search_path": "twinmesh",
    "plan_cache_mode": "force_custom_plan",
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ITERATIONS = 4096


class SqlUserError(Exception):
    """It cannot be done; says why."""


@dataclass(frozen=True, slots=True)
class SqlUser:
    """Somebody who may ask.

    Attributes:
        role: the role's name: PREFIX and the user's.
        tenant: whose telemetry.
        created_at: when.
        connections: how many are open now.
    """

    role: str
    tenant: str
    created_at: datetime
    connections: int


async def create_user(
    connection: asyncpg.Connection, name: str, *, tenant: str, most_connections: int
) -> str:
    """Make a role and map it to a tenant; returns its password, which is told this once.

    Args:
        connection: as the migrator.
        name: of the user.
        tenant: whose telemetry it is to see.
        most_connections: at a time.

    Raises:
        SqlUserError: there is such a user, or no such tenant, or it is suspended.
    """
    role = role_name(name)
    password = secrets.token_urlsafe(32)
    found = await connection.fetchrow("SELECT suspend_time FROM auth.tenant WHERE tenant_id = $1", tenant)
    if found is None:
        raise SqlUserError(f"there is no tenant {tenant!r}")
    if found["suspend_time"] is not None:
        raise SqlUserError(f"tenant {tenant!r} is suspended: its SQL users see nothing")
    database = await connection.fetchval("SELECT current_database()")
    # Temporary tables are written on disk.
    await _execute(connection, "REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC", database)
    async with connection.transaction():
        if await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            raise SqlUserError(f"there is a role {role!r} already, maybe for another database of this server")
        await _execute(
            connection,
            "CREATE ROLE %I LOGIN NOINHERIT CONNECTION LIMIT %s PASSWORD %L",
            role,
            str(most_connections),
            verifier(password),
        )
        # Its own rights are the group's, and it can become nobody else, the group neither.
        await _execute(connection, f"GRANT {GROUP} TO %I WITH INHERIT TRUE, SET FALSE, ADMIN FALSE", role)
        # Only who has its rights may end its connections and remove what it owns.
        await _execute(connection, "GRANT %I TO CURRENT_USER", role)
        for setting, value in SETTINGS.items():
            await _execute(connection, "ALTER ROLE %I SET %I = %L", role, setting, value)
        await connection.execute(
            "INSERT INTO telemetry.sql_user (role_name, tenant_id) VALUES ($1, $2)", role, tenant
        )
    return password


async def rotate_password(connection: asyncpg.Connection, name: str) -> str:
    """Give a user another password, and return it; open connections stay.

    Raises:
        SqlUserError: there is no such user.
    """
    role = await _existing(connection, name)
    password = secrets.token_urlsafe(32)
    await _execute(connection, "ALTER ROLE %I PASSWORD %L", role, verifier(password))
    return password


async def drop_user(connection: asyncpg.Connection, name: str) -> None:
    """Take a user's access away, at once, and remove its role.

    Raises:
        SqlUserError: there is no such user.
    """
    role = await _existing(connection, name)
    async with connection.transaction():
        await _execute(connection, "ALTER ROLE %I NOLOGIN", role)
        # From now on its open connections see nothing.
        await connection.execute("DELETE FROM telemetry.sql_user WHERE role_name = $1", role)
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", role
    )
    await _execute(connection, "DROP OWNED BY %I", role)
    await _execute(connection, "DROP ROLE %I", role)


async def list_users(connection: asyncpg.Connection) -> list[SqlUser]:
    """Return all users by tenant and name."""
    rows = await connection.fetch(
        """
        SELECT u.role_name, u.tenant_id, u.created_at,
            (SELECT count(*) FROM pg_stat_activity AS a WHERE a.usename = u.role_name) AS connections
        FROM telemetry.sql_user AS u
        ORDER BY u.tenant_id, u.role_name
        """
    )
    return [
        SqlUser(row["role_name"], row["tenant_id"], row["created_at"], row["connections"]) for row in rows
    ]


async def statements_for_superuser(connection: asyncpg.Connection) -> list[str]:
    """Return what a superuser should run, so that SQL users neither write nor hold up services."""
    if not await are_doors_open(connection, GROUP):
        return []
    migrator = await connection.fetchval("SELECT quote_ident(current_user)")
    services = [role.name for owner in OWNERS for role in owner.roles if role.login]
    return closing_statements(migrator=migrator, services=services)


def role_name(name: str) -> str:
    """Return the role of a user.

    Raises:
        SqlUserError: nobody can have this name.
    """
    name = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise SqlUserError(f"{name!r}: a name has small letters, digits and _, 40 at most, a letter first")
    return PREFIX + name


def verifier(password: str, *, salt: bytes | None = None) -> str:
    """Return a password as PostgreSQL keeps it: SCRAM-SHA-256, RFC 5803."""
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    told = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{told[0]}${told[1]}:{told[2]}"


async def _existing(connection: asyncpg.Connection, name: str) -> str:
    role = role_name(name)
    if not await connection.fetchval("SELECT true FROM telemetry.sql_user WHERE role_name = $1", role):
        raise SqlUserError(f"there is no SQL user {role!r}")
    return role


async def _execute(connection: asyncpg.Connection, form: str, *values: str) -> None:
    """Execute a statement that takes no parameters, with names and texts quoted by the server."""
    places = ", ".join(f"${place}::text" for place in range(2, len(values) + 2))
    await connection.execute(await connection.fetchval(f"SELECT format($1, {places})", form, *values))
