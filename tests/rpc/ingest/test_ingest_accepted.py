"""ACCEPTED answers before the commit, which goes on without the caller."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from structlog.testing import capture_logs

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, reading, running_ingest, serving, until
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

ACCEPTED = ingest_pb2.ACK_LEVEL_ACCEPTED


@asynccontextmanager
async def commits_blocked(database: TestDatabase) -> AsyncIterator[None]:
    """Let no commit of a process that has written before go on."""
    connection = await asyncpg.connect(database.admin_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.ingest_instance FOR UPDATE")
            yield
    finally:
        await connection.close()


async def test_the_answer_comes_before_the_commit(ingest: Ingest) -> None:
    await ingest.send(reading(count=1))
    async with commits_blocked(ingest.database):
        answer = await ingest.send(
            reading(count=2), reading("absent", count=3), request_id="r-1", ack_level=ACCEPTED
        )
        assert (answer.ack_level, answer.stored_samples, answer.refused_samples) == (ACCEPTED, 1, 1)
        assert [refusal.device_id for refusal in answer.refusals] == ["absent"]
        assert sorted((await ingest.samples()).values()) == [1]
    durable = await ingest.send(reading(count=2), reading("absent", count=3), request_id="r-1")
    assert (durable.duplicate, durable.ack_level) == (True, ingest_pb2.ACK_LEVEL_DURABLE)
    assert durable.refusals == answer.refusals
    assert sorted((await ingest.samples()).values()) == [1, 2]


async def test_what_is_not_committed_after_all_is_logged(ingest: Ingest) -> None:
    with capture_logs() as logs:
        answer = await ingest.send(reading(count=1), writer_id="w", sequence=2, ack_level=ACCEPTED)
        assert answer.stored_samples == 1

        def logged() -> bool:
            return any(line["event"] == "accepted batch was not committed" for line in logs)

        await until(logged)
    [line] = [line for line in logs if line["event"] == "accepted batch was not committed"]
    assert (line["tenant"], line["samples"], line["log_level"]) == ("acme", 1, "warning")
    assert await ingest.samples() == {}


async def test_what_was_accepted_is_committed_at_shutdown(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    assets = FakeAssets()
    assets.add("pump-1")
    ready: asyncio.Future[Ingest] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run(asset_address: str) -> None:
        async with running_ingest(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
        ) as running:
            ready.set_result(running)
            await stop.wait()

    at = time.time_ns() // 1000
    async with serving(assets) as asset_address, asyncio.TaskGroup() as group:
        running = group.create_task(run(asset_address))
        ingest = await ready
        await ingest.send(reading(time_us=at, count=0))
        async with commits_blocked(database):
            answers = [
                await ingest.send(reading(time_us=at + value, count=value), ack_level=ACCEPTED)
                for value in range(1, 11)
            ]
            assert [answer.stored_samples for answer in answers] == [1] * 10
            stop.set()

            async def is_stopping() -> bool:
                return not await ingest.is_serving()

            await until(is_stopping)
            assert not running.done()
            assert list((await ingest.samples()).values()) == [0]
    assert sorted((await ingest.samples()).values()) == list(range(11))
