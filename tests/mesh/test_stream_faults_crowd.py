"""Many clients at once, or clients that keep to nothing: nothing is lost, and memory stays bounded."""

import asyncio
import uuid

import grpc
import pytest

from tests.mesh.faults import Fault, kill, standing_still
from tests.mesh.flood import Flood, strings
from tests.mesh.stream_site import MIB, SOAK, Site, running, sending

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

STREAMS, CHANNELS = (2_000, 200) if SOAK else (200, 20)
KILLS = 50 if SOAK else 1
# Of each flood at most 8 MiB are in flight. All of it is refused, so what waits is there three times: as
# it came, as raw message and as dead letter, of which each of the two processes lets in 256 MiB.
FLOODS, FLOOD_BYTES, MOST_BYTES = (150, 6144 * MIB, 2560 * MIB) if SOAK else (16, 768 * MIB, 640 * MIB)
_BUSY = {
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_BUSY"),
    # Envoy's own, before its heap is full.
    (grpc.StatusCode.UNAVAILABLE, ""),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
}


@pytest.mark.parametrize("fault", [kill("envoy"), kill("ingest_svc")], ids=["envoy", "ingest"])
async def test_all_come_back_at_once(fragile_site: Site, fault: Fault) -> None:
    site = fragile_site
    channels = [await site.channel() for _ in range(CHANNELS)]
    clients = [
        await site.client(channels[number % CHANNELS], runs=1, run_length=3, most_in_flight=1)
        for number in range(STREAMS)
    ]
    async with sending(clients):
        await asyncio.gather(*(client.until_durable(1) for client in clients))
        for _ in range(KILLS):
            await fault(site.mesh, site.chance)
            back = [asyncio.create_task(client.until_opened()) for client in clients]
            await asyncio.gather(*back)
            await asyncio.gather(*(client.until_durable(1) for client in clients))
    assert site.oracle.everything_acknowledged()
    await site.judge()


def _sent(floods: list[Flood]) -> int:
    return sum(flood.sent for flood in floods)


async def test_floods_are_refused_before_they_cost_memory(fragile_site: Site) -> None:
    site = fragile_site
    floods = [
        Flood(
            await site.channel(),
            token=site.key,
            writer_id=f"flood-{uuid.uuid4()}",
            batch=strings("absent", MIB),
        )
        for _ in range(FLOODS)
    ]
    honest = await site.client()
    memory = site.ingest_memory()
    async with sending([honest]), running(floods):
        await asyncio.gather(*(flood.opened() for flood in floods))
        # PostgreSQL takes nothing, so whatever is let in stays.
        with standing_still(site.mesh):
            while any(flood.end is None for flood in floods) and _sent(floods) < FLOOD_BYTES:
                await asyncio.sleep(0.05)
                memory.require_below(MOST_BYTES)
        assert all(flood.throttles or flood.end in _BUSY for flood in floods), [
            (flood.throttles, flood.end) for flood in floods
        ]
        await site.oracle.progress(20)
        memory.require_below(MOST_BYTES)
    assert site.oracle.everything_acknowledged()
    await site.judge()
