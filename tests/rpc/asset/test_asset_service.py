"""What asset_svc is to other services and to tools: profiles, permissions, reflection, health."""

import asyncio
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import twinmesh.asset.v1
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from meshkit.testing.database import TestDatabase
from tests.rpc.asset.conftest import Caller, Connect
from tests.rpc.ingest.neighbours import until
from twinmesh.asset.v1.device_service_pb2 import BatchCreateDevicesRequest, Device, GetDeviceRequest
from twinmesh.asset.v1.device_type_service_pb2 import (
    CreateDeviceTypeRequest,
    DeviceType,
    UpdateDeviceTypeRequest,
)
from twinmesh.asset.v1.profile_service_pb2 import BatchGetProfilesRequest, ListProfilesRequest

Code = grpc.StatusCode
_OF_THIS_SERVICE = "FROM pg_stat_activity WHERE datname = current_database() AND application_name ="
_WAITING = f"SELECT count(*) {_OF_THIS_SERVICE} 'asset_svc' AND wait_event_type = 'Lock'"
_LAST_CHECK = f"SELECT query_start {_OF_THIS_SERVICE} 'asset_svc health'"


async def test_profiles_are_those_of_the_tenant_in_the_request(connect: Connect, profiles: Any) -> None:
    ours, theirs = connect("demo"), connect("other")
    for caller, device_id in ((ours, "ours-1"), (theirs, "theirs-1")):
        await caller.add_type("sensor")
        await caller.add_type("unused")
        await caller.add_device(device_id)
        await caller.add_device(f"{device_id}-too")
    ids = ["ours-1", "ours-1-too", "theirs-1", "absent", "ours-1", "not an id"]
    found = await profiles.BatchGetProfiles(BatchGetProfilesRequest(tenant="demo", device_ids=ids))
    assert sorted(device.id for device in found.devices) == ["ours-1", "ours-1-too"]
    assert [each.id for each in found.device_types] == ["sensor"]
    assert await ours.devices.GetDevice(GetDeviceRequest(id="ours-1")) in found.devices
    nothing = await profiles.BatchGetProfiles(BatchGetProfilesRequest(tenant="nobody", device_ids=ids))
    assert (list(nothing.devices), list(nothing.device_types)) == ([], [])


async def test_profiles_page_by_page(caller: Caller, profiles: Any) -> None:
    for type_id in ("even", "odd"):
        await caller.device_types.CreateDeviceType(
            CreateDeviceTypeRequest(device_type=DeviceType(id=type_id))
        )
    types = ["even", "odd"]
    devices = [Device(id=f"d-{n:04}", device_type_id=types[n % 2]) for n in range(1000)]
    await caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=devices))
    await caller.add_device("e-last", "odd")
    first = await profiles.ListProfiles(ListProfilesRequest(tenant="demo"))
    assert [device.id for device in first.devices] == [device.id for device in devices]
    assert sorted(each.id for each in first.device_types) == types
    second = await profiles.ListProfiles(ListProfilesRequest(tenant="demo", page_token=first.next_page_token))
    assert [device.id for device in second.devices] == ["e-last"]
    assert [each.id for each in second.device_types] == ["odd"]
    assert second.next_page_token == ""
    whole = await profiles.ListProfiles(ListProfilesRequest(tenant="demo", page_size=10**9))
    assert len(whole.devices) == 1001
    odd = await profiles.ListProfiles(ListProfilesRequest(tenant="demo", device_type_id="odd"))
    assert len(odd.devices) == 501


async def test_profiles_are_for_services_only(mint: TokenMint, asset_address: str, profiles: Any) -> None:
    token = mint.token(tenant="demo", permissions=["profile:read", "device:read"])
    told = await failure(
        profiles.BatchGetProfiles(BatchGetProfilesRequest(tenant="a\0b", device_ids=["x", "a\0b"]))
    )
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["tenant", "device_ids[1]"])
    async with identities.channel(asset_address, "asset_svc") as channel:
        method: Any = channel.unary_unary(
            "/twinmesh.asset.v1.ProfileService/BatchGetProfiles",
            request_serializer=BatchGetProfilesRequest.SerializeToString,
        )
        told = await failure(method(BatchGetProfilesRequest(tenant="demo"), metadata=bearer(token)))
        assert (told.code, told.reason) == (Code.PERMISSION_DENIED, "CALLER_NOT_LISTED")


async def test_readers_cannot_write(connect: Connect) -> None:
    reader = connect("demo", ["device:read", "device_type:read"])
    told = await failure(reader.add_device("temp-1"))
    assert (told.code, told.metadata) == (Code.PERMISSION_DENIED, {"permission": "device:write"})
    rename = UpdateDeviceTypeRequest(device_type=DeviceType(id="sensor", display_name="x"))
    told = await failure(reader.device_types.UpdateDeviceType(rename))
    assert told.metadata == {"permission": "device_type:write"}


async def test_reflection_lists_every_public_service(mint: TokenMint, asset_address: str) -> None:
    generated = Path(next(iter(twinmesh.asset.v1.__path__))).parents[1]
    declared = {
        service.full_name
        for path in generated.glob("*/v1/*_service_pb2.py")
        for service in import_module(
            f"twinmesh.{path.parents[1].name}.v1.{path.stem}"
        ).DESCRIPTOR.services_by_name.values()
    }
    assert len(declared) > 5
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with identities.channel(asset_address, "asset_svc") as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type] # takes both
        token = mint.token(tenant="demo", permissions=["contract:read"])
        answers = [
            answer async for answer in stub.ServerReflectionInfo(iter([request]), metadata=bearer(token))
        ]
        listed = {each.name for each in answers[0].list_services_response.service}
        assert {name for name in listed if name.startswith("twinmesh.")} == declared - {
            "twinmesh.asset.v1.ProfileService",
            "twinmesh.auth.v1.ApiKeyScopeService",
            "twinmesh.auth.v1.AuditService",
            "twinmesh.auth.v1.RevocationService",
            "twinmesh.auth.v1.TenantDeletionService",
            "twinmesh.ingest.v1.ConnectionService",
        }
        token = mint.token(tenant="demo", permissions=["device:read"])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(stub.ServerReflectionInfo(iter([request]), metadata=bearer(token))))
        assert refused.value.code() == Code.PERMISSION_DENIED


async def test_health_names_the_parts(asset_address: str) -> None:
    async with identities.channel(asset_address, "asset_svc") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for part in ("", "postgresql", "nats", "twinmesh.asset.v1.DeviceService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=part))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_service_is_healthy_while_its_callers_hold_all_connections(
    asset_address: str, caller: Caller, database: TestDatabase
) -> None:
    await caller.add_type("sensor")
    async with (
        asyncpg.create_pool(database.superuser_url, min_size=2) as admin,
        admin.acquire() as holder,
        identities.channel(asset_address, "asset_svc") as channel,
    ):

        async def all_are_held() -> bool:
            return bool(await admin.fetchval(_WAITING) == 8)

        async with holder.transaction():
            await holder.execute("LOCK TABLE asset.device IN EXCLUSIVE MODE")
            added = [asyncio.create_task(caller.add_device(f"d-{number}")) for number in range(20)]
            await until(all_are_held)
            for _ in range(2):
                before = await admin.fetchval(_LAST_CHECK)

                async def is_checked_again(before: datetime = before) -> bool:
                    return bool(await admin.fetchval(_LAST_CHECK) > before)

                await until(is_checked_again)
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await asyncio.gather(*added)
