"""Archived days come back to sealed rows, and stay for as long as was asked."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.tiers.archive_orphans import delete_orphans
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import StoreError
from telemetry_store.tiers.archiving import archive_day, archive_due
from telemetry_store.tiers.restoring import restore_day, work_off_restores
from tests.store.archive import (
    DAY,
    SealedDays,
    faulty_store,
    objects,
    pairs,
    read,
    samples_of,
    span,
)
from tests.store.broken_line import Break, BrokenLine

WEEK = timedelta(days=7)
EXPECTED = [(1, 1.0), (2, 20.0), (3, 3.0)]


@pytest.fixture
async def series(days: SealedDays) -> int:
    """Return a series of which a day is sealed in two rows that lie over each other."""
    found = await days.series("pump-1")
    await days.seal(found, samples_of(Kind.DOUBLE, [(1, 1.0), (2, 2.0), (3, 3.0)]), 5)
    await days.seal(found, samples_of(Kind.DOUBLE, [(2, 20.0)]), 9)
    return found


async def ask(connection: asyncpg.Connection, *, last_day: date = DAY, kept: timedelta = WEEK) -> None:
    await connection.execute(
        "INSERT INTO telemetry.restore (tenant_id, restore_id, principal, first_day, last_day, kept_until) "
        "VALUES ('demo', 'r-1', 'user:ada', $1, $2, now() + $3::interval)",
        DAY,
        last_day,
        kept,
    )


async def told(connection: asyncpg.Connection) -> dict[str, Any]:
    row = await connection.fetchrow("SELECT state, days, days_done, samples, error FROM telemetry.restore")
    assert row is not None
    return dict(row)


async def test_days_come_back_are_held_and_go_again(
    connection: asyncpg.Connection,
    days: SealedDays,
    pool: asyncpg.Pool,
    query: asyncpg.Pool,
    tmp_path: Path,
) -> None:
    kinds: dict[int, tuple[Kind, list[tuple[int, Any]]]] = {}
    for kind, values in (
        (Kind.DOUBLE, [1.5, -0.0]),
        (Kind.INT, [1, -(2**63)]),
        (Kind.BOOL, [True, False]),
        (Kind.STRING, ["", "grün"]),
        (Kind.POINT, [[48.0, 11.0, 500.0], [48.5, 11.5, 501.0]]),
    ):
        number = await days.series(f"pump-{kind.name}", kind)
        kinds[number] = kind, list(enumerate(values))
        await days.seal(number, samples_of(kind, kinds[number][1], quality=99), 7, kind=kind)
    async with faulty_store(tmp_path) as (store, _):
        assert await archive_day(pool, store, "demo", DAY)
        await ask(connection, last_day=DAY + timedelta(days=400))
        await work_off_restores(pool, store)
        assert await told(connection) == {
            "state": 2, "days": 1, "days_done": 1, "samples": 10, "error": None
        }  # fmt: skip
        assert await days.sealed() == 10
        for number, (kind, expected) in kinds.items():
            # Without the store: nothing is archived any more.
            found = await read(query, [span(number)], ArchiveReader(None), kind)
            assert pairs(found) == expected
            assert found.samples.quality.tolist() == [99, 99]

        await StorageUsage(pool=pool).measure()
        await archive_due(pool, store, after=WEEK, after_by_tenant={})
        assert not await archive_day(pool, store, "demo", DAY)
        assert await days.sealed() == 10
        await connection.execute("UPDATE telemetry.restore SET kept_until = now()")
        # Ages are counted as if it had never been away.
        await StorageUsage(pool=pool).measure()
        await archive_due(pool, store, after=WEEK, after_by_tenant={})
        assert await days.sealed() == 0
        await delete_orphans(pool, store, grace=timedelta(0))
        assert len(list(objects(tmp_path))) == 1


async def test_each_sample_keeps_its_order(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, _):
        await archive_day(pool, store, "demo", DAY)
        assert await restore_day(pool, store, "demo", DAY) == 3
        assert pairs(await read(query, [span(series)], ArchiveReader(None))) == EXPECTED
        # Between the two.
        await days.seal(series, samples_of(Kind.DOUBLE, [(1, 10.0), (2, 21.0)]), 7)
        found = pairs(await read(query, [span(series)], ArchiveReader(None)))
        assert found == [(1, 10.0), (2, 20.0), (3, 3.0)]


@pytest.mark.parametrize("lost", [Break.COMMIT, Break.ANSWER])
async def test_a_death_at_the_commit_leaves_it_here_or_there(
    database: TestDatabase, days: SealedDays, query: asyncpg.Pool, series: int, tmp_path: Path, *, lost: Break
) -> None:
    async with (
        faulty_store(tmp_path) as (store, _),
        BrokenLine(database.url("twinmesh_maintenance")).open() as line,
        db.pool(line.url, application="archiver") as pool,
    ):
        await archive_day(pool, store, "demo", DAY)
        line.breaks = lost
        with pytest.raises(db.DATABASE_ERRORS):
            await restore_day(pool, store, "demo", DAY)
        assert await days.sealed() == (0 if lost is Break.COMMIT else 3)
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED
        assert await restore_day(pool, store, "demo", DAY) == (3 if lost is Break.COMMIT else 0)
        assert await days.sealed() == 3


async def test_a_store_that_is_away_is_waited_for(
    connection: asyncpg.Connection, days: SealedDays, pool: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults):
        await archive_day(pool, store, "demo", DAY)
        await ask(connection)
        faults.fails = 3
        with pytest.raises(StoreError):
            await work_off_restores(pool, store)
        assert (await told(connection))["state"] == 1
        await work_off_restores(pool, store)
        assert await told(connection) == {
            "state": 2, "days": 1, "days_done": 1, "samples": 3, "error": None
        }  # fmt: skip
        assert series


async def test_a_damaged_object_is_told(
    connection: asyncpg.Connection, days: SealedDays, pool: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, _):
        await archive_day(pool, store, "demo", DAY)
        (path,) = objects(tmp_path)
        path.unlink()
        await ask(connection)
        await work_off_restores(pool, store)
        found = await told(connection)
        assert (found["state"], found["error"]) == (3, f"{DAY}: the object is not there")
        assert await days.sealed() == 0
        assert series


async def test_requests_are_forgotten_some_time_after(
    connection: asyncpg.Connection, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, _):
        await ask(connection, kept=timedelta(days=-29))
        await work_off_restores(pool, store)
        assert (await told(connection))["days"] == 0
        await connection.execute("UPDATE telemetry.restore SET kept_until = now() - interval '31 days'")
        await work_off_restores(pool, store)
        assert not await connection.fetchval("SELECT count(*) FROM telemetry.restore")
