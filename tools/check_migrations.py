"""Runs every migration forward and back on a PostgreSQL of its own and compares the schemas.

For each owner, from each version: back and forward again must give the same schema
as going forward once. All the way back must leave nothing but the ledger.

    python -m tools.check_migrations
"""

import asyncio
import difflib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import structlog

from meshkit.embedded import EmbeddedPostgres
from meshkit.embedded.binaries import postgres_bin
from meshkit.migrate import Owner, ensure_roles, migrate_down, migrate_up, migrations_of, steps
from twinmesh_cli.owners import OWNERS


class MigrationsDifferError(Exception):
    """A way back does not lead back, or forward again leads elsewhere; carries the difference."""


async def check(admin_url: str, owners: Sequence[Owner]) -> int:
    """Goes through all migrations and returns how many there are.

    Args:
        admin_url: an empty database, as a role that may create roles.
        owners: in the order in which they are migrated.

    Raises:
        MigrationsDifferError: see there.
        asyncpg.PostgresError: a migration fails.
    """
    connection = await asyncpg.connect(admin_url)
    try:
        await ensure_roles(
            connection, owners, {role.name: role.name for owner in owners for role in owner.roles}
        )
        await steps(connection, owners)
        empty = schema(admin_url)
        count = len(await migrate_up(connection, owners))
        full = schema(admin_url)
        for owner in owners:
            for migration in reversed(migrations_of(owner)):
                await migrate_down(connection, owner, to_version=migration.version - 1)
                await migrate_up(connection, owners)
                _compare(
                    full,
                    schema(admin_url),
                    f"{owner.name}: back to before {migration.version:04} and forward again",
                )
        for owner in reversed(owners):
            await migrate_down(connection, owner, to_version=0)
        _compare(empty, schema(admin_url), "all the way back")
        return count
    finally:
        await connection.close()


def schema(url: str) -> str:
    """Returns the database's schema as SQL: tables, indexes, policies, functions, grants."""
    # A random key otherwise makes two dumps of one schema differ.
    options = ("--schema-only", "--restrict-key=twinmesh")
    dump = subprocess.run(
        [postgres_bin(None) / "pg_dump", *options, url], capture_output=True, text=True, check=False
    )
    if dump.returncode:
        raise RuntimeError(f"pg_dump failed: {dump.stderr}")
    return dump.stdout


def main() -> None:
    """Command line."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    began = datetime.now(UTC).hour
    try:
        try:
            count = _check_fresh()
        except MigrationsDifferError:
            # Migrations make partitions for the time to come, and in another hour others.
            if datetime.now(UTC).hour == began:
                raise
            count = _check_fresh()
    except MigrationsDifferError as difference:
        sys.exit(str(difference))
    except asyncpg.PostgresError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if not count:
        sys.exit("there are no migrations; twinmesh_cli/owners.py lists who has some")
    print(f"{count} migrations forward and back")


def _check_fresh() -> int:
    with tempfile.TemporaryDirectory(prefix="twinmesh-") as directory:
        home = Path(directory)
        # The server drops to another user when this one is root.
        home.chmod(0o755)
        with EmbeddedPostgres(home=home) as postgres:
            return asyncio.run(check(postgres.admin_url, OWNERS))


def _compare(before: str, after: str, what: str) -> None:
    if before != after:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="")
        raise MigrationsDifferError("\n".join([f"{what}: the schema differs", *lines]))


if __name__ == "__main__":
    main()
