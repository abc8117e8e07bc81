"""Old data, as if it had been written, sealed and received long ago."""

from datetime import UTC, date, datetime, timedelta

import asyncpg
import numpy as np

from meshkit.clock import MICROS_PER_SECOND
from telemetry_store.columns import MICROS_PER_DAY
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.tiers.codec import Samples
from tests.store.stored import insert_sealed

DAY = timedelta(days=1)
TODAY = datetime.now(UTC).date()
EPOCH = date(1970, 1, 1)


def start_us(day: date) -> int:
    return (day - EPOCH).days * MICROS_PER_DAY


async def series_of(connection: asyncpg.Connection, tenant: str, device: str = "pump-1") -> int:
    series_id: int = await connection.fetchval(
        """
        INSERT INTO telemetry.series (tenant_id, device_id, metric, kind, unit) VALUES ($1, $2, 'm', 1, '')
        ON CONFLICT (tenant_id, device_id, metric, kind) DO UPDATE SET unit = '' RETURNING series_id
        """,
        tenant,
        device,
    )
    return series_id


async def seal(
    connection: asyncpg.Connection,
    tenant: str,
    days_ago: int,
    *,
    device: str = "pump-1",
    samples: int = 10,
    sealed_days_ago: int | None = None,
) -> None:
    """Put a sealed row in that is of one day, and was sealed on that day or later."""
    day = TODAY - days_ago * DAY
    times = start_us(day) + np.arange(samples, dtype=np.int64) * MICROS_PER_SECOND
    # Of noise, so that each sample takes room.
    values = np.random.default_rng(days_ago).random(samples)
    await insert_sealed(
        connection,
        await series_of(connection, tenant, device),
        Samples(times, values, np.full(samples, NOT_JUDGED, np.int32)),
        1,
        tenant=tenant,
        age=(days_ago if sealed_days_ago is None else sealed_days_ago) * DAY,
    )


async def put_event(
    connection: asyncpg.Connection, tenant: str, days_ago: int, received_days_ago: int
) -> None:
    await connection.execute(
        """
        INSERT INTO telemetry.event
            (tenant_id, device_id, type, severity, time, received_at, message, attributes,
             instance, commit_no, order_no)
        VALUES ($1, 'pump-1', 'x', 200, $2, $3, '', '{}', 1, 1, 1)
        """,
        tenant,
        start_us(TODAY - days_ago * DAY),
        datetime.now(UTC) - received_days_ago * DAY,
    )
