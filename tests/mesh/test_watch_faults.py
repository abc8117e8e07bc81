"""Parts are killed while twins are watched: in the end every watcher sees what is stored."""

import asyncio
from typing import Any

import grpc
import pytest

from meshkit.testing.auth import bearer
from tests.mesh.faults import Fault, kill
from tests.mesh.stream_site import SOAK, Site, sending
from tests.rpc.twin.watcher import Watcher
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)
FAULTS = 50 if SOAK else 1


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
