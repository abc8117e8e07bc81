"""RawMessageService: the raw audit trail, read."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from ingest_svc.conversion import to_micros
from ingest_svc.raw_messages import (
    EARLIEST_US,
    LATEST_US,
    Bookmark,
    bookmark_from_json,
    bookmark_to_json,
    place_of,
    raw_message_id,
    received_range,
)
from meshkit import paging
from meshkit.clock import Clock
from meshkit.errors import invalid_field, not_found
from meshkit.identity import current_principal
from telemetry_store.raw_history import RawContent, RawPlace, RawQuery, RawRow
from telemetry_store.requests import RawFormat
from twinmesh.ingest.v1 import raw_message_service_pb2 as contract
from twinmesh.ingest.v1 import raw_message_service_pb2_grpc as contract_grpc

_PER_PAGE, _MOST_PER_PAGE = 100, 1_000
_NANOS_PER_SECOND = 1_000_000_000
_FORMATS = {
    RawFormat.BATCH: contract.RAW_MESSAGE_FORMAT_BATCH,
    RawFormat.SERIES_DEFS: contract.RAW_MESSAGE_FORMAT_SERIES_DEFS,
    RawFormat.REQUEST: contract.RAW_MESSAGE_FORMAT_REQUEST,
    RawFormat.MESSAGE: contract.RAW_MESSAGE_FORMAT_DEVICE_MESSAGE,
    RawFormat.EVENTS_REQUEST: contract.RAW_MESSAGE_FORMAT_EVENTS_REQUEST,
}


class RawMessages(Protocol):
    """Where raw messages are."""

    async def page(
        self, tenant: str, query: RawQuery, *, before: RawPlace | None, limit: int
    ) -> Sequence[RawRow]:
        """Return a tenant's messages, the newest first."""
        ...

    async def find(self, tenant: str, place: RawPlace) -> RawContent | None:
        """Return a tenant's message, None when it has none there."""
        ...


class RawMessageServicer(contract_grpc.RawMessageServiceServicer):
    """Serves twinmesh.ingest.v1.RawMessageService.

    Args:
        messages: where they are.
        clock: tells the present.
    """

    def __init__(self, *, messages: RawMessages, clock: Clock) -> None:
        self._messages = messages
        self._clock = clock

    async def ListRawMessages(
        self, request: contract.ListRawMessagesRequest, context: Any
    ) -> contract.ListRawMessagesResponse:
        start, end = _bound(request, "start_time"), _bound(request, "end_time")
        filters = {
            "device_id": request.device_id,
            "writer_id": request.writer_id,
            "principal": request.principal,
            "request_id": request.request_id,
        }
        question = [start, end, filters]
        after = paging.decode(question, request.page_token)
        bookmark = None if after is None else bookmark_from_json(after)
        span = bookmark.range if bookmark else received_range(start, end, now_us=self._clock.now_us())
        limit = paging.page_size(request.page_size, default=_PER_PAGE, maximum=_MOST_PER_PAGE)
        rows = await self._messages.page(
            current_principal().tenant,
            RawQuery(span.start_us, span.end_us, **filters),
            before=bookmark.place if bookmark else None,
            limit=limit,
        )
        return contract.ListRawMessagesResponse(
            raw_messages=map(_to_message, rows),
            next_page_token=paging.encode(question, bookmark_to_json(Bookmark(span, rows[-1].place)))
            if len(rows) == limit
            else "",
        )

    async def GetRawMessage(
        self, request: contract.GetRawMessageRequest, context: Any
    ) -> contract.RawMessage:
        found = await self._messages.find(current_principal().tenant, place_of(request.id))
        if found is None:
            raise not_found("raw_message", request.id)
        message = _to_message(found.row)
        message.payload = found.payload
        message.series_defs_ids.extend(map(raw_message_id, found.definitions))
        match found.row.format:
            case RawFormat.BATCH:
                message.batch.MergeFromString(found.payload)
            case RawFormat.SERIES_DEFS:
                message.series_defs.MergeFromString(found.payload)
            case RawFormat.REQUEST:
                message.request.MergeFromString(found.payload)
            case RawFormat.EVENTS_REQUEST:
                message.events_request.MergeFromString(found.payload)
            case RawFormat.MESSAGE:
                with suppress(UnicodeDecodeError):
                    message.text = found.payload.decode()
        return message


def _to_message(row: RawRow) -> contract.RawMessage:
    message = contract.RawMessage(
        id=raw_message_id(row.place),
        format=_FORMATS[row.format],
        door=row.door,
        principal=row.principal,
        writer_id=row.writer_id,
        sequence=row.sequence,
        epoch=row.epoch,
        request_id=row.request_id,
        device_ids=row.device_ids,
        device_count=row.device_count,
        trace_id=row.trace_id,
        size=row.size,
        stored_size=row.stored_size,
    )
    message.receive_time.FromMicroseconds(row.place.received_us)
    return message


def _bound(request: contract.ListRawMessagesRequest, field: Literal["start_time", "end_time"]) -> int | None:
    """Return a bound of the range in microseconds since the epoch, None when it is absent.

    Raises:
        InvalidArgument: it is no valid timestamp.
    """
    if not request.HasField(field):
        return None
    time = request.start_time if field == "start_time" else request.end_time
    micros = to_micros(time)
    if not (0 <= time.nanos < _NANOS_PER_SECOND and EARLIEST_US <= micros <= LATEST_US):
        raise invalid_field(field, "must be a time in the years 1 to 9999")
    return micros
