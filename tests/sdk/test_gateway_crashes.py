"""A gateway that is killed at any moment: what it spooled is stored, and nothing twice."""

import asyncio
import os
import random
import signal
import sys

from tests.sdk.crashing_gateway import SAMPLES
from tests.sdk.site import NOW_US, Site

_KILLS = 50 if os.environ.get("TWINMESH_TEST_SCALE") == "soak" else 5


async def test_kill_9_of_the_client(site: Site) -> None:
    await site.start()
    chance = random.Random(4)
    # Told by the clients, kept outside of them: as far as each was known to have come.
    told = {"adding": NOW_US, "spooled": NOW_US, "durable": NOW_US}
    spooled: set[int] = set()
    possible: set[int] = set()
    for _ in range(_KILLS):
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.sdk.crashing_gateway",
            site.address,
            str(site.folder / "spool"),
            str(told["adding"]),
            env={**os.environ, "TOKEN": site.token()},
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        lines = chance.randint(1, 60)
        while line := await client.stdout.readline():
            what, before = line.decode().split()
            told[what] = int(before)
            batch = range(int(before) - SAMPLES, int(before))
            if what == "spooled":
                spooled.update(batch)
            if what == "adding":
                possible.update(batch)
            if what == "durable":
                # A flush covers what this client and those before it had spooled.
                assert spooled <= {time for *_, time in await site.samples()}
            lines -= 1
            if lines == 0:
                client.send_signal(signal.SIGKILL)
        assert await client.wait() == -signal.SIGKILL
    async with site.gateway() as gateway:
        await gateway.flush()
        assert gateway.stats().backlog_batches == 0
    stored = [time for *_, time in await site.samples()]
    assert spooled
    assert spooled <= set(stored) <= possible
    assert await site.count() == len(stored), "nothing twice"
