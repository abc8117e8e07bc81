"""The network between a gateway and the mesh fails while it streams."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from meshkit.testing.line import FaultyLine
from meshkit.testing.mesh import Mesh
from tests.mesh.flood import Flood, refused
from tests.mesh.stream_site import MIB, SOAK, Site, running, sending
from tests.rpc.ingest.neighbours import until

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

RESETS = 200 if SOAK else 10
MOST_BYTES = 128 * MIB
ROUNDS, DEAF_BYTES = (200, 16 * MIB) if SOAK else (20, 4 * MIB)
BLACK_HOLES = 50 if SOAK else 2


@pytest.fixture
async def line(fragile_mesh: Mesh) -> AsyncIterator[FaultyLine]:
    async with FaultyLine("127.0.0.1", fragile_mesh.port).open() as opened:
        yield opened


async def test_a_connection_reset_in_mid_frame_loses_and_doubles_nothing(
    fragile_site: Site, line: FaultyLine
) -> None:
    site = fragile_site
    # From the first bytes of HTTP/2 to several batches.
    line.reset_after = lambda: int(2 ** site.chance.uniform(3, 18))
    clients = [await site.client(await site.channel(port=line.port)) for _ in range(4)]
    async with sending(clients):
        await until(lambda: line.resets >= RESETS)
        line.reset_after = None
        await site.oracle.progress(50)
    assert site.oracle.everything_acknowledged()
    assert sum(client.streams for client in clients) > len(clients)
    await site.judge()


async def test_a_black_holed_connection_is_found_out(fragile_site: Site, line: FaultyLine) -> None:
    site = fragile_site
    client = await site.client(await site.channel(port=line.port))
    async with sending([client]):
        for _ in range(BLACK_HOLES):
            await site.oracle.progress(site.chance.randint(1, 50))
            assert line.swallow() == 1
            # Nobody says that the connection is gone: the client's pings are not answered.
            await client.until_opened()
        await site.oracle.progress(20)
    assert site.oracle.everything_acknowledged()
    await site.judge()


async def test_a_reader_of_a_byte_per_second_harms_nobody_else(fragile_site: Site, line: FaultyLine) -> None:
    site = fragile_site
    floods = [
        Flood(
            # Nobody is to find out that it is deaf.
            await site.channel(port=line.port, options=[("grpc.use_local_subchannel_pool", 1)]),
            token=site.key,
            writer_id=f"deaf-{uuid.uuid4()}",
            # Answered with many times its own size, so that answers would pile up.
            batch=refused(100),
            compressed=True,
        )
        for _ in range(4)
    ]
    clients = [await site.client() for _ in range(3)]
    memory = site.ingest_memory()
    async with sending(clients), running(floods):
        await asyncio.gather(*(flood.opened() for flood in floods))
        line.answer_bytes_per_s = 1
        answered = sum(flood.answers for flood in floods)
        rounds = 0
        # What would be answered by much more than the memory that is allowed.
        while rounds < ROUNDS or any(flood.sent < DEAF_BYTES for flood in floods):
            await site.oracle.progress(50)
            memory.require_below(MOST_BYTES)
            rounds += 1
    # They have read next to nothing but what was on its way.
    assert sum(flood.answers for flood in floods) - answered < 100
    assert site.oracle.everything_acknowledged()
    await site.judge()
