"""Whatever fails while a day moves: it lies where it lay, or in the archive, whole."""

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from meshkit import db
from meshkit.errors import DataLoss, DomainError, FailedPrecondition, Unavailable
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.tiers import archiving
from telemetry_store.tiers.archive_block import CorruptObjectError
from telemetry_store.tiers.archive_orphans import delete_orphans
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import ArchiveStore, StoreError, archive_store
from telemetry_store.tiers.archiving import archive_day, archive_due
from tests.store.archive import (
    DAY,
    Faults,
    SealedDays,
    faulty_store,
    maintenance,
    objects,
    pairs,
    read,
    samples_of,
    span,
)
from tests.store.broken_line import Break, BrokenLine
from tests.store.writing import admin, reason_of

EXPECTED = [(1, 1.0), (2, 2.0)]
NOTHING = timedelta(0)
GRACE = timedelta(days=1)


@pytest.fixture
async def series(days: SealedDays) -> int:
    """Return a series with one sealed day."""
    found = await days.series("pump-1")
    await days.seal(found, samples_of(Kind.DOUBLE, EXPECTED), 5)
    return found


async def failure(query: asyncpg.Pool, series: int, store: ArchiveStore | None) -> DomainError:
    with pytest.raises(DomainError) as raised:
        await read(query, [span(series)], ArchiveReader(store))
    return raised.value


