"""APPLIED waits for every live twin replica, here stand-ins, and says DURABLE when they are too slow."""

import asyncio
from typing import Any

import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, reading, running_ingest, serving
from tests.rpc.ingest.replicas import Replica, replica
from tests.rpc.ingest.streaming import columns, opened
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

APPLIED = ingest_pb2.ACK_LEVEL_APPLIED
DURABLE = ingest_pb2.ACK_LEVEL_DURABLE
ALL = 1_000_000


@pytest.fixture(scope="session")
def nats_url(quiet_nats_url: str) -> str:
    """Other tests' replicas report elsewhere."""
    return quiet_nats_url


async def promised(ingest: Ingest, *readings: ingest_pb2.Reading, **fields: Any) -> int:
    """Send readings, return the answer's level."""
    answer = await ingest.send(*(readings or [reading(count=1)]), ack_level=APPLIED, **fields)
    assert answer.stored_samples == 1
    return answer.ack_level


async def instance_of(ingest: Ingest) -> int:
    instance: int = await ingest.fetch_value("SELECT max(instance) FROM telemetry.ingest_instance")
    return instance


async def heard(ingest: Ingest, twins: Replica) -> int:
    """Let a replica have whatever is stored until ingest_svc believes it; returns the instance."""
    await ingest.send(reading(count=0))
    instance = await instance_of(ingest)
    await twins.has({instance: ALL})
    while await promised(ingest) != APPLIED:
        pass
    return instance


async def test_without_replicas_what_is_stored_is_durable(ingest: Ingest) -> None:
    assert await promised(ingest) == DURABLE
    assert list((await ingest.samples()).values()) == [1]


async def test_every_live_replica_is_waited_for(ingest: Ingest) -> None:
    async with replica(ingest.nats_url, "quick") as quick, replica(ingest.nats_url, "slow") as slow:
        instance = await heard(ingest, quick)
        await slow.has({instance: 1})
        assert await promised(ingest) == DURABLE
        await slow.has({instance: ALL})
        assert await promised(ingest) == APPLIED
        await quick.has({instance: 1})
        assert await promised(ingest) == DURABLE
    # Both have left.
    assert await promised(ingest) == DURABLE


async def test_what_stores_nothing_waits_for_nobody(ingest: Ingest) -> None:
    for request_id in ("", "r-1", "r-1"):
        answer = await ingest.send(reading("absent", count=1), ack_level=APPLIED, request_id=request_id)
        assert (answer.ack_level, answer.stored_samples, answer.refused_samples) == (APPLIED, 0, 1)


async def test_a_duplicate_of_a_process_that_is_gone_is_waited_for(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    assets = FakeAssets()
    assets.add("pump-1")
    async with serving(assets) as asset_address, replica(nats_url) as twins:
        common: dict[str, Any] = {
            "database": database,
            "nats_url": nats_url,
            "auth_address": auth_address,
            "mint": mint,
            "assets": assets,
            "asset_address": asset_address,
        }
        sample = reading(count=7)
        async with running_ingest(**common) as first:
            await first.send(sample, request_id="r-1")
            gone = await instance_of(first)
        async with running_ingest(**common) as second:
            instance = await heard(second, twins)
            assert await promised(second, sample, request_id="r-1") == DURABLE
            await twins.has({gone: 1, instance: ALL})
            assert await promised(second, sample, request_id="r-1") == APPLIED
            await twins.has({instance: ALL}, base=gone)
            assert await promised(second, sample, request_id="r-1") == APPLIED


async def test_a_stream_is_told_what_is_durable_and_later_what_is_applied(ingest: Ingest) -> None:
    async with replica(ingest.nats_url) as twins:
        instance = await heard(ingest, twins)
        await twins.has({instance: 1})
        async with opened(ingest, ack_level=APPLIED) as client:
            # More than there are credits: they come back without the twins.
            for sequence in range(1, 301):
                await client.batch(sequence, columns(float(sequence)))
                if sequence % 100 == 0:
                    await client.durable(sequence)
            assert {ack.applied_through for ack in client.acks} == {0}
            await twins.has({instance: ALL})
            await client.applied(300)
            through = [ack.applied_through for ack in client.acks]
            assert through == sorted(through)
            assert all(ack.applied_through <= ack.durable_through for ack in client.acks)


async def test_a_stream_begins_with_what_was_committed_before(ingest: Ingest) -> None:
    async with replica(ingest.nats_url) as twins:
        instance = await heard(ingest, twins)
        async with opened(ingest) as client:
            await client.batch(1, columns(1.0))
            await client.durable(1)
            assert [ack.applied_through for ack in client.acks] == [0]
        committed = await ingest.fetch_value("SELECT max(commit_no) FROM telemetry.ingest_commit")
        await twins.has({instance: committed - 1})
        async with opened(ingest, ack_level=APPLIED) as client:
            applied = asyncio.create_task(client.applied(1))
            assert await promised(ingest) == DURABLE
            assert not applied.done()
            await twins.has({instance: ALL})
            await applied
            assert client.acks[-1].durable_through == 0


async def test_a_batch_sent_again_is_applied_again(ingest: Ingest) -> None:
    async with replica(ingest.nats_url) as twins:
        await heard(ingest, twins)
        async with opened(ingest, ack_level=APPLIED) as client:
            sent = await client.batch(1, columns(1.0))
            await client.applied(1)
            await client.batch(1, sent)
            await client.batch(2, columns(2.0))
            await client.applied(2)
