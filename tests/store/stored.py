"""Segments put into the store as they are to lie there, with orders of the test's own."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import numpy as np

from telemetry_store.columns import MICROS_PER_DAY, VALUE_TYPES, Kind
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.segment_arrays import VALUE_COLUMNS
from telemetry_store.tiers.codec import Samples, encode


def samples_of(kind: Kind, samples: Sequence[tuple[int, Any]], quality: int = NOT_JUDGED) -> Samples:
    """Return samples of (microseconds, value), strictly ascending."""
    times, values = zip(*samples, strict=True)
    dtype = np.dtype(np.object_) if kind is Kind.STRING else VALUE_TYPES[kind]
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


async def insert_sealed(
    admin: asyncpg.Connection,
    series_id: int,
    samples: Samples,
    order_no: int,
    *,
    kind: Kind = Kind.DOUBLE,
    tenant: str = "demo",
    age: timedelta = timedelta(0),
    compacted: bool = True,
) -> None:
    """Put a sealed segment that was sealed so long ago; its samples are of one UTC day."""
    sealed = encode(kind, samples)
    await admin.execute(
        "SELECT telemetry.ensure_sealed_months(day, day) "
        "FROM (SELECT date '1970-01-01' + $1::integer AS day) AS found",
        int(samples.times[0]) // MICROS_PER_DAY,
    )
    await admin.execute(
        """
        INSERT INTO telemetry.sealed_segment
            (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values",
             quality, sealed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() - $11::interval)
        """,
        tenant,
        series_id,
        int(samples.times[0]),
        int(samples.times[-1]),
        len(samples),
        compacted,
        order_no,
        sealed.times,
        sealed.values,
        sealed.quality,
        age,
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
    await insert_sealed(admin, series_id, samples, order_no, kind=kind, tenant=tenant)
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
