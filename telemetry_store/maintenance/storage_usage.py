"""Measures what is stored, so that a report costs nothing, and retention knows where to look.

One table or partition after the other, each in one pass over its rows that touches no large column.
What has not changed since is left out, and nothing is measured for more than a twentieth of the time.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from meshkit.db import Connection
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.storage_usage import Tier

# So it measures for no more than 5 % of the time.
_REST = 20
_PAGE = 8192
# Of hot segments and rollups so many pages are looked at: when they are more it is an estimate.
_MOST_PAGES = 32_768
_STATEMENT_S = 600.0  # A partition may have many millions of rows.
# The statistics may be reset: once in so long everything is measured, whatever they say.
_TRUSTED_S = 6 * 3600.0

_ROLLUP_COLUMNS = 120
_ROW = 28  # bytes of a row beside its columns: header and line pointer


def _sizes(*columns: str) -> str:
    return " + ".join([str(_ROW), *(f"coalesce(pg_column_size({column}), 0)" for column in columns)])


@dataclass(frozen=True, slots=True)
class _Table:
    """How one table is measured.

    Attributes:
        name: in the schema telemetry.
        tier: what it is.
        day: SQL of the UTC day from which retention counts.
        samples: SQL of a row's samples.
        size: SQL of a row's bytes, of its columns wherever they lie.
        owner: column that leads to the device: series_id, device_id; None: rows are of several.
        key: column of the partitions, None: there are none.
        where: SQL of the rows that count.
        is_sampled: a part may do.
        is_elsewhere: what it tells of takes room somewhere else, as many bytes as `size` says.
    """

    name: str
    tier: Tier
    day: str
    samples: str
    size: str
    owner: str | None = None
    key: str | None = None
    where: str = "true"
    is_sampled: bool = False
    is_elsewhere: bool = False


def _day(microseconds: str) -> str:
    return f"date '1970-01-01' + ({microseconds} / {MICROS_PER_DAY})::integer"


def _rollups(name: str, tier: Tier, key: str | None = None) -> _Table:
    return _Table(
        name,
        tier,
        day="(start_time AT TIME ZONE 'UTC')::date",
        samples="0",
        size=str(_ROW + _ROLLUP_COLUMNS),
        owner="series_id",
        key=key,
        is_sampled=True,
    )


_VALUES = ("doubles", "ints", "bools", "strings", "points", "codes", "quality")
_TABLES = (
    _Table(
        "segment",
        Tier.HOT,
        day=_day("end_time"),
        # The array is not read: it is never compressed, 20 to 24 bytes and 8 for each time.
        samples="(pg_column_size(times) - 20) / 8",
        size=_sizes("times", *_VALUES),
        owner="series_id",
        key="start_time",
        is_sampled=True,
    ),
    _Table(
        "sealed_segment",
        Tier.SEALED,
        day=f"greatest({_day('end_time')}, (sealed_at AT TIME ZONE 'UTC')::date)",
        samples="samples",
        size=_sizes("times", '"values"', "quality"),
        owner="series_id",
        key="start_time",
    ),
    _Table(
        "raw_message",
        Tier.RAW_MESSAGES,
        day="(received_at AT TIME ZONE 'UTC')::date",
        samples="0",
        size=_sizes("payload"),
        key="received_at",
    ),
    _Table(
        "dead_letter",
        Tier.DEAD_LETTERS,
        day="(received_at AT TIME ZONE 'UTC')::date",
        samples="sample_count",
        size=_sizes("payload", "message", "device_ids"),
    ),
    _Table(
        "event",
        Tier.EVENTS,
        day=f"greatest({_day('time')}, (received_at AT TIME ZONE 'UTC')::date)",
        samples="0",
        size=_sizes("attributes", "message"),
        owner="device_id",
    ),
    _Table(
        "archive_object",
        Tier.ARCHIVED,
        day="greatest(day, (sealed_at AT TIME ZONE 'UTC')::date)",
        samples="samples",
        size="bytes",
        where="retired_at IS NULL",
        is_elsewhere=True,
    ),
    _rollups("rollup_minute", Tier.MINUTE_ROLLUPS, key="start_time"),
    _rollups("rollup_hour", Tier.HOUR_ROLLUPS),
    _rollups("rollup_day", Tier.DAY_ROLLUPS),
)


@dataclass(frozen=True, slots=True)
class _Source:
    """A table or a partition of one, and what the statistics say of it."""

    table: _Table
    name: str
    changes: int
    size: int
    pages: int

    @property
    def share(self) -> float:
        """Return how much of it is looked at, per cent."""
        if not self.table.is_sampled or self.pages <= _MOST_PAGES:
            return 100.0
        return 100.0 * _MOST_PAGES / self.pages


class StorageUsage:
    """Measures, each source when it has changed.

    Args:
        pool: of the maintenance role.
        rest: so many times as long as measuring a source took it is left alone.
    """

    def __init__(self, *, pool: asyncpg.Pool, rest: int = _REST) -> None:
        self._pool = pool
        self._rest = rest
        self._due_at: dict[str, float] = {}
        self._whole_at = float("-inf")

    async def measure(self) -> None:
        """Measure what has changed and is due."""
        loop = asyncio.get_running_loop()
        is_whole = loop.time() >= self._whole_at
        sources = [source for table in _TABLES for source in await self._sources(table)]
        known = await self._known([source.name for source in sources])
        for source in sources:
            if not is_whole and known.get(source.name) == source.changes:
                continue
            began = loop.time()
            if not is_whole and self._due_at.get(source.name, began) > began:
                continue
            await self._measure(source)
            self._due_at[source.name] = loop.time() + self._rest * (loop.time() - began)
        if is_whole:
            self._whole_at = loop.time() + _TRUSTED_S

    async def _sources(self, table: _Table) -> Sequence[_Source]:
        """Return a table, or its partitions, with what happened to them until now."""
        rows = await self._pool.fetch(
            """
            SELECT relname, n_tup_ins + n_tup_del AS changes, n_tup_upd AS updates,
                   pg_total_relation_size(relid) AS size, pg_relation_size(relid) / $3 AS pages
            FROM pg_stat_user_tables
            WHERE schemaname = 'telemetry'
              AND CASE WHEN $2 THEN relid IN (
                      SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('telemetry.' || $1)
                  ) ELSE relname = $1 END
            ORDER BY relname
            """,
            table.name,
            table.key is not None,
            _PAGE,
        )
        return [
            _Source(table, row["relname"], row["changes"] + row["updates"], row["size"], row["pages"])
            for row in rows
        ]

    async def _known(self, names: Sequence[str]) -> dict[str, int]:
        """Return the changes that were counted, by source; forgets sources that are no more."""
        rows = await self._pool.fetch(
            "SELECT source, changes FROM telemetry.storage_source WHERE tier = ANY ($1::smallint[])",
            sorted({table.tier for table in _TABLES}),
        )
        known = {row["source"]: row["changes"] for row in rows}
        if gone := known.keys() - set(names):
            async with self._pool.acquire() as connection, connection.transaction():
                await _forget(connection, sorted(gone))
        return known

    async def _measure(self, source: _Source) -> None:
        table = source.table
        share = source.share
        sampled = f"TABLESAMPLE SYSTEM ({share:.6f})" if share < 100 else ""
        bounds = f"{table.key} >= $3 AND {table.key} < $4"
        if table.key is None:
            bounds = "$3::text IS NULL AND $4::text IS NULL"
        owner = table.owner or "NULL::text"
        device = "series.device_id" if table.owner == "series_id" else "measured.owner"
        series = (
            "JOIN telemetry.series"
            " ON series.tenant_id = measured.tenant_id AND series.series_id = measured.owner"
            if table.owner == "series_id"
            else ""
        )
        statement = f"""
            WITH measured AS MATERIALIZED (
                SELECT tenant_id, day, owner, GROUPING(day) = 0 AS is_day, count(*) AS rows,
                       sum(samples)::bigint AS samples, sum(size)::bigint AS size
                FROM (
                    SELECT tenant_id, {table.day} AS day, {owner} AS owner, {table.samples} AS samples,
                           {table.size} AS size
                    FROM telemetry.{table.name} {sampled} WHERE {table.where} AND {bounds}
                ) AS stored
                GROUP BY GROUPING SETS ((tenant_id, day), (tenant_id, owner))
            ), scale AS (
                SELECT $5::float8 AS of_rows, coalesce($2::float8 / sum(size)::float8, 1) AS of_bytes
                FROM measured WHERE is_day
            ), days AS (
                INSERT INTO telemetry.storage_day (tenant_id, source, tier, day, rows, samples, bytes)
                SELECT tenant_id, $1, $6, day,
                       round(rows * of_rows), round(samples * of_rows), round(size * of_bytes)
                FROM measured CROSS JOIN scale
                WHERE is_day
            )
            INSERT INTO telemetry.storage_device (tenant_id, source, device_id, samples, bytes)
            SELECT measured.tenant_id, $1, {device},
                   round(sum(samples) * min(of_rows)), round(sum(size) * min(of_bytes))
            FROM measured CROSS JOIN scale {series}
            WHERE NOT is_day AND owner IS NOT NULL
            GROUP BY measured.tenant_id, {device}
        """  # noqa: S608 - constants  # nosec B608
        async with self._pool.acquire() as connection, connection.transaction():
            await _forget(connection, [source.name])
            await connection.execute(
                """
                INSERT INTO telemetry.storage_source (source, tier, measured_at, changes, estimated)
                VALUES ($1, $2, clock_timestamp(), $3, $4)
                """,
                source.name,
                table.tier,
                source.changes,
                share < 100,
            )
            size = None if table.is_elsewhere else source.size
            await connection.execute(
                statement,
                source.name,
                size,
                *_bounds(source),
                100 / share,
                table.tier,
                timeout=_STATEMENT_S,
            )


async def _forget(connection: Connection, names: Sequence[str]) -> None:
    for table in ("storage_day", "storage_device", "storage_source"):
        await connection.execute(
            f"DELETE FROM telemetry.{table} WHERE source = ANY ($1::text[])",  # noqa: S608 - constants  # nosec B608
            names,
        )


def _bounds(source: _Source) -> tuple[object, object]:
    """Return the range of a partition's key: rights are on parents, so it is read by that."""
    if source.table.key is None:
        return None, None
    written = re.fullmatch(r".*_(\d{4})(\d{2})(\d{2})?", source.name)
    if written is None:
        raise ValueError(f"{source.name} is no partition of days or months")
    year, month, day = written.groups()
    start = datetime(int(year), int(month), int(day or 1), tzinfo=UTC)
    end = start + timedelta(days=1)
    if day is None:
        end = (start + timedelta(days=31)).replace(day=1)
    if source.table.tier not in (Tier.HOT, Tier.SEALED):
        return start, end
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return (start - epoch) // timedelta(microseconds=1), (end - epoch) // timedelta(microseconds=1)
