"""API keys that are bound to devices, through the gateway: every rpc of the contract, and what it tells."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiomqtt
import grpc
import httpx
import pytest

from auth_svc.roles import Role, permissions_of
from gateway.contract import CONTRACT, read_contract
from meshkit.policy import PUBLIC
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_clients import AioMqtt, topic_of
from tests.mesh.mqtt_site import Key, MqttSite, mqtt_site, until
from tests.mesh.test_permissions import outcome
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

_TYPE = "temperature-sensor"
_RPCS = {rpc.path: rpc for rpc in read_contract(CONTRACT).rpcs}
_ABSENT = "absent-0"


@dataclass(frozen=True)
class Site:
    """Devices of a tenant, and a key that is bound to some of them.

    Attributes:
        mesh: where.
        admin: JSON client of the tenant's administrator.
        bound: JSON client with the key.
        channel: to the gateway, for gRPC.
        key: bound to `lone` and to gateway `hub`, whose child is `child`.
        other: a device that the key is not bound to, child of `other_hub`.
    """

    mesh: Mesh
    admin: httpx.AsyncClient
    bound: httpx.AsyncClient
    channel: grpc.aio.Channel
    key: Key
    lone: str
    hub: str
    child: str
    other_hub: str
    other: str

    async def device(self, role: str = "ENDPOINT", parent: str = "") -> str:
        """Make a device."""
        return await _device(self.admin, role, parent)

    async def new_key(self, **rest: Any) -> Key:
        """Make a key that may all that an administrator gives."""
        return await _new_key(self.admin, **rest)


async def _device(admin: httpx.AsyncClient, role: str = "ENDPOINT", parent: str = "") -> str:
    device_id = f"scope-{uuid.uuid4().hex}"
    body = {"id": device_id, "deviceTypeId": _TYPE, "role": f"DEVICE_ROLE_{role}", "parentId": parent}
    (await admin.post("/v1/devices", json=body)).raise_for_status()
    return device_id


async def _new_key(admin: httpx.AsyncClient, **rest: Any) -> Key:
    body = {"displayName": "bound", "permissions": sorted(permissions_of(Role.ADMIN)), **rest}
    made = (await admin.post("/v1/apiKeys", json=body)).raise_for_status().json()
    return Key(made["id"], made["secret"])


@pytest.fixture
async def site(mesh: Mesh, admin: httpx.AsyncClient) -> AsyncIterator[Site]:
    hub, other_hub = await _device(admin, "GATEWAY"), await _device(admin, "GATEWAY")
    lone, child = await _device(admin), await _device(admin, "CHILD", hub)
    other = await _device(admin, "CHILD", other_hub)
    readings = [{"deviceId": each, "numbers": {"temperature": 20}} for each in (lone, hub, child, other)]
    (await admin.post("/v1/telemetry", json={"readings": readings})).raise_for_status()
    events = [
        {"deviceId": each, "type": "scope.seen", "severity": "SEVERITY_INFO"} for each in (lone, child, other)
    ]
    (await admin.post("/v1/events", json={"events": events})).raise_for_status()
    key = await _new_key(admin, deviceIds=[lone], gatewayIds=[hub])
    async with mesh.client(key.secret) as bound, grpc.aio.insecure_channel(mesh.address) as channel:
        yield Site(mesh, admin, bound, channel, key, lone, hub, child, other_hub, other)


_Door = Callable[[Site, str], Awaitable[str]]


def _told(answer: httpx.Response, device_id: str) -> str:
    """Return what a door tells of a device, without its name."""
    return f"{answer.status_code} {answer.text}".replace(device_id, "NAME")


def _reads(path: str) -> _Door:
    async def door(site: Site, device_id: str) -> str:
        return _told(await site.bound.get(path.format(device_id)), device_id)

    return door


def _lists(path: str, **params: str) -> _Door:
    async def door(site: Site, device_id: str) -> str:
        seen = False
        token = ""
        while True:
            answer = await site.bound.get(path, params={**params, "pageSize": "50", "pageToken": token})
            seen |= device_id in answer.raise_for_status().text
            token = answer.json()["nextPageToken"]
            if not token:
                return "seen" if seen else "not seen"

    return door


def _posts(path: str, body: Callable[[Site, str], dict[str, Any]]) -> _Door:
    async def door(site: Site, device_id: str) -> str:
        return _told(await site.bound.post(path.format(device_id), json=body(site, device_id)), device_id)

    return door


async def _update(site: Site, device_id: str) -> str:
    answer = await site.bound.patch(f"/v1/devices/{device_id}", json={"displayName": "renamed"})
    return _told(answer, device_id)


async def _delete(site: Site, device_id: str) -> str:
    """Delete a device, of the key's own another one, since it is needed."""
    if device_id == site.child:
        device_id = await site.device("CHILD", site.hub)
    return _told(await site.bound.delete(f"/v1/devices/{device_id}"), device_id)


