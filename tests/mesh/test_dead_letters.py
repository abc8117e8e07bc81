"""Through the gateway: what each door refused, mended and replayed, in JSON and on the command line."""

import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_clients import connected, topic_of
from tests.mesh.mqtt_site import MqttSite, mqtt_site, until
from tests.rpc.ingest.streaming import Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2_grpc


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient) -> AsyncIterator[MqttSite]:
    async with mqtt_site(mesh, admin, database_url=mesh.database_url("postgres")) as made:
        yield made


async def letters_of(client: httpx.AsyncClient, device: str, count: int) -> list[dict[str, Any]]:
    """Return the letters that name a device, once there are so many."""
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        answer = await client.get("/v1/deadLetters", params={"filter.deviceId": device})
        assert answer.status_code == 200, answer.text
        found[:] = answer.json()["deadLetters"]
        return len(found) >= count

    await until(are_there, f"{device} has {count} dead letters")
    assert len(found) == count
    return found


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_what_each_door_refuses_is_replayed_once_its_device_exists(
    site: MqttSite, admin_token: str
) -> None:
    admin, device = site.admin, f"late-{uuid.uuid4().hex}"
    sent = {"deviceId": device, "numbers": {"temperature": 1.5}}
    answer = await post(admin, "/v1/telemetry", {"readings": [sent], "requestId": device})
    assert answer["refusedSamples"] == "1"
    async with grpc.aio.insecure_channel(site.mesh.address) as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(admin_token)))
        await client.open(device)
        await client.define((device, "temperature"))
        await client.batch(1, columns(2.5, 3.5))
        await client.durable(1)
        await client.close()
    streamed, posted = await letters_of(admin, device, 2)
    assert (posted["door"], posted["requestId"], posted["reason"]) == (
        "unary",
        device,
        "ERROR_REASON_DEVICE_UNKNOWN",
    )
    assert (streamed["door"], streamed["writerId"], streamed["sequence"]) == ("stream", device, "1")
    assert re.fullmatch(r"[0-9a-f]{32}", posted["traceId"])
    whole = (await admin.get(f"/v1/deadLetters/{posted['id']}")).json()
    assert whole["batch"]["readings"][0]["numbers"] == {"temperature": 1.5}
    whole = (await admin.get(f"/v1/deadLetters/{streamed['id']}")).json()
    assert whole["batch"]["columns"]["doubleValues"] == [2.5, 3.5]

    receipt = (await admin.get("/v1/receipts", params={"writerId": device, "sequence": 1})).json()
    assert (receipt["state"], receipt["refusedSamples"]) == ("RECEIPT_STATE_COMMITTED", "2")
    assert receipt["deadLetterIds"] == [streamed["id"]]

    chosen = {"filter": {"deviceId": device}}
    failed = await post(admin, "/v1/deadLetters:replay", chosen)
    assert (failed["replayed"], failed["failed"]) == (0, 2)
    made = await admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    assert made.status_code == 200, made.text
    stored: list[int] = []

    async def are_replayed() -> bool:
        answer = await post(admin, "/v1/deadLetters:replay", chosen)
        stored.append(int(answer["storedSamples"]))
        return bool(answer["replayed"] == 0 and answer["failed"] == 0)

    await until(are_replayed, "all letters are replayed")
    assert sum(stored) == 3
    assert sorted(await site.values(device)) == [1.5, 2.5, 3.5]
    await letters_of(admin, device, 0)
    receipt = (await admin.get("/v1/receipts", params={"requestId": device})).json()
    assert (receipt["state"], receipt["deadLetterIds"]) == ("RECEIPT_STATE_COMMITTED", [])


