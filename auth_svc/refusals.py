"""What the gateway refused, as its access log tells it (gateway/envoy.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.rpc import code_pb2

from meshkit.audit import AuditEvent, storable

_ABSENT = "-"
_GRPC = "application/grpc"
# As the gateway answers them (gateway/local_replies.py), where it answers without a gRPC status.
_CODES = {
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    408: code_pb2.DEADLINE_EXCEEDED,
    429: code_pb2.RESOURCE_EXHAUSTED,
    502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
}
_FIRST_OF_SERVER = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that reached no service; times in microseconds, the first since the epoch."""

    time_us: int
    duration_us: int
    tenant: str
    principal: str
    credential_id: str
    address: str
    rpc: str
    code: int
    trace_id: str

    def event(self, event_id: str) -> AuditEvent:
        """Return the record of it."""
        return AuditEvent(
            id=event_id,
            time_us=self.time_us,
            tenant=self.tenant,
            principal=self.principal,
            credential_id=self.credential_id,
            address=self.address,
            rpc=self.rpc,
            targets=(),
            code=self.code,
            duration_us=self.duration_us,
            trace_id=self.trace_id,
        )


def refusal(tags: Mapping[str, str], *, http_status: int, time_us: int, duration_us: int) -> Refusal:
    """Return what a log entry tells.

    Args:
        tags: of the entry.
        http_status: that was answered.
        time_us: when the request began, microseconds since the epoch.
        duration_us: how long it took, microseconds.
    """
    told = {name: storable(value) for name, value in tags.items() if value != _ABSENT}
    path = told.get("path", "")
    is_grpc = told.get("content_type", "").startswith(_GRPC)
    subject = told.get("subject", "")
    return Refusal(
        time_us=time_us,
        duration_us=duration_us,
        tenant=told.get("tenant") or told.get("refused_tenant", ""),
        principal=f"{told.get('kind', '')}:{subject}" if subject else told.get("refused_principal", ""),
        credential_id=told.get("credential_id", ""),
        address=told.get("address", ""),
        rpc=path if is_grpc else storable(f"{told.get('method', '')} {path}"),
        code=_code(told.get("grpc_status", ""), http_status),
        trace_id=told.get("trace_id", ""),
    )


def _code(grpc_status: str, http_status: int) -> int:
    if grpc_status.isdecimal():
        return int(grpc_status)
    other = code_pb2.INTERNAL if http_status >= _FIRST_OF_SERVER else code_pb2.INVALID_ARGUMENT
    return int(_CODES.get(http_status, other))
