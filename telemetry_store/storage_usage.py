"""What there is of a tenant's data, by tier, day and device, as maintenance measured it last."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import IntEnum

from meshkit.clock import from_datetime
from meshkit.db import Connection


class Tier(IntEnum):
    """Where data lie; the numbers are those of the contract."""

    HOT = 1
    SEALED = 2
    ARCHIVED = 3
    MINUTE_ROLLUPS = 4
    HOUR_ROLLUPS = 5
    DAY_ROLLUPS = 6
    RAW_MESSAGES = 7
    DEAD_LETTERS = 8
    EVENTS = 9


# What people find it under; the archive is none of PostgreSQL's.
TABLES = {
    Tier.HOT: "telemetry.segment",
    Tier.SEALED: "telemetry.sealed_segment",
    Tier.ARCHIVED: "archive",
    Tier.MINUTE_ROLLUPS: "telemetry.rollup_minute",
    Tier.HOUR_ROLLUPS: "telemetry.rollup_hour",
    Tier.DAY_ROLLUPS: "telemetry.rollup_day",
    Tier.RAW_MESSAGES: "telemetry.raw_message",
    Tier.DEAD_LETTERS: "telemetry.dead_letter",
    Tier.EVENTS: "telemetry.event",
}


@dataclass(frozen=True, slots=True)
class TierUsage:
    """What one tier takes.

    Attributes:
        tier: which.
        rows: how many.
        samples: in them.
        size: share of what its table takes on disk, bytes.
        measured_us: when the oldest part of it was measured, microseconds since the epoch.
        estimated: from a part of its pages.
    """

    tier: Tier
    rows: int
    samples: int
    size: int
    measured_us: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What a device's samples and events take."""

    device_id: str
    samples: int
    size: int


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What of a tier counts its retention from one UTC day.

    Attributes:
        tier: which.
        day: the day.
        rows: how many.
        samples: in them.
        size: bytes.
    """

    tier: Tier
    day: date
    rows: int
    samples: int
    size: int


async def read_usage(connection: Connection, tenant: str) -> Sequence[TierUsage]:
    """Return what a tenant has in each tier.

    Args:
        connection: that sees the tenant.
        tenant: whose.
    """
    rows = await connection.fetch(
        """
        SELECT day.tier, sum(day.rows)::bigint AS rows, sum(day.samples)::bigint AS samples,
               sum(day.bytes)::bigint AS bytes, min(source.measured_at) AS measured_at,
               bool_or(source.estimated) AS estimated
        FROM telemetry.storage_day AS day
        JOIN telemetry.storage_source AS source ON source.source = day.source
        WHERE day.tenant_id = $1
        GROUP BY day.tier
        ORDER BY day.tier
        """,
        tenant,
    )
    return [
        TierUsage(
            Tier(row["tier"]),
            row["rows"],
            row["samples"],
            row["bytes"],
            from_datetime(row["measured_at"]),
            row["estimated"],
        )
        for row in rows
    ]


async def read_device_usage(connection: Connection, tenant: str, *, most: int) -> Sequence[DeviceUsage]:
    """Return what devices take, the largest first.

    Args:
        connection: that sees the tenant.
        tenant: whose.
        most: devices; what all others take comes last, of no device, "", when there are more.
    """
    rows = await connection.fetch(
        """
        WITH device AS (
            SELECT device_id, sum(samples)::bigint AS samples, sum(bytes)::bigint AS bytes,
                   row_number() OVER (ORDER BY sum(bytes) DESC, device_id) AS place
            FROM telemetry.storage_device
            WHERE tenant_id = $1
            GROUP BY device_id
        )
        SELECT CASE WHEN place <= $2 THEN device_id ELSE '' END AS device_id, sum(samples)::bigint AS samples,
               sum(bytes)::bigint AS bytes
        FROM device
        GROUP BY 1, least(place, $2 + 1)
        ORDER BY least(place, $2 + 1)
        """,
        tenant,
        most,
    )
    return [DeviceUsage(row["device_id"], row["samples"], row["bytes"]) for row in rows]


async def read_day_usage(connection: Connection, tenant: str) -> Sequence[DayUsage]:
    """Return what a tenant has by tier and day.

    Args:
        connection: that sees the tenant.
        tenant: whose.
    """
    rows = await connection.fetch(
        """
        SELECT tier, day, sum(rows)::bigint AS rows, sum(samples)::bigint AS samples,
               sum(bytes)::bigint AS bytes
        FROM telemetry.storage_day
        WHERE tenant_id = $1
        GROUP BY tier, day
        ORDER BY tier, day
        """,
        tenant,
    )
    return [
        DayUsage(Tier(row["tier"]), row["day"], row["rows"], row["samples"], row["bytes"]) for row in rows
    ]
