"""What is stored is measured, and leaves when nobody keeps it any more."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.maintenance import storage_usage
from telemetry_store.maintenance.policies import retentions
from telemetry_store.maintenance.retention import SealedMonths, expire_events, expire_samples
from telemetry_store.maintenance.storage_room import RoomGuard
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.series import Value
from telemetry_store.storage_policies import Retention
from telemetry_store.storage_room import read_room
from telemetry_store.storage_usage import Tier, read_day_usage, read_device_usage, read_usage
from tests.store import old_data
from tests.store.old_data import DAY, EPOCH, TODAY, put_event, seal, start_us
from tests.store.telemetry import Recorder, Sent, recorder
from tests.store.writing import admin


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may have begun on the day before."""
    for module in (old_data, sys.modules[__name__]):
        monkeypatch.setattr(module, "TODAY", datetime.now(UTC).date())


@pytest.fixture
async def writer(database: TestDatabase) -> AsyncIterator[Recorder]:
    async with recorder(database) as writing:
        yield writing


def sent(device: str, count: int, *, value: Value = 1.0, metric: str = "m") -> list[Sent]:
    first = start_us(TODAY)
    return [Sent(device, metric, first + number, value) for number in range(count)]


async def sealed(connection: asyncpg.Connection, tenant: str) -> list[int]:
    """How many days ago what is sealed was measured."""
    rows = await connection.fetch(
        "SELECT start_time FROM telemetry.sealed_segment WHERE tenant_id = $1 ORDER BY start_time DESC",
        tenant,
    )
    return [(TODAY - EPOCH).days - row["start_time"] // MICROS_PER_DAY for row in rows]


async def expire(
    pool: asyncpg.Pool, kept: Retention, kept_by_tenant: dict[str, Retention] | None = None
) -> None:
    await StorageUsage(pool=pool).measure()
    await expire_samples(pool, kept=kept, kept_by_tenant=kept_by_tenant or {})
    await expire_events(pool, kept=kept, kept_by_tenant=kept_by_tenant or {})


# Usage.


async def test_what_was_written_is_counted_by_tier_day_and_device(
    connection: asyncpg.Connection, pool: asyncpg.Pool, query: asyncpg.Pool, writer: Recorder
) -> None:
    # Short, inline, and beside the row: an array's samples follow from its size in each.
    for device, count in (("short", 1), ("inline", 200), ("long", 5_000)):
        await writer.commit("acme", sent(device, count))
    await writer.commit("acme", sent("text", 3, value="on", metric="state"))
    await writer.commit("other", sent("pump-1", 7))
    await seal(connection, "acme", 40, device="long", samples=100)
    await seal(connection, "acme", 39, device="long", samples=50, sealed_days_ago=2)
    await put_event(connection, "acme", 5, 3)

    await StorageUsage(pool=pool).measure()

    async with db.tenant_transaction(query, "acme") as reader:
        usage = {each.tier: each for each in await read_usage(reader, "acme")}
        devices = await read_device_usage(reader, "acme", most=10)
        few = await read_device_usage(reader, "acme", most=1)
        days = await read_day_usage(reader, "acme")
        assert await read_usage(reader, "other") == []
    assert {tier: (each.rows, each.samples) for tier, each in usage.items()} == {
        Tier.HOT: (4, 5_204),
        Tier.SEALED: (2, 150),
        Tier.EVENTS: (1, 0),
    }
    assert not any(each.estimated for each in usage.values())
    assert {each.device_id: each.samples for each in devices} == {
        "short": 1,
        "inline": 200,
        "long": 5_150,
        "text": 3,
        "pump-1": 0,
    }
    assert [(each.device_id, each.samples) for each in few] == [("long", 5_150), ("", 204)]
    assert sum(each.size for each in few) == sum(each.size for each in devices)
    # A byte here or there is lost in rounding.
    assert sum(each.size for each in devices) == pytest.approx(
        sum(each.size for each in usage.values()), abs=10
    )
    assert [(each.tier, each.day, each.samples) for each in days if each.tier != Tier.HOT] == [
        (Tier.SEALED, TODAY - 40 * DAY, 100),
        (Tier.SEALED, TODAY - 2 * DAY, 50),
        (Tier.EVENTS, TODAY - 3 * DAY, 0),
    ]


async def test_tenants_share_what_the_table_takes_on_disk(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await seal(connection, "acme", 100, samples=3_000)
    await seal(connection, "other", 100, samples=1_000)
    await StorageUsage(pool=pool).measure()
    rows = await connection.fetch("SELECT tenant_id, bytes FROM telemetry.storage_day ORDER BY tenant_id")
    size = await connection.fetchval(
        "SELECT pg_total_relation_size($1::text::regclass)",
        f"telemetry.sealed_segment_{TODAY - 100 * DAY:%Y%m}",
    )
    assert sum(row["bytes"] for row in rows) == pytest.approx(size, abs=2)
    assert rows[0]["bytes"] / rows[1]["bytes"] == pytest.approx(3, rel=0.1)


async def test_what_is_gone_is_no_longer_counted(connection: asyncpg.Connection, pool: asyncpg.Pool) -> None:
    await seal(connection, "acme", 100)
    await seal(connection, "acme", 200)
    await StorageUsage(pool=pool).measure()
    name = f"telemetry.sealed_segment_{TODAY - 100 * DAY:%Y%m}"
    await connection.execute(f"DROP TABLE {name}")
    await connection.execute("DELETE FROM telemetry.sealed_segment")
    await StorageUsage(pool=pool).measure()
    assert await connection.fetchval("SELECT count(*) FROM telemetry.storage_day") == 0


async def test_only_what_has_changed_is_measured_again(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await seal(connection, "acme", 100)
    usage = StorageUsage(pool=pool, rest=0)
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await usage.measure()
    measured = "SELECT source, measured_at FROM telemetry.storage_source"
    before = {row["source"]: row["measured_at"] for row in await connection.fetch(measured)}
    await seal(connection, "acme", 100, device="pump-2")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await usage.measure()
    after = {row["source"]: row["measured_at"] for row in await connection.fetch(measured)}
    assert [name for name in before if before[name] != after[name]] == [
        f"sealed_segment_{TODAY - 100 * DAY:%Y%m}"
    ]
    assert await connection.fetchval("SELECT sum(rows) FROM telemetry.storage_day") == 2


# Retention.


async def test_without_a_policy_nothing_expires(connection: asyncpg.Connection, pool: asyncpg.Pool) -> None:
    await seal(connection, "acme", 1_000)
    await put_event(connection, "acme", 1_000, 1_000)
    await expire(pool, Retention())
    assert await sealed(connection, "acme") == [1_000]
    assert await connection.fetchval("SELECT count(*) FROM telemetry.event") == 1


async def test_each_tenant_keeps_what_it_says_and_others_what_is_set(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    for tenant in ("acme", "short", "long"):
        for days_ago in (1, 9, 10, 11, 30, 31, 400):
            await seal(connection, tenant, days_ago)
            await put_event(connection, tenant, days_ago, days_ago)
    said = {"short": Retention(delete_after=10 * DAY), "long": Retention()}
    await expire(pool, Retention(delete_after=30 * DAY), said)
    # What is kept for 10 days is gone on the 11th.
    assert await sealed(connection, "short") == [1, 9, 10]
    assert await sealed(connection, "acme") == [1, 9, 10, 11, 30]
    assert await sealed(connection, "long") == [1, 9, 10, 11, 30, 31, 400]
    events = await connection.fetch("SELECT tenant_id, count(*) FROM telemetry.event GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in events] == [("acme", 5), ("long", 7), ("short", 3)]


async def test_what_came_late_is_kept_from_when_it_came(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await seal(connection, "acme", 300, sealed_days_ago=5)
    await put_event(connection, "acme", 300, 5)
    await expire(pool, Retention(delete_after=5 * DAY))
    assert await sealed(connection, "acme") == [300]
    assert await connection.fetchval("SELECT count(*) FROM telemetry.event") == 1
    await expire(pool, Retention(delete_after=4 * DAY))
    assert await sealed(connection, "acme") == []
    assert await connection.fetchval("SELECT count(*) FROM telemetry.event") == 0


async def test_what_is_to_be_archived_first_stays_until_it_is(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await seal(connection, "acme", 400)
    await seal(connection, "other", 400)
    archived = Retention(archive_after=30 * DAY, delete_after=90 * DAY)
    deleted = Retention(archive_after=90 * DAY, delete_after=30 * DAY)
    await expire(pool, archived, {"other": deleted})
    assert (await sealed(connection, "acme"), await sealed(connection, "other")) == ([400], [])


async def test_policies_are_read_over_the_installations(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.storage_policy (tenant_id, archive_after, delete_after, hour_rollups_kept)
        VALUES ('acme', '3 days', NULL, '90 days'), ('other', NULL, '36500 days', NULL)
        """
    )
    installation = Retention(archive_after=7 * DAY, delete_after=30 * DAY, minute_rollups_kept=2 * DAY)
    assert await retentions(pool, installation, has_archive=True) == {
        "acme": Retention(3 * DAY, 30 * DAY, 2 * DAY, 90 * DAY),
        "other": Retention(7 * DAY, 36_500 * DAY, 2 * DAY),
    }
    assert (await retentions(pool, installation, has_archive=False))["acme"].archive_after is None


# Months.


async def months(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch(
        """
        SELECT inhrelid::regclass::text AS name
        FROM pg_inherits WHERE inhparent = 'telemetry.sealed_segment'::regclass
        """
    )
    return {row["name"].removeprefix("telemetry.sealed_segment_") for row in rows}


def month(days_ago: int) -> str:
    return f"{TODAY - days_ago * DAY:%Y%m}"


async def test_months_are_made_ahead_and_dropped_when_empty(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    sealed_months = SealedMonths(pool=pool, late_window_days=7)
    await sealed_months.ensure()
    running = {month(days_ago) for days_ago in range(-30, 9)}
    assert running <= await months(connection)
    await seal(connection, "acme", 100)
    await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", TODAY - 200 * DAY)

    await sealed_months.drop_empty()
    assert {month(100), month(200)} <= await months(connection)  # It may be somebody's snapshot still.
    await sealed_months.drop_empty(empty_for_s=0)
    assert await months(connection) == running | {month(100)}


async def test_a_month_that_somebody_is_about_to_fill_is_not_dropped(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    sealed_months = SealedMonths(pool=pool, late_window_days=7)
    async with connection.transaction():
        await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", TODAY - 200 * DAY)
    async with connection.transaction():
        await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", TODAY - 200 * DAY)
        await sealed_months.drop_empty(empty_for_s=0)
        await seal(connection, "acme", 200)
    await sealed_months.drop_empty(empty_for_s=0)
    assert await sealed(connection, "acme") == [200]


async def test_a_month_that_is_read_is_dropped_later(
    connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", TODAY - 200 * DAY)
    sealed_months = SealedMonths(pool=pool, late_window_days=7)
    async with connection.transaction():
        await connection.fetchval("SELECT count(*) FROM telemetry.sealed_segment")
        await sealed_months.drop_empty(empty_for_s=0)
        assert month(200) in await months(connection)
    await sealed_months.drop_empty(empty_for_s=0)
    assert month(200) not in await months(connection)


async def test_making_and_dropping_months_at_once_loses_no_row(
    database: TestDatabase, connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    sealed_months = SealedMonths(pool=pool, late_window_days=7)
    over = asyncio.Event()

    async def fill(days_ago: int) -> None:
        async with admin(database) as other:
            for _ in range(20):
                async with other.transaction():
                    await seal(other, "acme", days_ago, device=f"pump-{days_ago}")
                await other.execute(
                    "DELETE FROM telemetry.sealed_segment WHERE start_time = $1",
                    start_us(TODAY - days_ago * DAY),
                )

    async def drop() -> None:
        while not over.is_set():
            await sealed_months.drop_empty(empty_for_s=0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(drop())
        await asyncio.gather(*(fill(days_ago) for days_ago in (200, 300)))
        over.set()
    assert await sealed(connection, "acme") == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT telemetry.drop_sealed_month(now()::date)",
        "SELECT telemetry.drop_sealed_month((now() - interval '31 days')::date)",
        "SELECT telemetry.empty_sealed_months((now() - interval '30 days')::date)",
    ],
)
async def test_months_in_use_are_nobodys_to_drop(connection: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await connection.execute(statement)


# Room.


def guard(pool: asyncpg.Pool, **set_to: Any) -> RoomGuard:
    return RoomGuard(pool=pool, **{"data_dir": None, "reserved": None, "most_bytes": None, **set_to})


async def found(pool: asyncpg.Pool) -> tuple[bool, str] | None:
    room = await read_room(pool)
    return None if room is None else (room.refused, room.measured.what)


async def test_a_guard_tells_what_it_sees(
    database: TestDatabase, connection: asyncpg.Connection, pool: asyncpg.Pool
) -> None:
    folder = Path(__file__).parent
    await guard(pool, data_dir=folder, reserved=1).look()
    assert await found(pool) == (False, "disk")
    await guard(pool, data_dir=folder, reserved=2**62).look()
    async with db.pool(database.url("twinmesh_ingest"), application="test") as ingest:
        assert await found(ingest) == (True, "disk")
    await guard(pool, data_dir=folder, reserved=1).look()
    assert await found(pool) == (False, "disk")

    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    await guard(pool, most_bytes=size // 2, data_dir=folder, reserved=1).look()
    assert await found(pool) == (True, "database")
    await guard(pool).look()
    assert await found(pool) is None


async def test_a_guard_that_cannot_see_says_so(pool: asyncpg.Pool) -> None:
    blind = guard(pool, data_dir=Path("/nowhere/at/all"))
    async with blind.looking():
        while True:
            try:
                await blind.check()
            except RuntimeError as error:
                if "No such file" in str(error):
                    break
            await asyncio.sleep(0.01)


async def test_of_many_hot_pages_a_part_is_looked_at(
    connection: asyncpg.Connection,
    pool: asyncpg.Pool,
    query: asyncpg.Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
        SELECT 'acme', 1, $1, $1, array_fill($1::bigint, ARRAY[100]), array_fill(1.0::float8, ARRAY[100]),
               1, 1, 1
        FROM generate_series(1, 800)
        """,
        start_us(TODAY),
    )
    monkeypatch.setattr(storage_usage, "_MOST_PAGES", 100)  # of 200
    await StorageUsage(pool=pool).measure()
    async with db.tenant_transaction(query, "acme") as reader:
        (hot,) = await read_usage(reader, "acme")
    assert hot.estimated
    assert hot.samples == hot.rows * 100 == pytest.approx(80_000, rel=0.5)
    size = await connection.fetchval(
        "SELECT pg_total_relation_size($1::text::regclass)", f"telemetry.segment_{TODAY:%Y%m%d}"
    )
    assert hot.size == pytest.approx(size, abs=2)
