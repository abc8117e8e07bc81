"""Databases for tests: a migrated template, copied for each test."""

import secrets as random_secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from meshkit.migrate import Owner, ensure_roles, migrate_up

TEMPLATE = "twinmesh_template"


def role_password(role: str) -> str:
    """Return the password that a role has in the tests' cluster."""
    return f"test-{role}"


@dataclass(frozen=True, slots=True)
class TestDatabase:
    """One test's database. `admin_url` is the migrator's, `superuser_url` the server owner's."""

    __test__ = False
    admin_url: str
    superuser_url: str

    def url(self, role: str) -> str:
        """Return the URL by which a service's role connects."""
        parts = urlsplit(self.admin_url)
        return urlunsplit(
            parts._replace(netloc=f"{role}:{role_password(role)}@{parts.hostname}:{parts.port}")
        )


def in_database(url: str, name: str) -> str:
    """Return a URL that names another database of the same cluster."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def build_template(admin_url: str, owners: Sequence[Owner]) -> None:
    """Make the template database, migrated to the newest version, and the roles."""
    await _execute(admin_url, f'CREATE DATABASE "{TEMPLATE}"')
    template = await asyncpg.connect(in_database(admin_url, TEMPLATE))
    try:
        passwords = {role.name: role_password(role.name) for owner in owners for role in owner.roles}
        await ensure_roles(template, owners, passwords)
        await migrate_up(template, owners)
    finally:
        await template.close()


@asynccontextmanager
async def fresh_database(*, admin_url: str, superuser_url: str) -> AsyncIterator[TestDatabase]:
    """Copy the template for one test and drop the copy afterwards.

    Only a superuser may end what services left connected.
    """
    name = f"test_{random_secrets.token_hex(8)}"
    await _execute(admin_url, f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
    try:
        yield TestDatabase(in_database(admin_url, name), in_database(superuser_url, name))
    finally:
        await _execute(superuser_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
