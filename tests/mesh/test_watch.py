"""Twins are watched through the gateway, over gRPC and as server-sent events."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.rpc.twin.watcher import Watcher
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc


@asynccontextmanager
async def device_of_its_own(admin: httpx.AsyncClient) -> AsyncIterator[str]:
    device = f"watched-{uuid.uuid4().hex[:12]}"
    made = await admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    made.raise_for_status()
    yield device
    (await admin.delete(f"/v1/devices/{device}")).raise_for_status()


async def send(admin: httpx.AsyncClient, device: str, value: float) -> None:
    time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    reading = {"deviceId": device, "time": time, "numbers": {"temperature": value}}
    (await admin.post("/v1/telemetry", json={"readings": [reading]})).raise_for_status()


async def test_what_is_sent_is_seen_over_grpc(mesh: Mesh, admin: httpx.AsyncClient, admin_token: str) -> None:
    async with device_of_its_own(admin) as device, grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = contract_grpc.TwinServiceStub(channel)
        watcher = Watcher(
            stub.WatchTwins(contract.WatchTwinsRequest(ids=[device]), metadata=bearer(admin_token))
        )
        await watcher.begun()
        for value in (20.5, 21.5):
            await send(admin, device, value)
            await watcher.until_shown(device, "temperature", value)
        await watcher.until(lambda: watcher.heard[-1] == "bookmark")


async def test_what_is_sent_is_seen_as_events(admin: httpx.AsyncClient) -> None:
    async with device_of_its_own(admin) as device:
        query = f"/v1/twins:watch?ids={device}&metrics=temperature&interval=0s"
        async with admin.stream("GET", query, timeout=60) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            events = (json.loads(line.removeprefix("data: ")) async for line in answer.aiter_lines() if line)
            (snapshot,) = (await anext(events))["snapshot"]["twins"]
            assert (snapshot["id"], snapshot["metrics"]) == (device, {})
            assert (await anext(events))["snapshotEnd"]["resumeToken"]
            await send(admin, device, 22.5)
            async for event in events:
                if "change" in event:
                    (twin,) = event["change"]["twins"]
                    assert twin["metrics"]["temperature"]["value"] == {"doubleValue": 22.5}
                    return


async def test_another_tenant_sees_nothing_of_it(rival: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    async with (
        device_of_its_own(admin) as device,
        rival.stream("GET", f"/v1/twins:watch?ids={device}") as answer,
    ):
        async for line in answer.aiter_lines():
            if line:
                assert "snapshotEnd" in json.loads(line.removeprefix("data: "))
                return


async def test_a_token_that_is_none_is_refused_before_the_stream(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/v1/twins:watch", params={"resumeToken": "none"})
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "INVALID_FIELD")
