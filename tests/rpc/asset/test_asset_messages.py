"""How messages of a device type are read, and whose devices are."""

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import EVERYTHING, Caller, Connect
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc
from twinmesh.asset.v1.device_service_pb2 import DeleteDeviceRequest
from twinmesh.asset.v1.device_type_service_pb2 import (
    TIME_UNIT_MILLISECONDS,
    CreateDeviceTypeRequest,
    DeviceType,
    GetDeviceTypeRequest,
    ListDeviceTypesRequest,
    MessageSchema,
    MetricDefinition,
    UpdateDeviceTypeRequest,
)
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE

Code = grpc.StatusCode
SCHEMA = MessageSchema(
    pointers={"pressure": "/env/0/~1 ~0 ü\"'", "location": "/gps"},
    time_pointer="/head/ts",
    time_unit=TIME_UNIT_MILLISECONDS,
)


def pump(schema: MessageSchema | None = SCHEMA, **fields: Any) -> DeviceType:
    metrics = [MetricDefinition(name="pressure", kind=VALUE_KIND_DOUBLE)]
    return DeviceType(**{"id": "pump", "metrics": metrics, "message_schema": schema, **fields})


async def create(caller: Caller, device_type: DeviceType) -> DeviceType:
    return await caller.device_types.CreateDeviceType(CreateDeviceTypeRequest(device_type=device_type))


async def update(caller: Caller, device_type: DeviceType, *mask: str) -> DeviceType:
    request = UpdateDeviceTypeRequest(device_type=device_type)
    if mask:
        request.update_mask.CopyFrom(FieldMask(paths=mask))
    return await caller.device_types.UpdateDeviceType(request)


async def test_a_schema_comes_back_as_it_was_made(caller: Caller, profiles: Any) -> None:
    made = await create(caller, pump())
    assert made.message_schema == SCHEMA
    assert await caller.device_types.GetDeviceType(GetDeviceTypeRequest(id="pump")) == made
    assert list((await caller.device_types.ListDeviceTypes(ListDeviceTypesRequest())).device_types) == [made]
    await caller.add_device("pump-1", "pump")
    answer = await profiles.BatchGetProfiles(
        profile_pb2.BatchGetProfilesRequest(tenant="demo", device_ids=["pump-1"])
    )
    assert [each.message_schema for each in answer.device_types] == [SCHEMA]


@pytest.mark.parametrize("schema", [None, MessageSchema(), MessageSchema(time_pointer="/ts")])
async def test_an_absent_schema_is_not_an_empty_one(caller: Caller, schema: MessageSchema | None) -> None:
    await create(caller, pump(schema))
    found = await caller.device_types.GetDeviceType(GetDeviceTypeRequest(id="pump"))
    assert found.HasField("message_schema") == (schema is not None)
    assert found.message_schema == (schema or MessageSchema())


async def test_a_schema_changes_when_it_is_meant(caller: Caller) -> None:
    await create(caller, pump())
    other = MessageSchema(pointers={"pressure": "/p"})
    renamed = await update(caller, pump(other, display_name="Pump"), "display_name")
    assert (renamed.display_name, renamed.message_schema) == ("Pump", SCHEMA)
    assert (await update(caller, pump(None, display_name="P"))).message_schema == SCHEMA
    assert (await update(caller, pump(other), "message_schema")).message_schema == other
    assert (await update(caller, pump(SCHEMA))).message_schema == SCHEMA
    gone = await update(caller, pump(None), "message_schema")
    assert not gone.HasField("message_schema")
    assert await caller.device_types.GetDeviceType(GetDeviceTypeRequest(id="pump")) == gone


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"pointers": {"pressure": pointer}}, "device_type.message_schema.pointers['pressure']")
        for pointer in ("", "pressure", "/~", "/~2", "/a~", "/a\0", "/" + "a" * 256)
    ]
    + [
        ({"time_pointer": pointer}, "device_type.message_schema.time_pointer")
        for pointer in ("ts", "/~", "/~2", "/\0", "/" + "a" * 256)
    ]
    + [
        ({"time_unit": 9}, "device_type.message_schema.time_unit"),
        ({"pointers": {"unheard": "/a"}}, "device_type.message_schema.pointers['unheard']"),
        ({"pointers": {"no metric": "/a"}}, "device_type.message_schema.pointers['no metric']"),
        ({"pointers": {"": "/a"}}, "device_type.message_schema.pointers['']"),
    ],
)
async def test_what_is_wrong_with_a_schema_is_told(
    caller: Caller, schema: dict[str, Any], field: str
) -> None:
    told = await failure(create(caller, pump(MessageSchema(**schema))))
    assert (told.code, told.reason, told.fields) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", [field])
    await create(caller, pump())
    told = await failure(update(caller, pump(MessageSchema(**schema)), "message_schema"))
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, [field])


