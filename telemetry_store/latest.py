"""The latest sample of each series: from commits, and from the checkpoint.

`series_latest` holds what the commits up to the frontier of feed consumer `latest` say;
both are written in one transaction, so whoever starts reads them in one snapshot and
goes on with the commits that follow.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import asyncpg
import numpy as np

from meshkit.db import Connection
from telemetry_store import bulk_rows
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.feed import (
    COMMITS_PER_READ,
    OF_COMMITS,
    Commit,
    by_commit,
    day_ranges,
    decode_frontier,
    encode_frontier,
    read_commits,
    read_consumer,
    snapshot,
)
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Series

CHECKPOINT = "latest"
_ROWS_PER_FETCH = 5_000

# A run is one series in one commit, ascending in time: none of its other samples can be
# the series' latest, so only its last is looked at.
_LAST_OF_COMMITS = f"""
SELECT DISTINCT ON (series_id)
    tenant_id, series_id, end_time AS time, order_no, instance, commit_no,
    doubles[cardinality(times)] AS double_value,
    ints[cardinality(times)] AS int_value,
    bools[cardinality(times)] AS bool_value,
    strings[coalesce(codes[cardinality(times)], cardinality(strings))] AS string_value,
    points[3 * cardinality(times) - 2 :] AS point_value,
    quality[cardinality(quality)] AS quality
FROM telemetry.segment
WHERE {OF_COMMITS}
ORDER BY series_id, end_time DESC, order_no DESC
"""  # noqa: S608 - of constants  # nosec B608

_KEEP_LATER = """
INSERT INTO telemetry.series_latest AS kept
    (tenant_id, series_id, time, order_no, double_value, int_value, bool_value, string_value, point_value,
     quality)
SELECT tenant_id, series_id, time, order_no, double_value, int_value, bool_value, string_value, point_value,
    quality
FROM ({latest}) AS latest
ON CONFLICT (tenant_id, series_id) DO UPDATE
SET time = excluded.time, order_no = excluded.order_no, double_value = excluded.double_value,
    int_value = excluded.int_value, bool_value = excluded.bool_value,
    string_value = excluded.string_value, point_value = excluded.point_value, quality = excluded.quality
WHERE (excluded.time, excluded.order_no) > (kept.time, kept.order_no)
"""
_ADVANCE = _KEEP_LATER.format(latest=_LAST_OF_COMMITS)
_KEEP = _KEEP_LATER.format(
    latest="""
    SELECT $1::text AS tenant_id, $2::integer AS series_id, $3::bigint AS time, $4::bigint AS order_no,
        $5::double precision AS double_value, $6::bigint AS int_value, $7::boolean AS bool_value,
        $8::text AS string_value, $9::double precision[] AS point_value, $10::integer AS quality
    """
)

_CHECKPOINT = """
SELECT tenant_id, series_id, time, order_no, 0 AS instance, 0 AS commit_no,
    double_value, int_value, bool_value, string_value, point_value, quality
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


async def read_latest(connection: Connection, commits: Sequence[Commit]) -> list[LatestColumns]:
    """Return the latest sample of each series that the commits stored.

    A series comes once per run of days that it was written to, and once per commit that loaded it in bulk.

    Args:
        connection: in the snapshot in which the commits were read.
        commits: as read.
    """
    found: list[LatestColumns] = []
    async with by_commit(connection):
        for (start, end), orders in day_ranges(commits):
            found += _columns(
                await connection.fetch(_LAST_OF_COMMITS, start, end, orders[0], orders[-1], orders)
            )
    return found + await bulk_rows.read_latest(connection, commits)


async def read_checkpoint(
    connection: Connection,
) -> tuple[dict[int, int], AsyncIterator[Sequence[LatestColumns]]]:
    """Return the checkpoint's frontier and its samples in pieces, to be read in the same snapshot.

    Of the samples only the order is known, not which instance's commits they are of.

    Args:
        connection: in a snapshot.
    """
    frontier = await read_consumer(connection, CHECKPOINT)

    async def pieces() -> AsyncIterator[Sequence[LatestColumns]]:
        cursor = await connection.cursor(_CHECKPOINT)
        while rows := await cursor.fetch(_ROWS_PER_FETCH):
            yield _columns(rows)

    return frontier, pieces()


async def read_series(connection: Connection, ids: Iterable[tuple[str, int]]) -> list[Series]:
    """Return the series with these (tenant, series id)."""
    wanted = list(ids)
    rows = await connection.fetch(_SERIES, [tenant for tenant, _ in wanted], [number for _, number in wanted])
    return list(map(Series.of, rows))


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
        async with by_commit(connection):
            for (start, end), orders in day_ranges(read.commits):
                await connection.execute(_ADVANCE, start, end, orders[0], orders[-1], orders)
        for columns in await bulk_rows.read_latest(connection, read.commits):
            await connection.executemany(_KEEP, _rows(columns))
        await connection.execute(_SAVE_FRONTIER, CHECKPOINT, encode_frontier(read.frontier))
        return read.behind


# Which column of a row holds values of which kind.
_VALUE_COLUMNS = {
    "double_value": Kind.DOUBLE,
    "int_value": Kind.INT,
    "bool_value": Kind.BOOL,
    "string_value": Kind.STRING,
    "point_value": Kind.POINT,
}


def _rows(columns: LatestColumns) -> Iterable[tuple[Any, ...]]:
    """Yield latest samples as `_KEEP` takes them."""
    samples = columns.samples
    quality = [NOT_JUDGED] * len(samples) if samples.quality is None else samples.quality.tolist()
    for series, time, order_no, value, code in zip(
        samples.series.tolist(),
        samples.times.tolist(),
        columns.orders.tolist(),
        samples.tolist(),
        quality,
        strict=True,
    ):
        values = [value if kind is samples.kind else None for kind in _VALUE_COLUMNS.values()]
        yield columns.tenant, series, time, order_no, *values, None if code == NOT_JUDGED else code


def _columns(rows: Iterable[asyncpg.Record]) -> list[LatestColumns]:
    """Return rows as columns by tenant and kind."""
    groups: defaultdict[tuple[str, Kind], list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        kind = next(kind for name, kind in _VALUE_COLUMNS.items() if row[name] is not None)
        groups[row["tenant_id"], kind].append(row)
    return [_group(tenant, kind, rows) for (tenant, kind), rows in groups.items()]


def _group(tenant: str, kind: Kind, rows: Sequence[asyncpg.Record]) -> LatestColumns:
    value = next(name for name, holds in _VALUE_COLUMNS.items() if holds is kind)
    return LatestColumns(
        tenant,
        KindColumns.of(
            kind,
            np.array([row["series_id"] for row in rows], dtype=np.int32),
            np.array([row["time"] for row in rows], dtype=np.int64),
            [row[value] for row in rows],
            np.array([NOT_JUDGED if row["quality"] is None else row["quality"] for row in rows], np.int32),
        ),
        np.array([row["order_no"] for row in rows], dtype=np.int64),
        np.array([row["instance"] for row in rows], dtype=np.int32),
        np.array([row["commit_no"] for row in rows], dtype=np.int64),
    )
