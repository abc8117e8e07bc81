"""TwinService over real gRPC, PostgreSQL and NATS."""

import time

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from telemetry_store.series import Point
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.store.telemetry import Recorder, Sent
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.type.v1 import value_pb2

NOW = int(time.time()) * 1_000_000
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def at(micros: int) -> Timestamp:
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)


async def test_a_sample_stored_is_in_its_devices_twin_and_history(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    await writer.commit(
        neighbours.tenant,
        [
            Sent("pump-1", "pressure", NOW, 2.5),
            Sent("pump-1", "pressure", NOW - 1, 9.0),
            Sent("pump-1", "cycles", NOW - 5, 2**60),
            Sent("pump-1", "location", NOW - 9, Point(59.9, 10.7, None)),
        ],
        unit="psi",
    )
    twin = await twins.twin_showing("pump-1", "pressure", 2.5)

    assert (twin.id, twin.display_name, twin.device_type_id) == ("pump-1", "PUMP-1", "pump")
    assert set(twin.metrics) == {"pressure", "cycles", "location"}
    assert (twin.metrics["pressure"].unit, twin.metrics["cycles"].unit) == ("bar", "psi")
    assert twin.metrics["cycles"].value.int_value == 2**60
    assert (twin.location.latitude, twin.location.HasField("altitude")) == (59.9, False)
    assert (twin.location_time, twin.last_seen_time) == (at(NOW - 9), at(NOW))

    history = await twins.history(id="pump-1", metrics=["pressure"])
    (pressure,) = history.metrics
    assert (pressure.metric, pressure.kind, pressure.unit) == (
        "pressure",
        value_pb2.VALUE_KIND_DOUBLE,
        "psi",
    )
    assert (list(pressure.times), list(pressure.double_values)) == ([NOW - 1, NOW], [9.0, 2.5])
    assert history.next_page_token == ""


async def test_late_samples_enter_history_and_leave_the_twin_alone(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    await writer.commit(neighbours.tenant, [Sent("pump-1", "pressure", NOW, 1.0)])
    await writer.commit(neighbours.tenant, [Sent("pump-1", "pressure", NOW - 10, 2.0)])
    await writer.commit(neighbours.tenant, [Sent("pump-1", "speed", NOW, 3.0)])
    twin = await twins.twin_showing("pump-1", "speed", 3.0)
    assert twin.metrics["pressure"].value.double_value == 1.0
    history = await twins.history(id="pump-1", metrics=["pressure"])
    assert list(history.metrics[0].double_values) == [2.0, 1.0]


async def test_a_restart_shows_the_same_twin(neighbours: Neighbours, writer: Recorder) -> None:
    neighbours.has("pump-1")
    async with neighbours.twin_svc() as first:
        await first.ready()
        await writer.commit(neighbours.tenant, [Sent("pump-1", "pressure", NOW, 1.0)])
        before = await first.twin_showing("pump-1", "pressure", 1.0)
    async with neighbours.twin_svc() as second:
        await second.ready()
        assert await second.twin("pump-1") == before


async def test_devices_are_those_that_asset_svc_knows_now(neighbours: Neighbours, twins: TwinApp) -> None:
    assert not (await twins.twin("pump-2")).metrics
    assert not (await twins.twin("pump-2")).HasField("last_seen_time")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await twins.twin("pump-3")
    assert refusal(refused.value) == NOT_FOUND

    neighbours.has("pump-1", "pump-3")
    assert (await twins.twin("pump-3")).id == "pump-3"
    await neighbours.announce("pump-2")
    # The announcement is on its way: the deleted device vanishes long before its time is up.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await twins.twin_showing("pump-2", "pressure", 1.0)
    assert refusal(refused.value) == NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await twins.history(id="pump-2")
    assert refusal(refused.value) == NOT_FOUND


async def test_another_tenants_devices_are_not_found(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    await writer.commit(neighbours.tenant, [Sent("pump-1", "pressure", NOW, 1.0)])
    await twins.twin_showing("pump-1", "pressure", 1.0)
    stranger = TwinApp(twins.channel, twins.stub, neighbours.caller(tenant="other"))
    for call in (stranger.twin("pump-1"), stranger.history(id="pump-1")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refusal(refused.value) == NOT_FOUND
    assert not (await stranger.list()).twins
    assert not (await stranger.list(ids=["pump-1"])).twins


async def test_twins_are_listed_page_by_page_and_filtered(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    ids = [f"pump-{number}" for number in range(1, 6)]
    neighbours.has(*ids)
    await writer.commit(neighbours.tenant, [Sent("pump-4", "pressure", NOW, 4.0)])
    await twins.twin_showing("pump-4", "pressure", 4.0)

    for filters in ({}, {"ids": [*reversed(ids), "absent"]}, {"device_type_id": "pump"}):
        listed: list[contract.Twin] = []
        token = ""
        while True:
            page = await twins.list(page_size=2, page_token=token, **filters)
            assert len(page.twins) <= 2
            listed += page.twins
            token = page.next_page_token
            if not token:
                break
        assert [twin.id for twin in listed] == ids
        assert listed[3].metrics["pressure"].value.double_value == 4.0
    assert not (await twins.list(device_type_id="valve")).twins
    assert not (await twins.list(ids=ids, device_type_id="valve")).twins
    assert len((await twins.list(page_size=10**9)).twins) == 5


async def test_history_goes_on_page_by_page_in_the_range_of_the_first(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    samples = [Sent("pump-1", "pressure", NOW - n * 60_000_000, float(n)) for n in range(20)]
    samples += [Sent("pump-1", "speed", NOW - n * 60_000_000, f"v{n}") for n in range(20)]
    await writer.commit(neighbours.tenant, samples)

    found: dict[str, list[tuple[int, float | str]]] = {}
    token = ""
    while True:
        page = await twins.history(id="pump-1", page_size=7, page_token=token)
        for one in page.metrics:
            found.setdefault(one.metric, []).extend(
                zip(one.times, [*one.double_values, *one.string_values], strict=True)
            )
        token = page.next_page_token
        if not token:
            break
    assert found == {
        metric: sorted((sample.time_us, sample.value) for sample in samples if sample.metric == metric)
        for metric in ("pressure", "speed")
    }


_BAD_QUESTIONS: list[tuple[dict[str, object], str]] = [
    ({"start_time": at(NOW), "end_time": at(NOW)}, "TIME_RANGE_INVALID"),
    ({"start_time": at(NOW), "end_time": at(NOW - 1)}, "TIME_RANGE_INVALID"),
    ({"start_time": at(NOW + 86_400_000_000)}, "TIME_RANGE_INVALID"),
    ({"start_time": Timestamp(seconds=2**62)}, "INVALID_FIELD"),
    ({"end_time": Timestamp(nanos=-1)}, "INVALID_FIELD"),
    ({"page_size": -1}, "INVALID_FIELD"),
    ({"metrics": ["no metric"]}, "INVALID_FIELD"),
    ({"id": "a/b"}, "INVALID_FIELD"),
    ({"id": "x" * 10_000}, "INVALID_FIELD"),
    ({"page_token": "%%%"}, "PAGE_TOKEN_INVALID"),
    ({"page_token": "bm90aGluZw"}, "PAGE_TOKEN_INVALID"),
]


async def test_bad_questions_are_refused_by_name(twins: TwinApp) -> None:
    for question, expected in _BAD_QUESTIONS:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await twins.history(**{"id": "pump-1", **question})
        assert refusal(refused.value) == (INVALID, expected), question


async def test_a_page_token_of_another_question_is_refused(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    await writer.commit(neighbours.tenant, [Sent("pump-1", "pressure", NOW - n, 1.0) for n in range(3)])
    token = (await twins.history(id="pump-1", page_size=1)).next_page_token
    for call in (
        twins.history(id="pump-2", page_token=token),
        twins.history(id="pump-1", metrics=["pressure"], page_token=token),
        twins.list(page_token=token),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refusal(refused.value) == (INVALID, "PAGE_TOKEN_INVALID")


async def test_each_rpc_needs_its_permission(neighbours: Neighbours, twins: TwinApp) -> None:
    denied = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    reader = TwinApp(twins.channel, twins.stub, neighbours.caller(permissions=["twin:read"]))
    await reader.twin("pump-1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await reader.history(id="pump-1")
    assert refusal(refused.value) == denied
    historian = TwinApp(twins.channel, twins.stub, neighbours.caller(permissions=["history:read"]))
    await historian.history(id="pump-1")
    for call in (historian.twin("pump-1"), historian.list()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refusal(refused.value) == denied


async def test_without_asset_svc_the_caller_is_told_to_retry(neighbours: Neighbours) -> None:
    neighbours.asset_address = "127.0.0.1:1"
    async with neighbours.twin_svc() as twins:
        await twins.ready()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await twins.twin("pump-1")
    assert refusal(refused.value) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
