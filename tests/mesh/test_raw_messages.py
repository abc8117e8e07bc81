"""Through the gateway: each door's message is found by its device and by time, and is what was sent."""

import base64
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_clients import AioMqtt, topic_of
from tests.mesh.mqtt_site import MqttSite, mqtt_site, until
from tests.rpc.ingest.streaming import Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

SAMPLES = 60_000  # A batch of about 1 MiB.


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient) -> AsyncIterator[MqttSite]:
    async with mqtt_site(mesh, admin, database_url=mesh.database_url("postgres")) as made:
        yield made


async def found(admin: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    """Return messages as JSON, the newest first."""
    listed = await admin.get("/v1/rawMessages", params=query)
    listed.raise_for_status()
    messages = []
    for message in listed.json()["rawMessages"]:
        answer = await admin.get(f"/v1/rawMessages/{message['id']}")
        answer.raise_for_status()
        messages.append(answer.json())
    return messages


async def send_stream(mesh: Mesh, token: str, device: str, writer: str, batch: ingest_pb2.Columns) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = ingest_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(token)))
        await client.open(writer)
        await client.define((device, "temperature"))
        await client.batch(1, batch)
        await client.durable(1)
        await client.close()


async def test_each_door_s_message_is_found_by_device_and_time(site: MqttSite, admin_token: str) -> None:
    device, writer = await site.device(), uuid.uuid4().hex
    before = datetime.now(UTC) - timedelta(seconds=1)
    reading = {"deviceId": device, "numbers": {"temperature": 20.5}}
    (
        await site.admin.post("/v1/telemetry", json={"readings": [reading], "requestId": writer})
    ).raise_for_status()
    sent = columns(1, 2, 3)
    await send_stream(site.mesh, admin_token, device, writer, sent)
    payload = json.dumps({"temperature": 21.5}).encode()
    await AioMqtt().publish(site.login(device), topic_of(device), payload, qos=1)

    async def are_there() -> bool:
        return len(await found(site.admin, device_id=device)) >= 4

    await until(are_there, "four raw messages")
    mqtt, batch, definitions, unary = await found(
        site.admin, device_id=device, start_time=before.isoformat(), end_time=datetime.now(UTC).isoformat()
    )
    assert base64.b64decode(mqtt["payload"]) == payload
    assert (mqtt["text"], mqtt["door"], mqtt["deviceIds"]) == (payload.decode(), "mqtt", [device])
    assert ingest_pb2.Batch.FromString(base64.b64decode(batch["payload"])).columns == sent
    assert batch["batch"]["columns"]["doubleValues"] == [1, 2, 3]
    assert batch["seriesDefsIds"] == [definitions["id"]]
    assert [each["deviceId"] for each in definitions["seriesDefs"]["defs"]] == [device]
    assert unary["request"]["readings"][0]["numbers"] == {"temperature": 20.5}
    assert (unary["requestId"], unary["principal"]) == (writer, "user:admin")
    assert len(unary["traceId"]) == 32
    assert [each["id"] for each in await found(site.admin, writer_id=writer)] == [
        batch["id"],
        definitions["id"],
    ]
    assert await found(site.admin, device_id=device, end_time=before.isoformat()) == []


async def test_events_are_found_by_their_devices(site: MqttSite) -> None:
    device, request_id = await site.device(), uuid.uuid4().hex
    events = [
        {"deviceId": device, "type": "door.opened"},
        {"deviceId": "no-such-device", "type": "door.opened"},
    ]
    sent = await site.admin.post("/v1/events", json={"events": events, "requestId": request_id})
    sent.raise_for_status()
    (kept,) = await found(site.admin, device_id=device)
    assert (kept["format"], kept["requestId"]) == ("RAW_MESSAGE_FORMAT_EVENTS_REQUEST", request_id)
    assert kept["deviceIds"] == sorted([device, "no-such-device"])
    assert [event["deviceId"] for event in kept["eventsRequest"]["events"]] == [device, "no-such-device"]


async def test_a_large_batch_is_read_as_json(site: MqttSite, admin_token: str) -> None:
    device, writer = await site.device(), uuid.uuid4().hex
    first_us = int(datetime.now(UTC).timestamp() * 1_000_000) - SAMPLES
    sent = columns(*(number / 7 for number in range(SAMPLES)), times=range(first_us, first_us + SAMPLES))
    await send_stream(site.mesh, admin_token, device, writer, sent)
    batch, _ = await found(site.admin, writer_id=writer)
    assert ingest_pb2.Batch.FromString(base64.b64decode(batch["payload"])).columns == sent
    assert batch["batch"]["columns"]["doubleValues"] == list(sent.double_values)


async def test_other_tenants_and_viewers_read_nothing(site: MqttSite, rival: httpx.AsyncClient) -> None:
    device = await site.device()
    reading = {"deviceId": device, "numbers": {"temperature": 1}}
    (await site.admin.post("/v1/telemetry", json={"readings": [reading]})).raise_for_status()
    (message,) = await found(site.admin, device_id=device)
    assert await found(rival, device_id=device) == []
    assert (await rival.get(f"/v1/rawMessages/{message['id']}")).status_code == 404
    key = await site.new_key("history:read")
    async with site.mesh.client(key.secret) as reader:
        assert (await reader.get("/v1/rawMessages")).status_code == 403


async def test_the_command_line_lists_and_shows(site: MqttSite, tmp_path: Path) -> None:
    mesh = site.mesh
    device = await site.device()
    payload = b'{"temperature": 1.50}'
    await AioMqtt().publish(site.login(device), topic_of(device), payload, qos=1)

    async def is_there() -> bool:
        return bool(await found(site.admin, device_id=device))

    await until(is_there, "a raw message")
    (message,) = await found(site.admin, device_id=device)
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    listed = mesh.twinmesh("raw", "list", "--device", device).stdout
    assert message["id"] in listed
    file = tmp_path / "payload"
    shown = json.loads(mesh.twinmesh("raw", "show", message["id"], "--payload", str(file)).stdout)
    assert (shown["text"], "payload" in shown) == (payload.decode(), False)
    assert file.read_bytes() == payload
