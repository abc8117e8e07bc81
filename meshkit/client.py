"""Calls to other services."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar, cast
from uuid import UUID

import grpc
import structlog
from google.protobuf.message import Message
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from meshkit import audit_messages, status
from meshkit.audit import AuditEvent
from meshkit.channels import mutual_channel
from meshkit.connections import Connections, Held, Refused, Wanted
from meshkit.errors import DomainError, dependency_unavailable
from meshkit.identity import KeyFetch
from meshkit.processes import ProcessesChannel, addresses_of
from meshkit.revocations import Fetch, Revocation, RevocationKind
from meshkit.service_identity import ServiceIdentity
from meshkit.tenant_deletion import ClosedTenant
from twinmesh.auth.v1 import (
    audit_service_pb2_grpc,
    revocation_service_pb2,
    revocation_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    tenant_deletion_service_pb2,
    tenant_deletion_service_pb2_grpc,
)
from twinmesh.ingest.v1 import connection_service_pb2, connection_service_pb2_grpc

_log = structlog.get_logger()
_R = TypeVar("_R")
_CALL_TIMEOUT_S = 5.0
_LONGEST_PRINCIPAL = 256
_MOST_TENANTS = 10_000  # of one call
# gRPC's own retry loop, for rpcs that never reached the peer or that it had to refuse.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_COUNTER = "ingest_svc"
_OPTIONS = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


@asynccontextmanager
async def service_channel(
    addresses: str, *, service: str, identity: ServiceIdentity
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a peer service, for unary rpcs, and close it in the end.

    Args:
        addresses: of its processes, host:port with commas between: the next one is asked when one is away.
        service: its name, which its certificate must prove.
        identity: who calls.
    """
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                mutual_channel(
                    address,
                    service=service,
                    identity=identity,
                    options=_OPTIONS,
                    interceptors=aio_client_interceptors(),
                )
            )
            for address in addresses_of(addresses)
        ]
        # Stubs ask it for multi-callables and for nothing else.
        yield cast("grpc.aio.Channel", ProcessesChannel(channels))


@asynccontextmanager
async def counting_connections(
    addresses: str, *, identity: ServiceIdentity, holder: UUID
) -> AsyncIterator[Connections]:
    """Have ingest_svc count the connections of a process while the context is open.

    Args:
        addresses: of its processes, host:port with commas between: any of them counts for all.
        identity: proves who calls.
        holder: whose connections they are.
    """
    async with service_channel(addresses, service=_COUNTER, identity=identity) as channel:
        stub = connection_service_pb2_grpc.ConnectionServiceStub(channel)

        async def hold(wanted: Sequence[Wanted], refused: Sequence[Refused]) -> list[Held]:
            held: list[Held] = []
            while len(wanted) > _MOST_TENANTS:
                held += await hold_some(wanted[:_MOST_TENANTS], [])
                wanted = wanted[_MOST_TENANTS:]
            # Refusals come last: they count again when all of this is asked again.
            return held + await hold_some(wanted, refused)

        async def hold_some(wanted: Sequence[Wanted], refused: Sequence[Refused]) -> list[Held]:
            request = connection_service_pb2.HoldConnectionsRequest(
                holder=str(holder),
                tenants=[
                    connection_service_pb2.TenantConnections(tenant=tenant, connections=connections)
                    for tenant, connections in wanted
                ],
                refused=[
                    connection_service_pb2.RefusedConnections(
                        tenant=tenant, principal=principal[:_LONGEST_PRINCIPAL], connections=connections
                    )
                    for tenant, principal, connections in refused
                ],
            )
            answer = await call(stub.HoldConnections, request, peer=_COUNTER)
            return [Held(held.granted, held.used, held.limit) for held in answer.tenants]

        async with Connections(hold=hold) as connections:
            yield connections


async def call(method: Callable[..., Awaitable[_R]], request: Message, *, peer: str) -> _R:
    """Call a peer's unary rpc and raise its error as a domain error.

    Raises:
        DomainError: as the peer answered; Unavailable when it did not answer.
    """
    try:
        return await method(request, timeout=_CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error, peer=peer) from error


