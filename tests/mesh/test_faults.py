"""Parts are killed while clients retry by request id: everything acknowledged is stored exactly once."""

import asyncio
import os
import random
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest

from meshkit.testing.mesh import Mesh, eventually, start_mesh

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(1800)]

CLIENTS = 8
KILLS = 50 if os.environ.get("TWINMESH_TEST_SCALE") == "soak" else 2
Sample = tuple[str, int, float]


@pytest.fixture(scope="module")
def fragile_mesh() -> Iterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="twinmesh-faults-"))
    home.chmod(0o755)
    started = start_mesh(home)
    yield started
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


class Oracle:
    """What clients were told is durable, kept outside of what is killed."""

    def __init__(self, mesh: Mesh, token: str) -> None:
        self._mesh = mesh
        self._token = token
        self._stop = asyncio.Event()
        self.acknowledged: list[Sample] = []

    async def send_until_stopped(self, number: int) -> None:
        """Send one sample after the other, each until it is acknowledged."""
        start = datetime.now(UTC) - timedelta(days=1)
        chance = random.Random(number)
        count = 0
        async with self._mesh.client(self._token) as client:
            while not self._stop.is_set():
                count += 1
                moment = start + timedelta(microseconds=number + 1000 * count)
                value = chance.random()
                await self._acknowledge(client, moment, value)
                micros = int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
                self.acknowledged.append(("temp-1", micros, value))

    async def _acknowledge(self, client: httpx.AsyncClient, moment: datetime, value: float) -> None:
        reading = {"deviceId": "temp-1", "time": moment.isoformat(), "numbers": {"temperature": value}}
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
        self._stop.set()


async def stored_samples(mesh: Mesh) -> Counter[Sample]:
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        rows = await connection.fetch(
            "SELECT device_id, sample.time, sample.value FROM telemetry.segment AS segment "
            "JOIN telemetry.series USING (tenant_id, series_id), "
            "unnest(segment.times, segment.doubles) AS sample (time, value) WHERE metric = 'temperature'"
        )
    finally:
        await connection.close()
    return Counter((row["device_id"], row["time"], row["value"]) for row in rows)


@pytest.mark.parametrize("part", ["ingest_svc", "postgres", "nats", "envoy", "auth_svc", "asset_svc"])
async def test_nothing_acknowledged_is_lost_or_doubled(fragile_mesh: Mesh, part: str) -> None:
    before = await stored_samples(fragile_mesh)
    oracle = Oracle(fragile_mesh, fragile_mesh.log_in())
    clients = [asyncio.create_task(oracle.send_until_stopped(number)) for number in range(CLIENTS)]
    chance = random.Random(part)
    try:
        for _ in range(KILLS):
            await progress(oracle, clients, chance.randint(20, 60))
            restarts = fragile_mesh.part(part)["restarts"]
            fragile_mesh.kill(part)
            await asyncio.to_thread(started_again, fragile_mesh, part, restarts)
        await progress(oracle, clients, 50)
    finally:
        oracle.stop()
        await asyncio.gather(*clients)
    stored = await stored_samples(fragile_mesh)
    assert stored - before == Counter(oracle.acknowledged)


def started_again(mesh: Mesh, part: str, restarts: int) -> None:
    eventually(lambda: bool(mesh.part(part)["restarts"] > restarts), f"{part} is started again")


async def progress(oracle: Oracle, clients: list[asyncio.Task[None]], samples: int) -> None:
    """Wait until so many more samples were acknowledged."""
    goal = len(oracle.acknowledged) + samples
    while len(oracle.acknowledged) < goal:
        for client in clients:
            if client.done():
                client.result()
        await asyncio.sleep(0.01)
