"""Declared backfills make room for old recordings."""

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.backfill import VALID_FOR, create_backfill, find_backfill
from telemetry_store.columns import MICROS_PER_DAY, Kind
from tests.store.writing import T0, admin, columns, numbered, running_writer, stored_ints

START = T0 - 3000 * MICROS_PER_DAY
END = START + 2 * MICROS_PER_DAY


async def test_a_backfill_makes_the_days_of_its_range(database: TestDatabase) -> None:
    offsets = [START - T0, END - T0 - 1]
    old = columns(Kind.INT, [(1, offset, 5) for offset in offsets])
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        running_writer(database) as writer,
        admin(database) as connection,
    ):
        made = await create_backfill(pool, tenant="demo", principal="user:ada", start_us=START, end_us=END)
        assert (made.start_us, made.end_us) == (START, END)
        assert await find_backfill(pool, tenant="demo", backfill_id=made.backfill_id) == made
        await writer.write(numbered(1, samples=[old]))
        assert await stored_ints(connection) == [(1, offset, 5) for offset in offsets]


async def test_the_same_range_is_the_same_backfill_of_its_tenant(database: TestDatabase) -> None:
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        admin(database) as connection,
    ):
        made = await create_backfill(pool, tenant="demo", principal="user:ada", start_us=START, end_us=END)
        await connection.execute("UPDATE telemetry.backfill SET expire_time = now() - interval '1 s'")
        assert await find_backfill(pool, tenant="demo", backfill_id=made.backfill_id) is None
        again = await create_backfill(pool, tenant="demo", principal="user:bob", start_us=START, end_us=END)
        assert again.backfill_id == made.backfill_id
        assert again.expire_us >= made.expire_us > VALID_FOR.total_seconds() * 1e6
        other = await create_backfill(pool, tenant="acme", principal="user:eve", start_us=START, end_us=END)
        assert other.backfill_id != made.backfill_id
        assert await find_backfill(pool, tenant="acme", backfill_id=made.backfill_id) is None


async def test_a_range_out_of_bounds_makes_nothing(database: TestDatabase) -> None:
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await create_backfill(pool, tenant="demo", principal="user:ada", start_us=END, end_us=START)
