"""ingest_svc in one process with its tests: real PostgreSQL and NATS, neighbours faked at their contracts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import nats
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ingest_svc.app import app
from ingest_svc.config import IngestSettings
from meshkit.identity import PrincipalKind
from meshkit.scope import Scope
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from meshkit.testing.database import TestDatabase
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import device_type_service_pb2 as device_type_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1 import value_pb2

if TYPE_CHECKING:
    from twinmesh.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub

ROOT = base64.urlsafe_b64encode(bytes(range(32))).decode()
TENANT = "acme"
METRICS = {
    "temperature": (value_pb2.VALUE_KIND_DOUBLE, "°C"),
    "count": (value_pb2.VALUE_KIND_INT, ""),
    "running": (value_pb2.VALUE_KIND_BOOL, ""),
    "state": (value_pb2.VALUE_KIND_STRING, ""),
    "inlet": (value_pb2.VALUE_KIND_POINT, ""),
}


class FakeAssets(profile_grpc.ProfileServiceServicer):
    """A stand-in for asset_svc: devices by tenant, of type `pump` unless a test adds another one."""

    def __init__(self) -> None:
        self.types: dict[str, device_type_pb2.DeviceType] = {}  # beside pump
        self.children: dict[tuple[str, str], str] = {}  # by gateway and logical id
        self.children_asked: list[list[str]] = []
        self.devices: dict[str, dict[str, device_pb2.Device]] = {}
        self.assets = {TENANT: {"hall", "line-1"}, "other": {"elsewhere"}}
        self.asked: list[list[str]] = []
        self.refusing = False
        self.answering = asyncio.Event()
        self.answering.set()

    def add(
        self,
        device_id: str,
        *,
        tenant: str = TENANT,
        disabled: bool = False,
        asset_id: str = "",
        device_type: str = "pump",
        parent_id: str = "",
    ) -> None:
        status = device_pb2.DEVICE_STATUS_DISABLED if disabled else device_pb2.DEVICE_STATUS_ACTIVE
        self.devices.setdefault(tenant, {})[device_id] = device_pb2.Device(
            id=device_id,
            device_type_id=device_type,
            status=status,
            asset_id=asset_id,
            parent_id=parent_id,
        )

    def add_child(self, device_id: str, gateway_id: str, logical_id: str) -> None:
        self.add(device_id, parent_id=gateway_id)
        self.children[gateway_id, logical_id] = device_id

    async def BatchGetChildren(
        self, request: profile_pb2.BatchGetChildrenRequest, context: Any
    ) -> profile_pb2.BatchGetChildrenResponse:
        assert request.register
        self.children_asked.append(sorted(request.names))
        await self.answering.wait()
        of_gateway = {name: self.children.get((request.gateway_id, name)) for name in request.names}
        return profile_pb2.BatchGetChildrenResponse(
            device_ids={name: device_id for name, device_id in of_gateway.items() if device_id is not None}
        )

    async def BatchGetProfiles(
        self, request: profile_pb2.BatchGetProfilesRequest, context: Any
    ) -> profile_pb2.BatchGetProfilesResponse:
        assert identities.identity("asset_svc").caller(context) == "ingest_svc"
        self.asked.append(sorted(request.device_ids))
        await self.answering.wait()
        if self.refusing:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused")
        of_tenant = self.devices.get(request.tenant, {})
        pump = device_type_pb2.DeviceType(
            id="pump",
            metrics=[
                device_type_pb2.MetricDefinition(name=name, kind=kind, unit=unit)
                for name, (kind, unit) in METRICS.items()
            ],
        )
        return profile_pb2.BatchGetProfilesResponse(
            devices=[of_tenant[device_id] for device_id in request.device_ids if device_id in of_tenant],
            device_types=[pump, *self.types.values()],
        )

    async def BatchGetTenants(
        self, request: profile_pb2.BatchGetTenantsRequest, context: Any
    ) -> profile_pb2.BatchGetTenantsResponse:
        await self.answering.wait()
        wanted = set(request.device_ids)
        return profile_pb2.BatchGetTenantsResponse(
            tenants={
                device_id: tenant
                for tenant, of in self.devices.items()
                for device_id in of
                if device_id in wanted
            }
        )

    async def BatchCheckAssets(
        self, request: profile_pb2.BatchCheckAssetsRequest, context: Any
    ) -> profile_pb2.BatchCheckAssetsResponse:
        await self.answering.wait()
        if self.refusing:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused")
        return profile_pb2.BatchCheckAssetsResponse(
            asset_ids=self.assets.get(request.tenant, set()).intersection(request.asset_ids)
        )

    async def GetSubtree(self, request: Any, context: Any) -> profile_pb2.GetSubtreeResponse:
        raise NotImplementedError

    async def ListProfiles(self, request: Any, context: Any) -> profile_pb2.ListProfilesResponse:
        raise NotImplementedError


@asynccontextmanager
async def serving(assets: FakeAssets, *, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve a stand-in for asset_svc; yields its address."""
    server = grpc.aio.server()
    profile_grpc.add_ProfileServiceServicer_to_server(assets, server)
    port = server.add_secure_port(listen, identities.identity("asset_svc").server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@dataclass(frozen=True)
class Refused:
    """How a call failed: status code, reason, its metadata, fields that break rules."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)


@dataclass
class Ingest:
    """A running ingest_svc and all that a test wants to ask about it."""

    stub: IngestServiceAsyncStub
    channel: grpc.aio.Channel
    mint: TokenMint
    assets: FakeAssets
    database: TestDatabase
    nats_url: str
    address: str = ""

    def caller(
        self,
        *,
        tenant: str = TENANT,
        subject: str = "tester",
        permissions: Iterable[str] = ("telemetry:write", "telemetry:backfill"),
        kind: PrincipalKind = PrincipalKind.USER,
        scope: Scope | None = None,
    ) -> tuple[tuple[str, str], ...]:
        """Return call metadata with a token."""
        claims = {} if scope is None else scope.claims
        token = self.mint.token(tenant=tenant, subject=subject, permissions=permissions, kind=kind, **claims)
        return bearer(token)

    async def send(
        self,
        *readings: ingest_pb2.Reading,
        caller: tuple[tuple[str, str], ...] | None = None,
        **fields: Any,
    ) -> ingest_pb2.IngestTelemetryResponse:
        """Call IngestTelemetry."""
        request = ingest_pb2.IngestTelemetryRequest(readings=readings, **fields)
        return await self.stub.IngestTelemetry(request, metadata=caller or self.caller())

    async def refused(self, *readings: ingest_pb2.Reading, **fields: Any) -> Refused:
        """Call IngestTelemetry, which must fail as a whole."""
        return await refused(self.send(*readings, **fields))

    async def is_serving(self, service: str = "") -> bool:
        """Ask the health of the process, or of one thing in it."""
        check = health_pb2_grpc.HealthStub(self.channel).Check  # type: ignore[attr-defined]
        try:
            answer = await check(health_pb2.HealthCheckRequest(service=service))
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def samples(self, *, tenant: str = TENANT) -> dict[tuple[str, str, int], Any]:
        """Return what PostgreSQL holds of a tenant: values by device, metric and time in microseconds.

        Equal times are decided as everywhere: by the later commit.
        """
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            rows = await connection.fetch(
                "SELECT series.device_id, series.metric, segment.times, "
                "segment.doubles, segment.ints, segment.bools, segment.points, "
                "(SELECT array_agg(strings[coalesce(codes[place], least(place, cardinality(strings)))] "
                "ORDER BY place) FROM generate_subscripts(times, 1) AS place WHERE strings IS NOT NULL) "
                "FROM telemetry.segment JOIN telemetry.series USING (tenant_id, series_id) "
                "WHERE tenant_id = $1 ORDER BY segment.order_no, segment.start_time",
                tenant,
            )
        finally:
            await connection.close()
        found: dict[tuple[str, str, int], Any] = {}
        for device_id, metric, times, *columns in rows:
            (values,) = (column for column in columns if column is not None)
            if columns[3] is not None:
                values = [tuple(values[at : at + 3]) for at in range(0, len(values), 3)]
            for time_us, value in zip(times, values, strict=True):
                found[device_id, metric, time_us] = value
        return found

    async def fetch_value(self, query: str, *arguments: Any) -> Any:
        """Ask PostgreSQL, as its owner."""
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    async def fetch_rows(self, query: str) -> list[asyncpg.Record]:
        """Ask PostgreSQL for rows, as its owner."""
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def execute(self, statement: str) -> None:
        """Have PostgreSQL do something, as its owner."""
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def announce(self, payload: bytes, *, tenant: str = TENANT) -> None:
        """Announce a change as asset_svc does."""
        bus = await nats.connect(self.nats_url)
        try:
            await bus.publish(f"asset.changed.{tenant}", payload)
            await bus.flush()
        finally:
            await bus.close()


async def refused(call: Awaitable[object]) -> Refused:
    """Await a call that must fail; return how it did."""
    told = await failure(call)
    return Refused(told.code, told.reason, told.metadata, told.fields)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition holds; the test's time-out ends a wait for one that never does."""
    while True:
        held = condition()
        if await held if isinstance(held, Awaitable) else held:
            return
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running_ingest(
    *,
    database: TestDatabase,
    nats_url: str,
    auth_address: str,
    mint: TokenMint,
    assets: FakeAssets,
    asset_address: str,
    **further: Any,
) -> AsyncIterator[Ingest]:
    """Run ingest_svc with these neighbours, further settings, and a channel to it."""
    further.setdefault("service_database_url", database.url("twinmesh_ingest"))
    settings = IngestSettings(
        listen="127.0.0.1:0",
        nats_url=nats_url,
        identity_dir=identities.identity_dir("ingest_svc"),
        auth_address=auth_address,
        asset_address=asset_address,
        **further,
    )
    # The channel outlives the service, so that a test sees how calls end at shutdown.
    async with AsyncExitStack() as channels, app(settings) as port:
        channel = await channels.enter_async_context(
            identities.channel(address := f"127.0.0.1:{port}", "ingest_svc")
        )
        yield Ingest(
            ingest_grpc.IngestServiceStub(channel),
            channel,
            mint,
            assets,
            database,
            nats_url,
            address,
        )


def reading(
    device_id: str = "pump-1",
    *,
    time_us: int | None = None,
    location: value_pb2.Point | None = None,
    values: dict[str, value_pb2.Value] | None = None,
    **numbers: float,
) -> ingest_pb2.Reading:
    """Build a reading; bare numbers are keywords."""
    built = ingest_pb2.Reading(device_id=device_id, numbers=numbers, values=values, location=location)
    if time_us is not None:
        built.time.FromMicroseconds(time_us)
    return built