async def call_dependency(method: Callable[..., Awaitable[_R]], request: Message, *, peer: str) -> _R:
    """Call a peer's unary rpc on behalf of a caller, who is not to blame for whatever goes wrong.

    Raises:
        Unavailable: the peer does not answer, or not with what was asked for; the log says what it told.
    """
    try:
        return await call(method, request, peer=peer)
    except DomainError as error:
        raise unavailable(peer, error) from error


def unavailable(peer: str, error: DomainError) -> DomainError:
    """Log an error of a peer, and return what it is to callers: whatever is wrong is not their mistake."""
    _log.warning("a peer cannot be asked", peer=peer, error=str(error))
    return dependency_unavailable(peer)


def fetch_keys_from(channel: grpc.aio.Channel) -> KeyFetch:
    """Return a function that asks auth_svc for its public keys."""
    stub = session_service_pb2_grpc.SessionServiceStub(channel)

    async def fetch() -> list[dict[str, str]]:
        answer = await call(stub.GetJwks, session_service_pb2.GetJwksRequest(), peer="auth_svc")
        return [{field.name: value for field, value in key.ListFields()} for key in answer.keys]

    return fetch


def fetch_revocations_from(channel: grpc.aio.Channel) -> Fetch:
    """Return a function that asks auth_svc for its revocations."""
    stub = revocation_service_pb2_grpc.RevocationServiceStub(channel)

    async def fetch(after: int) -> list[Revocation]:
        found: list[Revocation] = []
        request = revocation_service_pb2.ListRevocationsRequest(after_number=after)
        while True:
            answer = await call(stub.ListRevocations, request, peer="auth_svc")
            found += map(_revocation, answer.revocations)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    return fetch


def _revocation(message: revocation_service_pb2.Revocation) -> Revocation:
    kind = revocation_service_pb2.RevocationKind.Name(message.kind)
    return Revocation(
        number=message.number,
        tenant=message.tenant,
        kind=RevocationKind[kind.removeprefix("REVOCATION_KIND_")],
        id=message.id,
        revoke_us=message.revoke_time.ToMicroseconds(),
        until_us=message.until_time.ToMicroseconds(),
    )


def send_audit_to(channel: grpc.aio.Channel) -> Callable[[Sequence[AuditEvent]], Awaitable[None]]:
    """Return a function that has auth_svc keep audit events."""
    stub = audit_service_pb2_grpc.AuditServiceStub(channel)

    async def send(events: Sequence[AuditEvent]) -> None:
        request = await audit_messages.to_request(events)
        await call(stub.RecordAuditEvents, request, peer="auth_svc")

    return send


def fetch_closed_tenants_from(channel: grpc.aio.Channel) -> Callable[[], Awaitable[list[ClosedTenant]]]:
    """Return a function that asks auth_svc which tenants are closed."""
    stub = tenant_deletion_service_pb2_grpc.TenantDeletionServiceStub(channel)

    async def fetch() -> list[ClosedTenant]:
        found: list[ClosedTenant] = []
        request = tenant_deletion_service_pb2.ListClosedTenantsRequest()
        while True:
            answer = await call(stub.ListClosedTenants, request, peer="auth_svc")
            found += [ClosedTenant(each.id, each.deletion_due, each.reported) for each in answer.tenants]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    return fetch


def report_deleted_tenants_to(channel: grpc.aio.Channel) -> Callable[[str], Awaitable[None]]:
    """Return a function that tells auth_svc that nothing of a deleted tenant is left here."""
    stub = tenant_deletion_service_pb2_grpc.TenantDeletionServiceStub(channel)

    async def report(tenant_id: str) -> None:
        request = tenant_deletion_service_pb2.ReportTenantDeletedRequest(id=tenant_id)
        await call(stub.ReportTenantDeleted, request, peer="auth_svc")

    return report