async def test_a_metric_that_a_pointer_names_cannot_go(caller: Caller) -> None:
    await create(caller, pump())
    told = await failure(update(caller, pump(metrics=[]), "metrics"))
    assert told.fields == ["device_type.message_schema.pointers['pressure']"]


async def tenants(profiles: Any, *device_ids: str) -> dict[str, str]:
    answer = await profiles.BatchGetTenants(profile_pb2.BatchGetTenantsRequest(device_ids=device_ids))
    return dict(answer.tenants)


async def test_services_are_told_whose_devices_are(caller: Caller, connect: Connect, profiles: Any) -> None:
    other = connect("other")
    for each, device_id in ((caller, "pump-1"), (caller, "pump-2"), (other, "foreign")):
        if device_id != "pump-2":
            await each.add_type()
        await each.add_device(device_id)
    assert await tenants(profiles, "pump-1", "foreign", "unheard", "", "pump-1") == {
        "pump-1": "demo",
        "foreign": "other",
    }
    assert await tenants(profiles) == {}
    # A device that was deleted may be made anew by anybody.
    await caller.devices.DeleteDevice(DeleteDeviceRequest(id="pump-1"))
    assert await tenants(profiles, "pump-1") == {}
    await other.add_device("pump-1")
    assert await tenants(profiles, "pump-1") == {"pump-1": "other"}


async def test_questions_have_bounds(profiles: Any) -> None:
    assert await tenants(profiles, *(f"d{number}" for number in range(10_000))) == {}
    told = await failure(tenants(profiles, *(f"d{number}" for number in range(10_001))))
    assert told.code == Code.INVALID_ARGUMENT
    assert (await failure(tenants(profiles, "a\0"))).code == Code.INVALID_ARGUMENT


async def test_nobody_but_services_is_told(asset_address: str, mint: TokenMint) -> None:
    request = profile_pb2.BatchGetTenantsRequest(device_ids=["pump-1"])
    async with identities.channel(asset_address, "asset_svc") as channel:
        ask = profile_grpc.ProfileServiceStub(channel).BatchGetTenants
        for permissions in (EVERYTHING, ("profile:read", "telemetry:write")):
            token = mint.token(tenant="demo", permissions=permissions)
            told = await failure(ask(request, metadata=bearer(token)))
            assert told.code == Code.PERMISSION_DENIED, permissions
        assert (await failure(ask(request))).code == Code.PERMISSION_DENIED
    for caller, allowed in (("ingest_svc", True), ("twin_svc", False)):
        async with identities.channel(asset_address, "asset_svc", caller=caller) as channel:
            ask = profile_grpc.ProfileServiceStub(channel).BatchGetTenants
            if allowed:
                await ask(request)
            else:
                told = await failure(ask(request))
                assert (told.code, told.reason) == (Code.PERMISSION_DENIED, "CALLER_NOT_LISTED")
                assert told.metadata == {"caller": "twin_svc"}
