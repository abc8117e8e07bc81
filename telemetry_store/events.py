"""Events: kept with the commit that took them, read newest first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.requests import Event

_COLUMNS = (
    "tenant_id",
    "device_id",
    "asset_id",
    "type",
    "severity",
    "time",
    "received_at",
    "message",
    "attributes",
    "instance",
    "commit_no",
    "order_no",
)

# Readers plan with the actual arguments, so what is null costs nothing and hides no index.
_NEWEST = """
SELECT event_id, device_id, asset_id, type, severity, time, received_at, message, attributes
FROM telemetry.event
WHERE tenant_id = $1 AND (time, event_id) < ($2, $3) AND time >= $4 AND severity >= $5
    AND ($6::text[] IS NULL OR EXISTS (
        SELECT FROM unnest($6) AS wanted (type)
        WHERE event.type = wanted.type OR starts_with(event.type, wanted.type || '.')
    ))
    AND ($7::text IS NULL OR device_id = $7)
    AND ($8::text[] IS NULL OR asset_id = ANY ($8))
    AND ($9::text[] IS NULL OR device_id = ANY ($9))
ORDER BY time DESC, event_id DESC
LIMIT $10
"""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are meant; all must hold.

    Attributes:
        device_id: of this device; None: of any, or of none.
        asset_ids: of one of these assets; None: of any, or of none.
        types: of one of these types or of those below them; None: of any.
        severity: of this one or a higher one.
        start_us: from then on, microseconds since the epoch.
        device_ids: of one of these devices; None: of any, or of none.
    """

    device_id: str | None
    asset_ids: Sequence[str] | None
    types: Sequence[str] | None
    severity: int
    start_us: int
    device_ids: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event, and the number that it was given."""

    event_id: int
    event: Event


async def insert(connection: Connection, events: Iterable[tuple[str, Event]], numbers: CommitNumbers) -> None:
    """Store events.

    Args:
        connection: of the ingest role, in the commit's transaction.
        events: each with its tenant.
        numbers: the commit's.
    """
    records = [
        (
            tenant,
            event.device_id,
            event.asset_id,
            event.type,
            event.severity,
            event.time_us,
            to_datetime(event.received_us),
            event.message,
            event.attributes,
            numbers.instance,
            numbers.commit_no,
            numbers.order_no,
        )
        for tenant, event in events
    ]
    if records:
        await connection.copy_records_to_table(
            "event", schema_name="telemetry", columns=_COLUMNS, records=records
        )


async def read_newest(
    connection: Connection, *, tenant: str, wanted: EventFilter, before: tuple[int, int], limit: int
) -> list[StoredEvent]:
    """Read the newest events before a position, of equal times those stored later first.

    Args:
        connection: in a transaction that sees the tenant.
        tenant: whose events.
        wanted: which of them.
        before: time in microseconds since the epoch, and event id; neither is included.
        limit: most events.
    """
    rows = await connection.fetch(
        _NEWEST,
        tenant,
        *before,
        wanted.start_us,
        wanted.severity,
        wanted.types,
        wanted.device_id,
        wanted.asset_ids,
        wanted.device_ids,
        limit,
    )
    return [StoredEvent(row["event_id"], _event(row)) for row in rows]


def _event(row: asyncpg.Record) -> Event:
    return Event(
        device_id=row["device_id"],
        asset_id=row["asset_id"],
        type=row["type"],
        severity=row["severity"],
        time_us=row["time"],
        received_us=from_datetime(row["received_at"]),
        message=row["message"],
        attributes=row["attributes"],
    )
