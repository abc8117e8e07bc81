"""Whoever logs out, or is disabled, is out everywhere: JSON and gRPC of every service, and open streams."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.calls import failure
from meshkit.testing.mesh import Mesh
from tests.rpc.ingest.neighbours import Refused
from tests.rpc.ingest.streaming import Client, columns
from tests.rpc.twin.watcher import Watcher
from twinmesh.asset.v1 import device_service_pb2, device_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
# One of each service.
_PATHS = ("/v1/auth/me", "/v1/devices", "/v1/twins", "/v1/backfills")


@dataclass
class Bearer:
    """Somebody with a credential, in every service by every door."""

    json: httpx.AsyncClient
    devices: Any
    twins: Any
    metadata: tuple[tuple[str, str], ...]
    ingest_stream: Client
    watcher: Watcher
    events: AsyncIterator[dict[str, Any]]

    async def get(self, path: str) -> httpx.Response:
        if path == "/v1/backfills":
            return await self.json.post(path, json={})
        return await self.json.get(path)

    async def is_in(self) -> None:
        """Assert that every door is open."""
        for path in _PATHS:
            answer = await self.get(path)
            # Of the backfill only that it is looked at: it says nothing of its range.
            assert answer.status_code == (400 if path == "/v1/backfills" else 200), (path, answer.text)
        await self.devices.ListDevices(device_service_pb2.ListDevicesRequest(), metadata=self.metadata)
        await self.twins.ListTwins(twin_service_pb2.ListTwinsRequest(), metadata=self.metadata)

    async def reason(self, path: str) -> str:
        """Return why a request was refused, "" when it was not."""
        answer = await self.get(path)
        return str(answer.json()["details"][0]["reason"]) if answer.status_code == 401 else ""


async def enter(stack: AsyncExitStack, mesh: Mesh, credential: str) -> Bearer:
    """Open whatever can be open with a credential."""
    client = await stack.enter_async_context(mesh.client(credential))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.address))
    metadata = bearer(credential)
    ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
    twins: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    stream = Client(ingest.StreamTelemetry(metadata=metadata))
    await stream.open(uuid.uuid4().hex)
    await stream.define(("temp-1", "temperature"))
    await stream.batch(1, columns(20.0))
    await stream.durable(1)
    watch = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(), metadata=metadata)
    answer = await stack.enter_async_context(client.stream("GET", "/v1/twins:watch"))
    assert answer.status_code == 200
    events = (json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line)
    assert "snapshot" in await anext(events)
    devices: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    entered = Bearer(client, devices, twins, metadata, stream, await Watcher(watch).begun(), events)
    await entered.is_in()
    return entered


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - other processes make it true
            await asyncio.sleep(0.02)


async def assert_is_out(who: Bearer, *, reason: str) -> None:
    """Wait until every door is shut, and for this reason; streams end because of the revocation."""
    assert await who.ingest_stream.fails() == Refused(_UNAUTHENTICATED, "TOKEN_REVOKED")
    await who.watcher.until(lambda: who.watcher.end is not None)
    assert (await failure(who.watcher.call.read())).reason == "TOKEN_REVOKED"
    told = [event async for event in who.events]
    assert told[-1]["end"]["reason"] == "ERROR_REASON_TOKEN_REVOKED"
    for path in _PATHS:

        async def is_refused(path: str = path) -> bool:
            return await who.reason(path) == reason

        await eventually(is_refused)
    for call in (
        who.devices.ListDevices(device_service_pb2.ListDevicesRequest(), metadata=who.metadata),
        who.twins.ListTwins(twin_service_pb2.ListTwinsRequest(), metadata=who.metadata),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (_UNAUTHENTICATED, reason)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def test_who_logs_out_is_out_everywhere_and_nobody_else(mesh: Mesh, stack: AsyncExitStack) -> None:
    spared = await enter(stack, mesh, mesh.log_in())
    leaving = await enter(stack, mesh, mesh.log_in())
    assert (await leaving.json.post("/v1/auth/logout", json={})).status_code == 200
    await assert_is_out(leaving, reason="TOKEN_REVOKED")
    await spared.is_in()
    await spared.ingest_stream.batch(2, columns(21.0))
    await spared.ingest_stream.durable(2)


async def test_who_is_disabled_is_out_everywhere_and_nobody_else(
    mesh: Mesh, stack: AsyncExitStack, admin: httpx.AsyncClient
) -> None:
    name = f"leaver-{uuid.uuid4().hex[:8]}"
    user = {"username": name, "role": "admin"}
    (await admin.post("/v1/users", json={"user": user, "password": mesh.password})).raise_for_status()
    spared = await enter(stack, mesh, mesh.log_in())
    leaving = await enter(stack, mesh, mesh.log_in(name))
    disabled = await admin.patch(f"/v1/users/{name}?updateMask=disabled", json={"disabled": True})
    assert disabled.status_code == 200, disabled.text
    await assert_is_out(leaving, reason="TOKEN_REVOKED")
    await spared.is_in()
    await spared.ingest_stream.batch(2, columns(21.0))
    await spared.ingest_stream.durable(2)


async def test_a_key_that_is_deleted_is_out_everywhere(
    mesh: Mesh, stack: AsyncExitStack, admin: httpx.AsyncClient
) -> None:
    permissions = ["telemetry:write", "telemetry:backfill", "twin:read", "device:read"]
    made = await admin.post("/v1/apiKeys", json={"displayName": "test", "permissions": permissions})
    key = await enter(stack, mesh, made.json()["secret"])
    (await admin.delete(f"/v1/apiKeys/{made.json()['id']}")).raise_for_status()
    # Envoy has keys exchanged, and it is the exchange that is refused.
    await assert_is_out(key, reason="API_KEY_INVALID")


async def test_a_stream_outlives_the_log_out_when_it_has_another_session(
    mesh: Mesh, stack: AsyncExitStack
) -> None:
    leaving = await enter(stack, mesh, mesh.log_in())
    stream = leaving.ingest_stream
    await stream.send(reauthenticate=ingest_pb2.Reauthenticate(token=mesh.log_in()))
    await stream.batch(2, columns(21.0))
    await stream.durable(2)
    assert (await leaving.json.post("/v1/auth/logout", json={})).status_code == 200
    await leaving.watcher.until(lambda: leaving.watcher.end is not None)
    await stream.batch(3, columns(22.0))
    await stream.durable(3)
    await stream.close()
