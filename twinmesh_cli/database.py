"""The mesh's database as the launcher sees it: its URLs, roles and migrations."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from meshkit import secrets
from meshkit.embedded import EmbeddedPostgres
from meshkit.embedded.postgres import admin_url_of
from meshkit.migrate import Migration, ensure_roles, migrate_up
from twinmesh_cli.home import Home, HomeBusyError
from twinmesh_cli.owners import OWNERS
from twinmesh_cli.settings import LauncherSettings
from twinmesh_cli.state import LauncherState


class DatabaseAwayError(Exception):
    """There is no database to work on; the message says what to do."""


def role_password(root: bytes, role: str) -> str:
    """The password of a service's role, derived from the root secret."""
    return secrets.derive_text(root, f"database-role/{role}")


def role_url(admin_url: str, *, root: bytes, role: str) -> str:
    """The URL by which a service's role reaches the database of `admin_url`."""
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    login = f"{quote(role, safe='')}:{quote(role_password(root, role), safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


@dataclass(frozen=True)
class Migrated:
    """What a migration did. `born` tells one database from another that took its place."""

    applied: tuple[Migration, ...]
    born: str


async def migrate(admin_url: str, *, root: bytes) -> Migrated:
    """Makes the roles and applies the migrations that are missing."""
    async with connected(admin_url) as connection:
        passwords = {role.name: role_password(root, role.name) for owner in OWNERS for role in owner.roles}
        await ensure_roles(connection, OWNERS, passwords)
        applied = await migrate_up(connection, OWNERS)
        born = await connection.fetchval("SELECT min(applied_at) FROM mesh.migration")
    return Migrated(applied=tuple(applied), born=str(born))


@asynccontextmanager
async def connected(admin_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the migrator.

    Raises:
        DatabaseAwayError: the server cannot be reached or refuses.
    """
    try:
        connection = await asyncpg.connect(admin_url, timeout=10)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        where = urlsplit(admin_url).netloc.rpartition("@")[2]
        raise DatabaseAwayError(
            f"PostgreSQL at {where} cannot be used: {error}; check TWINMESH_DATABASE_URL"
        ) from error
    try:
        yield connection
    finally:
        await connection.close()


async def is_tenant_deleted(admin_url: str, tenant: str) -> bool:
    """Tell whether operators have had a tenant deleted.

    Raises:
        DatabaseAwayError: the server cannot be reached or refuses.
    """
    async with connected(admin_url) as connection:
        return bool(
            await connection.fetchval(
                "SELECT delete_time IS NOT NULL FROM auth.tenant WHERE tenant_id = $1", tenant
            )
        )


@contextmanager
def reachable_database(settings: LauncherSettings, home: Home) -> Iterator[str]:
    """The migrator's URL of this home's database; an embedded one that is down is up for as long.

    Raises:
        DatabaseAwayError: a launcher has the home, but its database is not running.
        PartFailedError: the embedded database did not start.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    home.make()
    postgres = EmbeddedPostgres(home=home.root, log_path=home.log("postgres"))
    try:
        with home.locked(), postgres:
            yield postgres.admin_url
    except HomeBusyError:
        yield admin_url_of(home.root, _running_port(home))


def _running_port(home: Home) -> int:
    state = LauncherState.read(home.state)
    for part in state.parts if state else ():
        if part.name == "postgres" and part.port is not None:
            return part.port
    raise DatabaseAwayError("the mesh is just starting or stopping; try again in a moment")
