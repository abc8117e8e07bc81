"""The check of ways back finds those that do not lead back."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from meshkit.migrate import Owner
from meshkit.testing.database import TestDatabase, in_database
from tools.check_migrations import MigrationsDifferError, check

MIGRATIONS = {
    "0001_pump.up.sql": "CREATE TABLE public.pump (id integer PRIMARY KEY);",
    "0001_pump.down.sql": "DROP TABLE public.pump;",
    "0002_speed.up.sql": "ALTER TABLE public.pump ADD COLUMN speed float8;",
    "0002_speed.down.sql": "ALTER TABLE public.pump DROP COLUMN speed;",
}


@pytest.fixture
async def empty_database(database: TestDatabase) -> AsyncIterator[str]:
    name = f"{database.admin_url.rpartition('/')[2]}_empty"
    connection = await asyncpg.connect(database.admin_url)
    await connection.execute(f'CREATE DATABASE "{name}"')
    yield in_database(database.admin_url, name)
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    package = tmp_path / "pump_migrations"
    package.mkdir()
    for name, sql in {"__init__.py": "", **MIGRATIONS}.items():
        (package / name).write_text(sql)
    sys.path.insert(0, str(tmp_path))
    yield Owner("pump", package.name, roles=())
    sys.path.remove(str(tmp_path))
    sys.modules.pop(package.name, None)


async def test_good_migrations_pass(empty_database: str, owner: Owner) -> None:
    assert await check(empty_database, [owner]) == 2


async def test_a_forgotten_object_is_found(empty_database: str, owner: Owner, tmp_path: Path) -> None:
    step = tmp_path / "pump_migrations" / "0001_pump.up.sql"
    step.write_text(step.read_text() + "CREATE SEQUENCE IF NOT EXISTS public.left_behind;")
    with pytest.raises(MigrationsDifferError, match=r"(?s)all the way back.*left_behind"):
        await check(empty_database, [owner])


async def test_a_way_back_that_loses_something_older_is_found(
    empty_database: str, owner: Owner, tmp_path: Path
) -> None:
    step = tmp_path / "pump_migrations" / "0002_speed.down.sql"
    step.write_text(step.read_text() + "ALTER TABLE public.pump DROP CONSTRAINT pump_pkey;")
    with pytest.raises(MigrationsDifferError, match=r"(?s)0002 and forward again.*pump_pkey"):
        await check(empty_database, [owner])