async def test_a_device_s_message_is_read_replayed_and_has_a_receipt(site: MqttSite) -> None:
    admin = site.admin
    device_type = await site.device_type(metrics=[{"name": "temperature", "kind": "VALUE_KIND_DOUBLE"}])
    device = await site.device(device_type)
    payload = {"temperature": 20.5, "colour": 3}
    async with connected(site.login(device)) as client:
        await client.publish(topic_of(device), json.dumps(payload), qos=1)
    (listed,) = await letters_of(admin, device, 1)
    assert (listed["door"], listed["sampleCount"]) == ("mqtt", "1")
    letter = (await admin.get(f"/v1/deadLetters/{listed['id']}")).json()
    assert json.loads(letter["text"]) == payload
    receipt = (await admin.get("/v1/receipts", params={"messageId": listed["messageId"]})).json()
    assert (receipt["state"], receipt["storedSamples"], receipt["refusedSamples"]) == (
        "RECEIPT_STATE_COMMITTED",
        "1",
        "1",
    )
    assert receipt["deadLetterIds"] == [listed["id"]]
    assert receipt["traceId"] == listed["traceId"]
    assert [each["reason"] for each in receipt["refusals"]] == ["ERROR_REASON_METRIC_UNKNOWN"]
    unknown = (await admin.get("/v1/receipts", params={"messageId": "none:1"})).json()
    assert (unknown["state"], unknown["mayHaveExpired"]) == ("RECEIPT_STATE_UNKNOWN", True)

    of_type = (await admin.get(f"/v1/deviceTypes/{device_type}")).json()
    metrics = [*of_type["metrics"], {"name": "colour", "kind": "VALUE_KIND_INT"}]
    changed = await admin.patch(f"/v1/deviceTypes/{device_type}", json={"metrics": metrics})
    assert changed.status_code == 200, changed.text

    async def is_replayed() -> bool:
        return bool((await post(admin, "/v1/deadLetters:replay", {"ids": [listed["id"]]}))["replayed"])

    await until(is_replayed, "the letter is replayed")
    # What was stored of it before shows once.
    assert await site.values(device) == [20.5]
    ((time, colour),) = (await site.history(device))["colour"]
    assert colour == "3"
    assert time == (await site.history(device))["temperature"][0][0]


async def test_letters_are_private_to_their_tenant(site: MqttSite, rival: httpx.AsyncClient) -> None:
    device = f"gone-{uuid.uuid4().hex}"
    reading = {"deviceId": device, "numbers": {"temperature": 1}}
    await post(site.admin, "/v1/telemetry", {"readings": [reading]})
    (letter,) = await letters_of(site.admin, device, 1)
    theirs = await rival.get(f"/v1/deadLetters/{letter['id']}")
    absent = await rival.get("/v1/deadLetters/999999999999")
    assert (theirs.status_code, absent.status_code) == (404, 404)
    await letters_of(rival, device, 0)
    purged = await post(rival, "/v1/deadLetters:purge", {"filter": {"deviceId": device}, "force": True})
    assert purged["purgeCount"] == "0"
    await letters_of(site.admin, device, 1)


async def test_the_command_line_lists_shows_replays_and_purges(
    site: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = f"gone-{uuid.uuid4().hex}"
    made = await site.admin.post("/v1/apiKeys", json={"displayName": "keeper", "permissions": KEEPER})
    assert made.status_code == 200, made.text
    monkeypatch.setitem(site.mesh.environment, "TWINMESH_API_KEY", made.json()["secret"])
    for value in (1, 2):
        reading = {"deviceId": device, "numbers": {"temperature": value}}
        await post(site.admin, "/v1/telemetry", {"readings": [reading]})
    letters = await letters_of(site.admin, device, 2)

    def deadletters(*arguments: str) -> str:
        return str(site.mesh.twinmesh("deadletters", *arguments).stdout)

    listed = deadletters("list", "--device", device, "--reason", "device_unknown")
    assert all(letter["id"] in listed for letter in letters)
    assert '"numbers"' in deadletters("show", letters[0]["id"])
    failed = site.mesh.twinmesh("deadletters", "replay", letters[0]["id"], check=False)
    assert failed.returncode == 1
    assert "1 failed again" in failed.stdout
    assert f"{letters[0]['id']} DEVICE_UNKNOWN" in failed.stderr
    assert "2 letters deleted" in deadletters("purge", "--device", device, "--yes")
    await letters_of(site.admin, device, 0)


KEEPER = ["dead_letter:read", "dead_letter:write"]
