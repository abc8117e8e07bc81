"""Raw messages, read: by device, writer, principal, request id and time, the newest first.

The ingest role bypasses row-level security, so every statement names the tenant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from meshkit.clock import from_datetime, to_datetime
from meshkit.db import Connection
from telemetry_store.raw_payload import decompress
from telemetry_store.requests import RawFormat

DEVICES_LISTED = 10

# Filters by name: what a message is found by apart from its devices and its time.
_FILTERS = {
    "writer_id": "writer_id = ${place}",
    "principal": "principal = ${place}",
    "request_id": "request_id = ${place}",
}
_ROWS = """
SELECT tenant_id, received_at, raw_message_id, format, door, principal, writer_id, sequence, epoch,
       request_id, device_set_id, trace_id, size, octet_length(payload) AS stored_size
FROM telemetry.raw_message
WHERE tenant_id = $1 AND received_at >= $2 AND received_at < $3 AND (received_at, raw_message_id) < ($4, $5)
      {conditions}
ORDER BY received_at DESC, raw_message_id DESC
LIMIT $6
"""
# From each set the newest ones, each by the index: a set has its messages on one day.
_ROWS_OF_DEVICE = """
SELECT found.*
FROM telemetry.raw_device_set AS named
CROSS JOIN LATERAL ({rows}) AS found
WHERE named.tenant_id = $1 AND named.device_ids @> ARRAY[${place}::text]
  AND named.day BETWEEN ($2::timestamptz AT TIME ZONE 'UTC')::date
  AND ($3::timestamptz AT TIME ZONE 'UTC')::date
ORDER BY found.received_at DESC, found.raw_message_id DESC
LIMIT $6
"""
_OF_NAMED_SET = """
      AND device_set_id = named.device_set_id
      AND received_at >= named.day::timestamp AT TIME ZONE 'UTC'
      AND received_at < (named.day + 1)::timestamp AT TIME ZONE 'UTC'
"""
_WITH_DEVICES = """
SELECT page.*, sets.device_ids[1:{most}] AS device_ids, cardinality(sets.device_ids) AS device_count
FROM ({rows}) AS page
JOIN telemetry.raw_device_set AS sets
    ON sets.tenant_id = page.tenant_id AND sets.day = (page.received_at AT TIME ZONE 'UTC')::date
    AND sets.device_set_id = page.device_set_id
ORDER BY page.received_at DESC, page.raw_message_id DESC
"""
# Longer than a stream may live, whose definitions these are.
_AROUND = "interval '2 hours'"


@dataclass(frozen=True, slots=True, order=True)
class RawPlace:
    """Where a raw message is: when it was received, microseconds since the epoch, and its number."""

    received_us: int
    number: int


@dataclass(frozen=True, slots=True)
class RawQuery:
    """Which messages are asked for; "" and None: any.

    Attributes:
        start_us: received from then on, microseconds since the epoch.
        end_us: received before.
        device_id: that speak of this device.
        writer_id: of this writer.
        principal: of this principal.
        request_id: with this id.
    """

    start_us: int
    end_us: int
    device_id: str = ""
    writer_id: str = ""
    principal: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A raw message without its payload.

    Attributes:
        place: where it is.
        format: what its payload is.
        door: which way it came.
        principal: who sent it.
        writer_id: of a writer's batch, "" otherwise.
        sequence: the batch's number, 0 without any.
        epoch: of the stream that it came on, 0 without any.
        request_id: as the caller stated it, or the number that the broker gave; "" without any.
        device_ids: of which it speaks, ascending, not all of them in a list.
        device_count: how many these are.
        trace_id: hexadecimal, "" without any.
        size: bytes of the payload.
        stored_size: the same, compressed.
    """

    place: RawPlace
    format: RawFormat
    door: str
    principal: str
    writer_id: str
    sequence: int
    epoch: int
    request_id: str
    device_ids: Sequence[str]
    device_count: int
    trace_id: str
    size: int
    stored_size: int


@dataclass(frozen=True, slots=True)
class RawContent:
    """A raw message whole.

    Attributes:
        row: what is known of it.
        payload: as received.
        definitions: where the definitions of its aliases are, in the order of their arrival; of
            batches only.
    """

    row: RawRow
    payload: bytes
    definitions: Sequence[RawPlace]