async def test_samples_whose_series_is_gone_stay_out_of_the_archive(
    pool: asyncpg.Pool, days: SealedDays, series: int, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    other = await days.series("pump-2", tenant="acme")
    await days.seal(other, samples_of(Kind.DOUBLE, EXPECTED), 6, tenant="acme")
    await connection.execute("DELETE FROM telemetry.series WHERE series_id = $1", series)
    async with archive_store(str(tmp_path)) as store:
        assert store is not None
        assert not await archive_day(pool, store, "demo", DAY)
        assert list(objects(tmp_path)) == []
        assert await archive_day(pool, store, "acme", DAY)


async def test_a_store_that_fails_twice_is_asked_again(
    pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults):
        faults.fails = 2
        assert await archive_day(pool, store, "demo", DAY)
        assert faults.calls[:3] == ["write"] * 3
        faults.fails = 2
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED


async def test_a_store_that_goes_on_failing_changes_nothing(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults):
        faults.fails = 99
        with pytest.raises(StoreError, match="on fire"):
            await archive_day(pool, store, "demo", DAY)
        assert faults.calls == ["write"] * 3
        assert (await days.sealed(), await days.manifest()) == (2, [])
        # What is not archived is read without the store.
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED
        faults.fails = 0
        await archive_day(pool, store, "demo", DAY)
        faults.fails = 99
        error = await failure(query, series, store)
        assert isinstance(error, Unavailable)
        assert reason_of(error) == "ARCHIVE_UNAVAILABLE"
        assert error.retry_after_s


async def test_a_store_that_hangs_is_given_up(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path, write_timeout_s=0.2, read_timeout_s=0.2) as (store, faults):
        faults.hangs = True
        with pytest.raises(StoreError, match=r"no answer within 0\.2 s"):
            await archive_day(pool, store, "demo", DAY)
        assert (await days.sealed(), await days.manifest()) == (2, [])
        faults.hangs = False
        faults.released.set()
    async with faulty_store(tmp_path) as (store, _):
        await archive_day(pool, store, "demo", DAY)
    async with faulty_store(tmp_path, read_timeout_s=0.2) as (store, faults):
        faults.hangs = True
        assert reason_of(await failure(query, series, store)) == "ARCHIVE_UNAVAILABLE"


@pytest.mark.parametrize("fault", ["tears", "flips"])
async def test_an_object_that_is_not_what_was_written_is_never_named(
    days: SealedDays, pool: asyncpg.Pool, series: int, tmp_path: Path, *, fault: str
) -> None:
    async with faulty_store(tmp_path) as (store, faults):
        setattr(faults, fault, True)
        with pytest.raises(CorruptObjectError):
            await archive_day(pool, store, "demo", DAY)
        assert (await days.sealed(), await days.manifest()) == (2, [])
        # It is tried again soon, and bad ones must not pile up.
        assert list(objects(tmp_path)) == []
        setattr(faults, fault, False)
        assert await archive_day(pool, store, "demo", DAY)
        (row,) = await days.manifest()
        assert list(objects(tmp_path)) == [tmp_path / row["path"]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_samples(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4, len(content) // 2, 8):  # Some are of columns that are not read.
        content[place] ^= 1
    path.write_bytes(content)


def flip_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_samples, flip_footer])
async def test_damage_is_told_and_nothing_is_answered_in_part(
    days: SealedDays,
    pool: asyncpg.Pool,
    query: asyncpg.Pool,
    series: int,
    tmp_path: Path,
    *,
    damage: Callable[[Path], None],
) -> None:
    # Something is sealed beside what is archived.
    async with faulty_store(tmp_path) as (store, faults):
        await archive_day(pool, store, "demo", DAY)
        await days.seal(series, samples_of(Kind.DOUBLE, [(3, 3.0)]), 6)
        (path,) = objects(tmp_path)
        damage(path)
        faults.calls.clear()
        error = await failure(query, series, store)
        assert isinstance(error, DataLoss)
        assert (reason_of(error), error.metadata) == ("ARCHIVE_DAMAGED", {"day": DAY.isoformat()})
        # A generation cannot be built on it either.
        with pytest.raises(CorruptObjectError):
            await archive_day(pool, store, "demo", DAY)
        assert await days.sealed() == 1


async def test_damaged_days_hold_up_none_behind_them(
    days: SealedDays,
    pool: asyncpg.Pool,
    series: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archiving, "_DAYS_PER_TURN", 1)
    other = await days.series("pump-2", tenant="other")
    async with faulty_store(tmp_path) as (store, _):
        await archive_day(pool, store, "demo", DAY)
        cut(*objects(tmp_path))
        for series_id, tenant in ((series, "demo"), (other, "other")):
            await days.seal(series_id, samples_of(Kind.DOUBLE, [(3, 3.0)]), 6, tenant=tenant)
        await StorageUsage(pool=pool).measure()
        with pytest.raises(ExceptionGroup) as failed:
            await archive_due(pool, store, after=NOTHING, after_by_tenant={})
    assert [type(each) for each in failed.value.exceptions] == [CorruptObjectError]
    assert await days.sealed_of(series) == 1
    assert await days.sealed_of(other) == 0


async def test_a_process_that_is_not_told_where_the_archive_is_says_so(
    pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    assert pairs(await read(query, [span(series)], ArchiveReader(None))) == EXPECTED
    async with faulty_store(tmp_path) as (store, _):
        await archive_day(pool, store, "demo", DAY)
    error = await failure(query, series, None)
    assert isinstance(error, FailedPrecondition)
    assert reason_of(error) == "ARCHIVE_NOT_CONFIGURED"
    # Of other days it knows all.
    assert pairs(await read(query, [span(series, 86_400, 2 * 86_400)], ArchiveReader(None))) == []


class Stop:
    """Holds a store's calls of one name until they may go on."""

    def __init__(self, faults: Faults, name: str) -> None:
        self._name = name
        self._arrived = threading.Event()
        self._may_go = threading.Event()
        faults.reached = self._reached

    def _reached(self, name: str) -> None:
        if name == self._name:
            self._arrived.set()
            self._may_go.wait(60)

    async def arrival(self) -> None:
        """Return when a call waits."""
        assert await asyncio.to_thread(self._arrived.wait, 60)

    def go(self) -> None:
        self._may_go.set()


async def kill_archivers(database: TestDatabase) -> None:
    """End the backends that hold a day's lock."""
    async with db.pool(database.url("twinmesh_maintenance"), application="killer") as pool:
        pids = await pool.fetch(
            """
            SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND datname = current_database() AND application_name = 'archiver'
            """
        )
        assert pids
        for row in pids:
            assert await pool.fetchval("SELECT pg_terminate_backend($1, 5000)", row["pid"])


@pytest.mark.parametrize("boundary", ["write", "read"])
async def test_a_death_at_the_store_leaves_all_as_it_was(
    database: TestDatabase,
    days: SealedDays,
    query: asyncpg.Pool,
    series: int,
    tmp_path: Path,
    *,
    boundary: str,
) -> None:
    async with faulty_store(tmp_path) as (store, faults), maintenance(database) as pool:
        stop = Stop(faults, boundary)
        async with maintenance(database) as dying:
            attempt = asyncio.create_task(archive_day(dying, store, "demo", DAY))
            await stop.arrival()
            await kill_archivers(database)
            stop.go()
            with pytest.raises(db.DATABASE_ERRORS):
                await attempt
        assert (await days.sealed(), await days.manifest()) == (2, [])
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED

        assert await archive_day(pool, store, "demo", DAY)
        await delete_orphans(pool, store, grace=NOTHING)
        (row,) = await days.manifest()
        assert list(objects(tmp_path)) == [tmp_path / row["path"]]
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED


@pytest.mark.parametrize("lost", [Break.COMMIT, Break.ANSWER])
async def test_a_death_at_the_switch_leaves_the_old_or_the_new(
    database: TestDatabase, days: SealedDays, query: asyncpg.Pool, series: int, tmp_path: Path, *, lost: Break
) -> None:
    async with faulty_store(tmp_path) as (store, _):
        async with (
            BrokenLine(database.url("twinmesh_maintenance")).open() as line,
            db.pool(line.url, application="archiver") as pool,
        ):
            line.breaks = lost
            with pytest.raises(db.DATABASE_ERRORS):
                await archive_day(pool, store, "demo", DAY)
            switched = lost is Break.ANSWER
            assert await days.sealed() == (0 if switched else 2)
            assert len(await days.manifest()) == (1 if switched else 0)
            assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED

            # The next turn finds nothing to do, or does all of it.
            assert await archive_day(pool, store, "demo", DAY) is not switched
            await delete_orphans(pool, store, grace=NOTHING)
        (row,) = await days.manifest()
        assert list(objects(tmp_path)) == [tmp_path / row["path"]]
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED


async def test_two_workers_do_a_day_once(
    database: TestDatabase, days: SealedDays, pool: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults), maintenance(database) as other:
        stop = Stop(faults, "write")
        first = asyncio.create_task(archive_day(pool, store, "demo", DAY))
        await stop.arrival()
        assert not await archive_day(other, store, "demo", DAY)
        stop.go()
        assert await first
        assert not await archive_day(other, store, "demo", DAY)
    assert [row["generation"] for row in await days.manifest()] == [1]


@pytest.mark.parametrize("boundary", ["write", "read"])
async def test_what_is_sealed_anew_meanwhile_is_not_lost(
    database: TestDatabase,
    days: SealedDays,
    query: asyncpg.Pool,
    series: int,
    tmp_path: Path,
    *,
    boundary: str,
) -> None:
    async with faulty_store(tmp_path) as (store, faults), maintenance(database) as pool:
        stop = Stop(faults, boundary)
        attempt = asyncio.create_task(archive_day(pool, store, "demo", DAY))
        await stop.arrival()
        # As sealing does: one row takes the place of another, with a late sample in it.
        async with admin(database) as connection:
            await connection.execute("DELETE FROM telemetry.sealed_segment")
        await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.0), (2, 20.0), (3, 3.0)]), 8)
        faults.reached = lambda name: None
        stop.go()
        assert await attempt

        found = await read(query, [span(series)], ArchiveReader(store))
        assert pairs(found) == [(1, 1.0), (2, 20.0), (3, 3.0)]
        assert await days.sealed() == 0
        (row,) = await days.manifest()
        # The attempt that came to nothing has put its object away.
        assert list(objects(tmp_path)) == [tmp_path / row["path"]]


