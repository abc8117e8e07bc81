"""Segments put into the store as they are to lie there, with orders of the test's own."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import numpy as np

from telemetry_store.columns import Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.segment_arrays import VALUE_COLUMNS
from telemetry_store.tiers.codec import Samples, encode


def samples_of(kind: Kind, samples: Sequence[tuple[int, Any]], quality: int = NOT_JUDGED) -> Samples:
    """Return samples of (microseconds, value), strictly ascending."""
    times, values = zip(*samples, strict=True)
    dtype = {Kind.DOUBLE: np.float64, Kind.INT: np.int64, Kind.BOOL: np.bool_, Kind.STRING: np.object_}[kind]
    return Samples(np.array(times, np.int64), np.array(values, dtype), np.full(len(times), quality, np.int32))


async def put_series(
    admin: asyncpg.Connection,
    series_id: int,
    device_id: str,
    metric: str,
    kind: Kind,
    *,
    tenant: str = "demo",
) -> None:
    await admin.execute(
        """
        INSERT INTO telemetry.series (tenant_id, series_id, device_id, metric, kind, unit)
        OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, 'unit')
        """,
        tenant,
        series_id,
        device_id,
        metric,
        int(kind),
    )


async def put_hot(
    admin: asyncpg.Connection,
    series_id: int,
    samples: Samples,
    order_no: int,
    *,
    kind: Kind = Kind.DOUBLE,
    tenant: str = "demo",
) -> None:
    """Put a hot segment; its samples are of one UTC hour, whose day has a partition."""
    await admin.execute(
        f"""
        INSERT INTO telemetry.segment
            (tenant_id, series_id, start_time, end_time, times, {VALUE_COLUMNS[kind]},
             instance, commit_no, order_no)
        VALUES ($1, $2, $3, $4, $5, $6, 1, $7, $7)
        """,
        tenant,
        series_id,
        int(samples.times[0]),
        int(samples.times[-1]),
        samples.times.tolist(),
        samples.values.tolist(),
        order_no,
    )


async def put_sealed(
    admin: asyncpg.Connection,
    series_id: int,
    samples: Samples,
    order_no: int,
    *,
    kind: Kind = Kind.DOUBLE,
    tenant: str = "demo",
) -> None:
    """Put a sealed segment that no rollup knows of yet; its samples are of one UTC day."""
    sealed = encode(kind, samples)
    await admin.execute(
        "SELECT telemetry.ensure_sealed_months(first, first) "
        "FROM (SELECT date '1970-01-01' + ($1::bigint / 86400000000)::integer AS first) AS day",
        int(samples.times[0]),
    )
    await admin.execute(
        """
        INSERT INTO telemetry.sealed_segment
            (tenant_id, series_id, start_time, end_time, samples, compacted, order_no,
             times, "values", quality)
        VALUES ($1, $2, $3, $4, $5, true, $6, $7, $8, $9)
        """,
        tenant,
        series_id,
        int(samples.times[0]),
        int(samples.times[-1]),
        len(samples),
        order_no,
        sealed.times,
        sealed.values,
        sealed.quality,
    )
    await admin.execute(
        """
        INSERT INTO telemetry.rollup_stale (tenant_id, series_id, start_time, end_time)
        VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
        """,
        tenant,
        series_id,
        int(samples.times[0]),
        int(samples.times[-1]) + 1,
    )