async def list_raw_messages(
    connection: Connection, tenant: str, query: RawQuery, *, before: RawPlace | None, limit: int
) -> list[RawRow]:
    """Return a tenant's messages, the newest first.

    Args:
        connection: of a role that sees all tenants.
        tenant: whose, from the verified identity.
        query: which.
        before: where the page before ended, None for the first one.
        limit: most that are returned.
    """
    last = before or RawPlace(query.end_us, 0)
    arguments: list[object] = [
        tenant,
        to_datetime(query.start_us),
        to_datetime(query.end_us),
        to_datetime(last.received_us),
        last.number,
        limit,
    ]
    conditions = []
    for name, condition in _FILTERS.items():
        if wanted := getattr(query, name):
            arguments.append(wanted)
            conditions.append("AND " + condition.format(place=len(arguments)))
    if query.device_id:
        arguments.append(query.device_id)
        rows = _ROWS_OF_DEVICE.format(
            rows=_ROWS.format(conditions=_OF_NAMED_SET + " ".join(conditions)), place=len(arguments)
        )
    else:
        rows = _ROWS.format(conditions=" ".join(conditions))
    found = await connection.fetch(_WITH_DEVICES.format(rows=rows, most=DEVICES_LISTED), *arguments)
    return [_row(each) for each in found]


async def find_raw_message(connection: Connection, tenant: str, place: RawPlace) -> RawContent | None:
    """Return a tenant's message, None when it has none there.

    Args:
        connection: of a role that sees all tenants.
        tenant: whose, from the verified identity.
        place: where it is.
    """
    found = await connection.fetchrow(
        """
        SELECT message.received_at, message.raw_message_id, message.format, message.door, message.principal,
               message.writer_id, message.sequence, message.epoch, message.request_id, message.trace_id,
               message.size, octet_length(message.payload) AS stored_size, message.payload,
               sets.device_ids, cardinality(sets.device_ids) AS device_count
        FROM telemetry.raw_message AS message
        JOIN telemetry.raw_device_set AS sets
            ON sets.tenant_id = message.tenant_id AND sets.day = ($2::timestamptz AT TIME ZONE 'UTC')::date
            AND sets.device_set_id = message.device_set_id
        WHERE message.tenant_id = $1 AND message.received_at = $2 AND message.raw_message_id = $3
        """,
        tenant,
        to_datetime(place.received_us),
        place.number,
    )
    if found is None:
        return None
    row = _row(found)
    definitions = await _definitions(connection, tenant, row) if row.format is RawFormat.BATCH else []
    return RawContent(row, decompress(found["payload"]), definitions)


async def _definitions(connection: Connection, tenant: str, batch: RawRow) -> list[RawPlace]:
    rows = await connection.fetch(
        f"""
        SELECT received_at, raw_message_id
        FROM telemetry.raw_message
        WHERE tenant_id = $1 AND writer_id = $2 AND epoch = $3 AND format = 2
          AND received_at BETWEEN $4::timestamptz - {_AROUND} AND $4::timestamptz + {_AROUND}
        ORDER BY received_at, raw_message_id
        """,  # noqa: S608 - a constant.  # nosec B608
        tenant,
        batch.writer_id,
        batch.epoch,
        to_datetime(batch.place.received_us),
    )
    return [_place(row) for row in rows]


def _place(row: asyncpg.Record) -> RawPlace:
    return RawPlace(from_datetime(row["received_at"]), row["raw_message_id"])


def _row(row: asyncpg.Record) -> RawRow:
    return RawRow(
        place=_place(row),
        format=RawFormat(row["format"]),
        door=row["door"],
        principal=row["principal"],
        writer_id=row["writer_id"] or "",
        sequence=row["sequence"] or 0,
        epoch=row["epoch"] or 0,
        request_id=row["request_id"] or "",
        device_ids=row["device_ids"],
        device_count=row["device_count"],
        trace_id=row["trace_id"] or "",
        size=row["size"],
        stored_size=row["stored_size"],
    )
