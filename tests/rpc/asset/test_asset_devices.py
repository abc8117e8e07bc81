"""DeviceService and DeviceTypeService over a real server, database and bus."""

import asyncio
import json
from typing import Any

import grpc
import nats
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import Caller, Connect
from twinmesh.asset.v1.device_service_pb2 import (
    DEVICE_ROLE_CHILD,
    DEVICE_ROLE_ENDPOINT,
    DEVICE_ROLE_GATEWAY,
    DEVICE_ROLE_GATEWAY_CHUNKED,
    DEVICE_STATUS_ACTIVE,
    DEVICE_STATUS_DISABLED,
    BatchCreateDevicesRequest,
    CreateDeviceRequest,
    DeleteDeviceRequest,
    Device,
    GetDeviceRequest,
    ListDevicesRequest,
    UpdateDeviceRequest,
)
from twinmesh.asset.v1.device_type_service_pb2 import (
    PROCESSING_MODE_DIRECT,
    PROTOCOL_MQTT,
    RANGE_POLICY_REFUSE,
    AnomalyRules,
    CreateDeviceTypeRequest,
    DeleteDeviceTypeRequest,
    DeviceType,
    GetDeviceTypeRequest,
    ListDeviceTypesRequest,
    MetricDefinition,
    QualityRules,
    UpdateDeviceTypeRequest,
)
from twinmesh.type.v1.value_pb2 import (
    VALUE_KIND_BOOL,
    VALUE_KIND_DOUBLE,
    VALUE_KIND_INT,
    VALUE_KIND_POINT,
    VALUE_KIND_STRING,
)

Code = grpc.StatusCode


async def test_a_device_type_comes_back_as_it_was_made(caller: Caller) -> None:
    made = await caller.device_types.CreateDeviceType(
        CreateDeviceTypeRequest(
            device_type=DeviceType(
                id="pump",
                display_name="Pump",
                protocol=PROTOCOL_MQTT,
                metrics=[
                    MetricDefinition(
                        name="pressure", kind=VALUE_KIND_DOUBLE, unit="bar", minimum=0, maximum=0.1
                    ),
                    MetricDefinition(
                        name="track.point", kind=VALUE_KIND_POINT, display_name="\u2603 \\ \" '"
                    ),
                ],
                heartbeat=Duration(seconds=90, nanos=500_000_123),
            )
        )
    )
    assert made.processing_mode == PROCESSING_MODE_DIRECT
    assert made.metrics[0].HasField("minimum")
    assert not made.metrics[1].HasField("minimum")
    assert made.heartbeat == Duration(seconds=90, nanos=500_000_000)
    assert made.etag == '"1"'
    assert made.create_time == made.update_time
    assert made.create_time.seconds > 0
    assert await caller.device_types.GetDeviceType(GetDeviceTypeRequest(id="pump")) == made
    listed = await caller.device_types.ListDeviceTypes(ListDeviceTypesRequest())
    assert list(listed.device_types) == [made]


async def test_a_metric_may_change_its_kind(caller: Caller) -> None:
    metric = MetricDefinition(name="state", kind=VALUE_KIND_DOUBLE)
    await caller.device_types.CreateDeviceType(
        CreateDeviceTypeRequest(device_type=DeviceType(id="pump", metrics=[metric]))
    )
    metric.kind = VALUE_KIND_INT
    changed = await caller.device_types.UpdateDeviceType(
        UpdateDeviceTypeRequest(device_type=DeviceType(id="pump", metrics=[metric]))
    )
    assert changed.metrics[0].kind == VALUE_KIND_INT