def _made(parent: str) -> dict[str, Any]:
    device_id = f"made-{uuid.uuid4().hex}"
    return {"id": device_id, "deviceTypeId": _TYPE, "role": "DEVICE_ROLE_CHILD", "parentId": parent}


def _parent(site: Site, device_id: str) -> str:
    return {site.child: site.hub, site.other: site.other_hub}.get(device_id, _ABSENT)


async def _create(site: Site, device_id: str) -> str:
    """Make a device behind the gateway of one."""
    body = _made(_parent(site, device_id))
    answer = await site.bound.post("/v1/devices", json=body)
    return _told(answer, body["id"]).replace(body["parentId"], "PARENT")


async def _create_all(site: Site, device_id: str) -> str:
    body = _made(_parent(site, device_id))
    answer = await site.bound.post("/v1/devices:batchCreate", json={"devices": [body]})
    return _told(answer, body["id"]).replace(body["parentId"], "PARENT")


async def _rotate(site: Site, device_id: str) -> str:
    """Have another secret of a key that is bound to a device."""
    bound_to = site.lone if device_id == site.child else device_id
    key = await site.new_key(deviceIds=[bound_to])
    answer = await site.bound.post(f"/v1/apiKeys/{key.id}:rotate", json={"overlap": "0s"})
    return str(answer.status_code)


async def _create_key(site: Site, device_id: str) -> str:
    bound_to = site.lone if device_id == site.child else device_id
    body = {"displayName": "given", "permissions": ["twin:read"], "deviceIds": [bound_to]}
    return str((await site.bound.post("/v1/apiKeys", json=body)).status_code)


async def _watch(site: Site, device_id: str) -> str:
    text = ""
    async with site.bound.stream("GET", "/v1/twins:watch") as answer:
        async for line in answer.aiter_lines():
            text += line
            if "snapshotEnd" in line:
                return "seen" if device_id in text else "not seen"
    raise AssertionError("the watch ended")


async def _receipt(site: Site, device_id: str) -> str:
    """Ask for what the administrator has sent for a device, who would tell a key that is not bound."""
    request_id = uuid.uuid4().hex
    client = site.bound if device_id == site.child else site.admin
    body = {"requestId": request_id, "readings": [{"deviceId": device_id, "numbers": {"temperature": 20}}]}
    (await client.post("/v1/telemetry", json=body)).raise_for_status()
    params = {"requestId": request_id} | ({} if client is site.bound else {"principal": "user:admin"})
    return _told(await site.bound.get("/v1/receipts", params=params), request_id)[:200]


async def _stream(site: Site, device_id: str) -> str:
    stub: Any = ingest_grpc.IngestServiceStub(site.channel)
    call = stub.StreamTelemetry(metadata=bearer(site.key.secret), timeout=60)
    request = ingest_pb2.StreamTelemetryRequest
    batch = ingest_pb2.Batch(
        sequence=1, readings=[ingest_pb2.Reading(device_id=device_id, numbers={"temperature": 21})]
    )
    for message in (
        request(open=ingest_pb2.Open(writer_id=uuid.uuid4().hex, session_id=uuid.uuid4().hex)),
        request(batch=batch),
    ):
        await call.write(message)
    while True:
        answer = await call.read()
        if answer.ack.durable_through:
            call.cancel()
            refusals = [(each.reason, each.message) for of in answer.ack.results for each in of.refusals]
            return f"{refusals}".replace(device_id, "NAME") if refusals else "200"


def _sent(field: str) -> Callable[[Site, str], dict[str, Any]]:
    def body(site: Site, device_id: str) -> dict[str, Any]:
        if field == "readings":
            return {"readings": [{"deviceId": device_id, "numbers": {"temperature": 21}}]}
        return {"events": [{"deviceId": device_id, "type": "scope.sent", "severity": "SEVERITY_INFO"}]}

    return body


