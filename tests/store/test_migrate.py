"""The ledger of migrations, on a small owner of the test's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from meshkit import migrate
from meshkit.migrate import MigrationError, Owner, Role
from meshkit.testing.database import TestDatabase


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "toy_migrations"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "0001_first.up.sql").write_text("CREATE TABLE public.first (n integer);")
    (folder / "0001_first.down.sql").write_text("DROP TABLE public.first;")
    sys.path.insert(0, str(tmp_path))
    yield folder
    sys.path.remove(str(tmp_path))
    sys.modules.pop("toy_migrations", None)


@pytest.fixture
def owner(package: Path) -> Owner:
    return Owner("toy", package.name, roles=(Role("twinmesh_toy"),))


async def tables(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_forward_once_and_back(database: TestDatabase, owner: Owner, package: Path) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        assert len(await migrate.migrate_up(connection, [owner])) == 1
        assert await migrate.migrate_up(connection, [owner]) == []
        (package / "0002_second.up.sql").write_text("CREATE TABLE public.second (n integer);")
        (package / "0002_second.down.sql").write_text("DROP TABLE public.second;")
        assert [step.applied for step in await migrate.steps(connection, [owner])] == [True, False]
        await migrate.migrate_up(connection, [owner])
        assert await tables(connection) == {"first", "second"}
        await migrate.migrate_down(connection, owner, to_version=1)
        assert await tables(connection) == {"first"}
        await migrate.migrate_down(connection, owner, to_version=0)
        assert await tables(connection) == set()
    finally:
        await connection.close()


async def test_a_failing_step_leaves_nothing(database: TestDatabase, owner: Owner, package: Path) -> None:
    (package / "0001_first.up.sql").write_text("CREATE TABLE public.first (n integer); SELECT nonsense;")
    connection = await asyncpg.connect(database.admin_url)
    try:
        with pytest.raises(asyncpg.UndefinedColumnError):
            await migrate.migrate_up(connection, [owner])
        assert await tables(connection) == set()
    finally:
        await connection.close()


async def test_an_applied_file_may_not_change(database: TestDatabase, owner: Owner, package: Path) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        await migrate.migrate_up(connection, [owner])
        (package / "0001_first.up.sql").write_text("CREATE TABLE public.first (n bigint);")
        with pytest.raises(MigrationError, match="another file"):
            await migrate.migrate_up(connection, [owner])
    finally:
        await connection.close()


def test_there_is_a_way_back(owner: Owner, package: Path) -> None:
    (package / "0001_first.down.sql").unlink()
    with pytest.raises(MigrationError, match="down"):
        migrate.migrations_of(owner)


async def test_roles_get_what_they_declare_and_no_more(database: TestDatabase) -> None:
    owner = Owner("toy", "toy", roles=(Role("twinmesh_toy", settings={"statement_timeout": "3s"}),))
    connection = await asyncpg.connect(database.admin_url)
    try:
        for _ in range(2):
            await migrate.ensure_roles(connection, [owner], {"twinmesh_toy": "it's a 'secret'"})
        row = await connection.fetchrow(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin FROM pg_roles "
            "WHERE rolname = 'twinmesh_toy'"
        )
        assert row is not None
        assert tuple(row) == (False, False, False, False, True)
        with pytest.raises(MigrationError, match="no password"):
            await migrate.ensure_roles(connection, [owner], {})
    finally:
        await connection.execute("GRANT twinmesh_toy TO CURRENT_USER")
        await connection.execute("DROP OWNED BY twinmesh_toy")
        await connection.execute("DROP ROLE twinmesh_toy")
        await connection.close()