@pytest.mark.parametrize(
    ("metrics", "field"),
    [
        ([{"name": "a"}, {"name": "b"}, {"name": "a"}], "device_type.metrics[2].name"),
        ([{"name": "a", "minimum": 2, "maximum": 1}], "device_type.metrics[0].minimum"),
        ([{"name": "a"}, {"name": "b", "aliases": ["x", "a"]}], "device_type.metrics[1].aliases"),
        ([{"name": "a", "aliases": ["b"]}, {"name": "b"}], "device_type.metrics[0].aliases"),
        (
            [{"name": "a", "aliases": ["x"]}, {"name": "b", "aliases": ["x"]}],
            "device_type.metrics[1].aliases",
        ),
        ([{"name": "a", "aliases": ["x", "x"]}], "device_type.metrics[0].aliases"),
        ([{"name": "a", "aliases": ["location"]}], "device_type.metrics[0].aliases[0]"),
        ([{"name": "a", "range_policy": RANGE_POLICY_REFUSE}], "device_type.metrics[0].range_policy"),
        ([{"name": "a", "max_rate": 0}], "device_type.metrics[0].max_rate"),
        ([{"name": "a", "kind": VALUE_KIND_STRING, "maximum": 1}], "device_type.metrics[0].maximum"),
        ([{"name": "a", "kind": VALUE_KIND_BOOL, "anomaly": {}}], "device_type.metrics[0].anomaly"),
        ([{"name": "a", "anomaly": {"threshold": 0}}], "device_type.metrics[0].anomaly.threshold"),
        ([{"name": "a", "unit": "bar", "device_unit": "°C"}], "device_type.metrics[0].device_unit"),
        ([{"name": "a", "unit": "m", "device_unit": "cubits"}], "device_type.metrics[0].device_unit"),
        (
            [{"name": "a", "kind": VALUE_KIND_INT, "unit": "m", "device_unit": "mm"}],
            "device_type.metrics[0].device_unit",
        ),
    ],
)
async def test_metrics_make_sense_together(caller: Caller, metrics: list[dict[str, Any]], field: str) -> None:
    device_type = DeviceType(
        id="pump", metrics=[MetricDefinition(**{"kind": VALUE_KIND_DOUBLE, **each}) for each in metrics]
    )
    told = await failure(
        caller.device_types.CreateDeviceType(CreateDeviceTypeRequest(device_type=device_type))
    )
    assert (told.code, told.reason, told.fields) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", [field])


async def test_rules_of_metrics_come_back_as_they_were_made(caller: Caller) -> None:
    metric = MetricDefinition(
        name="pressure",
        kind=VALUE_KIND_DOUBLE,
        unit="bar",
        device_unit="psi",
        aliases=["p1", "P"],
        minimum=0,
        maximum=10,
        range_policy=RANGE_POLICY_REFUSE,
        max_rate=0.5,
        anomaly=AnomalyRules(threshold=6, half_life=100),
    )
    metric.interval.FromMilliseconds(500)
    quality = QualityRules(timeliness_weight=0)
    quality.timely_within.FromSeconds(5)
    made = await caller.device_types.CreateDeviceType(
        CreateDeviceTypeRequest(device_type=DeviceType(id="pump", metrics=[metric], quality=quality))
    )
    assert (list(made.metrics), made.quality) == ([metric], quality)
    assert await caller.device_types.GetDeviceType(GetDeviceTypeRequest(id="pump")) == made
    plain = DeviceType(id="pump", metrics=[metric])
    changed = await caller.device_types.UpdateDeviceType(
        UpdateDeviceTypeRequest(device_type=plain, update_mask=FieldMask(paths=["quality"]))
    )
    assert not changed.HasField("quality")


async def test_some_part_of_the_quality_counts(caller: Caller) -> None:
    weights: dict[str, Any] = {
        f"{part}_weight": 0 for part in ("completeness", "validity", "consistency", "timeliness")
    }
    told = await failure(
        caller.device_types.CreateDeviceType(
            CreateDeviceTypeRequest(device_type=DeviceType(id="pump", quality=QualityRules(**weights)))
        )
    )
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["device_type.quality"])


async def test_a_device_comes_back_as_it_was_made(caller: Caller) -> None:
    await caller.add_type()
    made = await caller.add_device(
        "temp-1",
        display_name="Büro %_\\",
        logical_id="slot 1",
        network_metadata={"firmware": "1.2", "mac address": "00:11"},
        tags=["b", "a"],
    )
    assert made.role == DEVICE_ROLE_ENDPOINT
    assert made.status == DEVICE_STATUS_ACTIVE
    assert made.etag == '"1"'
    assert await caller.devices.GetDevice(GetDeviceRequest(id="temp-1")) == made


async def test_what_is_absent_is_not_found(caller: Caller) -> None:
    for call in (
        caller.devices.GetDevice(GetDeviceRequest(id="nobody")),
        caller.devices.UpdateDevice(UpdateDeviceRequest(device=Device(id="nobody", display_name="x"))),
        caller.devices.DeleteDevice(DeleteDeviceRequest(id="nobody")),
    ):
        told = await failure(call)
        assert (told.code, told.reason) == (Code.NOT_FOUND, "NOT_FOUND")
        assert told.metadata == {"resource": "device", "id": "nobody"}


