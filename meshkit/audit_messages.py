"""Audit events between services."""

from collections.abc import Sequence

from google.rpc import code_pb2

from meshkit.audit import AuditEvent, unhurried
from twinmesh.auth.v1 import audit_event_service_pb2 as pb
from twinmesh.auth.v1.audit_service_pb2 import RecordAuditEventsRequest


def to_message(event: AuditEvent) -> pb.AuditEvent:
    """Return an event as the contract has it."""
    message = pb.AuditEvent(
        id=event.id,
        tenant=event.tenant,
        principal=event.principal,
        credential_id=event.credential_id,
        address=event.address,
        rpc=event.rpc,
        targets=event.targets,
        code=code_pb2.Code.Name(event.code),
        trace_id=event.trace_id,
        changed_fields=event.changed_fields,
        received_messages=event.received,
        sent_messages=event.sent,
    )
    message.time.FromMicroseconds(event.time_us)
    message.duration.FromMicroseconds(event.duration_us)
    return message


def from_message(message: pb.AuditEvent) -> AuditEvent:
    """Return an event of the contract."""
    return AuditEvent(
        id=message.id,
        time_us=message.time.ToMicroseconds(),
        tenant=message.tenant,
        principal=message.principal,
        credential_id=message.credential_id,
        address=message.address,
        rpc=message.rpc,
        targets=list(message.targets),
        code=message.code,
        duration_us=message.duration.ToMicroseconds(),
        trace_id=message.trace_id,
        changed_fields=list(message.changed_fields),
        received=message.received_messages,
        sent=message.sent_messages,
    )


async def to_request(events: Sequence[AuditEvent]) -> RecordAuditEventsRequest:
    """Return what keeps events."""
    return RecordAuditEventsRequest(events=[each async for each in unhurried(map(to_message, events))])


async def from_request(request: RecordAuditEventsRequest) -> list[AuditEvent]:
    """Return the events to keep."""
    return [each async for each in unhurried(map(from_message, request.events))]
