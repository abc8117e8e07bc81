"""Rounds of sealing over turns, and the days that they leave empty."""

import asyncio
import sys
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import pytest

from meshkit.migrate import migrate_down
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.maintenance import throttle
from telemetry_store.maintenance.partitions import EmptySegmentDays
from telemetry_store.maintenance.sealing import Sealing
from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.migrations import OWNER
from telemetry_store.tiers import due
from tests.store.old_data import start_us
from tests.store.sealing import AT_ONCE, bound_now, seal_all, take_all
from tests.store.telemetry import Sent, recorder
from tests.store.writing import admin, commit_numbers

LATE_DAYS = 7
TODAY = datetime.now(UTC).date()
YESTERDAY = start_us(TODAY) - MICROS_PER_DAY


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may have begun on the day before."""
    today = datetime.now(UTC).date()
    monkeypatch.setattr(sys.modules[__name__], "TODAY", today)
    monkeypatch.setattr(sys.modules[__name__], "YESTERDAY", start_us(today) - MICROS_PER_DAY)


async def write(database: TestDatabase, time_us: int, *, devices: int = 1) -> None:
    async with recorder(database) as writer:
        await writer.commit(
            "demo", [Sent(f"pump-{number}", "flow", time_us, 1.0) for number in range(devices)]
        )


async def hot(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM telemetry.segment")
    return count


async def days(connection: asyncpg.Connection) -> set[date]:
    rows = await connection.fetch(
        "SELECT to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') AS day "
        "FROM pg_inherits WHERE inhparent = 'telemetry.segment'::regclass"
    )
    return {row["day"] for row in rows}


def stepping(
    pool: asyncpg.Pool, *, seal_after: timedelta = AT_ONCE, turn_s: float = 60.0, patience_s: float = 60.0
) -> Sealing:
    # Patient, since other tests have transactions on the same server.
    return Sealing(
        pool=pool,
        seal_after=seal_after,
        throttle=Throttle(pool=pool),
        turn_s=turn_s,
        patience_s=patience_s,
    )


async def test_series_of_a_deleted_tenant_do_not_hide_those_behind(
    database: TestDatabase,
    pool: asyncpg.Pool,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(due, "_SERIES_PER_LOOK", (1, 1))
    await write(database, YESTERDAY, devices=3)
    await take_all(pool)
    ids = [
        row["series_id"]
        for row in await connection.fetch("SELECT series_id FROM telemetry.series ORDER BY series_id")
    ]
    await connection.execute("DELETE FROM telemetry.series WHERE series_id = $1", ids[1])
    await stepping(pool).turn()
    left = await connection.fetch("SELECT series_id FROM telemetry.segment")
    assert [row["series_id"] for row in left] == [ids[1]]


async def test_a_round_goes_on_over_turns(
    database: TestDatabase,
    pool: asyncpg.Pool,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(due, "_BATCH_SERIES", 1)
    await write(database, YESTERDAY, devices=4)
    await take_all(pool)
    sealing = stepping(pool, turn_s=0.0)
    left = []
    for _ in range(4):
        await sealing.turn()
        left.append(await hot(connection))
    assert left == [3, 2, 1, 0]
    assert await commit_numbers(connection) == [(1, 1)]
    await sealing.turn()
    # The round is over: nobody asks for its commits any more.
    assert await commit_numbers(connection) == []


@pytest.mark.parametrize("sampled_bytes", [1, 32 << 20])
async def test_series_are_sealed_whatever_was_estimated_of_them(
    database: TestDatabase,
    pool: asyncpg.Pool,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    sampled_bytes: int,
) -> None:
    """Of next to no pages, where hardly any has been seen, and of all of them."""
    monkeypatch.setattr(due, "_SAMPLED_BYTES", sampled_bytes)
    monkeypatch.setattr(due, "_SAMPLED_ROWS", 3)
    async with recorder(database) as writer:
        for number in range(8):
            await writer.commit(
                "demo",
                [
                    Sent(f"pump-{device}", "flow", YESTERDAY + number, float(device))
                    # Some have a row in every commit, some in one.
                    for device in range(40)
                    if device % 2 == 0 or device == number
                ],
            )
    await take_all(pool)
    bound = await bound_now(pool)
    assert bound is not None
    batches = [batch async for batch in due.due_batches(pool, bound)]
    assert sum(len(batch.tenants) for batch in batches) == 20 + 4
    assert sum(batch.samples for batch in batches) == 20 * 8 + 4
    await stepping(pool).turn()
    assert await hot(connection) == 0


async def test_a_look_counts_few_rows_however_many_there_are(
    database: TestDatabase, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that took longer than a statement may would fail in each round anew."""
    monkeypatch.setattr(due, "_SAMPLED_ROWS", 1_000_000)
    monkeypatch.setattr(due, "_SERIES_PER_LOOK", (2, 5_000))
    monkeypatch.setattr(due, "_COUNTED_PER_LOOK", 12)
    for number in range(4):
        await write(database, YESTERDAY + number, devices=20)
    await take_all(pool)
    bound = await bound_now(pool)
    assert bound is not None
    counted: list[int] = []
    fetch = asyncpg.Pool.fetch

    async def looking(self: asyncpg.Pool, query: str, *arguments: object, **options: Any) -> Any:
        rows = await fetch(self, query, *arguments, **options)
        counted.append(sum(row["hot"] for row in rows if "hot" in row))  # A row for each sample here.
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Pool, "fetch", looking)
        batches = [batch async for batch in due.due_batches(pool, bound)]
    assert sum(len(batch.tenants) for batch in batches) == 20
    assert sum(counted) == 20 * 4
    assert max(counted) == 12