async def test_other_tenants_devices_do_not_exist_but_keep_their_ids(connect: Connect) -> None:
    ours, theirs = connect("demo"), connect("other")
    await ours.add_type()
    await theirs.add_type()
    await ours.add_device("temp-1", asset_id="")
    assert (await failure(theirs.devices.GetDevice(GetDeviceRequest(id="temp-1")))).code == Code.NOT_FOUND
    rename = UpdateDeviceRequest(device=Device(id="temp-1", display_name="mine"))
    assert (await failure(theirs.devices.UpdateDevice(rename))).code == Code.NOT_FOUND
    assert (
        await failure(theirs.devices.DeleteDevice(DeleteDeviceRequest(id="temp-1")))
    ).code == Code.NOT_FOUND
    assert not (await theirs.devices.ListDevices(ListDevicesRequest())).devices
    told = await failure(theirs.add_device("temp-1"))
    assert (told.code, told.reason) == (Code.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert told.metadata == {"resource": "device", "id": "temp-1"}
    assert (await failure(ours.add_device("temp-1"))).code == Code.ALREADY_EXISTS


async def test_another_tenants_type_is_no_reference(connect: Connect) -> None:
    await connect("other").add_type("theirs")
    told = await failure(connect("demo").add_device("temp-1", "theirs"))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "metadata"),
    [
        ({"device_type_id": "nothing"}, {"resource": "device_type", "id": "nothing"}),
        ({"role": DEVICE_ROLE_CHILD, "parent_id": "nowhere"}, {"resource": "device", "id": "nowhere"}),
        ({"asset_id": "nowhere"}, {"resource": "asset", "id": "nowhere"}),
    ],
)
async def test_references_must_exist(
    caller: Caller, fields: dict[str, Any], metadata: dict[str, str]
) -> None:
    await caller.add_type()
    device = Device(**{"id": "temp-1", "device_type_id": "sensor", **fields})
    told = await failure(caller.devices.CreateDevice(CreateDeviceRequest(device=device)))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
    assert told.metadata == metadata


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "device.device_type_id"),
        ({"device_type_id": "sensor", "role": DEVICE_ROLE_CHILD}, "device.parent_id"),
        ({"device_type_id": "sensor", "parent_id": "hub"}, "device.parent_id"),
        ({"device_type_id": "sensor", "role": DEVICE_ROLE_GATEWAY, "parent_id": "hub"}, "device.parent_id"),
    ],
)
async def test_a_device_needs_its_type_and_only_a_child_a_parent(
    caller: Caller, fields: dict[str, Any], field: str
) -> None:
    await caller.add_type()
    await caller.add_device("hub", role=DEVICE_ROLE_GATEWAY)
    told = await failure(
        caller.devices.CreateDevice(CreateDeviceRequest(device=Device(id="temp-1", **fields)))
    )
    assert (told.code, told.reason, told.fields) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", [field])


async def test_children_sit_behind_gateways_only(caller: Caller) -> None:
    await caller.add_type()
    await caller.add_device("hub", role=DEVICE_ROLE_GATEWAY)
    await caller.add_device("ble", role=DEVICE_ROLE_GATEWAY_CHUNKED)
    await caller.add_device("temp-1")
    await caller.add_device("beacon-1", role=DEVICE_ROLE_CHILD, parent_id="hub")
    for parent in ("temp-1", "beacon-1"):
        told = await failure(caller.add_device("beacon-2", role=DEVICE_ROLE_CHILD, parent_id=parent))
        assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "PARENT_INVALID")
        moved = Device(id="beacon-1", parent_id=parent)
        told = await failure(caller.devices.UpdateDevice(UpdateDeviceRequest(device=moved)))
        assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "PARENT_INVALID")
    moved = await caller.devices.UpdateDevice(
        UpdateDeviceRequest(device=Device(id="beacon-1", parent_id="ble"))
    )
    assert moved.parent_id == "ble"
    told = await failure(caller.devices.DeleteDevice(DeleteDeviceRequest(id="ble")))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "IN_USE")
    assert told.metadata == {"resource": "device", "id": "ble"}
    await caller.devices.DeleteDevice(DeleteDeviceRequest(id="beacon-1"))
    await caller.devices.DeleteDevice(DeleteDeviceRequest(id="ble"))


