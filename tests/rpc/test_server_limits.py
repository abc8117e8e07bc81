"""What a service's gRPC server takes of whoever reaches it, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit import server
from meshkit.access import Door
from meshkit.audit import AuditTrail
from meshkit.clock import SystemClock
from meshkit.identity import TokenVerifier
from meshkit.revocations import Revocations
from meshkit.testing import identities

_MOST_MESSAGE = 4 * 1024 * 1024
_MOST_METADATA = 32 * 1024
_PINGS = 1_000


async def _nothing(*_: object) -> Sequence[Any]:
    return []


@pytest.fixture
async def port() -> AsyncIterator[int]:
    clock = SystemClock()
    verifier = TokenVerifier(
        fetch_keys=_nothing,
        revocations=Revocations(fetch=_nothing, clock=clock),
        clock=clock,
    )
    audit = AuditTrail(send=_nothing, clock=clock)
    async with server.running_server(
        listen="127.0.0.1:0",
        door=Door(identities.identity("twin_svc"), verifier, audit),
        callers={},
        registrations=[],
        checks={},
    ) as opened:
        yield opened


@pytest.fixture
async def health(port: int) -> AsyncIterator[Any]:
    async with identities.channel(f"127.0.0.1:{port}", "twin_svc") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    code: grpc.StatusCode = refused.value.code()
    return code


async def test_a_message_has_4_mib_at_most(health: Any) -> None:
    within = health_pb2.HealthCheckRequest(service="x" * (_MOST_MESSAGE - 100))
    assert await _code(health.Check(within)) == grpc.StatusCode.NOT_FOUND
    beyond = health_pb2.HealthCheckRequest(service="x" * _MOST_MESSAGE)
    assert await _code(health.Check(beyond)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    await health.Check(health_pb2.HealthCheckRequest())


async def test_metadata_have_32_kib_at_most(health: Any) -> None:
    """At every call: gRPC by itself refuses some and lets some in, up to a quarter more."""
    request = health_pb2.HealthCheckRequest()
    await health.Check(request, metadata=(("x-large", "x" * (_MOST_METADATA - 1024)),))
    for _ in range(20):
        call = health.Check(request, metadata=(("x-large", "x" * (_MOST_METADATA + 1024)),))
        assert await _code(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
    await health.Check(request)


async def test_pings_without_end_end_the_connection(port: int, health: Any) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=identities.tls(), server_hostname="twin_svc"
    )
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    ended = None
    try:
        for n in range(_PINGS):
            connection.ping(n.to_bytes(8, "big"))
        writer.write(connection.data_to_send())
        async with asyncio.timeout(30):
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.ConnectionTerminated):
                        ended = event
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert ended is not None
    assert ended.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    await health.Check(health_pb2.HealthCheckRequest())
