"""Two processes of ingest are restarted one by one under load: no gateway notices."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from tests.mesh.oracle import Sample
from tests.mesh.stream_client import PATIENT_OPTIONS
from tests.mesh.stream_site import SOAK, Site, sending
from twinmesh_client import GatewayClient

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

RESTARTS = 50 if SOAK else 1
_SAMPLES = 200


class Recorder:
    """The client library under load: adds samples, and flushes after each handful."""

    def __init__(self, site: Site, gateway: GatewayClient) -> None:
        self._device = site.devices[0]
        self._gateway = gateway
        self._oracle = site.oracle
        self._stopping = False

    async def run(self) -> None:
        temperature = self._gateway.series(self._device, "temperature", unit="°C")
        start = time.time_ns() // 1000 - 3_600_000_000
        while not self._stopping:
            times = np.arange(start, start + _SAMPLES)
            start += _SAMPLES
            values = times % 1_000 / 7
            sent = self._oracle.sends(
                [
                    Sample(self._device, "temperature", time_us, value)
                    for time_us, value in zip(times.tolist(), values.tolist(), strict=True)
                ]
            )
            await temperature.add_many(times, values)
            await self._gateway.flush()
            self._oracle.acknowledge(sent)

    def stop(self) -> None:
        self._stopping = True


async def test_a_rolling_restart_is_not_noticed(fragile_site: Site, tmp_path: Path) -> None:
    site = fragile_site
    clients = [await site.client(await site.channel(options=PATIENT_OPTIONS)) for _ in range(6)]
    async with GatewayClient(
        site.mesh.address, token=site.key, name="recorder", spool=tmp_path / "spool", max_age=0.01
    ) as gateway:
        async with sending([*clients, Recorder(site, gateway)]):
            await site.oracle.progress(50)
            for _ in range(RESTARTS):
                await asyncio.to_thread(site.mesh.twinmesh, "restart", "ingest_svc")
                await site.oracle.progress(50)
        told = gateway.stats()
    assert (told.dropped_samples, told.refused_samples, told.backlog_batches) == (0, 0, 0)
    # Each was asked to go, by GoAway, and nothing broke.
    assert [client.breaks for client in clients] == [[]] * len(clients)
    assert sum(client.streams for client in clients) > len(clients)
    assert site.oracle.everything_acknowledged()
    await site.judge()
