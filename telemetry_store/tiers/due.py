"""What is due for sealing, found by looking at the rows: there is no ledger that could be wrong."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import asyncpg

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.tiers.codec import MOST_SAMPLES
from telemetry_store.tiers.floor import Bound
from telemetry_store.tiers.sealing import LANES, STATEMENT_S, Batch, Window

# A transaction handles about so many samples, or so many series.
_BATCH_SAMPLES = 1_500_000
_BATCH_SERIES = 2_000
# A window of one series that holds more is sealed in parts.
_MOST_AT_ONCE = 4_000_000
# Of a day with more hot bytes the rows of one series lie so far apart that each page would be read and
# written many times over; those of one hour do not.
_LARGE_DAY_BYTES = 1 << 30
_MANY_IN_LARGE_DAY = 10_000
_SERIES_PER_LOOK = (64, 5_000)
# Rows that are counted one by one may each cost a read of a cold disk, and a look has STATEMENT_S.
_COUNTED_PER_LOOK = 500_000
# How much a series holds is estimated from so many pages, if so many of its rows are among them.
_SAMPLED_BYTES = 32 << 20
_SAMPLED_ROWS = 10
_PIECES_PER_LOOK = 50_000
_EPOCH = date(1970, 1, 1)

# Newest first: there most is gained.
_HOT_DAYS = """
SELECT (to_date(right(child.relname, 8), 'YYYYMMDD') - date '1970-01-01') * 86400000000 AS day_start,
       pg_relation_size(child.oid) AS bytes
FROM pg_inherits
JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
WHERE pg_inherits.inhparent = 'telemetry.segment'::regclass
"""
_PIECES_DAYS = """
SELECT DISTINCT start_time - ((start_time % 86400000000) + 86400000000) % 86400000000 AS day_start
FROM telemetry.sealed_segment
WHERE NOT compacted
"""

# A run takes 8 bytes per time behind 20 of dimensions, stored outside or not. Texts, of up to 4 KiB each, are
# stored compressed and handled as they are, so 4 stored bytes of them count as much as a sample.
_WEIGHT = "greatest((pg_column_size(times) - 20) / 8, (pg_column_size(strings) - 20) / 4)"
_WEIGHT_OF_PIECE = """greatest(samples, octet_length("values") / 4)"""
_ESTIMATES = f"""
SELECT series_id, (sum({_WEIGHT}) * 100 / $4::float8)::bigint AS samples
FROM telemetry.segment TABLESAMPLE SYSTEM ($4::float8)
WHERE start_time >= $1 AND start_time < $2 AND order_no <= $3
GROUP BY series_id
HAVING count(*) >= $5
"""  # noqa: S608 - of constants  # nosec B608
# From one series to the next along the index, so that a day with one late sample costs one step.
# What was not estimated is counted: each row lies on a page of its own. Where a series is gone its tenant is
# deleted, and its rows are not to be sealed; the walk goes on behind them.
_HOT = f"""
WITH RECURSIVE walk (series_id, tenant_id, step) AS (
    (
        SELECT series_id, tenant_id, 1
        FROM telemetry.segment
        WHERE start_time >= $1 AND start_time < $2 AND series_id > $3
        ORDER BY series_id
        LIMIT 1
    )
    UNION ALL
    SELECT following.series_id, following.tenant_id, walk.step + 1
    FROM walk
    CROSS JOIN LATERAL (
        SELECT series_id, tenant_id
        FROM telemetry.segment
        WHERE start_time >= $1 AND start_time < $2 AND series_id > walk.series_id
        ORDER BY series_id
        LIMIT 1
    ) AS following
    WHERE walk.step < $4
)
SELECT walk.series_id, walk.tenant_id, series.kind, coalesce(estimate.samples, hot.samples, 0) AS hot,
       coalesce(pieces.samples, 0) AS pieces, hot.counted
