"""A sample sent through the gateway is durable, in its twin, in history, and in one trace."""

import re
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually
from tests.rpc.ingest.streaming import Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc


def now(offset_s: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=offset_s)).isoformat().replace("+00:00", "Z")


async def send(client: httpx.AsyncClient, *readings: dict[str, Any], **rest: Any) -> httpx.Response:
    return await client.post("/v1/telemetry", json={"readings": list(readings), **rest})


async def test_a_sample_sent_is_found_again(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    time = now()
    sent = await send(admin, {"deviceId": "temp-1", "time": time, "numbers": {"temperature": 21.5}})
    assert sent.status_code == 200, sent.text
    assert sent.json()["storedSamples"] == "1"
    trace_id = sent.headers["x-trace-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)

    def in_twin() -> bool:
        twin = httpx.get(f"{mesh.url}/v1/twins/temp-1", headers=admin.headers).json()
        return bool(twin["metrics"].get("temperature", {}).get("time") == time)

    eventually(in_twin, "the twin shows the sample")
    twin = (await admin.get("/v1/twins/temp-1")).json()
    assert twin["metrics"]["temperature"]["value"] == {"doubleValue": 21.5}

    history = await admin.get(
        "/v1/twins/temp-1/history", params={"metrics": "temperature", "startTime": time}
    )
    assert history.status_code == 200, history.text
    (metric,) = history.json()["metrics"]
    micros = int(datetime.fromisoformat(time).timestamp() * 1_000_000)
    assert abs(int(metric["times"][0]) - micros) <= 1
    assert metric["doubleValues"][0] == 21.5

    def traced() -> bool:
        shown = mesh.twinmesh("trace", trace_id, check=False).stdout
        return all(part in shown for part in ("gateway", "ingest_svc", "commit", "twin_svc"))

    eventually(traced, "the trace goes from Envoy through ingest and the commit into the twin")


async def test_a_streams_batch_is_one_trace_up_to_the_twin(mesh: Mesh, admin_token: str) -> None:
    trace_id = secrets.token_hex(16)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(uuid.uuid4().hex)
        await client.define(("temp-2", "temperature"))
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        await client.batch(1, columns(20.0), traceparent=traceparent)
        assert await client.durable(1) == []
        await client.close()

    def traced() -> bool:
        shown = mesh.twinmesh("trace", trace_id, check=False).stdout
        return all(part in shown for part in ("ingest.batch", "telemetry.commit", "twin.apply"))

    eventually(traced, "the trace goes from the batch through the commit into the twin")


async def test_grpc_and_json_share_one_port(mesh: Mesh, admin_token: str) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        answer = await stub.ListTwins(
            twin_service_pb2.ListTwinsRequest(page_size=3), metadata=bearer(admin_token), timeout=10
        )
    assert len(answer.twins) == 3


async def test_every_kind_survives_the_way(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    device_type, device = f"kinds-{uuid.uuid4().hex[:8]}", f"device-{uuid.uuid4().hex[:8]}"
    kinds = {"d": "DOUBLE", "i": "INT", "b": "BOOL", "s": "STRING", "p": "POINT"}
    metrics = [{"name": name, "kind": f"VALUE_KIND_{kind}"} for name, kind in kinds.items()]
    assert (
        await admin.post("/v1/deviceTypes", json={"id": device_type, "metrics": metrics})
    ).status_code == 200
    assert (
        await admin.post("/v1/devices", json={"id": device, "deviceTypeId": device_type})
    ).status_code == 200
    values: dict[str, Any] = {
        "d": {"doubleValue": 0.1},
        "i": {"intValue": "9007199254740993"},
        "b": {"boolValue": True},
        "s": {"stringValue": "läuft ✓"},
        "p": {"pointValue": {"latitude": 52.5, "longitude": 13.25, "altitude": 34.5}},
    }
    place = {"latitude": 1.5, "longitude": -2.25}
    sent = await send(admin, {"deviceId": device, "time": now(), "values": values, "location": place})
    assert sent.json()["storedSamples"] == "6", sent.text

    def complete() -> bool:
        twin = httpx.get(f"{mesh.url}/v1/twins/{device}", headers=admin.headers).json()
        return len(twin["metrics"]) == 6

    eventually(complete, "the twin has every metric")
    twin = (await admin.get(f"/v1/twins/{device}")).json()
    assert {name: twin["metrics"][name]["value"] for name in values} == values
    assert twin["location"] == place
    history = (await admin.get(f"/v1/twins/{device}/history")).json()
    by_name = {metric["metric"]: metric for metric in history["metrics"]}
    assert by_name["i"]["intValues"] == ["9007199254740993"]
    assert by_name["s"]["stringValues"] == ["läuft ✓"]
    assert by_name["p"]["pointValues"] == [values["p"]["pointValue"]]


async def test_refusals_are_typed_and_the_rest_is_stored(admin: httpx.AsyncClient) -> None:
    answer = await send(
        admin,
        {"deviceId": "temp-2", "time": now(), "numbers": {"temperature": 20}},
        {"deviceId": "no-such-device", "time": now(), "numbers": {"temperature": 20}},
        {"deviceId": "temp-2", "time": now(), "numbers": {"colour": 1}},
        {"deviceId": "temp-2", "time": now(), "values": {"temperature": {"stringValue": "warm"}}},
        {"deviceId": "temp-2", "time": "1970-01-02T00:00:00Z", "numbers": {"temperature": 20}},
        {"deviceId": "temp-2", "time": "2100-01-01T00:00:00Z", "numbers": {"temperature": 20}},
    )
    told = answer.json()
    assert (told["storedSamples"], told["refusedSamples"]) == ("1", "5")
    assert [(refusal["readingIndex"], refusal["reason"]) for refusal in told["refusals"]] == [
        (1, "ERROR_REASON_DEVICE_UNKNOWN"),
        (2, "ERROR_REASON_METRIC_UNKNOWN"),
        (3, "ERROR_REASON_KIND_MISMATCH"),
        (4, "ERROR_REASON_TIME_OUT_OF_WINDOW"),
        (5, "ERROR_REASON_TIME_OUT_OF_WINDOW"),
    ]


async def test_a_repeated_request_stores_nothing(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    reading = {"deviceId": "temp-3", "time": now(), "numbers": {"temperature": 19.25}}
    request_id = uuid.uuid4().hex
    first = (await send(admin, reading, requestId=request_id)).json()
    again = (await send(admin, reading, requestId=request_id)).json()
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert {**again, "duplicate": False} == first
    other = await send(admin, {**reading, "numbers": {"temperature": 1}}, requestId=request_id)
    assert other.status_code == 400
    assert other.json()["details"][0]["reason"] == "REQUEST_ID_REUSED"
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        stored = await connection.fetchval(
            "SELECT sum(cardinality(times)) FROM telemetry.segment JOIN telemetry.series "
            "USING (tenant_id, series_id) WHERE device_id = 'temp-3' AND metric = 'temperature'"
        )
    finally:
        await connection.close()
    assert stored == 1


async def test_a_writer_goes_on_where_it_stopped(admin: httpx.AsyncClient) -> None:
    writer = {"writerId": uuid.uuid4().hex}
    reading = {"deviceId": "temp-4", "time": now(), "numbers": {"temperature": 19.5}}
    assert (await send(admin, reading, **writer, sequence="1")).status_code == 200
    assert (await send(admin, reading, **writer, sequence="1")).json()["duplicate"] is True
    gap = await send(admin, reading, **writer, sequence="3")
    assert gap.status_code == 400
    assert gap.json()["details"][0]["reason"] == "SEQUENCE_GAP"
    assert gap.json()["details"][0]["metadata"] == {"expected": "2"}
    assert (await send(admin, reading, **writer, sequence="2")).status_code == 200
    reused = await send(admin, {**reading, "numbers": {"temperature": 1}}, **writer, sequence="2")
    assert reused.json()["details"][0]["reason"] == "SEQUENCE_REUSED"


async def test_health_is_public(mesh: Mesh) -> None:
    async with mesh.client() as nobody:
        assert (await nobody.get("/healthz/live")).json()["status"] == "ok"
        assert (await nobody.get("/healthz/ready")).json()["status"] == "ok"


def test_a_signing_key_is_rotated_by_command(mesh: Mesh, admin_token: str) -> None:
    told = mesh.twinmesh("keys", "rotate").stdout
    rotated = re.match(r"key ([0-9a-f]{16}) signs from 20\S+ on\n", told)
    assert rotated is not None, told
    assert mesh.twinmesh("keys", "rotate").stdout == told, "it is on its way already"

    def is_published() -> bool:
        keys = httpx.get(f"{mesh.url}/.well-known/jwks.json").json()["keys"]
        return rotated[1] in {key["kid"] for key in keys}

    eventually(is_published, "auth_svc publishes the new key")
    me = httpx.get(f"{mesh.url}/v1/auth/me", headers={"authorization": f"Bearer {admin_token}"})
    assert me.status_code == 200
