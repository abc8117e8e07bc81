"""Ranges of time whose buckets are to be computed anew from the samples of all tiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import asyncpg
import numpy as np
import structlog

from meshkit.db import Connection
from meshkit.errors import DataLoss
from telemetry_store.columns import MICROS_PER_DAY, NUMERIC_KINDS, Kind
from telemetry_store.feed import Commit
from telemetry_store.rollups.aggregates import Buckets, combined, joined, none, of_samples, starts_of_width
from telemetry_store.rollups.new_samples import MOST_SAMPLES
from telemetry_store.rollups.rows import (
    NARROWER,
    TABLES,
    Horizons,
    Owner,
    Ranges,
    aligned,
    read_horizons,
    read_rows,
    store_rows,
)
from telemetry_store.tiers.reader import Archive, Span, read_spans

_log = structlog.get_logger()
_RANGES_AT_ONCE = 1_000
_RETRY_DAMAGED_AFTER = timedelta(minutes=15)
_NEVER = np.iinfo(np.int64).max

# Whose a series is says a row that was loaded; its partition is found by time.
_STALE_OF_BULK = """
INSERT INTO telemetry.rollup_stale (tenant_id, series_id, start_time, end_time)
SELECT DISTINCT series.tenant_id, loaded.series_id, loaded.start_time, loaded.end_time + 1
FROM unnest($1::integer[], $2::bigint[]) AS taken (instance, commit_no)
JOIN telemetry.ingest_commit AS c USING (instance, commit_no)
CROSS JOIN LATERAL unnest(c.bulk_series, c.bulk_starts, c.bulk_ends)
    AS loaded (series_id, start_time, end_time)
CROSS JOIN LATERAL (
    SELECT sealed.tenant_id
    FROM telemetry.sealed_segment AS sealed
    WHERE sealed.series_id = loaded.series_id
      AND sealed.start_time BETWEEN loaded.start_time - 86400000000 AND loaded.end_time
    LIMIT 1
) AS owner
JOIN telemetry.series ON series.tenant_id = owner.tenant_id AND series.series_id = loaded.series_id
WHERE series.kind <= 3
ON CONFLICT DO NOTHING
"""
_ADD_STALE = """
INSERT INTO telemetry.rollup_stale (tenant_id, series_id, start_time, end_time, retry_at)
SELECT DISTINCT *, now() + $5::interval FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
ON CONFLICT DO NOTHING
"""
_REMOVE_STALE = """
DELETE FROM telemetry.rollup_stale
WHERE (tenant_id, series_id, start_time, end_time) IN (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[])
)
"""
_DAMAGED = "SELECT count(*) FROM telemetry.rollup_stale WHERE retry_at IS NOT NULL"
# What begins first, up to the end of its day or of its hour; and about how many samples there are.
_STALE = """
SELECT stale.tenant_id, stale.series_id, series.kind, stale.start_time, stale.end_time,
       piece.hour_end, piece.day_end,
       (
           SELECT coalesce(sum(cardinality(s.times)), 0)
           FROM telemetry.segment AS s
           WHERE s.series_id = stale.series_id
             AND s.start_time >= piece.day_start AND s.start_time < piece.day_end
       ) + (
           SELECT coalesce(sum(s.samples), 0)
           FROM telemetry.sealed_segment AS s
           WHERE s.series_id = stale.series_id
             AND s.start_time >= piece.day_start AND s.start_time < piece.day_end
       ) + (
           SELECT coalesce(sum(d.count), 0)
           FROM telemetry.rollup_day AS d
           WHERE d.tenant_id = stale.tenant_id AND d.series_id = stale.series_id
             AND d.start_time = timestamptz 'epoch' + piece.day_start * interval '1 microsecond'
       ) AS samples
