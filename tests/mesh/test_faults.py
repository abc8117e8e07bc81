"""Parts are killed while clients retry by request id: everything acknowledged is stored exactly once."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.mesh.faults import kill
from tests.mesh.oracle import Sample
from tests.mesh.stream_site import SOAK, Site, sending

pytestmark = pytest.mark.timeout(1800)

CLIENTS = 8
KILLS = 50 if SOAK else 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnaryClient:
    """Sends one sample after the other, each until it is acknowledged."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lane = site.oracle.lane()
        self._stopping = False

    async def run(self) -> None:
        start = datetime.now(UTC) - timedelta(days=1)
        count = 0
        async with self._site.mesh.client(self._site.key) as client:
            while not self._stopping:
                count += 1
                moment = start + timedelta(microseconds=self._lane + 1000 * count)
                micros = (moment - _EPOCH) // timedelta(microseconds=1)
                sample = Sample(self._site.devices[0], "temperature", micros, self._site.chance.random())
                sent = self._site.oracle.sends([sample])
                await self._until_acknowledged(client, moment, sample)
                self._site.oracle.acknowledge(sent)

    async def _until_acknowledged(self, client: httpx.AsyncClient, moment: datetime, sample: Sample) -> None:
        reading = {
            "deviceId": sample.device_id,
            "time": moment.isoformat(),
            "numbers": {sample.metric: sample.value},
        }
        body = {"readings": [reading], "requestId": uuid.uuid4().hex}
        while True:
            try:
                answer = await client.post("/v1/telemetry", json=body)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 200:
                assert answer.json()["storedSamples"] == "1", answer.text
                return
            assert answer.status_code in {429, 503, 504}, answer.text
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._stopping = True


@pytest.mark.parametrize("part", ["ingest_svc", "postgres", "nats", "envoy", "auth_svc", "asset_svc"])
async def test_nothing_acknowledged_is_lost_or_doubled(fragile_site: Site, part: str) -> None:
    site = fragile_site
    clients = [UnaryClient(site) for _ in range(CLIENTS)]
    async with sending(clients):
        for _ in range(KILLS):
            await site.oracle.progress(site.chance.randint(20, 60))
            await kill(part)(site.mesh, site.chance)
        await site.oracle.progress(50)
    assert site.oracle.everything_acknowledged()
    await site.judge()