_ASSET, _AUTH = "/twinmesh.asset.v1.", "/twinmesh.auth.v1."
_INGEST, _TWIN = "/twinmesh.ingest.v1.", "/twinmesh.twin.v1."
# How each rpc that keeps to the scope is asked about a device.
_DOORS: dict[str, _Door] = {
    f"{_ASSET}DeviceService/GetDevice": _reads("/v1/devices/{}"),
    f"{_ASSET}DeviceService/ListDevices": _lists("/v1/devices"),
    f"{_ASSET}DeviceService/CreateDevice": _create,
    f"{_ASSET}DeviceService/BatchCreateDevices": _create_all,
    f"{_ASSET}DeviceService/UpdateDevice": _update,
    f"{_ASSET}DeviceService/DeleteDevice": _delete,
    f"{_AUTH}ApiKeyService/CreateApiKey": _create_key,
    f"{_AUTH}ApiKeyService/RotateApiKey": _rotate,
    f"{_INGEST}IngestService/IngestTelemetry": _posts("/v1/telemetry", _sent("readings")),
    f"{_INGEST}IngestService/IngestEvents": _posts("/v1/events", _sent("events")),
    f"{_INGEST}IngestService/IngestMessage": _posts(
        "/v1/devices/{}/messages", lambda *_: {"payload": "eyJ0ZW1wZXJhdHVyZSI6IDF9"}
    ),
    f"{_INGEST}IngestService/StreamTelemetry": _stream,
    f"{_INGEST}ReceiptService/LookupReceipt": _receipt,
    f"{_TWIN}TwinService/GetTwin": _reads("/v1/twins/{}"),
    f"{_TWIN}TwinService/ListTwins": _lists("/v1/twins"),
    f"{_TWIN}TwinService/QueryHistory": _reads("/v1/twins/{}/history"),
    f"{_TWIN}TwinService/WatchTwins": _watch,
    f"{_TWIN}HistoryService/QuerySeries": _posts(
        "/v1/history:query", lambda _, device_id: {"ids": [device_id], "resolution": "RESOLUTION_RAW"}
    ),
    f"{_TWIN}HistoryService/ExportHistory": _reads("/v1/history:export?ids={}&format=EXPORT_FORMAT_CSV"),
    f"{_TWIN}EventService/ListEvents": _lists("/v1/events"),
}
# Those that keep to it because they tell and change nothing of any device.
_OF_NO_DEVICE = {
    f"{_ASSET}DeviceTypeService/GetDeviceType",
    f"{_ASSET}DeviceTypeService/ListDeviceTypes",
    f"{_AUTH}DeviceCertificateService/RenewDeviceCertificate",
    f"{_AUTH}SessionService/GetMe",
    f"{_INGEST}IngestService/CreateBackfill",
}


def test_every_rpc_that_keeps_to_the_scope_is_walked_here() -> None:
    kept = {path for path, rpc in _RPCS.items() if rpc.keeps_to_scope}
    assert kept == _DOORS.keys() | _OF_NO_DEVICE


async def test_every_other_rpc_is_refused_to_a_bound_key(site: Site) -> None:
    wrong = []
    for path, rpc in _RPCS.items():
        if rpc.permission == PUBLIC:
            continue
        answer = await outcome(site.channel, rpc, bearer(site.key.secret))
        reason = answer[1] if answer is not None else ""
        # What only operators may is refused for that.
        is_refused = reason in {"OUTSIDE_OF_SCOPE", "PERMISSION_MISSING"}
        if is_refused is rpc.keeps_to_scope or (reason == "PERMISSION_MISSING") is not (
            rpc.permission == "tenant:admin"
        ):
            wrong.append(f"{path}: {answer}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", _DOORS)
async def test_other_devices_are_absent(site: Site, path: str) -> None:
    door = _DOORS[path]
    own, other, absent = [await door(site, each) for each in (site.child, site.other, _ABSENT)]
    assert other == absent
    assert own != absent
    assert own.startswith(("200", "seen"))


async def test_lists_and_events_hold_all_that_a_key_is_bound_to(site: Site) -> None:
    for each in (site.lone, site.hub, site.child):
        assert await _DOORS[f"{_ASSET}DeviceService/ListDevices"](site, each) == "seen"
        assert await _DOORS[f"{_TWIN}TwinService/ListTwins"](site, each) == "seen"
        assert await _watch(site, each) == "seen"
    for each in (site.lone, site.child):
        assert await _DOORS[f"{_TWIN}EventService/ListEvents"](site, each) == "seen"


async def test_a_child_that_is_moved_leaves_the_scope(site: Site) -> None:
    moved = await site.device("CHILD", site.hub)
    assert (await site.bound.get(f"/v1/twins/{moved}")).status_code == 200
    own = await site.bound.patch(f"/v1/devices/{moved}", json={"parentId": site.other_hub})
    assert (own.status_code, "OUTSIDE_OF_SCOPE" in own.text) == (403, True)
    changed = await site.admin.patch(f"/v1/devices/{moved}", json={"parentId": site.other_hub})
    assert changed.is_success, changed.text

    async def is_gone() -> bool:
        return (await site.bound.get(f"/v1/twins/{moved}")).status_code == 404

    await until(is_gone, "the twin is absent to the key")


