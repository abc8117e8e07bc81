"""The latest sample of each series: from commits, and from the checkpoint.

`series_latest` holds what the commits up to the frontier of feed consumer `latest` say;
both are written in one transaction, so whoever starts reads them in one snapshot and
goes on with the commits that follow.
"""

import math
from collections.abc import AsyncIterator, Iterable, Sequence

import asyncpg

from meshkit.db import Connection
from telemetry_store.columns import Kind
from telemetry_store.feed import (
    COMMITS_PER_READ,
    Commit,
    day_ranges,
    decode_frontier,
    encode_frontier,
    read_commits,
    read_consumer,
    snapshot,
)
from telemetry_store.series import LatestSample, Point, Series, Value

CHECKPOINT = "latest"
_ROWS_PER_FETCH = 5_000

# A run is one series in one commit, ascending in time: none of its other samples can be
# the series' latest, so only its last is looked at.
_LAST_OF_COMMITS = """
SELECT DISTINCT ON (series_id)
    tenant_id, series_id, end_time AS time, order_no,
    doubles[cardinality(times)] AS double_value,
    ints[cardinality(times)] AS int_value,
    bools[cardinality(times)] AS bool_value,
    strings[cardinality(times)] AS string_value,
    points[3 * cardinality(times) - 2 :] AS point_value
FROM telemetry.segment
WHERE start_time >= $1 AND start_time < $2
  AND order_no BETWEEN $3 AND $4 AND order_no = ANY ($5::bigint[])
ORDER BY series_id, end_time DESC, order_no DESC
"""

_ADVANCE = f"""
INSERT INTO telemetry.series_latest AS kept
    (tenant_id, series_id, time, order_no, double_value, int_value, bool_value, string_value, point_value)
{_LAST_OF_COMMITS}
ON CONFLICT (tenant_id, series_id) DO UPDATE
SET time = excluded.time, order_no = excluded.order_no, double_value = excluded.double_value,
    int_value = excluded.int_value, bool_value = excluded.bool_value,
    string_value = excluded.string_value, point_value = excluded.point_value
WHERE (excluded.time, excluded.order_no) > (kept.time, kept.order_no)
"""

_CHECKPOINT = """
SELECT tenant_id, series_id, time, order_no, double_value, int_value, bool_value, string_value, point_value
FROM telemetry.series_latest
"""

# Locked, so that a second worker waits here instead of repeating the work.
_REGISTER = "INSERT INTO telemetry.feed_consumer (name) VALUES ($1) ON CONFLICT (name) DO NOTHING"
_LOCK_FRONTIER = "SELECT frontier FROM telemetry.feed_consumer WHERE name = $1 FOR UPDATE"
_SAVE_FRONTIER = "UPDATE telemetry.feed_consumer SET frontier = $2, updated_at = now() WHERE name = $1"

_SERIES = """
SELECT s.series_id, s.tenant_id, s.device_id, s.metric, s.kind, s.unit
FROM unnest($1::text[], $2::integer[]) AS wanted (tenant_id, series_id)
JOIN telemetry.series AS s USING (tenant_id, series_id)
"""


async def read_latest(connection: Connection, commits: Sequence[Commit]) -> list[LatestSample]:
    """Return the latest sample of each series that the commits stored.

    A series comes once per run of days that it was written to.

    Args:
        connection: in the snapshot in which the commits were read.
        commits: as read.
    """
    found: list[LatestSample] = []
    for (start, end), orders in day_ranges(commits):
        rows = await connection.fetch(_LAST_OF_COMMITS, start, end, orders[0], orders[-1], orders)
        found.extend(_sample(row) for row in rows)
    return found


async def read_checkpoint(connection: Connection) -> tuple[dict[int, int], AsyncIterator[LatestSample]]:
    """Return the checkpoint's frontier and its samples, to be read in the same snapshot.

    Args:
        connection: in a snapshot.
    """
    frontier = await read_consumer(connection, CHECKPOINT)

    async def samples() -> AsyncIterator[LatestSample]:
        async for row in connection.cursor(_CHECKPOINT, prefetch=_ROWS_PER_FETCH):
            yield _sample(row)

    return frontier, samples()


async def read_series(connection: Connection, ids: Iterable[tuple[str, int]]) -> list[Series]:
    """Return the series with these (tenant, series id)."""
    wanted = list(ids)
    rows = await connection.fetch(_SERIES, [tenant for tenant, _ in wanted], [number for _, number in wanted])
    return [
        Series(
            row["series_id"],
            row["tenant_id"],
            row["device_id"],
            row["metric"],
            Kind(row["kind"]),
            row["unit"],
        )
        for row in rows
    ]


async def advance_checkpoint(pool: asyncpg.Pool, *, limit: int = COMMITS_PER_READ) -> bool:
    """Take the checkpoint over the next commits; returns whether there are more.

    One transaction: after a crash it is either done or not, and doing it twice changes
    nothing.

    Args:
        pool: as the maintenance role.
        limit: most commits to take.

    Raises:
        FeedExpiredError: the checkpoint is too far behind.
    """
    async with pool.acquire() as connection:
        await connection.execute(_REGISTER, CHECKPOINT)
    async with snapshot(pool) as connection:
        frontier = decode_frontier(await connection.fetchval(_LOCK_FRONTIER, CHECKPOINT))
        read = await read_commits(connection, frontier, limit=limit)
        if not read.commits:
            return False
        for (start, end), orders in day_ranges(read.commits):
            await connection.execute(_ADVANCE, start, end, orders[0], orders[-1], orders)
        await connection.execute(_SAVE_FRONTIER, CHECKPOINT, encode_frontier(read.frontier))
        return read.behind


def _sample(row: asyncpg.Record) -> LatestSample:
    return LatestSample(row["tenant_id"], row["series_id"], row["time"], row["order_no"], _value(row))


def _value(row: asyncpg.Record) -> Value:
    """Return the one value that is set."""
    if row["double_value"] is not None:
        return float(row["double_value"])
    if row["int_value"] is not None:
        return int(row["int_value"])
    if row["bool_value"] is not None:
        return bool(row["bool_value"])
    if row["string_value"] is not None:
        return str(row["string_value"])
    latitude, longitude, altitude = row["point_value"]
    return Point(latitude, longitude, None if math.isnan(altitude) else altitude)