async def test_a_type_in_use_stays(caller: Caller) -> None:
    await caller.add_type()
    await caller.add_device("temp-1")
    told = await failure(caller.device_types.DeleteDeviceType(DeleteDeviceTypeRequest(id="sensor")))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "IN_USE")
    await caller.devices.DeleteDevice(DeleteDeviceRequest(id="temp-1"))
    await caller.device_types.DeleteDeviceType(DeleteDeviceTypeRequest(id="sensor"))


async def test_an_update_without_mask_takes_what_is_set(caller: Caller) -> None:
    await caller.add_type()
    await caller.add_device("temp-1", display_name="Office", tags=["a"], network_metadata={"k": "v"})
    changed = await caller.devices.UpdateDevice(
        UpdateDeviceRequest(device=Device(id="temp-1", status=DEVICE_STATUS_DISABLED, tags=["b", "c"]))
    )
    assert changed.display_name == "Office"
    assert changed.status == DEVICE_STATUS_DISABLED
    assert list(changed.tags) == ["b", "c"]
    assert changed.network_metadata == {"k": "v"}
    assert changed.etag == '"2"'
    assert changed.create_time.ToNanoseconds() < changed.update_time.ToNanoseconds()
    assert await caller.devices.GetDevice(GetDeviceRequest(id="temp-1")) == changed


async def test_an_update_with_mask_clears_what_is_not_set(caller: Caller) -> None:
    await caller.add_type()
    await caller.add_device(
        "temp-1", display_name="Office", tags=["a"], network_metadata={"k": "v", "x": "y"}
    )
    changed = await caller.devices.UpdateDevice(
        UpdateDeviceRequest(
            device=Device(id="temp-1", network_metadata={"k": "w"}, status=DEVICE_STATUS_DISABLED),
            update_mask=FieldMask(paths=["displayName", "network_metadata.k", "etag", "id"]),
        )
    )
    assert changed.display_name == ""
    assert changed.network_metadata == {"k": "w", "x": "y"}
    assert changed.status == DEVICE_STATUS_ACTIVE
    assert list(changed.tags) == ["a"]


async def test_what_a_mask_puts_together_keeps_the_contract(caller: Caller) -> None:
    await caller.add_type()
    await caller.add_device("temp-1", network_metadata={f"key-{n}": "v" for n in range(64)})
    told = await failure(
        caller.devices.UpdateDevice(
            UpdateDeviceRequest(
                device=Device(id="temp-1", network_metadata={"one-more": "v"}),
                update_mask=FieldMask(paths=["network_metadata.one-more"]),
            )
        )
    )
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["network_metadata"])


@pytest.mark.parametrize(
    ("path", "reason", "field"),
    [
        ("colour", "INVALID_FIELD", "update_mask"),
        ("tags.first", "INVALID_FIELD", "update_mask"),
        ("display_name.length", "INVALID_FIELD", "update_mask"),
        ("", "INVALID_FIELD", "update_mask"),
        ("role", "FIELD_IMMUTABLE", "role"),
        ("create_time", "FIELD_IMMUTABLE", "create_time"),
    ],
)
async def test_masks_that_cannot_be_followed(caller: Caller, path: str, reason: str, field: str) -> None:
    await caller.add_type()
    await caller.add_device("temp-1")
    request = UpdateDeviceRequest(
        device=Device(id="temp-1", role=DEVICE_ROLE_GATEWAY), update_mask=FieldMask(paths=[path])
    )
    told = await failure(caller.devices.UpdateDevice(request))
    assert (told.code, told.reason, told.fields) == (Code.INVALID_ARGUMENT, reason, [field])


async def test_a_device_can_be_sent_back_whole(caller: Caller) -> None:
    await caller.add_type()
    device = await caller.add_device("temp-1", display_name="Office")
    device.display_name = "Hall"
    for paths in ([], ["*"], [field.name for field, _ in device.ListFields()]):
        device = await caller.devices.UpdateDevice(
            UpdateDeviceRequest(device=device, update_mask=FieldMask(paths=paths))
        )
        assert device.display_name == "Hall"
    assert device.etag == '"4"'


