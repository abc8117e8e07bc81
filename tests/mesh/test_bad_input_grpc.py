"""Bad input on native gRPC through the gateway: where no transcoder looks at it first."""

import math
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from meshkit.testing.mesh import Mesh
from twinmesh.asset.v1 import device_service_pb2, device_service_pb2_grpc
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh.type.v1 import error_reason_pb2, value_pb2

Metadata = tuple[tuple[str, str], ...]
_INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.address) as opened:
        yield opened


@pytest.fixture
def ingest(channel: grpc.aio.Channel) -> Any:
    return ingest_service_pb2_grpc.IngestServiceStub(channel)


@pytest.fixture
def twins(channel: grpc.aio.Channel) -> Any:
    return twin_service_pb2_grpc.TwinServiceStub(channel)


@pytest.fixture
def caller(admin_token: str) -> Metadata:
    return bearer(admin_token)


def reading(device_id: str = "temp-5", **numbers: float) -> ingest_service_pb2.Reading:
    return ingest_service_pb2.Reading(device_id=device_id, numbers=numbers or {"temperature": 20})


def request(*readings: ingest_service_pb2.Reading, **rest: Any) -> ingest_service_pb2.IngestTelemetryRequest:
    return ingest_service_pb2.IngestTelemetryRequest(readings=readings, **rest)


def valued(value: value_pb2.Value) -> ingest_service_pb2.Reading:
    return ingest_service_pb2.Reading(device_id="temp-5", values={"temperature": value})


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (reading(temperature=math.nan), "numbers['temperature']"),
        (reading(temperature=math.inf), "numbers['temperature']"),
        (valued(value_pb2.Value(double_value=-math.inf)), "values['temperature'].double_value"),
        (valued(value_pb2.Value(string_value="a\0b")), "values['temperature'].string_value"),
        (valued(value_pb2.Value(string_value="x" * 4_097)), "values['temperature'].string_value"),
        (valued(value_pb2.Value()), "values['temperature'].kind"),
        (valued(value_pb2.Value(point_value=value_pb2.Point(latitude=math.nan))), None),
        (ingest_service_pb2.Reading(device_id="temp-5"), ""),
        (ingest_service_pb2.Reading(device_id="temp-5", numbers={"": 1.0}), "numbers['']"),
        *((reading(device_id), "device_id") for device_id in ("", "a/b", "a*", "a>", "a b", "x" * 10_240)),
    ],
)
async def test_a_bad_reading_is_named(
    ingest: Any, caller: Metadata, bad: ingest_service_pb2.Reading, field: str | None
) -> None:
    refused = await failure(ingest.IngestTelemetry(request(reading(), bad), metadata=caller))
    assert (refused.code, refused.reason) == _INVALID
    if field is None:
        assert refused.fields[0].startswith("readings[1].")
    else:
        assert refused.fields == [f"readings[1].{field}".rstrip(".")]


@pytest.mark.parametrize(
    "time", [Timestamp(seconds=2**63 - 1), Timestamp(seconds=-(2**63)), Timestamp(seconds=253_402_300_800)]
)
async def test_a_time_beyond_the_calendar_is_out_of_the_window(
    ingest: Any, caller: Metadata, time: Timestamp
) -> None:
    bad = reading()
    bad.time.CopyFrom(time)
    answer = await ingest.IngestTelemetry(request(bad, request_id=uuid.uuid4().hex), metadata=caller)
    assert (answer.stored_samples, answer.refused_samples) == (0, 1)
    assert answer.refusals[0].reason == error_reason_pb2.ERROR_REASON_TIME_OUT_OF_WINDOW


async def test_a_time_that_is_none_is_named(ingest: Any, caller: Metadata) -> None:
    bad = reading()
    bad.time.nanos = -1
    refused = await failure(ingest.IngestTelemetry(request(bad), metadata=caller))
    assert (refused.code, refused.reason) == _INVALID
    assert refused.fields == ["readings[0].time.nanos"]


async def test_a_batch_over_the_limit_is_refused(ingest: Any, caller: Metadata) -> None:
    refused = await failure(ingest.IngestTelemetry(request(*[reading()] * 10_001), metadata=caller))
    assert (refused.code, refused.reason) == _INVALID
    assert refused.fields == ["readings"]
    text = value_pb2.Value(string_value="x" * 4_096)
    refused = await failure(ingest.IngestTelemetry(request(*[valued(text)] * 1_100), metadata=caller))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BODY_TOO_LARGE")


