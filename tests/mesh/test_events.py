"""Events and states go in and come out by gRPC, JSON and the command line, exactly once."""

import json
import time
import uuid
from dataclasses import replace
from typing import Any

import grpc
import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.rpc.ingest.streaming import Client
from twinmesh.ingest.v1 import event_pb2, ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import event_service_pb2, event_service_pb2_grpc
from twinmesh.type.v1 import severity_pb2
from twinmesh.type.v1.value_pb2 import VALUE_KIND_STRING, Value


async def site(admin: httpx.AsyncClient) -> dict[str, str]:
    """Make a hall, a line in it with a device, and a yard; return their ids by name."""
    suffix = uuid.uuid4().hex[:8]
    ids = {name: f"{name}-{suffix}" for name in ("type", "hall", "line", "yard", "pump")}

    async def make(path: str, **resource: Any) -> None:
        answer = await admin.post(path, json=resource)
        assert answer.status_code == 200, answer.text

    await make("/v1/assetTypes", id=ids["type"])
    await make("/v1/assets", id=ids["hall"], assetTypeId=ids["type"])
    await make("/v1/assets", id=ids["line"], assetTypeId=ids["type"], parentId=ids["hall"])
    await make("/v1/assets", id=ids["yard"], assetTypeId=ids["type"])
    await make("/v1/deviceTypes", id=ids["type"])
    await make("/v1/devices", id=ids["pump"], deviceTypeId=ids["type"], assetId=ids["line"])
    return ids


async def messages(client: httpx.AsyncClient, **params: Any) -> list[str]:
    answer = await client.get("/v1/events", params=params)
    assert answer.status_code == 200, answer.text
    return [event["message"] for event in answer.json()["events"]]


