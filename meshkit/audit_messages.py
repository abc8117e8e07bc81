"""Audit events between services."""

from collections.abc import Sequence

from google.rpc import code_pb2

from meshkit.audit import AuditEvent
from twinmesh.auth.v1 import audit_service_pb2 as pb


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


def to_request(events: Sequence[AuditEvent]) -> pb.RecordAuditEventsRequest:
    """Return what keeps events."""
    return pb.RecordAuditEventsRequest(events=[to_message(event) for event in events])