async def test_what_a_bound_key_was_refused_is_a_dead_letter_that_stays(site: Site) -> None:
    async def letters() -> list[dict[str, Any]]:
        listed = await site.admin.get("/v1/deadLetters", params={"filter.deviceId": site.other})
        found: list[dict[str, Any]] = listed.raise_for_status().json()["deadLetters"]
        return found

    readings = [{"deviceId": each, "numbers": {"temperature": 33}} for each in (site.other, site.child)]
    (await site.bound.post("/v1/telemetry", json={"readings": readings})).raise_for_status()
    (letter,) = await letters()
    assert (letter["reason"], letter["principal"]) == (
        "ERROR_REASON_DEVICE_NOT_OWN",
        f"api_key:{site.key.id}",
    )
    # Also when the key is no more.
    (await site.admin.delete(f"/v1/apiKeys/{site.key.id}")).raise_for_status()
    replayed = await site.admin.post("/v1/deadLetters:replay", json={"ids": [letter["id"]]})
    assert replayed.is_success, replayed.text
    assert (replayed.json()["storedSamples"], replayed.json()["failed"]) == ("0", 1)
    history = await site.admin.get(f"/v1/twins/{site.other}/history")
    assert all(33 not in metric["doubleValues"] for metric in history.json()["metrics"])


async def test_a_bound_key_gives_no_more_than_it_is_bound_to(site: Site) -> None:
    body = {"displayName": "given", "permissions": ["twin:read"]}
    for scope, status in (
        ({}, 403),
        ({"gatewayIds": [site.lone]}, 403),
        ({"deviceIds": [site.lone], "gatewayIds": [site.other_hub]}, 403),
        ({"deviceIds": [site.lone, site.hub]}, 200),
        ({"gatewayIds": [site.hub]}, 200),
    ):
        answer = await site.bound.post("/v1/apiKeys", json=body | scope)
        assert answer.status_code == status, answer.text
        assert ("GRANT_EXCEEDS_CALLER" in answer.text) is (status == 403)
    unbound = await site.new_key()
    rotated = await site.bound.post(f"/v1/apiKeys/{unbound.id}:rotate", json={"overlap": "0s"})
    assert (rotated.status_code, "GRANT_EXCEEDS_CALLER" in rotated.text) == (403, True)


async def test_the_largest_scope_passes_the_gateway_and_no_larger_one_is_made(site: Site) -> None:
    named = [f"{number:02}{'x' * 62}" for number in range(32)]
    key = await site.new_key(deviceIds=[*named[:31], site.lone], gatewayIds=named)
    async with site.mesh.client(key.secret) as bound:
        assert (await bound.get(f"/v1/twins/{site.lone}")).status_code == 200
        assert (await bound.get(f"/v1/twins/{site.other}")).status_code == 404
    body = {"displayName": "large", "deviceIds": [*named, "one-more"]}
    assert (await site.admin.post("/v1/apiKeys", json=body)).status_code == 400


@asynccontextmanager
async def _mqtt(site: Site) -> AsyncIterator[MqttSite]:
    url = await asyncio.to_thread(site.mesh.database_url, "postgres")
    async with mqtt_site(site.mesh, site.admin, database_url=url) as made:
        yield made


async def test_a_bound_key_publishes_by_mqtt_for_its_devices_only(site: Site) -> None:
    client = AioMqtt()
    async with _mqtt(site) as mqtt:
        for own in (site.lone, site.child):
            await client.publish(mqtt.login(own, key=site.key), topic_of(own), b'{"temperature": 44}', qos=1)
            await mqtt.until_values(own, 20, 44)
        for other in (site.other, site.other_hub, _ABSENT):
            with pytest.raises(aiomqtt.MqttError):
                await client.publish(mqtt.login(other, key=site.key), topic_of(other), b"{}", qos=1)
        # Logged in for all of the key's devices it may publish for these, and the rest is told.
        login = mqtt.login(site.key.id, key=site.key)
        await client.publish(login, topic_of(site.child), b'{"temperature": 45}', qos=1)
        await mqtt.until_values(site.child, 20, 44, 45)
        await client.publish(login, topic_of(site.other), b'{"temperature": 46}', qos=1)

        async def is_told() -> bool:
            rows = await mqtt.database.fetch(
                "SELECT message FROM telemetry.dead_letter"
                " WHERE principal = $1 AND reason = 'PUBLISH_FORBIDDEN'",
                f"api_key:{site.key.id}",
            )
            return any(topic_of(site.other) in row["message"] for row in rows)

        await until(is_told, "the operator is told")
        assert await mqtt.values(site.other) == [20]
