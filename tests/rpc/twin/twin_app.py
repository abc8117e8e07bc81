"""twin_svc itself, on real PostgreSQL and NATS, beside a stand-in for asset_svc."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from nats.aio.client import Client

from meshkit import status
from meshkit.errors import not_found
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.database import TestDatabase
from twin_svc.app import app
from twin_svc.config import TwinSettings
from twinmesh.asset.v1 import device_service_pb2, device_type_service_pb2, profile_service_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE

MESH_SECRET = base64.urlsafe_b64encode(bytes(range(32))).decode()


class FakeProfiles(profile_grpc.ProfileServiceServicer):
    """asset_svc: `devices` by tenant, all of a type that measures pressure in bar.

    `subtrees` are by tenant and asset.
    """

    def __init__(self) -> None:
        self.devices: dict[str, set[str]] = {}
        self.subtrees: dict[tuple[str, str], list[str]] = {}
        self.asked = 0

    async def BatchGetProfiles(
        self, request: profile_service_pb2.BatchGetProfilesRequest, context: Any
    ) -> profile_service_pb2.BatchGetProfilesResponse:
        self.asked += 1
        known = self.devices.get(request.tenant, set())
        return profile_service_pb2.BatchGetProfilesResponse(
            devices=[_device(one) for one in request.device_ids if one in known], device_types=[_pump()]
        )

    async def GetSubtree(
        self, request: profile_service_pb2.GetSubtreeRequest, context: Any
    ) -> profile_service_pb2.GetSubtreeResponse:
        found = self.subtrees.get((request.tenant, request.asset_id))
        if found is None:
            error = not_found("asset", request.asset_id)
            await context.abort_with_status(rpc_status.to_status(status.to_status(error)))
        return profile_service_pb2.GetSubtreeResponse(asset_ids=found)

    async def ListProfiles(
        self, request: profile_service_pb2.ListProfilesRequest, context: Any
    ) -> profile_service_pb2.ListProfilesResponse:
        if request.page_token and not request.page_token.startswith("after:"):
            await context.abort(grpc.StatusCode.INTERNAL, "the fake got a token that it never gave")
        after = request.page_token.removeprefix("after:")
        fitting = [
            one
            for one in sorted(self.devices.get(request.tenant, set()))
            if one > after and request.device_type_id in ("", "pump")
        ]
        page = fitting[: request.page_size]
        return profile_service_pb2.ListProfilesResponse(
            devices=[_device(one) for one in page],
            device_types=[_pump()],
            next_page_token=f"after:{page[-1]}" if len(fitting) > len(page) else "",
        )


def _device(device_id: str) -> device_service_pb2.Device:
    return device_service_pb2.Device(id=device_id, display_name=device_id.upper(), device_type_id="pump")


def _pump() -> device_type_service_pb2.DeviceType:
    pressure = device_type_service_pb2.MetricDefinition(name="pressure", kind=VALUE_KIND_DOUBLE, unit="bar")
    return device_type_service_pb2.DeviceType(id="pump", metrics=[pressure])


@dataclass(slots=True)
class Neighbours:
    """What twin_svc needs around it; outlives restarts of it. `tenant` is the test's own."""

    database: TestDatabase
    nats_url: str
    auth_address: str
    asset_address: str
    profiles: FakeProfiles
    mint: TokenMint
    bus: Client
    tenant: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")

    def has(self, *device_ids: str) -> None:
        """Let the tenant have these devices and no others."""
        self.profiles.devices[self.tenant] = set(device_ids)

    async def announce(self, *device_ids: str) -> None:
        """Tell the mesh that devices changed, as asset_svc does."""
        change = {"devices": list(device_ids), "device_types": []}
        await self.bus.publish(f"asset.changed.{self.tenant}", json.dumps(change).encode())
        await self.bus.flush()

    def caller(
        self,
        *,
        tenant: str | None = None,
        permissions: Iterable[str] = ("twin:read", "history:read"),
        **claims: Any,
    ) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call by one of the tenant's users."""
        return bearer(self.mint.token(tenant=tenant or self.tenant, permissions=permissions, **claims))

    @asynccontextmanager
    async def twin_svc(self, *, feed_poll_ms: int = 20, archive_url: str = "") -> AsyncIterator["TwinApp"]:
        """Run twin_svc; it may not be ready yet."""
        settings = TwinSettings(
            service_database_url=self.database.url("twinmesh_twin_query"),
            feed_database_url=self.database.url("twinmesh_twin_feed"),
            nats_url=self.nats_url,
            identity_dir=identities.identity_dir("twin_svc"),
            auth_address=self.auth_address,
            asset_address=self.asset_address,
            ingest_address="127.0.0.1:1",
            feed_poll_ms=feed_poll_ms,
            archive_url=archive_url,
        )
        async with app(settings) as port:
            address = f"127.0.0.1:{port}"
            async with identities.channel(address, "twin_svc") as channel:
                yield TwinApp(channel, contract_grpc.TwinServiceStub(channel), self.caller(), address)


@dataclass(frozen=True, slots=True)
class TwinApp:
    """A running twin_svc, called by a user of the test's tenant."""

    channel: grpc.aio.Channel
    stub: Any
    metadata: tuple[tuple[str, str], ...]
    address: str = ""

    async def ready(self) -> None:
        """Wait until the service says that it is ready."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())
        async for answer in watching:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        watching.cancel()

    async def twin(self, device_id: str) -> contract.Twin:
        """Read a twin."""
        request = contract.GetTwinRequest(id=device_id)
        answer: contract.Twin = await self.stub.GetTwin(request, metadata=self.metadata)
        return answer

    async def twin_showing(self, device_id: str, metric: str, value: float) -> contract.Twin:
        """Read a twin until it shows a value."""
        while True:
            twin = await self.twin(device_id)
            if metric in twin.metrics and twin.metrics[metric].value.double_value == value:
                return twin
            await asyncio.sleep(0.01)

    async def history(self, **request: Any) -> contract.QueryHistoryResponse:
        """Query history."""
        answer: contract.QueryHistoryResponse = await self.stub.QueryHistory(
            contract.QueryHistoryRequest(**request), metadata=self.metadata
        )
        return answer

    async def list(self, **request: Any) -> contract.ListTwinsResponse:
        """List twins."""
        answer: contract.ListTwinsResponse = await self.stub.ListTwins(
            contract.ListTwinsRequest(**request), metadata=self.metadata
        )
        return answer


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """Return an error's code and reason."""
    # A failed call is a grpc.Call in all but its declared type.
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return error.code(), info.reason
