"""The raw audit trail: messages as they were received, kept by the commit that decides about them."""

from collections.abc import Iterator, Sequence
from typing import Any

from meshkit.clock import to_datetime
from meshkit.db import Connection
from telemetry_store import device_sets
from telemetry_store.device_sets import DeviceSetIds
from telemetry_store.requests import (
    MessageIdentity,
    RawFormat,
    RawMessage,
    RequestIdentity,
    WriteRequest,
    WriterIdentity,
)

_COLUMNS = (
    "tenant_id",
    "received_at",
    "format",
    "door",
    "principal",
    "writer_id",
    "sequence",
    "epoch",
    "request_id",
    "device_set_id",
    "trace_id",
    "size",
    "payload",
)


async def insert(
    connection: Connection, requests: Sequence[WriteRequest], payloads: Sequence[bytes], sets: DeviceSetIds
) -> None:
    """Keep the raw messages of requests.

    Args:
        connection: of the ingest role, in the transaction that decides about them.
        requests: in any order.
        payloads: of their raw messages, compressed, in this order.
        sets: ids of all sets of devices that they speak of.
    """
    if payloads:
        await connection.copy_records_to_table(
            "raw_message",
            schema_name="telemetry",
            columns=_COLUMNS,
            records=_records(requests, payloads, sets),
        )


def _records(
    requests: Sequence[WriteRequest], payloads: Sequence[bytes], sets: DeviceSetIds
) -> Iterator[tuple[Any, ...]]:
    compressed = iter(payloads)
    for request in requests:
        trace_id = None if request.span is None else f"{request.span.trace_id:032x}"
        for place, message in enumerate(request.raw):
            yield (
                request.tenant,
                to_datetime(message.received_us),
                message.format,
                request.door,
                request.principal,
                *_identity(request, place, message),
                sets[device_sets.key(request.tenant, message.received_us, message.devices)],
                trace_id,
                len(message.payload),
                next(compressed),
            )


def _identity(
    request: WriteRequest, place: int, message: RawMessage
) -> tuple[str | None, int | None, int | None, str | None]:
    """Return writer id, sequence, epoch and request id."""
    match request.identity:
        case WriterIdentity(writer_id, sequence, epoch):
            # Definitions come before the batch that they are kept with, and have no sequence.
            return writer_id, None if message.format is RawFormat.SERIES_DEFS else sequence, epoch, None
        case RequestIdentity(request_id):
            return None, None, None, request_id
        case MessageIdentity() as messages:
            return None, None, None, messages.name(messages.raw[place])
        case _:
            return None, None, None, None
