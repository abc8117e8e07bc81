"""Devices behind gateways: what a gateway's names stand for, and who is registered."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from asset_svc import children
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import Caller, Connect
from twinmesh.asset.v1 import device_service_pb2 as device_pb2
from twinmesh.asset.v1 import device_type_service_pb2 as type_pb2
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc

GATEWAY = device_pb2.DEVICE_ROLE_GATEWAY
CHILD = device_pb2.DEVICE_ROLE_CHILD


async def add_hub(caller: Caller, hub_id: str = "hub", *, registers: bool = True) -> None:
    """Add a gateway, with types of its own for it and its children."""
    policy = type_pb2.UNKNOWN_CHILDREN_REGISTER if registers else type_pb2.UNKNOWN_CHILDREN_REFUSE
    beacon = f"{hub_id}-beacon"
    hub_type = type_pb2.DeviceType(
        id=f"{hub_id}-type",
        processing_mode=type_pb2.PROCESSING_MODE_DEMULTIPLEX,
        unknown_children=policy,
        child_device_type_id=beacon,
    )
    await caller.add_type(beacon)
    await caller.device_types.CreateDeviceType(type_pb2.CreateDeviceTypeRequest(device_type=hub_type))
    await caller.add_device(hub_id, f"{hub_id}-type", role=GATEWAY)


async def ids(
    profiles: Any, *names: str, tenant: str = "demo", hub: str = "hub", register: bool = True
) -> Any:
    answer = await profiles.BatchGetChildren(
        profile_pb2.BatchGetChildrenRequest(tenant=tenant, gateway_id=hub, names=names, register=register)
    )
    return dict(answer.device_ids)


async def test_children_are_found_by_logical_id_and_by_device_id(caller: Caller, profiles: Any) -> None:
    await add_hub(caller)
    await caller.add_device("b-1", "hub-beacon", role=CHILD, parent_id="hub", logical_id="slot-1")
    await caller.add_device("b-2", "hub-beacon", role=CHILD, parent_id="hub", logical_id="b-1")
    await caller.add_device("lonely", "hub-beacon")
    found = await ids(profiles, "slot-1", "b-2", "b-1", "lonely", "slot-2", register=False)
    assert found == {"slot-1": "b-1", "b-2": "b-2", "b-1": "b-2"}


async def test_unknown_children_are_registered_once(caller: Caller, profiles: Any) -> None:
    await add_hub(caller)
    names = [f"AC:23:{number:02X}" for number in range(40)]
    answers = await asyncio.gather(*(ids(profiles, *names[start:]) for start in (0, 0, 10, 20)))
    assert answers[0] == answers[1] == {name: children.child_id("hub", name) for name in names}
    listed = await caller.devices.ListDevices(device_pb2.ListDevicesRequest(parent_id="hub", page_size=1000))
    assert sorted(device.logical_id for device in listed.devices) == sorted(names)
    first = next(device for device in listed.devices if device.logical_id == "AC:23:00")
    assert first.id.startswith("hub-ac-23-00-")
    assert (first.role, first.device_type_id, first.display_name) == (CHILD, "hub-beacon", "AC:23:00")
    assert first.status == device_pb2.DEVICE_STATUS_ACTIVE


async def test_nobody_is_registered_unless_the_type_and_the_question_say_so(
    caller: Caller, profiles: Any
) -> None:
    await add_hub(caller)
    await add_hub(caller, "strict", registers=False)
    assert await ids(profiles, "x", register=False) == {}
    assert await ids(profiles, "x", hub="strict") == {}
    assert await ids(profiles, "x", hub="absent") == {}
    assert await ids(profiles, "x", tenant="other") == {}
    await caller.add_device("no-gateway", "hub-type")
    assert await ids(profiles, "x", hub="no-gateway") == {}


async def test_a_gateway_has_so_many_children_and_no_more(
    caller: Caller, profiles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MAX_CHILDREN", 5)
    await add_hub(caller)
    await asyncio.gather(*(ids(profiles, *(f"{batch}-{n}" for n in range(3))) for batch in "abc"))
    listed = await caller.devices.ListDevices(device_pb2.ListDevicesRequest(parent_id="hub"))
    assert len(listed.devices) == 5


async def test_an_id_that_another_tenant_has_is_left_alone(
    caller: Caller, connect: Connect, profiles: Any
) -> None:
    await add_hub(caller)
    taken = children.child_id("hub", "x")
    other = connect("other")
    await other.add_type()
    await other.add_device(taken)
    assert await ids(profiles, "x", "y") == {"y": children.child_id("hub", "y")}


def test_ids_of_children_are_valid_and_differ() -> None:
    names = ["a", "A", "a ", "ä", "", ":", "x" * 128, "x" * 127, "a-b", "a:b"]
    gateways = ["g", "g" * 64, "a-b-", "-"]
    made = [children.child_id(gateway, name) for gateway in gateways for name in names]
    assert len(set(made)) == len(made)
    for device_id in made:
        assert len(device_id) <= 64
        assert device_id == device_id.strip("-").lower()
        assert device_id.replace("-", "").isalnum()
        assert device_id.isascii()


async def test_registering_needs_a_type_that_exists(caller: Caller) -> None:
    async def create(**fields: Any) -> Any:
        device_type = type_pb2.DeviceType(
            id="hub", unknown_children=type_pb2.UNKNOWN_CHILDREN_REGISTER, **fields
        )
        request = type_pb2.CreateDeviceTypeRequest(device_type=device_type)
        return await failure(caller.device_types.CreateDeviceType(request))

    assert (await create()).fields == ["device_type.child_device_type_id"]
    told = await create(child_device_type_id="absent")
    assert (told.reason, told.metadata) == (
        "REFERENCE_NOT_FOUND",
        {"resource": "device_type", "id": "absent"},
    )


async def test_a_type_of_children_cannot_go_and_policies_come_back(caller: Caller) -> None:
    await caller.add_type("beacon")
    made = type_pb2.DeviceType(
        id="hub",
        unknown_children=type_pb2.UNKNOWN_CHILDREN_REGISTER,
        child_device_type_id="beacon",
        message_mode=type_pb2.MESSAGE_MODE_ALL_OR_NOTHING,
        message_schema=type_pb2.MessageSchema(child_pointer="/mac"),
    )
    await caller.device_types.CreateDeviceType(type_pb2.CreateDeviceTypeRequest(device_type=made))
    found = await caller.device_types.GetDeviceType(type_pb2.GetDeviceTypeRequest(id="hub"))
    for name in ("unknown_children", "child_device_type_id", "message_mode", "message_schema"):
        assert getattr(found, name) == getattr(made, name)
    delete = caller.device_types.DeleteDeviceType
    assert (await failure(delete(type_pb2.DeleteDeviceTypeRequest(id="beacon")))).reason == "IN_USE"
    await caller.device_types.UpdateDeviceType(
        type_pb2.UpdateDeviceTypeRequest(
            device_type=type_pb2.DeviceType(id="hub", unknown_children=type_pb2.UNKNOWN_CHILDREN_REFUSE),
            update_mask=FieldMask(paths=["unknown_children", "child_device_type_id"]),
        )
    )
    await delete(type_pb2.DeleteDeviceTypeRequest(id="beacon"))


async def test_users_may_not_ask(asset_address: str, mint: TokenMint) -> None:
    async with identities.channel(asset_address, "asset_svc") as channel:
        stub = profile_grpc.ProfileServiceStub(channel)
        request = profile_pb2.BatchGetChildrenRequest(tenant="demo", gateway_id="hub", names=["x"])
        call = stub.BatchGetChildren(
            request, metadata=bearer(mint.token(tenant="demo", permissions=["profile:read"]))
        )
        assert (await failure(call)).code == grpc.StatusCode.PERMISSION_DENIED
