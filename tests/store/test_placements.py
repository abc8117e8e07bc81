"""Which assets devices were on."""

from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.placements import DevicePlacement, Placement, read_placements, save_placements
from telemetry_store.series import Point

HALL = Point(1.5, 2.5, None)
YARD = Point(-1.0, 0.0, 30.0)


@pytest.fixture
async def ingest(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_ingest"), application="ingest") as pool:
        yield pool


async def save(pool: asyncpg.Pool, *placements: Placement, tenant: str = "demo") -> None:
    async with pool.acquire() as connection:
        for placement in placements:
            await save_placements(connection, [DevicePlacement(tenant, "pump-1", placement)])


async def read(
    database: TestDatabase, start_us: int, end_us: int, *, tenant: str = "demo"
) -> Sequence[Placement]:
    async with (
        db.pool(database.url("twinmesh_twin_query"), application="query") as pool,
        tenant_transaction(pool, tenant, isolation="repeatable_read") as connection,
    ):
        return await read_placements(
            connection, tenant="demo", device_id="pump-1", start_us=start_us, end_us=end_us, limit=10
        )


async def test_the_one_that_held_at_the_start_is_read_as_well(
    database: TestDatabase, ingest: asyncpg.Pool
) -> None:
    first, second, gone = Placement(10, "hall", HALL), Placement(20, "yard", YARD), Placement(30, "", None)
    await save(ingest, first, second, gone)
    assert await read(database, 15, 25) == [first, second]
    assert await read(database, 20, 21) == [second]
    assert await read(database, 0, 100) == [first, second, gone]
    assert await read(database, 0, 10) == []
    assert await read(database, 50, 60) == [gone]
    assert await read(database, 0, 100, tenant="other") == []


async def test_what_is_no_news_changes_nothing(database: TestDatabase, ingest: asyncpg.Pool) -> None:
    await save(ingest, Placement(5, "", None), Placement(10, "hall", HALL), Placement(11, "hall", HALL))
    await save(ingest, Placement(9, "yard", YARD), Placement(7, "yard", YARD), tenant="other")
    await save(ingest, Placement(8, "yard", None))  # Of before the last one.
    assert await read(database, 0, 100) == [Placement(10, "hall", HALL)]
    await save(ingest, Placement(12, "hall", None))
    assert await read(database, 12, 100) == [Placement(12, "hall", None)]
