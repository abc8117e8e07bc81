"""Declared backfills make room for old recordings."""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg
import pytest

from meshkit import db
from meshkit.errors import ResourceExhausted
from meshkit.testing.database import TestDatabase
from telemetry_store.backfill import VALID_FOR, create_backfill, find_backfill
from telemetry_store.columns import MICROS_PER_DAY, Kind
from tests.store.writing import T0, admin, columns, numbered, running_writer, stored_ints

START = T0 - 3000 * MICROS_PER_DAY
END = START + 2 * MICROS_PER_DAY
EARLY = 7305 * MICROS_PER_DAY  # 1990-01-01


async def declared(
    connection: asyncpg.Connection, tenant: str, ranges: Sequence[tuple[int, int]], *, days_left: int = 1
) -> None:
    """Declare backfills without their partitions, by microseconds since EARLY."""
    await connection.executemany(
        """
        INSERT INTO telemetry.backfill (tenant_id, backfill_id, principal, start_time, end_time, expire_time)
        VALUES ($1, $2, 'user:ada', $3, $4, now() + $5)
        """,
        [
            (tenant, f"{start}-{end}", EARLY + start, EARLY + end, timedelta(days=days_left))
            for start, end in ranges
        ],
    )


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


async def test_of_the_days_that_may_be_declared_a_tenant_leaves_half_to_others(
    database: TestDatabase,
) -> None:
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        admin(database) as connection,
    ):

        async def declare(tenant: str, first: int, days: int) -> None:
            start_us = EARLY + first * MICROS_PER_DAY
            await create_backfill(
                pool,
                tenant=tenant,
                principal="user:ada",
                start_us=start_us,
                end_us=start_us + days * MICROS_PER_DAY,
            )

        day = MICROS_PER_DAY
        await declared(connection, "demo", [(number * day, (number + 1) * day) for number in range(900)])
        await declared(connection, "demo", [(600 * day, 1995 * day)])
        await declared(connection, "demo", [(8000 * day, 9000 * day)], days_left=-1)
        await declared(connection, "rival", [(5000 * day, 7000 * day)])
        await declare("demo", 1995, 5)
        with pytest.raises(ResourceExhausted) as refused:
            await declare("demo", 1999, 2)
        assert refused.value.metadata == {"limit_name": "backfill_days", "limit": "2000", "used": "2000"}
        assert "declare less, or later" in refused.value.message
        await declare("demo", 1999, 1)
        await declare("demo", 1995, 5)
        await declare("acme", 1995, 5)
        with pytest.raises(ResourceExhausted) as refused:
            await declare("rival", 7000, 1)
        assert refused.value.metadata == {"limit_name": "backfill_days", "limit": "2000", "used": "2000"}


async def test_a_tenant_s_backfills_are_so_many(database: TestDatabase) -> None:
    async with (
        db.pool(database.url("twinmesh_ingest"), application="test") as pool,
        admin(database) as connection,
    ):
        await declared(connection, "demo", [(0, number) for number in range(1, 1001)])
        end_us = EARLY + 2000
        with pytest.raises(ResourceExhausted) as refused:
            await create_backfill(pool, tenant="demo", principal="user:ada", start_us=EARLY, end_us=end_us)
        assert refused.value.metadata == {"limit_name": "backfills", "limit": "1000", "used": "1000"}
        await create_backfill(pool, tenant="acme", principal="user:ada", start_us=EARLY, end_us=end_us)


async def test_a_range_out_of_bounds_makes_nothing(database: TestDatabase) -> None:
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await create_backfill(pool, tenant="demo", principal="user:ada", start_us=END, end_us=START)
