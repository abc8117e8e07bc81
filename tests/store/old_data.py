"""Old data, as if it had been written, sealed and received long ago."""

from datetime import UTC, date, datetime, timedelta

import asyncpg

from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR

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
    await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", day)
    await connection.execute(
        """
        INSERT INTO telemetry.sealed_segment
            (tenant_id, series_id, start_time, end_time, samples, compacted, order_no,
             times, "values", sealed_at)
        VALUES ($1, $2, $3, $4, $5, true, 1, $6, $6, $7)
        """,
        tenant,
        await series_of(connection, tenant, device),
        start_us(day),
        start_us(day) + MICROS_PER_HOUR,
        samples,
        bytes(samples),
        datetime.now(UTC) - (days_ago if sealed_days_ago is None else sealed_days_ago) * DAY,
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