async def test_bytes_that_are_no_message_are_refused(channel: grpc.aio.Channel, caller: Metadata) -> None:
    call: Any = channel.unary_unary("/twinmesh.ingest.v1.IngestService/IngestTelemetry")
    refused = await failure(call(b"\x0a\xff", metadata=caller))
    assert (refused.code, refused.reason) == _INVALID


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (Timestamp(seconds=2), Timestamp(seconds=1), "TIME_RANGE_INVALID"),
        (Timestamp(seconds=1), Timestamp(seconds=1), "TIME_RANGE_INVALID"),
        (Timestamp(seconds=2**62), Timestamp(seconds=2**62 + 1), "INVALID_FIELD"),
        (Timestamp(nanos=-1), Timestamp(seconds=1), "INVALID_FIELD"),
    ],
)
async def test_a_time_range_that_is_none_is_refused(
    twins: Any, caller: Metadata, start: Timestamp, end: Timestamp, reason: str
) -> None:
    question = twin_service_pb2.QueryHistoryRequest(id="temp-1", start_time=start, end_time=end)
    refused = await failure(twins.QueryHistory(question, metadata=caller))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (Timestamp(seconds=1_577_836_801), Timestamp(seconds=1_577_836_800), "TIME_RANGE_INVALID"),
        (
            Timestamp(seconds=1_577_836_800),
            Timestamp(seconds=1_577_836_800 + 401 * 86_400),
            "TIME_RANGE_INVALID",
        ),
        (Timestamp(seconds=0), Timestamp(seconds=1_577_836_800), "INVALID_FIELD"),
        (Timestamp(seconds=1_577_836_800), Timestamp(seconds=2**62), "INVALID_FIELD"),
        (Timestamp(seconds=1_577_836_800), Timestamp(seconds=-(2**62)), "TIME_RANGE_INVALID"),
    ],
)
async def test_a_backfill_of_no_range_is_refused(
    ingest: Any, caller: Metadata, start: Timestamp, end: Timestamp, reason: str
) -> None:
    declared = ingest_service_pb2.CreateBackfillRequest(start_time=start, end_time=end)
    refused = await failure(ingest.CreateBackfill(declared, metadata=caller))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_a_page_is_bounded(channel: grpc.aio.Channel, twins: Any, caller: Metadata) -> None:
    devices: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    calls: list[Callable[[int], Any]] = [
        lambda size: devices.ListDevices(
            device_service_pb2.ListDevicesRequest(page_size=size), metadata=caller
        ),
        lambda size: twins.ListTwins(twin_service_pb2.ListTwinsRequest(page_size=size), metadata=caller),
        lambda size: twins.QueryHistory(
            twin_service_pb2.QueryHistoryRequest(id="temp-1", page_size=size), metadata=caller
        ),
    ]
    assert len((await calls[0](10**9)).devices) == 1_000
    for call in calls[1:]:
        await call(10**9)
    for call in calls:
        refused = await failure(call(-1))
        assert (refused.code, refused.reason, refused.fields) == (*_INVALID, ["page_size"])


async def test_another_tenants_device_does_not_exist(ingest: Any, twins: Any, rival_token: str) -> None:
    rival = bearer(rival_token)
    answer = await ingest.IngestTelemetry(request(reading()), metadata=rival)
    assert [refusal.reason for refusal in answer.refusals] == [error_reason_pb2.ERROR_REASON_DEVICE_UNKNOWN]
    for call in (
        twins.GetTwin(twin_service_pb2.GetTwinRequest(id="temp-5"), metadata=rival),
        twins.QueryHistory(twin_service_pb2.QueryHistoryRequest(id="temp-5"), metadata=rival),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_credentials_that_are_not_good_are_refused(
    channel: grpc.aio.Channel, admin: httpx.AsyncClient, expired_token: str
) -> None:
    created = (await admin.post("/v1/apiKeys", json={"displayName": "test"})).json()
    sessions: Any = session_service_pb2_grpc.SessionServiceStub(channel)
    me = session_service_pb2.GetMeRequest()
    assert (await sessions.GetMe(me, metadata=bearer(created["secret"]))).subject == created["id"]
    await admin.delete(f"/v1/apiKeys/{created['id']}")
    foreign = TokenMint(kid="x").token(tenant="demo", permissions=["twin:read"])
    for token, reason in {
        created["secret"]: "API_KEY_INVALID",
        "tmk_demo_abc_def": "API_KEY_INVALID",
        expired_token: "TOKEN_INVALID",
        foreign: "TOKEN_INVALID",
        "nonsense": "TOKEN_INVALID",
    }.items():
        refused = await failure(sessions.GetMe(me, metadata=bearer(token)))
        assert (refused.code, refused.reason) == (_UNAUTHENTICATED, reason)
    nobody = await failure(sessions.GetMe(me))
    assert (nobody.code, nobody.reason) == (_UNAUTHENTICATED, "CREDENTIAL_MISSING")