async def test_texts_count_by_their_size(
    database: TestDatabase, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL hands out no more than 1 GB at once."""
    monkeypatch.setattr(due, "_BATCH_SAMPLES", 1_000)
    random = Random(1)
    async with recorder(database) as writer:
        await writer.commit(
            "demo",
            [
                Sent(f"pump-{device}", metric, YESTERDAY + number, value)
                for device in range(3)
                for number in range(4)
                for metric, value in (("note", random.randbytes(2_000).hex()), ("state", "open"))
            ],
        )
    await take_all(pool)
    bound = await bound_now(pool)
    assert bound is not None
    batches = [batch async for batch in due.due_batches(pool, bound)]
    assert sum(len(batch.tenants) for batch in batches) == 6
    # 16,000 characters of hexadecimal digits each, of which compression takes a good half.
    assert sum(batch.samples >= 1_000 for batch in batches) == 3


async def test_the_next_round_waits_until_the_grace_is_over(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    async def commit_of_before(time_us: int) -> None:
        await write(database, time_us)
        await connection.execute(
            "UPDATE telemetry.ingest_commit SET committed_at = now() - interval '2 hours'"
        )
        await take_all(pool)

    sealing = stepping(pool, seal_after=timedelta(hours=1))
    await commit_of_before(YESTERDAY)
    await sealing.turn()
    assert await hot(connection) == 0
    await commit_of_before(YESTERDAY + 1)
    await sealing.turn()
    assert await hot(connection) == 1
    await stepping(pool, seal_after=timedelta(hours=1)).turn()
    assert await hot(connection) == 0


async def test_nothing_is_sealed_while_a_transaction_may_still_commit_an_older_order(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, YESTERDAY)
    await take_all(pool)
    async with admin(database) as other, other.transaction():
        await other.execute("SELECT pg_current_xact_id()")
        await stepping(pool, patience_s=0.0).turn()
        assert await hot(connection) == 1
    await stepping(pool).turn()
    assert await hot(connection) == 0


async def test_what_fails_is_begun_anew(
    database: TestDatabase,
    pool: asyncpg.Pool,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await write(database, YESTERDAY)
    await take_all(pool)
    sealing = stepping(pool)
    with monkeypatch.context() as patch:
        patch.setattr("telemetry_store.maintenance.sealing.seal", lambda *_, **__: 1 // 0)
        with pytest.raises(ExceptionGroup):
            await sealing.turn()
    await sealing.turn()
    assert await hot(connection) == 0


async def test_what_ingest_writes_makes_sealing_rest(
    database: TestDatabase, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr(throttle, "_MEASURED_EVERY_S", 0.0)
    throttled = Throttle(pool=pool, sleep=sleep)
    await throttled.begin()
    await throttled.rest(took_s=1.0, round_s=0.0)
    assert not rests
    # What backends have written is told now and then.
    async with recorder(database) as writer, asyncio.timeout(30):
        while not rests:
            await writer.commit(
                "demo", [Sent("pump-1", "flow", YESTERDAY + number, 1.0) for number in range(1000)]
            )
            await throttled.rest(took_s=1.0, round_s=0.0)


async def test_days_that_sealing_emptied_are_dropped_but_not_those_that_are_to_be_written(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    live = await days(connection)
    emptied, filled, declared, expired = (TODAY - timedelta(days=number) for number in (20, 21, 22, 23))
    for day in (emptied, filled, declared, expired):
        await connection.execute("SELECT telemetry.make_segment_day($1)", day)
    await write(database, YESTERDAY - 19 * MICROS_PER_DAY)
    bound = await bound_now(pool)
    assert bound is not None
    await seal_all(pool, bound)
    await write(database, YESTERDAY - 20 * MICROS_PER_DAY)
    for day, ends in ((declared, "1 day"), (expired, "-2 hours")):
        start_us = (day - date(1970, 1, 1)).days * MICROS_PER_DAY
        await connection.execute(
            """
            INSERT INTO telemetry.backfill
                (tenant_id, backfill_id, principal, start_time, end_time, expire_time)
            VALUES ('demo', $1, 'user:ada', $2, $2::bigint + 1, now() + $1::text::interval)
            """,
            ends,
            start_us,
        )

    empty = EmptySegmentDays(pool=pool, late_window_days=LATE_DAYS)
    # Whoever reads in a snapshot of before may not have come to them yet.
    await empty.drop()
    await empty.drop()
    assert emptied in await days(connection)
    # Whoever reads for long is not waited for, and nobody waits behind us.
    async with admin(database) as reader:
        async with reader.transaction():
            await reader.execute("SELECT FROM telemetry.segment LIMIT 1")
            await empty.drop(empty_for_s=0.0)
        assert emptied in await days(connection)
    await empty.drop(empty_for_s=0.0)
    assert await days(connection) == live | {filled, declared}
    # A new declaration makes the day again.
    await connection.fetch(
        "SELECT telemetry.create_backfill('demo', 'bf', 'user:ada', $1, $1::bigint + 1, '1 day')",
        (emptied - date(1970, 1, 1)).days * MICROS_PER_DAY,
    )
    assert emptied in await days(connection)


async def test_of_many_empty_days_some_are_dropped_at_a_time_and_no_others_are_locked(
    connection: asyncpg.Connection,
) -> None:
    """Locks last until a transaction ends, and PostgreSQL has so many for all."""
    empty = [TODAY - timedelta(days=number) for number in range(20, 230)]
    await connection.execute("SELECT telemetry.make_segment_day(day) FROM unnest($1::date[]) AS day", empty)
    drop = "SELECT day, dropped FROM telemetry.drop_segment_days($1, $2)"
    locked = """
        SELECT count(*) FROM pg_locks JOIN pg_inherits ON inhrelid = relation
        WHERE pid = pg_backend_pid() AND inhparent = 'telemetry.segment'::regclass
    """
    async with connection.transaction():
        assert {row["day"] for row in await connection.fetch(drop, LATE_DAYS, [])} >= set(empty)
        assert await connection.fetchval(locked) == 0
    for expected in (200, 10):
        rows = await connection.fetch(drop, LATE_DAYS, empty)
        assert sum(row["dropped"] for row in rows) == expected


async def test_an_answer_under_way_finds_what_was_sealed_since_it_began(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await connection.execute("SELECT telemetry.make_segment_day($1)", TODAY - timedelta(days=20))
    await write(database, YESTERDAY - 19 * MICROS_PER_DAY)
    bound = await bound_now(pool)
    assert bound is not None
    empty = EmptySegmentDays(pool=pool, late_window_days=LATE_DAYS)
    async with admin(database) as reader, reader.transaction(isolation="repeatable_read"):
        # Its snapshot is of now, but it has not come to the segments.
        await reader.fetchval("SELECT count(*) FROM telemetry.series")
        await seal_all(pool, bound)
        await empty.drop()
        await empty.drop()
        assert await hot(reader) == 1


async def test_who_has_sealed_does_not_go_back(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, YESTERDAY)
    bound = await bound_now(pool)
    assert bound is not None
    await seal_all(pool, bound)
    with pytest.raises(asyncpg.ObjectInUseError, match="sealed samples would be lost"):
        await migrate_down(connection, OWNER, to_version=9)
    assert await connection.fetchval("SELECT count(*) FROM telemetry.sealed_segment") == 1
