"""AuditService takes events, AuditEventService tells them."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.api import httpbody_pb2

from auth_svc.audit import AuditEvents, AuditQuestion, Position, StoredEvent
from auth_svc.audit_formats import CONTENT_TYPES, SUFFIXES, ExportFormat, export_writer
from meshkit import audit_messages, paging
from meshkit.errors import InvalidArgument
from meshkit.exports import ExportSlots, file_answer
from meshkit.identity import current_principal
from meshkit.time_bounds import EARLIEST_US, LATEST_US, time_bound
from twinmesh.auth.v1 import audit_event_service_pb2 as pb
from twinmesh.auth.v1 import audit_event_service_pb2_grpc, audit_service_pb2, audit_service_pb2_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_DEFAULT_PAGE = 100
_LONGEST_PAGE = 1000


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Serves twinmesh.auth.v1.AuditService.

    Args:
        audit_events: the rules.
    """

    def __init__(self, *, audit_events: AuditEvents) -> None:
        self._audit_events = audit_events

    async def RecordAuditEvents(
        self, request: audit_service_pb2.RecordAuditEventsRequest, context: object
    ) -> audit_service_pb2.RecordAuditEventsResponse:
        """Keep what a service did."""
        await self._audit_events.record(
            await audit_messages.from_request(request), recorder=current_principal().subject
        )
        return audit_service_pb2.RecordAuditEventsResponse()


class AuditEventServicer(audit_event_service_pb2_grpc.AuditEventServiceServicer):
    """Serves twinmesh.auth.v1.AuditEventService.

    Args:
        audit_events: the rules.
        slots: make files, few at once.
    """

    def __init__(self, *, audit_events: AuditEvents, slots: ExportSlots) -> None:
        self._audit_events = audit_events
        self._slots = slots

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: object
    ) -> pb.ListAuditEventsResponse:
        """List the tenant's events."""
        question = _question(request)
        asked = ["audit_events", *_asked(question)]
        found, more = await self._audit_events.page(
            question,
            before=_position(paging.decode(asked, request.page_token)),
            limit=paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE),
        )
        return pb.ListAuditEventsResponse(
            audit_events=[_message(stored) for stored in found],
            next_page_token=paging.encode(asked, found[-1].position) if more else "",
        )

    async def ExportAuditEvents(
        self, request: pb.ExportAuditEventsRequest, context: Any
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Write the tenant's events as a file."""
        question = _question(request)
        export_format = ExportFormat(request.format)
        parts = self._audit_events.all(question)
        pieces = self._slots.file(question.tenant, parts, export_writer(export_format))
        name = f"twinmesh-audit.{SUFFIXES[export_format]}"
        async with aclosing(
            file_answer(context, pieces, name=name, content_type=CONTENT_TYPES[export_format])
        ) as answers:
            async for each in answers:
                yield each


def _question(request: pb.ListAuditEventsRequest | pb.ExportAuditEventsRequest) -> AuditQuestion:
    start_us, end_us = time_bound(request, "start_time"), time_bound(request, "end_time")
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise InvalidArgument(
            "end_time must be after start_time", reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID
        )
    return AuditQuestion(
        tenant=current_principal().tenant,
        start_us=start_us,
        # There is no moment behind the last one of year 9999 to compare with.
        end_us=None if end_us is None else min(end_us, LATEST_US - 1),
        principal=request.principal,
        rpc=request.rpc,
        codes=tuple(sorted(request.codes)),
        target=request.target,
    )


def _asked(question: AuditQuestion) -> list[object]:
    return [
        *(question.tenant, question.start_us, question.end_us, question.principal, question.rpc),
        *(list(question.codes), question.target),
    ]


def _position(before: object | None) -> Position | None:
    match before:
        case None:
            return None
        case [int(time_us), str(event_id)] if EARLIEST_US <= time_us < LATEST_US:
            return time_us, event_id
    raise paging.invalid_token()


def _message(stored: StoredEvent) -> pb.AuditEvent:
    message = audit_messages.to_message(stored.event)
    message.recorder = stored.recorder
    return message