async def test_events_by_json_are_found_by_subtree_and_time(
    admin: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    ids = await site(admin)
    event = {
        "deviceId": ids["pump"],
        "type": "door.opened",
        "severity": "SEVERITY_WARNING",
        "message": "1",
        "attributes": {"by": {"stringValue": "key 7"}, "count": {"intValue": "9007199254740993"}},
    }
    body = {
        "requestId": uuid.uuid4().hex,
        "events": [
            event,
            {"assetId": ids["hall"], "type": "fire", "severity": "SEVERITY_CRITICAL", "message": "2"},
            {"assetId": ids["yard"], "type": "door.closed", "message": "3"},
            {"deviceId": "no-such-device", "type": "door.closed"},
            {"assetId": ids["yard"], "type": "door.closed", "time": "2100-01-01T00:00:00Z"},
        ],
    }
    sent = (await admin.post("/v1/events", json=body)).json()
    assert (sent["storedEvents"], sent["refusedEvents"], sent["duplicate"]) == ("3", "2", False)
    assert [(refusal["eventIndex"], refusal["reason"]) for refusal in sent["refusals"]] == [
        (3, "ERROR_REASON_DEVICE_UNKNOWN"),
        (4, "ERROR_REASON_TIME_OUT_OF_WINDOW"),
    ]
    assert (await admin.post("/v1/events", json=body)).json() == {**sent, "duplicate": True}

    found = (await admin.get("/v1/events", params={"deviceId": ids["pump"]})).json()["events"]
    assert [{name: each[name] for name in event} for each in found] == [event]
    assert found[0]["assetId"] == ids["line"]
    assert await messages(admin, assetId=ids["hall"]) == ["2"]
    hall = {"assetId": ids["hall"], "includeDescendants": "true"}
    assert await messages(admin, **hall) == ["2", "1"]
    assert await messages(admin, **hall, types="door") == ["1"]
    assert await messages(admin, **hall, minimumSeverity="SEVERITY_ERROR") == ["2"]
    assert await messages(admin, **hall, endTime=found[0]["time"]) == []
    first = (await admin.get("/v1/events", params={**hall, "pageSize": "1"})).json()
    assert await messages(admin, **hall, pageSize="1", pageToken=first["nextPageToken"]) == ["1"]

    stranger = await rival.get("/v1/events", params=hall)
    assert (stranger.status_code, stranger.json()["details"][0]["reason"]) == (404, "NOT_FOUND")
    assert not {"1", "2", "3"} & set(await messages(rival))


async def test_events_by_grpc_and_in_a_streams_batch(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str
) -> None:
    ids = await site(admin)
    event = event_pb2.Event(
        device_id=ids["pump"],
        type="motor.started",
        severity=severity_pb2.SEVERITY_NOTICE,
        message="läuft",
        attributes={"speed": Value(double_value=3)},
    )
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        request = ingest_service_pb2.IngestEventsRequest(events=[event])
        answer = await stub.IngestEvents(request, metadata=bearer(admin_token))
        assert answer == ingest_service_pb2.IngestEventsResponse(stored_events=1)
        client = Client(stub.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(uuid.uuid4().hex)
        for _ in range(2):
            await client.batch(1, events=[event])
        assert await client.durable(1) == []
        await client.close()
        events: Any = event_service_pb2_grpc.EventServiceStub(channel)
        listing = event_service_pb2.ListEventsRequest(asset_id=ids["line"])
        found = (await events.ListEvents(listing, metadata=bearer(admin_token))).events
    assert [(each.type, each.severity, each.message, dict(each.attributes)) for each in found] == [
        (event.type, event.severity, event.message, dict(event.attributes))
    ] * 2


async def test_states_by_codes_are_in_history_and_twin(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str
) -> None:
    name = f"door-{uuid.uuid4().hex[:8]}"
    metrics = [{"name": "state", "kind": "VALUE_KIND_STRING"}]
    for path, resource in (
        ("/v1/deviceTypes", {"id": name, "metrics": metrics}),
        ("/v1/devices", {"id": name, "deviceTypeId": name}),
    ):
        assert (await admin.post(path, json=resource)).status_code == 200
    texts = ["open", "shut", "open", "läuft"] * 25
    start = time.time_ns() // 1000 - len(texts)
    columns = ingest_service_pb2.Columns(
        series=[0],
        run_lengths=[len(texts)],
        times=range(start, start + len(texts)),
        string_dictionary=["shut", "open", "läuft"],
        string_codes=[1, 0, 1, 2] * 25,
    )
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(uuid.uuid4().hex, ack_level=ingest_service_pb2.ACK_LEVEL_APPLIED)
        await client.define((name, "state"), kind=VALUE_KIND_STRING)
        await client.batch(1, columns)
        assert await client.durable(1) == []
        await client.applied(1)
        await client.close()
    (history,) = (await admin.get(f"/v1/twins/{name}/history")).json()["metrics"]
    assert history["stringValues"] == texts
    twin = (await admin.get(f"/v1/twins/{name}")).json()
    assert twin["metrics"]["state"]["value"] == {"stringValue": "läuft"}


async def test_the_command_line_sends_and_lists(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    ids = await site(admin)
    environment = {**mesh.environment, "TWINMESH_API_KEY": mesh.api_key(), "COLUMNS": "200"}

    def twinmesh(*arguments: str, check: bool = True) -> Any:
        return replace(mesh, environment=environment).twinmesh("events", *arguments, check=check)

    twinmesh("send", "door.opened", "--device", ids["pump"], "--severity", "error", "--attribute", "by=7")
    refused = twinmesh("send", "door.opened", "--device", "no-such-device", check=False)
    assert (refused.returncode, "DEVICE_UNKNOWN" in refused.stderr) == (1, True)
    shown = twinmesh("list", "--asset", ids["hall"], "--severity", "error").stdout
    assert all(text in shown for text in ("error", "door.opened", ids["pump"], ids["line"], "by=7"))
    assert ids["pump"] not in twinmesh("list", "--asset", ids["hall"], "--no-descendants").stdout
    found = (await admin.get("/v1/events", params={"deviceId": ids["pump"]})).json()["events"]
    assert json.dumps(found[0]["attributes"]) == '{"by": {"intValue": "7"}}'
