"""EventService over real gRPC and PostgreSQL."""

import time
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from telemetry_store.requests import Event, WriteRequest
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.writing import running_writer
from twinmesh.twin.v1 import event_service_pb2 as contract
from twinmesh.twin.v1 import event_service_pb2_grpc
from twinmesh.type.v1 import severity_pb2
from twinmesh.type.v1.value_pb2 import Point, Value

NOW = int(time.time()) * 1_000_000
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def at(micros: int) -> Timestamp:
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


async def store(neighbours: Neighbours, *events: dict[str, Any], tenant: str = "") -> None:
    one = Event("pump-1", None, "door.opened", 200, NOW, NOW + 5, "", "{}")
    request = WriteRequest(
        tenant=tenant or neighbours.tenant,
        principal="user:tester",
        identity=None,
        digest=bytes(32),
        samples=(),
        outcome=b"",
        refused_outcome=b"",
        events=[replace(one, **fields) for fields in events],
    )
    async with running_writer(neighbours.database) as writer:
        await writer.write(request)


async def listed(
    neighbours: Neighbours, twins: TwinApp, *, permissions: tuple[str, ...] = ("event:read",), **fields: Any
) -> contract.ListEventsResponse:
    stub: Any = event_service_pb2_grpc.EventServiceStub(twins.channel)
    answer: contract.ListEventsResponse = await stub.ListEvents(
        contract.ListEventsRequest(**fields), metadata=neighbours.caller(permissions=permissions)
    )
    return answer


async def test_an_event_is_answered_as_it_was_stored(neighbours: Neighbours, twins: TwinApp) -> None:
    attributes = (
        '{"d": 3.0, "i": 9007199254740993, "b": false, "s": "3", '
        '"p": {"latitude": 1.0, "longitude": 2.0}, "q": {"latitude": 1.0, "longitude": 2.0, "altitude": 0.5}}'
    )
    await store(
        neighbours, {"asset_id": "hall", "severity": 600, "message": "läuft", "attributes": attributes}
    )
    await store(neighbours, {"message": "another tenant's"}, tenant="other")
    (event,) = (await listed(neighbours, twins)).events
    assert event.id > 0
    event.ClearField("id")
    assert event == contract.Event(
        device_id="pump-1",
        asset_id="hall",
        type="door.opened",
        severity=severity_pb2.SEVERITY_CRITICAL,
        time=at(NOW),
        receive_time=at(NOW + 5),
        message="läuft",
        attributes={
            "d": Value(double_value=3),
            "i": Value(int_value=2**53 + 1),
            "b": Value(bool_value=False),
            "s": Value(string_value="3"),
            "p": Value(point_value=Point(latitude=1, longitude=2)),
            "q": Value(point_value=Point(latitude=1, longitude=2, altitude=0.5)),
        },
    )


async def test_events_are_found_by_the_assets_subtree(neighbours: Neighbours, twins: TwinApp) -> None:
    neighbours.profiles.subtrees[neighbours.tenant, "hall"] = ["hall", "line-1", "line-2"]
    await store(
        neighbours,
        {"asset_id": "hall", "device_id": None, "message": "0", "time_us": NOW},
        {"asset_id": "line-1", "message": "1", "time_us": NOW + 1},
        {"asset_id": "elsewhere", "message": "2", "time_us": NOW + 2},
        {"asset_id": "line-2", "message": "3", "time_us": NOW + 3, "severity": 500},
    )

    async def found(**fields: Any) -> list[str]:
        return [event.message for event in (await listed(neighbours, twins, **fields)).events]

    assert await found() == ["3", "2", "1", "0"]
    assert await found(asset_id="hall") == ["0"]
    assert await found(asset_id="hall", include_descendants=True) == ["3", "1", "0"]
    below = {"asset_id": "hall", "include_descendants": True}
    assert await found(**below, start_time=at(NOW + 1), end_time=at(NOW + 3)) == ["1"]
    assert await found(**below, minimum_severity=severity_pb2.SEVERITY_ERROR) == ["3"]
    assert await found(**below, device_id="pump-1", types=["door"]) == ["3", "1"]
    assert await found(**below, types=["motor"]) == []


async def test_pages_belong_to_one_question(neighbours: Neighbours, twins: TwinApp) -> None:
    await store(neighbours, *({"message": str(number)} for number in range(5)))
    first = await listed(neighbours, twins, page_size=2)
    second = await listed(neighbours, twins, page_size=2, page_token=first.next_page_token)
    third = await listed(neighbours, twins, page_size=2, page_token=second.next_page_token)
    messages = [event.message for page in (first, second, third) for event in page.events]
    assert messages == ["4", "3", "2", "1", "0"]
    assert third.next_page_token == ""
    for fields in ({"types": ["door"]}, {"end_time": at(NOW)}, {"device_id": "pump-1"}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed(neighbours, twins, page_token=first.next_page_token, **fields)
        assert refusal(refused.value) == (INVALID, "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"device_id": "absent"}, NOT_FOUND),
        ({"asset_id": "absent"}, NOT_FOUND),
        ({"start_time": at(NOW), "end_time": at(NOW)}, (INVALID, "TIME_RANGE_INVALID")),
        ({"include_descendants": True}, (INVALID, "INVALID_FIELD")),
        ({"types": ["Door"]}, (INVALID, "INVALID_FIELD")),
        ({"permissions": ("history:read",)}, (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")),
    ],
)
async def test_what_is_refused(
    neighbours: Neighbours, twins: TwinApp, fields: dict[str, Any], expected: tuple[grpc.StatusCode, str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await listed(neighbours, twins, **fields)
    assert refusal(refused.value) == expected


async def test_a_bound_key_does_not_learn_which_assets_exist(neighbours: Neighbours, twins: TwinApp) -> None:
    neighbours.profiles.subtrees[neighbours.tenant, "hall"] = ["hall"]
    stub: Any = event_service_pb2_grpc.EventServiceStub(twins.channel)
    bound = neighbours.caller(permissions=["event:read"], device_ids=["pump-1"])
    for asset_id in ("hall", "absent"):
        for device_id in ("", "pump-1"):
            request = contract.ListEventsRequest(asset_id=asset_id, device_id=device_id)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListEvents(request, metadata=bound)
            assert refusal(refused.value) == (grpc.StatusCode.PERMISSION_DENIED, "OUTSIDE_OF_SCOPE")
    assert not (await stub.ListEvents(contract.ListEventsRequest(), metadata=bound)).events