FROM walk
LEFT JOIN telemetry.series USING (tenant_id, series_id)
LEFT JOIN unnest($7::integer[], $8::bigint[]) AS estimate (series_id, samples) USING (series_id)
CROSS JOIN LATERAL (
    SELECT sum({_WEIGHT}) AS samples, count(*) AS counted
    FROM telemetry.segment
    WHERE series_id = walk.series_id AND start_time >= $1 AND start_time < $5 AND order_no <= $6
      AND estimate.samples IS NULL
) AS hot
CROSS JOIN LATERAL (
    SELECT sum({_WEIGHT_OF_PIECE}) AS samples
    FROM telemetry.sealed_segment
    WHERE series_id = walk.series_id AND start_time >= $1 AND start_time < $5 AND order_no <= $6
      AND NOT compacted
) AS pieces
ORDER BY walk.series_id
"""  # noqa: S608 - of constants  # nosec B608
_PIECES = f"""
SELECT series_id, tenant_id, kind, 0 AS hot, sum({_WEIGHT_OF_PIECE}) AS pieces
FROM telemetry.sealed_segment
JOIN telemetry.series USING (tenant_id, series_id)
WHERE start_time >= $1 AND start_time < $2 AND NOT compacted AND order_no <= $3 AND series_id > $4
GROUP BY series_id, tenant_id, kind
ORDER BY series_id
LIMIT $5
"""  # noqa: S608 - of constants  # nosec B608


async def due_batches(pool: asyncpg.Pool, bound: Bound) -> AsyncIterator[Batch]:
    """Yield what is due now, each batch once; what is sealed meanwhile is found no more.

    Args:
        pool: of the maintenance role.
        bound: only rows up to it, of hours that were over by it.
    """
    end_us = bound.through_us - bound.through_us % MICROS_PER_HOUR
    hot = {row["day_start"]: row["bytes"] for row in await pool.fetch(_HOT_DAYS)}
    pieces = {row["day_start"] for row in await pool.fetch(_PIECES_DAYS, timeout=STATEMENT_S)}
    for day_start in sorted(hot.keys() | pieces, reverse=True):
        if day_start < end_us:
            day_end = day_start + MICROS_PER_DAY
            window = Window(day_start, min(day_end, end_us), closes=end_us >= day_end)
            async for batch in _due_of_day(pool, bound, window, hot.get(day_start, 0)):
                yield batch


async def _due_of_day(
    pool: asyncpg.Pool, bound: Bound, window: Window, hot_bytes: int
) -> AsyncIterator[Batch]:
    at_once = MOST_SAMPLES if hot_bytes < _LARGE_DAY_BYTES else _MANY_IN_LARGE_DAY
    gathered = _Gathered()
    ready = False
    async for row in _due_series(pool, bound, window, hot_bytes):
        if not ready:
            day = _EPOCH + timedelta(days=window.start_us // MICROS_PER_DAY)
            await pool.execute("SELECT telemetry.ensure_sealed_months($1, $1)", day)
            ready = True
        for part, samples in _windows(window, row, at_once):
            for batch in gathered.add(part, row, samples):
                yield batch
    for batch in gathered.rest():
        yield batch


async def _due_series(pool: asyncpg.Pool, bound: Bound, window: Window, hot_bytes: int) -> AsyncIterator[Any]:
    day_end = window.day_start_us + MICROS_PER_DAY
    estimates = await pool.fetch(
        _ESTIMATES,
        window.start_us,
        window.end_us,
        bound.order_no,
        min(100.0, 100.0 * _SAMPLED_BYTES / max(hot_bytes, 1)),
        _SAMPLED_ROWS,
        timeout=STATEMENT_S,
    )
    estimated = [row["series_id"] for row in estimates], [row["samples"] for row in estimates]
    last, look = -1, _SERIES_PER_LOOK[0]
    while True:
        rows = await pool.fetch(
            _HOT,
            window.start_us,
            day_end,
            last,
            look,
            window.end_us,
            bound.order_no,
            *estimated,
            timeout=STATEMENT_S,
        )
        for row in rows:
            if row["hot"] and row["kind"] is not None:
                yield row
        if len(rows) < look:
            break
        last = rows[-1]["series_id"]
        counted = sum(row["counted"] for row in rows) / len(rows)
        fewest, most = _SERIES_PER_LOOK
        look = min(max(int(_COUNTED_PER_LOOK / max(counted, 1)), fewest), most)
    last = -1
    while window.closes:
        rows = await pool.fetch(
            _PIECES,
            window.start_us,
            day_end,
            bound.order_no,
            last,
            _PIECES_PER_LOOK,
            timeout=STATEMENT_S,
        )
        for row in rows:
            yield row
        if len(rows) < _PIECES_PER_LOOK:
            return
        last = rows[-1]["series_id"]


def _windows(window: Window, row: Any, at_once: int) -> Iterator[tuple[Window, int]]:
    """Yield the windows in which a series is sealed, with about how many samples each holds.

    One if it holds so many samples at the most; else the hours, or parts of them.
    """
    if row["hot"] <= at_once:
        yield window, row["hot"] + row["pieces"]
        return
    # As many as the hours are, or more where even an hour holds too many.
    hours = (window.end_us - window.start_us) // MICROS_PER_HOUR
    parts = hours * -(-row["hot"] // (hours * _MOST_AT_ONCE))
    width = (window.end_us - window.start_us) // parts
    for start in range(window.start_us, window.end_us, width):
        yield Window(start, min(start + width, window.end_us), closes=False), row["hot"] // parts


@dataclass(slots=True)
class _Open:
    tenants: dict[int, str] = field(default_factory=dict)
    samples: int = 0


class _Gathered:
    """Series that wait for others, to be sealed with them."""

    def __init__(self) -> None:
        self._open: dict[tuple[Window, Kind, int], _Open] = {}

    def add(self, window: Window, row: Any, samples: int) -> Iterator[Batch]:
        """Take a series; yields a batch when it has grown large enough."""
        key = window, Kind(row["kind"]), row["series_id"] % LANES
        waiting = self._open.setdefault(key, _Open())
        waiting.tenants[row["series_id"]] = row["tenant_id"]
        waiting.samples += samples
        if waiting.samples >= _BATCH_SAMPLES or len(waiting.tenants) >= _BATCH_SERIES:
            yield self._batch(key)

    def rest(self) -> Iterator[Batch]:
        """Yield all that waits."""
        for key in list(self._open):
            yield self._batch(key)

    def _batch(self, key: tuple[Window, Kind, int]) -> Batch:
        waiting = self._open.pop(key)
        return Batch(*key, waiting.tenants, waiting.samples)
