"""Up to where is sealed: below whatever is under way, young, or not taken by a consumer of the feed."""

import json
from datetime import timedelta

import asyncpg
import pytest

from meshkit.testing.database import TestDatabase
from telemetry_store.feed import FeedExpiredError, read_commits, snapshot
from telemetry_store.instances import take_numbers
from telemetry_store.tiers.floor import (
    Bound,
    SettledOrders,
    drop_stalled_consumers,
    find_bound,
    forget_commits,
    raise_floors,
)
from tests.store.sealing import AT_ONCE, bound_now, take_all
from tests.store.telemetry import Sent, recorder
from tests.store.writing import T0, commit_numbers

HOUR = timedelta(hours=1)
NOTHING_OPEN = 1 << 40


async def write(database: TestDatabase, commits: int) -> None:
    """Write commits by an instance of their own."""
    async with recorder(database) as writer:
        for number in range(commits):
            await writer.commit("demo", [Sent("pump-1", "flow", T0 + number, 1.0)])


async def floors(connection: asyncpg.Connection) -> dict[int, int]:
    rows = await connection.fetch("SELECT instance, floor_commit_no FROM telemetry.ingest_instance")
    return {row["instance"]: row["floor_commit_no"] for row in rows}


async def register(
    connection: asyncpg.Connection, name: str, frontier: dict[int, int], ago: str = "0"
) -> None:
    await connection.execute(
        "INSERT INTO telemetry.feed_consumer (name, frontier, updated_at) "
        "VALUES ($1, $2, now() - $3::text::interval)",
        *(name, json.dumps(frontier), ago),
    )


async def test_without_the_checkpoint_nothing_is_sealed(database: TestDatabase, pool: asyncpg.Pool) -> None:
    await write(database, 1)
    assert await find_bound(pool, NOTHING_OPEN, seal_after=AT_ONCE) is None


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
async def test_orders_settle_when_the_transactions_that_took_them_have_ended(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection, commits: bool
) -> None:
    await write(database, 2)
    instance = await connection.fetchval(
        "INSERT INTO telemetry.ingest_instance DEFAULT VALUES RETURNING instance"
    )
    transaction = connection.transaction()
    await transaction.start()
    numbers = await take_numbers(connection, instance)
    assert numbers is not None
    settled = SettledOrders(pool=pool)
    assert await settled.find() is None
    # Those that come later do not put it off.
    await write(database, 1)
    assert await settled.find() is None
    await (transaction.commit() if commits else transaction.rollback())
    # Patient, since other tests have transactions on the same server.
    assert await settled.find(patience_s=60.0) == numbers.order_no
    assert await settled.find(patience_s=60.0) == numbers.order_no + 1


async def test_before_the_first_commit_no_order_is_settled(pool: asyncpg.Pool) -> None:
    assert await SettledOrders(pool=pool).find(patience_s=60.0) == 0


async def test_commits_stay_findable_for_the_grace(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 3)
    await connection.execute(
        "UPDATE telemetry.ingest_commit SET committed_at = now() - interval '2 hours' WHERE commit_no < 3"
    )
    await take_all(pool)
    bound = await find_bound(pool, NOTHING_OPEN, seal_after=HOUR)
    assert bound is not None
    assert bound.order_no == 2
    await raise_floors(pool, bound)
    assert await floors(connection) == {1: 2}


async def test_no_floor_rises_above_what_a_consumer_has_taken(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 2)
    await write(database, 3)  # A second instance, orders 3 to 5.
    await register(connection, "rules", {1: 2, 2: 1})
    bound = await bound_now(pool)
    assert bound is not None
    assert bound.order_no == 3
    assert await floors(connection) == {1: 2, 2: 1}
    committed_us = await connection.fetchval(
        "SELECT (extract(epoch FROM committed_at) * 1000000)::bigint "
        "FROM telemetry.ingest_commit WHERE order_no = 4"
    )
    assert bound.through_us == committed_us

    await connection.execute("DELETE FROM telemetry.feed_consumer WHERE name = 'rules'")
    await bound_now(pool)
    assert await floors(connection) == {1: 2, 2: 3}


async def test_a_consumer_that_takes_nothing_for_long_is_dropped(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 2)
    await connection.execute("UPDATE telemetry.ingest_commit SET committed_at = now() - interval '25 hours'")
    await register(connection, "stalled", {1: 1}, "25 hours")
    await register(connection, "slow", {1: 1}, "23 hours")
    await register(connection, "has all", {1: 2}, "25 hours")
    await register(connection, "latest", {}, "25 hours")
    await register(connection, "rollups", {}, "25 hours")
    assert await drop_stalled_consumers(pool) == ["stalled"]
    assert await drop_stalled_consumers(pool) == []


async def test_a_consumer_that_waits_for_something_new_is_not_dropped(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 2)
    await register(connection, "quiet", {1: 1}, "25 hours")
    assert await drop_stalled_consumers(pool) == []


async def test_floors_never_fall(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 3)
    await bound_now(pool)
    await raise_floors(pool, Bound(1, 0))
    assert await floors(connection) == {1: 3}


async def test_commits_that_everybody_has_are_forgotten(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 3)
    await register(connection, "rules", {1: 2})
    await bound_now(pool)
    assert await forget_commits(pool) == 2
    assert await commit_numbers(connection) == [(1, 3)]
    assert await forget_commits(pool) == 0
    async with snapshot(pool) as connected:
        with pytest.raises(FeedExpiredError):
            await read_commits(connected, {1: 1})
        assert [commit.commit_no for commit in (await read_commits(connected, {1: 2})).commits] == [3]


async def test_what_a_consumer_has_not_taken_is_kept_below_the_floor_too(
    database: TestDatabase, pool: asyncpg.Pool, connection: asyncpg.Connection
) -> None:
    await write(database, 3)
    await bound_now(pool)
    await register(connection, "new", {})
    assert await forget_commits(pool) == 0
