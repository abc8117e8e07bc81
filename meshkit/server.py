"""The gRPC server that every service runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import aio_server_interceptor

from meshkit.access import Door
from meshkit.callers import Callers
from meshkit.config import MAX_MESSAGE_BYTES
from meshkit.connections import Connections
from meshkit.interceptors import CallInterceptor
from meshkit.open_calls import OpenCalls
from meshkit.request_memory import RequestMemory
from meshkit.tasks import background
from meshkit.telemetry import deserves_span

_log = structlog.get_logger()
_CHECK_EVERY_S = 1.0
_DRAIN_S = 5.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_OPTIONS = [
    # Each process owns its port: with SO_REUSEPORT a proxy's streams all pin to one.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Both, or gRPC refuses calls by chance between the first and a quarter more.
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # Else gRPC widens the window of a stream with the measured bandwidth, and holds megabytes of each
    # stream that nobody reads: a flood of 3 GiB while PostgreSQL stood still cost a process 830 MiB.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Who pings more often for the third time is told to calm down, and loses the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # Calls that arrive faster than handlers start wait: from the default of 1,000 on gRPC would
    # cancel some at random, when a fleet comes back.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
]

# A dependency's check: returns when it works and raises when it does not.
Check = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Registration:
    """A servicer, the generated function that adds it, and its service's full name."""

    name: str
    add: Callable[[Any, Any], None]
    servicer: object


@asynccontextmanager
async def running_server(
    *,
    listen: str,
    door: Door,
    callers: Callers,
    registrations: Sequence[Registration],
    checks: Mapping[str, Check],
    hints: Mapping[str, Check] | None = None,
    reflected: Sequence[str] | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    connections: Connections | None = None,
    memory: RequestMemory | None = None,
) -> AsyncIterator[int]:
    """Serve until the context ends, then drain; yields the port.

    Health (grpc.health.v1) is SERVING while all checks pass; "" stands for the
    whole process, and each dependency is named too. What the service can do without
    for a while is a hint: named, but no reason to take the service out of use.

    Args:
        listen: host:port, port 0 for any.
        door: how callers are known, and who accounts for them.
        callers: which services may call which rpcs.
        registrations: what is served.
        checks: by dependency name.
        hints: likewise, of dependencies that the service can do without.
        reflected: full names of the services that reflection lists, of which others may
            serve some; what is served when None.
        drain: asks the clients of long streams to leave, and returns when they have; awaited
            when health says NOT_SERVING already and calls are still served.
        connections: counts the calls of tenants that last; None for a service that has none.
        memory: for requests that are worked on; the usual amount when None.
    """
    open_calls = OpenCalls(verifier=door.verifier, connections=connections)
    server = grpc.aio.server(
        interceptors=[
            aio_server_interceptor(filter_=deserves_span),
            CallInterceptor(
                identity=door.identity,
                callers=callers,
                verifier=door.verifier,
                open_calls=open_calls,
                memory=RequestMemory() if memory is None else memory,
                audit=door.audit,
            ),
        ],
        options=_OPTIONS,
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for registration in registrations:
        registration.add(registration.servicer, server)
    names = [registration.name for registration in registrations]
    listed = names if reflected is None else reflected
    reflection.enable_server_reflection([*listed, reflection.SERVICE_NAME, health.SERVICE_NAME], server)
    port = server.add_secure_port(listen, door.identity.server_credentials())
    monitor = _HealthMonitor(servicer=health_servicer, services=names, checks=checks, hints=hints or {})
    await monitor.check()
    await server.start()
    _log.info("serving", listen=listen, port=port, services=names)
    try:
        async with background(monitor.run(), name="health"), background(open_calls.run(), name="open-calls"):
            yield port
    finally:
        await health_servicer.enter_graceful_shutdown()
        if drain is not None:
            await drain()
        await server.stop(_DRAIN_S)


class _HealthMonitor:
    """Keeps the health service true.

    A dependency that refuses is away at once, one that does not answer in time when that happens twice in a
    row: an event loop that stood still for a moment looks the same, and the gateway leaves a process without
    calls from the first answer that it does not serve.
    """

    def __init__(
        self,
        *,
        servicer: health.aio.HealthServicer,
        services: Sequence[str],
        checks: Mapping[str, Check],
        hints: Mapping[str, Check],
    ) -> None:
        self._servicer = servicer
        self._services = services
        self._required = frozenset(checks)
        self._checks = {**checks, **hints}
        self._failing: set[str] = set()
        # At first nothing has answered, so that the first late answer counts.
        self._late = set(self._checks)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            await self.check()

    async def check(self) -> None:
        results = await asyncio.gather(*(self._passes(name) for name in self._checks))
        for name, passes in zip(self._checks, results, strict=True):
            await self._servicer.set(name, _SERVING if passes else _NOT_SERVING)
        whole = _NOT_SERVING if self._required & self._failing else _SERVING
        for name in ("", *self._services):
            await self._servicer.set(name, whole)

    async def _passes(self, name: str) -> bool:
        try:
            async with asyncio.timeout(_CHECK_EVERY_S):
                await self._checks[name]()
        except Exception as error:
            if isinstance(error, TimeoutError) and name not in self._late | self._failing:
                self._late.add(name)
                return True
            if name not in self._failing:
                self._failing.add(name)
                _log.warning("dependency is away", dependency=name, error=repr(error))
            return False
        self._late.discard(name)
        if name in self._failing:
            self._failing.discard(name)
            _log.info("dependency is back", dependency=name)
        return True