FROM (
    SELECT tenant_id, series_id, start_time, end_time
    FROM telemetry.rollup_stale
    WHERE retry_at IS NULL OR retry_at <= now()
    ORDER BY tenant_id, series_id, start_time
    LIMIT $1
) AS stale
JOIN telemetry.series USING (tenant_id, series_id)
CROSS JOIN LATERAL (
    SELECT stale.start_time - stale.start_time % 86400000000 AS day_start,
           least(stale.end_time, stale.start_time - stale.start_time % 3600000000 + 3600000000) AS hour_end,
           least(stale.end_time, stale.start_time - stale.start_time % 86400000000 + 86400000000) AS day_end
) AS piece
ORDER BY stale.tenant_id, stale.series_id, stale.start_time
"""

# From the first day of any partition or of the archive on.
_EVERYTHING_STALE = """
INSERT INTO telemetry.rollup_stale (tenant_id, series_id, start_time, end_time)
SELECT series.tenant_id, series.series_id, (first.day - date '1970-01-01') * 86400000000,
       (extract(epoch FROM date_trunc('day', now())) * 1000000)::bigint + 3 * 86400000000
FROM telemetry.series
CROSS JOIN (
    SELECT least(
        min(to_date(rpad(substring(child.relname FROM '[0-9]+$'), 8, '01'), 'YYYYMMDD')),
        (SELECT min(day) FROM telemetry.archive_object)
    ) AS day
    FROM pg_inherits
    JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
    WHERE pg_inherits.inhparent IN ('telemetry.segment'::regclass, 'telemetry.sealed_segment'::regclass)
) AS first
WHERE series.kind <= 3
ON CONFLICT DO NOTHING
"""


async def add_stale_of_bulk(connection: Connection, commits: Sequence[Commit]) -> None:
    """Note what was loaded in bulk by commits."""
    await connection.execute(
        _STALE_OF_BULK, [commit.instance for commit in commits], [commit.commit_no for commit in commits]
    )


async def add_everything(connection: Connection) -> None:
    """Note all series from their first day on."""
    await connection.execute(_EVERYTHING_STALE)


async def add_stale(connection: Connection, owners: Sequence[Owner], ranges: Ranges) -> None:
    """Note ranges of owners."""
    if len(ranges):
        places = ranges.places.tolist()
        await connection.execute(
            _ADD_STALE,
            [owners[place].tenant for place in places],
            [owners[place].series_id for place in places],
            ranges.starts.tolist(),
            ranges.ends.tolist(),
            None,
        )


async def count_damaged(pool: asyncpg.Pool) -> int:
    """Return how many ranges wait for their archived day to be mended.

    Args:
        pool: of the maintenance role.
    """
    damaged: int = await pool.fetchval(_DAMAGED)
    return damaged


async def repair(connection: Connection, archive: Archive | None) -> bool:
    """Compute some of what is stale from samples; returns whether more is.

    In a snapshot with no commit behind the frontier: otherwise it would be stale again at once.
    What an archived day that is missing or damaged holds up is put off; all else goes on.
    """
    rows = await connection.fetch(_STALE, _RANGES_AT_ONCE)
    if not rows:
        return False
    total = np.cumsum([int(row["samples"]) for row in rows])
    count = max(1, int(np.searchsorted(total, MOST_SAMPLES, side="right")))
    chosen = rows[:count]
    end = "day_end" if total[0] <= MOST_SAMPLES else "hour_end"
    damaged = await _compute(connection, chosen, end, archive)
    await connection.execute(_REMOVE_STALE, *_columns(chosen, "start_time", "end_time"))
    await connection.execute(_ADD_STALE, *_columns(damaged, "start_time", end), _RETRY_DAMAGED_AFTER)
    remaining = [row for row in chosen if row[end] < row["end_time"]]
    await connection.execute(_ADD_STALE, *_columns(remaining, end, "end_time"), None)
    return True


def _columns(rows: Sequence[asyncpg.Record], start: str, end: str) -> list[list[Any]]:
    return [[row[name] for row in rows] for name in ("tenant_id", "series_id", start, end)]


async def _compute(
    connection: Connection, rows: Sequence[asyncpg.Record], end: str, archive: Archive | None
) -> list[asyncpg.Record]:
    """Compute what rows touch up to their `end`; returns those whose archived day is missing or damaged."""
    damaged: list[asyncpg.Record] = []
    left = rows
    while left:
        try:
            async with connection.transaction():
                await _compute_all(connection, left, end, archive)
            break
        except DataLoss as error:
            day = error.metadata.get("day")
            of_day = [row for row in left if _day_of(row) == day]
            if not of_day:
                raise
        tenants = sorted({row["tenant_id"] for row in of_day})
        if len(tenants) == 1:
            _log.error(
                "rollups of a damaged day wait",
                tenant=tenants[0],
                day=day,
                series=len(of_day),
                retry_after_s=_RETRY_DAMAGED_AFTER.total_seconds(),
            )
            damaged += of_day
        else:
            # One of them has it, and the others are none the worse for it.
            for tenant in tenants:
                own = [row for row in of_day if row["tenant_id"] == tenant]
                damaged += await _compute(connection, own, end, archive)
        left = [row for row in left if _day_of(row) != day]
    return damaged


def _day_of(row: asyncpg.Record) -> str:
    return (date(1970, 1, 1) + timedelta(days=row["start_time"] // MICROS_PER_DAY)).isoformat()


async def _compute_all(
    connection: Connection, rows: Sequence[asyncpg.Record], end: str, archive: Archive | None
) -> None:
    horizons = await read_horizons(connection, (row["tenant_id"] for row in rows))
    for kind in NUMERIC_KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        numbers: dict[Owner, int] = {}
        places = [
            numbers.setdefault(Owner(row["tenant_id"], row["series_id"]), len(numbers)) for row in of_kind
        ]
        ranges = Ranges(
            np.array(places, np.intp),
            np.array([row["start_time"] for row in of_kind], np.int64),
            np.array([row[end] for row in of_kind], np.int64),
        )
        await _Repair(
            connection=connection, kind=kind, owners=list(numbers), horizons=horizons, archive=archive
        ).compute(ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repair:
    """Computes buckets of series of one kind; owners are by place."""

    connection: Connection
    kind: Kind
    owners: Sequence[Owner]
    horizons: Horizons
    archive: Archive | None

    async def compute(self, wanted: Ranges) -> None:
        """Compute what ranges touch, none of which goes beyond a day."""
        # Horizons lie between days, so that a range is on one side of each.
        narrower_horizon = np.full(len(self.owners), _NEVER)
        for width_us in TABLES:
            horizon = self.horizons.of(self.owners, width_us)
            kept = wanted.at(wanted.starts >= horizon[wanted.places])
            of_narrower = kept.starts >= narrower_horizon[kept.places]
            narrower = await self._of_narrower(width_us, aligned(kept.at(of_narrower), width_us))
            computed = await self._of_samples(width_us, aligned(kept.at(~of_narrower), width_us))
            await store_rows(self.connection, width_us, self.owners, joined([narrower, computed]))
            narrower_horizon = horizon

    async def _of_narrower(self, width_us: int, ranges: Ranges) -> Buckets:
        if not len(ranges):
            return none()
        narrower = await read_rows(self.connection, NARROWER[width_us], self.owners, ranges)
        return combined(narrower, starts_of_width(width_us))

    async def _of_samples(self, width_us: int, ranges: Ranges) -> Buckets:
        spans = [
            Span(self.owners[place].tenant, self.owners[place].series_id, start_us, end_us)
            for place, start_us, end_us in zip(
                ranges.places.tolist(), ranges.starts.tolist(), ranges.ends.tolist(), strict=True
            )
        ]
        found = await read_spans(self.connection, self.kind, spans, archive=self.archive)
        return of_samples(ranges.places[found.places], found.samples, starts_of_width(width_us))
