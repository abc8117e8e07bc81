"""Native gRPC and gRPC-Web through the same port."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from meshkit import errors
from meshkit.config import MAX_MESSAGE_BYTES
from tests.mesh.gateway.conftest import Gateway, info_of
from tests.mesh.gateway.neighbours import GOOD_KEY, Watches
from tests.mesh.grpc_frames import framed, frames
from twinmesh.asset.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
)
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

LIST_DEVICES = "/twinmesh.asset.v1.DeviceService/ListDevices"


def metadata_value(metadata: Iterable[Any], key: str) -> str:
    return str({each.key: each.value for each in metadata}[key])


def test_unary_with_its_deadline(gateway: Gateway) -> None:
    devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
    request = device_service_pb2.GetDeviceRequest(id="x")
    answer, call = devices.GetDevice.with_call(request, metadata=gateway.metadata, timeout=17)
    assert answer.id == "x"
    deadline = gateway.arrivals.deadlines[-1]
    assert deadline is not None
    assert 0 < deadline <= 17
    assert len(metadata_value(call.initial_metadata(), "x-trace-id")) == 32


def test_api_key(gateway: Gateway) -> None:
    devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
    devices.ListDevices(
        device_service_pb2.ListDevicesRequest(), metadata=(("authorization", f"Bearer {GOOD_KEY}"),)
    )


def test_streams_both_ways(gateway: Gateway) -> None:
    ingest = ingest_service_pb2_grpc.IngestServiceStub(gateway.channel)

    def batches() -> Iterator[ingest_service_pb2.StreamTelemetryRequest]:
        for sequence in (1, 2, 3):
            yield ingest_service_pb2.StreamTelemetryRequest(batch=ingest_service_pb2.Batch(sequence=sequence))

    acks = ingest.StreamTelemetry(batches(), metadata=gateway.metadata)
    assert [ack.ack.durable_through for ack in acks] == [1, 2, 3]


def test_a_watch_tells_each_event_at_once_and_ends_with_a_status(gateway: Gateway, watches: Watches) -> None:
    twins = twin_service_pb2_grpc.TwinServiceStub(gateway.channel)
    events = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(ids=["pump"]), metadata=gateway.metadata)
    assert next(events).snapshot.twins[0].id == "pump"
    watch = watches.get(timeout=30)
    for token in ("a", "b"):
        watch.tell(bookmark={"resume_token": token})
        assert next(events).bookmark.resume_token == token
    watch.end(errors.dependency_unavailable("twin_svc"))
    with pytest.raises(grpc.RpcError) as ended:
        next(events)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(ended.value).metadata["dependency"] == "twin_svc"


def test_a_caller_that_leaves_a_watch_ends_the_call(gateway: Gateway, watches: Watches) -> None:
    twins = twin_service_pb2_grpc.TwinServiceStub(gateway.channel)
    events = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(), metadata=gateway.metadata)
    watch = watches.get(timeout=30)
    assert not watch.over.is_set()
    events.cancel()
    assert watch.over.wait(30)


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        (None, "CREDENTIAL_MISSING"),
        ("Bearer a.b.c", "TOKEN_INVALID"),
        ("Bearer tmk_acme_1_wrong", "API_KEY_INVALID"),
    ],
)
def test_refusals_are_statuses_with_details(gateway: Gateway, credential: str | None, expected: str) -> None:
    devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
    metadata = () if credential is None else (("authorization", credential),)
    with pytest.raises(grpc.RpcError) as refused:
        devices.ListDevices(device_service_pb2.ListDevicesRequest(), metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert info_of(refused.value).reason == expected
    assert len(metadata_value(refused.value.trailing_metadata(), "x-trace-id")) == 32


def test_errors_of_services_pass_unchanged(gateway: Gateway) -> None:
    devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
    with pytest.raises(grpc.RpcError) as refused:
        devices.GetDevice(device_service_pb2.GetDeviceRequest(id="absent"), metadata=gateway.metadata)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert info_of(refused.value).metadata["id"] == "absent"


def test_services_for_services_are_not_reachable(gateway: Gateway) -> None:
    before = len(gateway.arrivals.requests)
    profiles = profile_service_pb2_grpc.ProfileServiceStub(gateway.channel)
    with pytest.raises(grpc.RpcError) as refused:
        profiles.ListProfiles(
            profile_service_pb2.ListProfilesRequest(tenant="acme"), metadata=gateway.metadata
        )
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert info_of(refused.value).reason == "ROUTE_NOT_FOUND"
    path = "/twinmesh.asset.v1.ProfileService/ListProfiles"
    for content_type in ("application/json", "application/grpc-web+proto"):
        gateway.http.post(path, headers={**gateway.bearer, "content-type": content_type}, content=b"{}")
    assert len(gateway.arrivals.requests) == before


def test_health_of_a_service_is_not_routed(gateway: Gateway) -> None:
    health: Any = health_pb2_grpc.HealthStub(gateway.channel)
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(), metadata=gateway.metadata)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_needs_a_token(gateway: Gateway) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="twinmesh.asset.v1.DeviceService")
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.ServerReflectionInfo(iter([request])))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    answers = list(stub.ServerReflectionInfo(iter([request]), metadata=gateway.metadata))
    assert answers[0].file_descriptor_response.file_descriptor_proto


def _web(gateway: Gateway, message: Message, headers: dict[str, str]) -> httpx.Response:
    return gateway.http.post(
        LIST_DEVICES,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **headers},
        content=framed(message),
    )


def test_grpc_web(gateway: Gateway) -> None:
    answer = _web(gateway, device_service_pb2.ListDevicesRequest(page_size=7), gateway.bearer)
    assert answer.status_code == 200
    assert gateway.arrivals.requests[-1].page_size == 7
    answered = dict(frames(answer.content))
    device_service_pb2.ListDevicesResponse.FromString(answered[0])
    assert b"grpc-status:0" in answered[0x80]


def test_grpc_web_refusals_carry_a_status(gateway: Gateway) -> None:
    answer = _web(gateway, device_service_pb2.ListDevicesRequest(), {})
    assert answer.status_code == 200
    assert answer.headers["grpc-status"] == "16"
    assert answer.headers["grpc-status-details-bin"]
    assert "grpc-status-details-bin" not in answer.headers["grpc-message"]


def _of_size(size: int) -> device_service_pb2.ListDevicesRequest:
    """A message of so many bytes; a field of some MiB has five more than its text."""
    made = device_service_pb2.ListDevicesRequest(search="x" * (size - 5))
    assert made.ByteSize() == size
    return made


def test_a_message_of_the_largest_size_arrives_and_none_above(gateway: Gateway) -> None:
    devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
    devices.ListDevices(_of_size(MAX_MESSAGE_BYTES), metadata=gateway.metadata)
    assert gateway.arrivals.requests[-1].ByteSize() == MAX_MESSAGE_BYTES
    before = len(gateway.arrivals.requests)
    with pytest.raises(grpc.RpcError) as refused:
        devices.ListDevices(_of_size(MAX_MESSAGE_BYTES + 1), metadata=gateway.metadata)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(refused.value).reason == "BODY_TOO_LARGE"
    assert len(gateway.arrivals.requests) == before


def test_a_message_that_anybody_may_send_is_smaller(gateway: Gateway) -> None:
    sessions = session_service_pb2_grpc.SessionServiceStub(gateway.channel)
    before = len(gateway.arrivals.requests)
    with pytest.raises(grpc.RpcError) as refused:
        sessions.Login(session_service_pb2.LoginRequest(password="x" * 65_536))
    assert info_of(refused.value).reason == "BODY_TOO_LARGE"
    assert len(gateway.arrivals.requests) == before


@pytest.mark.parametrize("content_type", ["application/grpc-web+proto", "application/grpc-web-text"])
def test_the_largest_size_is_the_same_for_grpc_web(gateway: Gateway, content_type: str) -> None:
    def answer(size: int) -> httpx.Response:
        body = framed(_of_size(size))
        return gateway.http.post(
            LIST_DEVICES,
            headers={**gateway.bearer, "content-type": content_type, "x-grpc-web": "1"},
            content=base64.b64encode(body) if content_type.endswith("text") else body,
        )

    assert answer(MAX_MESSAGE_BYTES).is_success
    assert gateway.arrivals.requests[-1].ByteSize() == MAX_MESSAGE_BYTES
    before = len(gateway.arrivals.requests)
    refused = answer(MAX_MESSAGE_BYTES + 1)
    assert (refused.status_code, refused.headers["grpc-status"]) == (200, "3")
    assert b"BODY_TOO_LARGE" in base64.b64decode(refused.headers["grpc-status-details-bin"] + "==")
    assert len(gateway.arrivals.requests) == before


def test_one_trace_through_the_gateway(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", headers=gateway.bearer)
    trace_id = answer.headers["x-trace-id"]
    assert gateway.arrivals.metadata[-1]["traceparent"].split("-")[1] == trace_id
    assert gateway.arrivals.wait_for_trace(trace_id)


def test_a_callers_trace_goes_on(gateway: Gateway) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    traceparent = f"00-{trace_id}-b7ad6b7169203331-01"
    answer = gateway.http.get("/v1/devices", headers={**gateway.bearer, "traceparent": traceparent})
    assert answer.headers["x-trace-id"] == trace_id
    assert gateway.arrivals.metadata[-1]["traceparent"].split("-")[1] == trace_id


def test_the_access_log_names_the_caller_and_no_credential(gateway: Gateway) -> None:
    bearer = gateway.bearer
    answer = gateway.http.get("/v1/devices?search=findme", headers=bearer)
    trace_id = answer.headers["x-trace-id"]

    def entries() -> list[dict[str, object]]:
        lines = gateway.access_log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # Envoy writes its log about once a second.
    entry = next(
        entry
        for _ in iter(lambda: gateway.http.get("/healthz/live").status_code, None)
        for entry in entries()
        if entry["trace_id"] == trace_id
    )
    assert (entry["method"], entry["path"], entry["tenant"]) == ("GET", "/v1/devices", "acme")
    assert entry["upstream_cluster"] == "asset_svc"
    written = gateway.access_log.read_text()
    assert bearer["authorization"] not in written
    assert "findme" not in written
