"""asset_svc in this process, on its own database, with a stand-in for auth_svc."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from asset_svc.app import app
from asset_svc.config import AssetSettings
from asset_svc.contract import CALLERS
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.database import TestDatabase
from twinmesh.asset.v1 import (
    asset_service_pb2_grpc,
    asset_type_service_pb2_grpc,
    device_service_pb2_grpc,
    device_type_service_pb2_grpc,
    profile_service_pb2_grpc,
)
from twinmesh.asset.v1.device_service_pb2 import CreateDeviceRequest, Device
from twinmesh.asset.v1.device_type_service_pb2 import CreateDeviceTypeRequest, DeviceType

ROOT = bytes(range(32))
EVERYTHING = tuple(
    f"{resource}:{verb}"
    for resource in ("device", "device_type", "asset", "asset_type")
    for verb in ("read", "write")
)


class _Credential(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._metadata = bearer(token)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = client_call_details._replace(metadata=grpc.aio.Metadata(*self._metadata))
        return await continuation(details, request)


class Caller:
    """Stubs of one caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.devices = device_service_pb2_grpc.DeviceServiceStub(channel)
        self.device_types = device_type_service_pb2_grpc.DeviceTypeServiceStub(channel)
        self.assets = asset_service_pb2_grpc.AssetServiceStub(channel)
        self.asset_types = asset_type_service_pb2_grpc.AssetTypeServiceStub(channel)

    async def add_type(self, type_id: str = "sensor") -> DeviceType:
        return await self.device_types.CreateDeviceType(
            CreateDeviceTypeRequest(device_type=DeviceType(id=type_id))
        )

    async def add_device(self, device_id: str, type_id: str = "sensor", **fields: Any) -> Device:
        device = Device(id=device_id, device_type_id=type_id, **fields)
        return await self.devices.CreateDevice(CreateDeviceRequest(device=device))


Connect = Callable[..., Caller]


@pytest.fixture
async def asset_address(database: TestDatabase, nats_url: str, auth_address: str) -> AsyncIterator[str]:
    settings = AssetSettings(
        service_database_url=database.url("twinmesh_asset"),
        nats_url=nats_url,
        identity_dir=identities.identity_dir("asset_svc"),
        auth_address=auth_address,
    )
    async with app(settings) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def connect(asset_address: str, mint: TokenMint) -> AsyncIterator[Connect]:
    """Connects a caller of a tenant with permissions."""
    async with AsyncExitStack() as channels:

        def connect(tenant: str, permissions: Iterable[str] = EVERYTHING, **claims: Any) -> Caller:
            credential = _Credential(mint.token(tenant=tenant, permissions=permissions, **claims))
            channel = identities.channel(asset_address, "asset_svc", interceptors=[credential])
            channels.push_async_callback(channel.close)
            return Caller(channel)

        yield connect


@pytest.fixture
def caller(connect: Connect) -> Caller:
    """May do everything in tenant `demo`."""
    return connect("demo")


@pytest.fixture
async def profiles(asset_address: str) -> AsyncIterator[Any]:
    """ProfileService as other services call it, each rpc by one of those that may."""
    service = "twinmesh.asset.v1.ProfileService"
    async with AsyncExitStack() as channels:
        stubs = SimpleNamespace()
        for caller in ("ingest_svc", "twin_svc", "auth_svc"):
            channel = identities.channel(asset_address, "asset_svc", caller=caller)
            stub = profile_service_pb2_grpc.ProfileServiceStub(await channels.enter_async_context(channel))
            for rpc, callers in CALLERS.items():
                if rpc.startswith(f"{service}/") and caller in callers:
                    name = rpc.rpartition("/")[2]
                    setattr(stubs, name, getattr(stub, name))
        yield stubs
