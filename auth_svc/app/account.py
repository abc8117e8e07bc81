"""The account of calls: what services and Envoy record, and who reads it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from auth_svc.app.common import SERVICE, Common, repeating
from auth_svc.audit import AuditEvents
from auth_svc.servicers.access_log import AccessLogServicer
from auth_svc.servicers.audit import AuditEventServicer, AuditServicer
from auth_svc.stores.audit_events import AuditEventStore
from envoy_api import access_log_pb2_grpc
from meshkit.audit import AuditTrail
from meshkit.callers import GATEWAY
from meshkit.exports import ExportSlots
from meshkit.metrics import meter, observe_audit
from meshkit.server import Registration
from twinmesh.auth.v1 import audit_event_service_pb2_grpc, audit_service_pb2_grpc

_KEEP_DAYS_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Account:
    """The account of calls.

    Attributes:
        trail: takes auth_svc's own, which go the way of other services' but for the call.
        access_log: takes what Envoy has refused by itself.
        registrations: what is served of it.
    """

    trail: AuditTrail
    access_log: AccessLogServicer
    registrations: Sequence[Registration]


@asynccontextmanager
async def running(common: Common) -> AsyncIterator[Account]:
    """Keep the account while the context is open."""
    events = AuditEvents(
        store=AuditEventStore(pool=common.pool),
        kept_days=common.settings.audit_kept_days,
        clock=common.clock,
    )
    await events.keep_days()
    async with (
        repeating("days of the audit", events.keep_days, every_s=_KEEP_DAYS_EVERY_S),
        AuditTrail(send=partial(events.record, recorder=SERVICE), clock=common.clock) as own,
        AuditTrail(send=partial(events.record, recorder=GATEWAY), clock=common.clock) as refused,
    ):
        observe_audit(meter(), own, refused)
        access_log = AccessLogServicer(trail=refused)
        yield Account(
            own,
            access_log,
            [
                Registration(
                    "twinmesh.auth.v1.AuditService",
                    audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
                    AuditServicer(audit_events=events),
                ),
                Registration(
                    "twinmesh.auth.v1.AuditEventService",
                    audit_event_service_pb2_grpc.add_AuditEventServiceServicer_to_server,
                    AuditEventServicer(audit_events=events, slots=ExportSlots()),
                ),
                Registration(
                    "envoy.service.accesslog.v3.AccessLogService",
                    access_log_pb2_grpc.add_AccessLogServiceServicer_to_server,
                    access_log,
                ),
            ],
        )
