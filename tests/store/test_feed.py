"""Every commit is read once and in order, whatever happens meanwhile."""

import re
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store import latest
from telemetry_store.columns import Kind
from telemetry_store.feed import Commit, FeedExpiredError, Frontier, by_commit, read_commits, snapshot
from telemetry_store.latest import read_latest
from telemetry_store.rollups import new_samples
from tests.store.telemetry import Sent, recorder

TENANT = "demo"
NOW = int(time.time()) * 1_000_000


@pytest.fixture
async def feed(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_twin_feed"), application="feed") as pool:
        yield pool


@pytest.fixture
async def admin(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.admin_url)
    yield connection
    await connection.close()


def sample(value: float, *, time_us: int = NOW) -> Sent:
    return Sent("pump-1", "pressure", time_us, value)


async def read_all(pool: asyncpg.Pool, frontier: Frontier, *, limit: int) -> tuple[list[Commit], Frontier]:
    commits: list[Commit] = []
    behind = True
    while behind:
        async with snapshot(pool) as connection:
            read = await read_commits(connection, frontier, limit=limit)
        assert len(read.commits) <= limit
        commits.extend(read.commits)
        frontier, behind = read.frontier, read.behind
    return commits, frontier


async def test_commits_come_in_order_and_no_more_at_a_time_than_asked_for(
    database: TestDatabase, feed: asyncpg.Pool
) -> None:
    async with recorder(database) as first, recorder(database) as second:
        for number in range(7):
            await (second if number % 3 else first).commit(TENANT, [sample(float(number))])

    commits, frontier = await read_all(feed, {}, limit=2)

    assert [commit.order_no for commit in commits] == sorted(commit.order_no for commit in commits)
    by_instance: dict[int, list[int]] = {}
    for commit in commits:
        by_instance.setdefault(commit.instance, []).append(commit.commit_no)
    assert sorted(by_instance.values(), key=len) == [[1, 2, 3], [1, 2, 3, 4]]
    assert frontier == {instance: numbers[-1] for instance, numbers in by_instance.items()}
    assert await read_all(feed, frontier, limit=2) == ([], frontier)


async def test_a_commit_that_took_place_late_is_not_passed_over(
    database: TestDatabase, feed: asyncpg.Pool, admin: asyncpg.Connection
) -> None:
    slow = await admin.fetchval("INSERT INTO telemetry.ingest_instance DEFAULT VALUES RETURNING instance")
    transaction = admin.transaction()
    await transaction.start()
    numbers = await admin.fetchrow(
        "UPDATE telemetry.ingest_instance SET last_commit_no = last_commit_no + 1 WHERE instance = $1 "
        "RETURNING last_commit_no, nextval('telemetry.commit_order') AS order_no",
        slow,
    )
    assert numbers is not None
    async with recorder(database) as quick:
        await quick.commit(TENANT, [sample(1.0)])
    before, frontier = await read_all(feed, {}, limit=10)

    await admin.execute(
        "INSERT INTO telemetry.ingest_commit (instance, commit_no, order_no, days, traceparent) "
        "VALUES ($1, $2, $3, '{}', 'context')",
        slow,
        *numbers,
    )
    await transaction.commit()
    after, _ = await read_all(feed, frontier, limit=10)

    assert [commit.instance for commit in before] != [slow]
    assert [(commit.instance, commit.order_no, commit.traceparent) for commit in after] == [
        (slow, numbers["order_no"], "context")
    ]
    assert after[0].order_no < before[0].order_no


async def test_an_aborted_commit_leaves_no_gap(
    database: TestDatabase, feed: asyncpg.Pool, admin: asyncpg.Connection
) -> None:
    async with recorder(database) as writer:
        await writer.commit(TENANT, [sample(1.0)])
        with pytest.raises(asyncpg.RaiseError):
            await admin.execute(
                "UPDATE telemetry.ingest_instance SET last_commit_no = last_commit_no + 1;"
                "DO $$ BEGIN RAISE 'abort'; END $$"
            )
        await writer.commit(TENANT, [sample(2.0)])

    commits, _ = await read_all(feed, {}, limit=10)

    assert [commit.commit_no for commit in commits] == [1, 2]


async def test_below_the_floor_the_feed_has_expired(
    database: TestDatabase, feed: asyncpg.Pool, admin: asyncpg.Connection
) -> None:
    async with recorder(database) as writer:
        for number in range(3):
            await writer.commit(TENANT, [sample(float(number))])
    (instance,) = (await read_all(feed, {}, limit=10))[1]
    await admin.execute("UPDATE telemetry.ingest_instance SET floor_commit_no = 2")

    with pytest.raises(FeedExpiredError):
        await read_all(feed, {instance: 1}, limit=10)
    commits, _ = await read_all(feed, {instance: 2}, limit=10)
    assert [commit.commit_no for commit in commits] == [3]


@pytest.mark.parametrize("gone", ["commit_no = 1", "commit_no = 2", "true"])
async def test_commits_that_are_gone_are_never_skipped(
    database: TestDatabase, feed: asyncpg.Pool, admin: asyncpg.Connection, gone: str
) -> None:
    async with recorder(database) as writer:
        for number in range(3):
            await writer.commit(TENANT, [sample(float(number))])
    await admin.execute(f"DELETE FROM telemetry.ingest_commit WHERE {gone}")

    with pytest.raises(FeedExpiredError):
        await read_all(feed, {}, limit=10)


async def test_all_that_one_snapshot_shows_belongs_together(
    database: TestDatabase, feed: asyncpg.Pool
) -> None:
    async with recorder(database) as writer:
        await writer.commit(TENANT, [sample(1.0)])
        async with snapshot(feed) as connection:
            read = await read_commits(connection, {})
            await writer.commit(TENANT, [sample(2.0, time_us=NOW + 1)])
            (newest,) = await read_latest(connection, read.commits)
    assert newest.samples.values.tolist() == [1.0]


# Of a day that began just now PostgreSQL has no statistics.
@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize(
    ("role", "query"),
    [
        pytest.param("twinmesh_twin_feed", latest._LAST_OF_COMMITS, id="latest"),
        pytest.param("twinmesh_maintenance", new_samples._SEGMENTS_OF[Kind.DOUBLE], id="rollups"),
    ],
)
async def test_the_samples_of_a_few_commits_are_found_by_their_order(
    database: TestDatabase, admin: asyncpg.Connection, *, analyzed: bool, role: str, query: str
) -> None:
    day = NOW - NOW % 86_400_000_000
    await admin.execute(
        """
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, doubles, instance, commit_no, order_no)
        SELECT 'demo', n % 1000, $1::bigint + n, $1 + n, ARRAY[$1 + n], ARRAY[1.0], 1, n / 20, n / 20
        FROM generate_series(0, 99999) AS n
        """,
        day,
    )
    if analyzed:
        await admin.execute("VACUUM ANALYZE telemetry.segment")
    orders = list(range(4000, 4010))
    async with (
        db.pool(database.url(role), application="feed") as pool,
        snapshot(pool) as connection,
        by_commit(connection),
    ):
        plan = await connection.fetch(
            f"EXPLAIN {query}",
            day,
            day + 86_400_000_000,
            orders[0],
            orders[-1],
            orders,
        )
    text = "\n".join(row[0] for row in plan)
    assert re.search("Bitmap Index Scan on segment_[0-9]+_order_no_idx", text), text
    assert text.count("Bitmap Index Scan") == text.count("Heap Scan on segment_") == 1, text


async def test_readers_may_not_write(feed: asyncpg.Pool, database: TestDatabase) -> None:
    async with db.pool(database.url("twinmesh_twin_query"), application="query") as query:
        for pool in (feed, query):
            for table in ("segment", "series_latest", "feed_consumer", "ingest_instance"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await pool.execute(f"DELETE FROM telemetry.{table}")
