"""The line between ingest_svc and PostgreSQL breaks at a COMMIT, under streams."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.mesh.oracle import Oracle
from tests.mesh.stream_client import StreamClient
from tests.mesh.stream_load import RandomBatches
from tests.mesh.stream_site import SOAK, sending
from tests.rpc.ingest.neighbours import TENANT, FakeAssets, Ingest, running_ingest, serving, until
from tests.store.broken_line import Break, BrokenLine

FAULTS = 50 if SOAK else 5
DEVICES = ("pump-1", "pump-2")


@dataclass
class Broken:
    """ingest_svc, its line to the database, and what clients of it were told."""

    ingest: Ingest
    line: BrokenLine
    oracle: Oracle

    def client(self, chance: random.Random) -> StreamClient:
        token = self.ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"])
        lane = self.oracle.lane()
        return StreamClient(
            self.ingest.channel,
            token=token,
            writer_id=f"gateway-{lane}",
            batches=RandomBatches(DEVICES, lane, random.Random(chance.random())),
            oracle=self.oracle,
        )


@pytest.fixture
async def broken(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> AsyncIterator[Broken]:
    assets = FakeAssets()
    for device_id in DEVICES:
        assets.add(device_id)
    async with (
        BrokenLine(database.admin_url).open() as line,
        serving(assets) as asset_address,
        running_ingest(
            database=TestDatabase(line.url, database.superuser_url),
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
        ) as ingest,
    ):
        yield Broken(ingest, line, Oracle())


@pytest.mark.parametrize("lost", [Break.ANSWER, Break.COMMIT])
async def test_a_commit_or_its_answer_is_lost(
    broken: Broken, database: TestDatabase, chance: random.Random, lost: Break
) -> None:
    oracle = broken.oracle
    clients = [broken.client(chance) for _ in range(3)]
    async with sending(clients):
        for _ in range(FAULTS):
            await oracle.progress(chance.randint(1, 30))
            broken.line.breaks = lost
            await until(lambda: broken.line.breaks is Break.NOTHING)
        await oracle.progress(30)
    assert oracle.everything_acknowledged()
    await oracle.judge(database.admin_url)


async def test_the_database_cannot_be_reached_for_a_while(
    broken: Broken, database: TestDatabase, chance: random.Random
) -> None:
    oracle = broken.oracle
    clients = [broken.client(chance) for _ in range(3)]
    async with sending(clients):
        for _ in range(FAULTS):
            await oracle.progress(chance.randint(1, 30))
            broken.line.down = True
            broken.line.cut()
            await asyncio.gather(*(client.until_throttled() for client in clients))
            broken.line.down = False
        await oracle.progress(30)
    assert oracle.everything_acknowledged()
    await oracle.judge(database.admin_url)