async def test_the_second_of_two_writers_is_told(caller: Caller) -> None:
    await caller.add_type()
    read = await caller.add_device("temp-1")
    first = await caller.devices.UpdateDevice(
        UpdateDeviceRequest(device=Device(id="temp-1", display_name="first", etag=read.etag))
    )
    for call in (
        caller.devices.UpdateDevice(
            UpdateDeviceRequest(device=Device(id="temp-1", display_name="second", etag=read.etag))
        ),
        caller.devices.DeleteDevice(DeleteDeviceRequest(id="temp-1", etag=read.etag)),
    ):
        told = await failure(call)
        assert (told.code, told.reason) == (Code.ABORTED, "ETAG_MISMATCH")
    assert await caller.devices.GetDevice(GetDeviceRequest(id="temp-1")) == first
    await caller.devices.DeleteDevice(DeleteDeviceRequest(id="temp-1", etag=first.etag))


async def test_of_concurrent_writers_with_one_etag_exactly_one_wins(caller: Caller) -> None:
    await caller.add_type()
    read = await caller.add_device("temp-1")
    calls = [
        caller.devices.UpdateDevice(
            UpdateDeviceRequest(device=Device(id="temp-1", display_name=f"{n}", etag=read.etag))
        )
        for n in range(10)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, Device) for answer in answers) == 1


async def test_a_batch_is_created_in_order_with_its_parents(caller: Caller) -> None:
    await caller.add_type()
    devices = [
        Device(id="hub", device_type_id="sensor", role=DEVICE_ROLE_GATEWAY),
        *(
            Device(id=f"beacon-{n:03}", device_type_id="sensor", role=DEVICE_ROLE_CHILD, parent_id="hub")
            for n in range(999)
        ),
    ]
    made = await caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=devices))
    assert [device.id for device in made.devices] == [device.id for device in devices]
    assert {device.etag for device in made.devices} == {'"1"'}


@pytest.mark.parametrize(
    ("obstacle", "code", "reason"),
    [
        (Device(id="taken", device_type_id="sensor"), Code.ALREADY_EXISTS, "ALREADY_EXISTS"),
        (Device(id="fresh", device_type_id="sensor"), Code.ALREADY_EXISTS, "ALREADY_EXISTS"),
        (Device(id="x", device_type_id="absent"), Code.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND"),
        (
            Device(id="x", device_type_id="sensor", role=DEVICE_ROLE_CHILD, parent_id="fresh"),
            Code.FAILED_PRECONDITION,
            "PARENT_INVALID",
        ),
        (
            Device(id="x", device_type_id="sensor", role=DEVICE_ROLE_CHILD, parent_id="later"),
            Code.FAILED_PRECONDITION,
            "REFERENCE_NOT_FOUND",
        ),
    ],
)
async def test_a_batch_with_an_obstacle_creates_none(
    caller: Caller, obstacle: Device, code: Code, reason: str
) -> None:
    await caller.add_type()
    await caller.add_device("taken")
    devices = [
        Device(id="fresh", device_type_id="sensor"),
        obstacle,
        Device(id="later", device_type_id="sensor", role=DEVICE_ROLE_GATEWAY),
    ]
    told = await failure(caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=devices)))
    assert (told.code, told.reason) == (code, reason)
    listed = await caller.devices.ListDevices(ListDevicesRequest())
    assert [device.id for device in listed.devices] == ["taken"]


async def test_changes_are_told_on_the_bus(connect: Connect, nats_url: str) -> None:
    caller = connect("told")
    client = await nats.connect(nats_url)
    try:
        subscription = await client.subscribe("asset.changed.told")
        await client.flush()

        async def told() -> Any:
            return json.loads((await subscription.next_msg(timeout=10)).data)

        await caller.add_type("sensor")
        assert await told() == {"devices": [], "device_types": ["sensor"]}
        await caller.add_device("told-1")
        assert await told() == {"devices": ["told-1"], "device_types": []}
        batch = [Device(id=f"told-{n}", device_type_id="sensor") for n in (2, 3)]
        await caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=batch))
        assert await told() == {"devices": ["told-2", "told-3"], "device_types": []}
        await failure(caller.add_device("told-1"))
        await caller.devices.UpdateDevice(
            UpdateDeviceRequest(device=Device(id="told-1", status=DEVICE_STATUS_DISABLED))
        )
        assert await told() == {"devices": ["told-1"], "device_types": []}
        await caller.devices.DeleteDevice(DeleteDeviceRequest(id="told-2"))
        assert await told() == {"devices": ["told-2"], "device_types": []}
    finally:
        await client.close()