async def test_what_is_sealed_beside_it_meanwhile_stays_sealed(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults):
        stop = Stop(faults, "write")
        attempt = asyncio.create_task(archive_day(pool, store, "demo", DAY))
        await stop.arrival()
        await days.seal(series, samples_of(Kind.DOUBLE, [(2, 20.0)]), 8)
        stop.go()
        assert await attempt
        assert await days.sealed() == 1
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == [(1, 1.0), (2, 20.0)]


async def test_what_is_loaded_once_a_day_was_found_due_waits_for_sealing(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    # Whoever follows commits looks for it among the sealed rows.
    async with faulty_store(tmp_path) as (store, _):
        await days.seal(series, samples_of(Kind.DOUBLE, [(2, 20.0)]), 8, compacted=False)
        before = await days.sealed()
        assert not await archive_day(pool, store, "demo", DAY)
        assert await days.sealed() == before
        assert await days.manifest() == []
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == [(1, 1.0), (2, 20.0)]


async def test_orphans_of_an_attempt_under_way_are_kept_and_young_ones(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool, series: int, tmp_path: Path
) -> None:
    async with faulty_store(tmp_path) as (store, faults), maintenance(database) as other:
        stop = Stop(faults, "read")  # It is written and not named.
        attempt = asyncio.create_task(archive_day(pool, store, "demo", DAY))
        await stop.arrival()
        await delete_orphans(other, store, grace=NOTHING)
        assert len(list(objects(tmp_path))) == 1
        stop.go()
        assert await attempt
        assert pairs(await read(query, [span(series)], ArchiveReader(store))) == EXPECTED

        (named,) = objects(tmp_path)
        for name, age_s in (("young", 3600), ("old", 2 * 86_400)):
            left = named.with_name(f"{name}.parquet")
            left.write_bytes(b"torn")
            then = left.stat().st_mtime - age_s
            os.utime(left, (then, then))
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "old.parquet").write_bytes(b"of another database")
        await delete_orphans(other, store, grace=GRACE)
        assert {path.name for path in objects(tmp_path)} == {named.name, "young.parquet", "old.parquet"}
        assert [path.parent.name for path in objects(tmp_path) if path.name == "old.parquet"] == ["theirs"]


async def test_a_reader_misses_and_repeats_nothing_while_days_move(
    days: SealedDays, pool: asyncpg.Pool, query: asyncpg.Pool, tmp_path: Path
) -> None:
    ids = [await days.series(f"pump-{number}") for number in range(3)]
    whole = [(second, float(second)) for second in range(200)]
    spans = [span(series) for series in ids]
    async with faulty_store(tmp_path) as (store, _):
        reader = ArchiveReader(store)
        for series in ids:
            await days.seal(series, samples_of(Kind.DOUBLE, whole), 1)

        async def look() -> None:
            found = await read(query, spans, reader)
            for place in range(3):
                assert pairs(found, place) == whole

        async def move() -> None:
            for generation in range(8):
                # The same again, later: sealed first, then in the next generation.
                await days.seal(ids[generation % 3], samples_of(Kind.DOUBLE, whole[50:60]), 2 + generation)
                assert await archive_day(pool, store, "demo", DAY)
                await delete_orphans(pool, store, grace=GRACE)

        moving = asyncio.create_task(move())
        while not moving.done():
            await look()
        await moving
    assert await days.sealed() == 0
