"""Migrations: plain SQL files per owner, ledgered, forward and back.

An owner is a package whose folder holds `NNNN_what.up.sql` and `NNNN_what.down.sql`
and whose module offers `OWNER`. Each file runs in a transaction of its own with short
lock time-outs; the ledger is `mesh.migration`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

import asyncpg
import structlog

from meshkit.database_doors import close_doors

_log = structlog.get_logger()
_FILE = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.up\.sql")
_LOCK_KEY = 0x7477696E  # "twin": one migration at a time per database
_LOCK_TIMEOUT = "4s"
_STATEMENT_TIMEOUT = "5min"

_LEDGER = """
CREATE SCHEMA IF NOT EXISTS mesh;
CREATE TABLE IF NOT EXISTS mesh.migration (
    owner text NOT NULL,
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, version)
);
"""


class MigrationError(Exception):
    """The ledger and the files disagree, or a role's password is missing."""


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the database, without any ownership.

    `settings` are role-level defaults of PostgreSQL parameters. Without `login` it is a group, whose
    members log in, and has no password.
    """

    name: str
    login: bool = True
    bypass_rls: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a schema: its ledger name, the package with the files, its roles."""

    name: str
    package: str
    roles: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, forward and back."""

    owner: str
    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """Return the digest of the forward file, as ledgered."""
        return hashlib.sha256(self.up.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Step:
    """A migration and whether the database has it."""

    migration: Migration
    applied: bool


def migrations_of(owner: Owner) -> list[Migration]:
    """Return an owner's migrations by version.

    Raises:
        MigrationError: a step has no way back, or versions leave a gap.
    """
    folder = resources.files(owner.package)
    found = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        match = _FILE.fullmatch(entry.name)
        if match is None:
            continue
        down = folder / entry.name.replace(".up.sql", ".down.sql")
        if not down.is_file():
            raise MigrationError(f"{owner.name}: {entry.name} has no .down.sql")
        found.append(
            Migration(owner.name, int(match["version"]), match["name"], entry.read_text(), down.read_text())
        )
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"{owner.name}: versions are not 0001, 0002, … without gaps")
    return found


async def ensure_roles(
    connection: asyncpg.Connection, owners: Sequence[Owner], passwords: Mapping[str, str]
) -> None:
    """Create the owners' roles where absent and set their passwords, settings and right to locks.

    Args:
        connection: as a role with CREATEROLE (and BYPASSRLS to grant it).
        owners: whose roles.
        passwords: by name of a role that logs in.

    Raises:
        MigrationError: such a role has no password.
    """
    for role in (role for owner in owners for role in owner.roles):
        if role.login and role.name not in passwords:
            raise MigrationError(f"no password for role {role.name}")
        # Roles belong to the whole cluster: another database's migration may run now.
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
            exists = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role.name)
            verb = "ALTER" if exists else "CREATE"
            bypass = "BYPASSRLS" if role.bypass_rls else "NOBYPASSRLS"
            statement = await connection.fetchval(
                "SELECT format('%s ROLE %I %s PASSWORD %L', $1::text, $2::text, $3::text, $4::text)",
                verb,
                role.name,
                f"{'LOGIN' if role.login else 'NOLOGIN'} {bypass}",
                passwords[role.name] if role.login else None,
            )
            await connection.execute(statement)
            for name, value in role.settings.items():
                statement = await connection.fetchval(
                    "SELECT format('ALTER ROLE %I SET %I = %L', $1::text, $2::text, $3::text)",
                    role.name,
                    name,
                    value,
                )
                await connection.execute(statement)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
        await close_doors(connection, [role.name for owner in owners for role in owner.roles if role.login])


async def steps(connection: asyncpg.Connection, owners: Sequence[Owner]) -> list[Step]:
    """Return all migrations of the owners, in order, and which are applied.

    Raises:
        MigrationError: an applied file was changed, or is not here any more.
    """
    await connection.execute(_LEDGER)
    rows = await connection.fetch("SELECT owner, version, name, checksum FROM mesh.migration")
    ledger = {(row["owner"], row["version"]): row for row in rows}
    listed = []
    for owner in owners:
        for migration in migrations_of(owner):
            row = ledger.pop((migration.owner, migration.version), None)
            if row is not None and row["checksum"] != migration.checksum:
                raise MigrationError(
                    f"{owner.name} {migration.version:04} was applied from another file than is here; "
                    "add a new migration instead of changing an applied one"
                )
            listed.append(Step(migration, applied=row is not None))
    unknown = [key for key in ledger if key[0] in {owner.name for owner in owners}]
    if unknown:
        raise MigrationError(f"the database is newer than this program: it has {sorted(unknown)}")
    return listed


async def migrate_up(connection: asyncpg.Connection, owners: Sequence[Owner]) -> list[Migration]:
    """Apply what is missing, in order; returns what was applied."""
    applied = []
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    try:
        for step in await steps(connection, owners):
            if step.applied:
                continue
            migration = step.migration
            await _run(connection, migration.up, migration)
            applied.append(migration)
            _log.info("migrated", owner=migration.owner, version=migration.version, name=migration.name)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)
    return applied


async def migrate_down(connection: asyncpg.Connection, owner: Owner, *, to_version: int) -> list[Migration]:
    """Take an owner back to a version (0: nothing left); returns what was undone."""
    undone = []
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    try:
        for step in reversed(await steps(connection, [owner])):
            migration = step.migration
            if not step.applied or migration.version <= to_version:
                continue
            await _run(connection, migration.down, migration, undo=True)
            undone.append(migration)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)
    return undone


async def _run(connection: asyncpg.Connection, sql: str, migration: Migration, *, undo: bool = False) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        await connection.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
        await connection.execute(sql)
        if undo:
            await connection.execute(
                "DELETE FROM mesh.migration WHERE owner = $1 AND version = $2",
                migration.owner,
                migration.version,
            )
        else:
            await connection.execute(
                "INSERT INTO mesh.migration (owner, version, name, checksum) VALUES ($1, $2, $3, $4)",
                migration.owner,
                migration.version,
                migration.name,
                migration.checksum,
            )
