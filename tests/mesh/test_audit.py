"""The account of what went through a whole mesh: served, denied, refused by the gateway."""

import csv
import io
import json
import uuid
from pathlib import Path
from typing import Any

import aiomqtt
import asyncpg
import grpc
import httpx
import pytest

from meshkit.config import MAX_MESSAGE_BYTES
from meshkit.status import error_info_of
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.audit_events import event, events
from tests.mesh.device_site import device, issue
from twinmesh.asset.v1 import device_service_pb2, device_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

DEVICES = "/twinmesh.asset.v1.DeviceService/"
INSTALLATION = "system"


@pytest.fixture(scope="session")
def operator_token(mesh: Mesh) -> str:
    """Access token of whoever reads what is nobody's."""
    mesh.add_tenant(INSTALLATION)
    return mesh.log_in(tenant=INSTALLATION)


async def test_a_write_is_found_by_its_target(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str, rival_token: str
) -> None:
    device = f"audited-{uuid.uuid4().hex[:8]}"
    made = await admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    assert made.status_code == 200, made.text
    changed = await admin.patch(f"/v1/devices/{device}", json={"displayName": "Boiler", "tags": ["a"]})
    assert changed.status_code == 200, changed.text
    found = event(mesh, admin_token, changed.headers["x-trace-id"], target=device)
    assert (found["rpc"], found["code"]) == (f"{DEVICES}UpdateDevice", "OK")
    assert (found["principal"], found["tenant"], found["recorder"]) == ("user:admin", "demo", "asset_svc")
    assert (found["address"], found["targets"]) == ("127.0.0.1", [device])
    assert found["changedFields"] == ["display_name", "tags"]
    assert found["credentialId"]
    assert float(found["duration"].removesuffix("s")) > 0
    assert len(events(mesh, admin_token, target=device)) == 2
    assert events(mesh, rival_token, target=device) == []


async def test_a_denied_write_is_found_by_who_was_denied(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str, rival_token: str
) -> None:
    body = {"displayName": "reader", "permissions": ["device:read"]}
    key = (await admin.post("/v1/apiKeys", json=body)).json()
    async with mesh.client(key["secret"]) as reader:
        denied = await reader.delete("/v1/devices/temp-1")
    assert denied.status_code == 403
    question = {"principal": f"api_key:{key['id']}", "codes": "PERMISSION_DENIED"}
    found = event(mesh, admin_token, denied.headers["x-trace-id"], **question)
    assert (found["rpc"], found["targets"]) == (f"{DEVICES}DeleteDevice", ["temp-1"])
    assert found["credentialId"] == key["id"]
    assert events(mesh, rival_token, **question) == []


def test_what_a_device_asks_is_found_by_its_certificate(mesh: Mesh, admin_token: str, tmp_path: Path) -> None:
    identity = issue(mesh, admin_token, "temp-1", tmp_path)
    with device(mesh, identity) as client:
        denied = client.get("/v1/devices/temp-2")
    assert denied.status_code == 403
    found = event(mesh, admin_token, denied.headers["x-trace-id"], principal="device:temp-1")
    assert (found["code"], found["credentialId"]) == ("PERMISSION_DENIED", identity.id)
    assert (found["address"], found["targets"]) == ("127.0.0.1", ["temp-2"])


async def test_what_the_gateway_refuses_is_found_too(
    mesh: Mesh, admin_token: str, operator_token: str
) -> None:
    async with mesh.client() as nobody, mesh.client(admin_token) as admin:
        no_token = await nobody.get("/v1/devices?access_token=open-sesame")
        bad_key = await nobody.get("/v1/devices", headers={"authorization": "Bearer tmk_demo_1_wrong"})
        no_route = await admin.get("/v1/nothing")
        too_large = await admin.post("/v1/devices", content=b"{" + b" " * (5 << 20))
        served = await admin.get("/v1/devices")
    assert [each.status_code for each in (no_token, bad_key, no_route, too_large)] == [401, 401, 404, 413]
    for answer, token, rpc, code in (
        (no_token, operator_token, "GET /v1/devices", "UNAUTHENTICATED"),
        (bad_key, operator_token, "GET /v1/devices", "UNAUTHENTICATED"),
        (no_route, admin_token, "GET /v1/nothing", "NOT_FOUND"),
        (too_large, admin_token, "POST /v1/devices", "INVALID_ARGUMENT"),
    ):
        found = event(mesh, token, answer.headers["x-trace-id"], codes=code)
        assert (found["rpc"], found["recorder"], found["address"]) == (rpc, "gateway", "127.0.0.1")
        assert found["principal"] == ("" if token == operator_token else "user:admin")
    # What a service answered comes from there, once.
    assert event(mesh, admin_token, served.headers["x-trace-id"])["recorder"] == "asset_svc"


async def test_no_header_keeps_refusals_out_of_the_account(mesh: Mesh, operator_token: str) -> None:
    async with mesh.client() as nobody:
        answers = [
            await nobody.get("/v1/devices", headers={b"content-type": each})
            for each in (b"\xff", b"application/grpc\xc3", b"application/json")
        ]
        answers.append(await nobody.get("/v1/devices", headers={b"x-request-id": b"\xff"}))
    for answer in answers:
        found = event(mesh, operator_token, answer.headers["x-trace-id"], codes="UNAUTHENTICATED")
        assert found["recorder"] == "gateway"


