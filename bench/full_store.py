"""Fills a store with what earlier months left behind: series, and sealed segments of them."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import asyncpg
import numpy as np

from meshkit.clock import SystemClock, to_datetime
from telemetry_store.bulk_rows import COLUMNS
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.quality import PERFECT
from telemetry_store.tiers.codec import Samples, Sealed, encode

METRICS = 5
_DIFFERENT = 1_000  # Rows are encoded once each and used again: what they hold does not matter here.
_DAYS_BACK = 10


async def fill(database_url: str, *, series: int, samples_per_series: int) -> None:
    """Store so many series of tenant `demo`, and a sealed day of each.

    Args:
        database_url: of the owner, whom row-level security does not hold back.
        series: how many.
        samples_per_series: of each, evenly over a day some days ago.
    """
    day_us = SystemClock().now_us() // MICROS_PER_DAY * MICROS_PER_DAY - _DAYS_BACK * MICROS_PER_DAY
    connection = await asyncpg.connect(database_url)
    try:
        day = to_datetime(day_us).date()
        await connection.execute(
            "SELECT telemetry.ensure_sealed_months($1, $2)", day, day + timedelta(days=1)
        )
        first = await connection.fetchval("SELECT coalesce(max(series_id), 0) + 1 FROM telemetry.series")
        await connection.execute(
            """
            INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit)
            SELECT 'demo', 'old-' || place / $2, 'm' || place % $2, 1, 'bar'
            FROM generate_series(0, $1 - 1) AS place
            """,
            series,
            METRICS,
        )
        await connection.copy_records_to_table(
            "sealed_segment",
            schema_name="telemetry",
            columns=COLUMNS,
            records=_rows(
                range(first, first + series), _days(day_us, samples_per_series), samples_per_series
            ),
        )
        await connection.execute("VACUUM ANALYZE telemetry.series, telemetry.sealed_segment")
    finally:
        await connection.close()


def _days(day_us: int, samples: int) -> Sequence[tuple[int, int, Sealed]]:
    random = np.random.default_rng(6)
    days = []
    for _ in range(_DIFFERENT):
        times = day_us + np.sort(random.choice(MICROS_PER_DAY // 1_000, samples, replace=False)) * 1_000
        values = np.round(20 + np.cumsum(random.normal(0, 0.1, samples)), 2)
        quality = np.full(samples, PERFECT, np.int32)
        days.append((int(times[0]), int(times[-1]), encode(Kind.DOUBLE, Samples(times, values, quality))))
    return days


def _rows(
    series: range, days: Sequence[tuple[int, int, Sealed]], samples: int
) -> Iterator[tuple[object, ...]]:
    for series_id in series:
        start, end, sealed = days[series_id % len(days)]
        yield ("demo", series_id, start, end, samples, True, 0, sealed.times, sealed.values, sealed.quality)
