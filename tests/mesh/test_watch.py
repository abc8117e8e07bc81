"""Twins are watched through the gateway, over gRPC and as events; faults leave no watcher behind."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.faults import Fault, kill
from tests.mesh.stream_site import SOAK, Site, sending
from tests.rpc.twin.watcher import Watcher
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)
FAULTS = 50 if SOAK else 1


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


class Following:
    """A watcher that resumes whatever happens to the stream, as the contract says."""

    def __init__(self, site: Site, channel: grpc.aio.Channel) -> None:
        self._stub: Any = contract_grpc.TwinServiceStub(channel)
        self._site = site
        self.watcher = Watcher(None)
        self._news = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                self.watcher.resume(self._call())
                await self.watcher.begun()
                await self.watcher.until(self._heard)
            except grpc.aio.AioRpcError as error:
                if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}:
                    raise
                await asyncio.sleep(0.05)

    async def until_seen(self, latest: dict[tuple[str, str], int]) -> None:
        """Wait until every metric is known as of its latest time, microseconds since the epoch."""
        while self._seen() != latest:
            self._news.clear()
            await self._news.wait()

    def _seen(self) -> dict[tuple[str, str], int]:
        return {
            (device, metric): state.time.ToMicroseconds()
            for device, twin in self.watcher.twins.items()
            for metric, state in twin.metrics.items()
        }

    def _heard(self) -> bool:
        """Let those look who wait; the stream goes on for ever."""
        self._news.set()
        return False

    def _call(self) -> Any:
        request = contract.WatchTwinsRequest(ids=self._site.devices, resume_token=self.watcher.token)
        request.interval.SetInParent()
        return self._stub.WatchTwins(request, metadata=bearer(self._site.key))


@pytest.mark.parametrize(
    "fault",
    [
        # Between a commit and its announcement, too.
        pytest.param(kill("ingest_svc"), id="ingest"),
        pytest.param(kill("nats"), id="the bus"),
        pytest.param(kill("twin_svc"), id="twin"),
        pytest.param(kill("envoy"), id="envoy"),
    ],
)
async def test_watchers_see_in_the_end_what_is_stored(fragile_site: Site, fault: Fault) -> None:
    site = fragile_site
    clients = [await site.client() for _ in range(3)]
    followers = [Following(site, await site.channel()) for _ in range(3)]
    following = [asyncio.create_task(follower.run()) for follower in followers]
    async with sending(clients):
        for _ in range(FAULTS):
            await site.oracle.progress(site.chance.randint(20, 60))
            await fault(site.mesh, site.chance)
        await site.oracle.progress(50)
    assert site.oracle.everything_acknowledged()
    for follower in followers:
        await follower.until_seen(site.oracle.latest())
    for task in following:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await site.judge()