async def test_a_key_that_is_refused_is_found_where_the_key_is(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str, rival_token: str
) -> None:
    """By its id, which is no secret; who makes one up is told nobody of."""
    key = (await admin.post("/v1/apiKeys", json={"displayName": "k", "permissions": ["device:read"]})).json()
    guessed = key["secret"][:-4] + "0000"
    networks = {"displayName": "k", "permissions": ["device:read"], "allowedAddresses": ["198.51.100.0/24"]}
    elsewhere = (await admin.post("/v1/apiKeys", json=networks)).json()
    for secret, id_, code in (
        (guessed, key["id"], "UNAUTHENTICATED"),
        (elsewhere["secret"], elsewhere["id"], "PERMISSION_DENIED"),
    ):
        async with mesh.client(secret) as stranger:
            refused = await stranger.get("/v1/devices")
        assert refused.status_code in (401, 403), refused.text
        found = event(mesh, admin_token, refused.headers["x-trace-id"], principal=f"api_key:{id_}")
        assert (found["code"], found["tenant"], found["recorder"]) == (code, "demo", "gateway")
        assert events(mesh, rival_token, principal=f"api_key:{id_}") == []


async def test_log_ins_by_mqtt_are_found_good_and_bad(
    mesh: Mesh, admin: httpx.AsyncClient, admin_token: str, operator_token: str
) -> None:
    body = {"displayName": "m", "permissions": ["telemetry:write"]}
    key = (await admin.post("/v1/apiKeys", json=body)).json()

    async def log_in(user: str, password: str) -> None:
        async with aiomqtt.Client("127.0.0.1", mesh.mqtt_port, username=user, password=password, timeout=30):
            pass

    await log_in("temp-1", key["secret"])
    with pytest.raises(aiomqtt.MqttError):
        await log_in("temp-1", key["secret"][:-4] + "0000")
    with pytest.raises(aiomqtt.MqttError):
        await log_in("not-there", key["secret"])
    question = {"principal": f"api_key:{key['id']}", "rpc": "MQTT CONNECT"}
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = events(mesh, admin_token, **question)
        return len(found) == 3

    eventually(are_there, "the audit has three log-ins")
    assert [each["code"] for each in found] == ["FAILED_PRECONDITION", "UNAUTHENTICATED", "OK"]
    assert {(each["recorder"], each["address"]) for each in found} == {("auth_svc", "127.0.0.1")}
    assert (found[2]["targets"], found[2]["credentialId"]) == (["temp-1"], key["id"])
    # What names no key that there is, is the installation's business.
    with pytest.raises(aiomqtt.MqttError):
        await log_in("temp-1", "no key")
    unknown = {"rpc": "MQTT CONNECT", "codes": "UNAUTHENTICATED"}
    eventually(lambda: bool(events(mesh, operator_token, **unknown)), "the audit has the refusal")
    assert {each["principal"] for each in events(mesh, operator_token, **unknown)} == {""}


async def test_a_grpc_call_without_a_token_is_found(mesh: Mesh, operator_token: str) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="temp-1"))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    # An answer without a body has all of its headers at its end.
    trace_id = dict(refused.value.trailing_metadata())["x-trace-id"]
    found = event(mesh, operator_token, str(trace_id), rpc=f"{DEVICES}GetDevice")
    assert (found["code"], found["recorder"]) == ("UNAUTHENTICATED", "gateway")


async def test_a_grpc_message_that_is_too_large_is_found(mesh: Mesh, admin_token: str) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListDevices(
                device_service_pb2.ListDevicesRequest(search="x" * MAX_MESSAGE_BYTES),
                metadata=bearer(admin_token),
            )
    assert error_info_of(refused.value).reason == "BODY_TOO_LARGE"
    trace_id = dict(refused.value.trailing_metadata())["x-trace-id"]
    found = event(mesh, admin_token, str(trace_id), rpc=f"{DEVICES}ListDevices")
    assert (found["code"], found["recorder"]) == ("INVALID_ARGUMENT", "gateway")
    assert (found["principal"], found["tenant"]) == ("user:admin", "demo")


async def test_a_stream_is_found_when_it_has_ended(mesh: Mesh, admin_token: str) -> None:
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        watch = stub.WatchTwins(
            twin_service_pb2.WatchTwinsRequest(ids=["temp-1"]), metadata=bearer(admin_token)
        )
        told = 0
        while (await watch.read()).WhichOneof("event") != "snapshot_end":
            told += 1
        trace_id = dict(await watch.initial_metadata())["x-trace-id"]
        watch.cancel()
    found = event(mesh, admin_token, str(trace_id), rpc="/twinmesh.twin.v1.TwinService/WatchTwins")
    assert (found["code"], found["targets"], found["recorder"]) == ("CANCELLED", ["temp-1"], "twin_svc")
    assert int(found["sentMessages"]) > told


def test_the_command_line_lists_and_exports(mesh: Mesh, tmp_path: Any) -> None:
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    rpc = "/twinmesh.auth.v1.SessionService/Login"
    listed = mesh.twinmesh("audit", "list", "--rpc", rpc, "--code", "ok", "--json").stdout.splitlines()
    assert {json.loads(line)["rpc"] for line in listed} == {rpc}
    first = mesh.twinmesh("audit", "list", "--limit", "1")
    assert "principal" in first.stdout
    assert "more than these 1" in first.stderr
    file = tmp_path / "audit.csv"
    mesh.twinmesh("audit", "export", str(file), "--rpc", rpc)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert len(rows) >= len(listed)
    refused = mesh.twinmesh("audit", "list", "--code", "sideways", check=False)
    assert refused.returncode != 0
    assert "permission_denied" in refused.stderr.replace("\n", "")


async def test_the_service_can_change_nothing(mesh: Mesh) -> None:
    connection = await asyncpg.connect(mesh.role_url("twinmesh_auth"))
    try:
        for statement in ("UPDATE auth.audit_event SET code = 0", "DELETE FROM auth.audit_event"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()
