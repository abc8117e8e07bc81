"""Gateways send 2,000 beacons in 67 chunks while ingest is killed: each sample is stored once."""

import asyncio
import itertools
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import asyncpg
import grpc
import httpx
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.mesh import eventually
from tests.mesh.faults import kill
from tests.mesh.mqtt_clients import Login, connected, topic_of
from tests.mesh.mqtt_site import until
from tests.mesh.stream_site import Site
from tests.rpc.ingest.streaming import Client
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

pytestmark = pytest.mark.timeout(300)

BEACONS, CHUNKS = 2_000, 67
NOW = time.time_ns() // 1_000_000_000
# Sends chunks of a gateway, each a message id, its index and its text; they are durable then.
Part = tuple[str, int, str]
Door = Callable[[Site, str, Sequence[Part]], Awaitable[None]]


async def by_unary(site: Site, gateway: str, parts: Sequence[Part]) -> None:
    async with site.mesh.client(site.key) as client:
        for message_id, index, text in parts:
            chunk = {"messageId": message_id, "index": index, "total": CHUNKS}
            answer = await client.post(f"/v1/devices/{gateway}/messages", json={"json": text, "chunk": chunk})
            assert answer.status_code == 200, answer.text
            assert answer.json()["refusals"] == [], answer.text


async def by_stream(site: Site, gateway: str, parts: Sequence[Part]) -> None:
    async with grpc.aio.insecure_channel(site.mesh.address) as channel:
        call = ingest_grpc.IngestServiceStub(channel).StreamTelemetry(metadata=bearer(site.key))
        client = Client(call)
        opened = await client.open(gateway)
        first = opened.last_committed_sequence + 1
        for sequence, some in enumerate(_fives(parts), start=first):
            messages = [
                ingest_pb2.DeviceMessage(
                    device_id=gateway,
                    payload=text.encode(),
                    chunk=ingest_pb2.Chunk(message_id=message_id, index=index, total=CHUNKS),
                )
                for message_id, index, text in some
            ]
            await client.batch(sequence, messages=messages)
            last = sequence
        assert await client.durable(last) == []
        await client.close()


def _fives(parts: Sequence[Part]) -> list[Sequence[Part]]:
    return [parts[start : start + 5] for start in range(0, len(parts), 5)]


async def by_mqtt(site: Site, gateway: str, parts: Sequence[Part]) -> None:
    async with connected(Login(site.mesh.mqtt_port, gateway, site.key), answer_s=30) as client:
        for message_id, index, text in parts:
            envelope = {"messageId": message_id, "index": index, "total": CHUNKS, "payload": text}
            await client.publish(topic_of(gateway), json.dumps(envelope).encode(), qos=1)


DOORS: dict[str, Door] = {"unary": by_unary, "stream": by_stream, "mqtt": by_mqtt}


def cut(message_id: str, offset: int) -> list[Part]:
    """Return a message of all beacons, in chunks; beacon n counts n + offset."""
    text = json.dumps(
        [
            {"mac": f"ac:23:{number:04x}", "time": NOW + offset, "count": number + offset}
            for number in range(BEACONS)
        ]
    )
    ends = [len(text) * number // CHUNKS for number in range(CHUNKS + 1)]
    return [
        (message_id, index, text[start:end]) for index, (start, end) in enumerate(itertools.pairwise(ends))
    ]


def shuffled(parts: Sequence[Part], chance: random.Random) -> list[Part]:
    """Return chunks in any order, some of them twice."""
    found = [*parts, *chance.choices(parts, k=20)]
    chance.shuffle(found)
    return found


@asynccontextmanager
async def gateways(site: Site) -> AsyncIterator[dict[str, str]]:
    """Make a gateway for each door, which registers its beacons."""
    run = uuid.uuid4().hex[:8]
    async with site.mesh.client(site.mesh.log_in()) as admin:
        await _make(
            admin, "deviceTypes", id=f"beacon-{run}", metrics=[{"name": "count", "kind": "VALUE_KIND_INT"}]
        )
        await _make(
            admin,
            "deviceTypes",
            id=f"ble-{run}",
            processingMode="PROCESSING_MODE_CHUNKED",
            messageSchema={"childPointer": "/mac"},
            unknownChildren="UNKNOWN_CHILDREN_REGISTER",
            childDeviceTypeId=f"beacon-{run}",
        )
        for door in DOORS:
            await _make(
                admin,
                "devices",
                id=f"{door}-{run}",
                deviceTypeId=f"ble-{run}",
                role="DEVICE_ROLE_GATEWAY_CHUNKED",
            )
    yield {door: f"{door}-{run}" for door in DOORS}


async def _make(admin: httpx.AsyncClient, resource: str, **body: object) -> None:
    made = await admin.post(f"/v1/{resource}", json=body)
    assert made.status_code == 200, made.text


async def stored(database: asyncpg.Connection, gateway: str) -> list[tuple[int, int]]:
    """Return times and counts of the children of a gateway, repeated ones too."""
    rows = await database.fetch(
        """
        SELECT sample.time / 1000000 AS time, sample.value
        FROM telemetry.series
        JOIN telemetry.segment USING (tenant_id, series_id), unnest(times, ints) AS sample (time, value)
        WHERE device_id LIKE $1 || '-%'
        """,
        gateway,
    )
    return sorted((row["time"], row["value"]) for row in rows)


async def test_chunks_outlive_the_processes_that_took_them(fragile_site: Site) -> None:
    site = fragile_site
    database = await asyncpg.connect(site.mesh.database_url("postgres"))
    try:
        async with gateways(site) as of_doors:
            parts = {door: shuffled([*cut("m-1", 0), *cut("m-2", 1)], site.chance) for door in DOORS}

            async def send(chosen: slice) -> None:
                await asyncio.gather(
                    *(DOORS[door](site, gateway, parts[door][chosen]) for door, gateway in of_doors.items())
                )

            await send(slice(CHUNKS))
            await kill("ingest_svc")(site.mesh, site.chance)
            await asyncio.to_thread(
                eventually, lambda: site.mesh.status()["ready"], "ingest is back", seconds=60
            )
            await send(slice(CHUNKS, None))
            for door, gateway in of_doors.items():

                async def is_whole(gateway: str = gateway) -> bool:
                    return len(await stored(database, gateway)) >= 2 * BEACONS

                await until(is_whole, f"what came by {door} is stored")
                assert await stored(database, gateway) == [
                    (NOW + offset, number + offset) for offset in (0, 1) for number in range(BEACONS)
                ]
            # What was repeated late, and what never comes.
            await send(slice(10))
            await by_unary(
                site, of_doors["unary"], [part for part in cut("m-3", 2) if part[1] not in (3, 4, 5, 9)]
            )
            await database.execute(
                """
                UPDATE telemetry.chunked_message SET first_received_at = now() - interval '61 seconds'
                WHERE gateway_id = $1
                """,
                of_doors["unary"],
            )

            async def has_expired() -> bool:
                left = await database.fetchval(
                    "SELECT count(*) FROM telemetry.chunked_message WHERE gateway_id = ANY ($1)",
                    list(of_doors.values()),
                )
                return int(left) == 0

            await until(has_expired, "the message that is not whole expires")
            letters = await database.fetch(
                "SELECT reason, message FROM telemetry.dead_letter WHERE device_ids && $1",
                list(of_doors.values()),
            )
            ((reason, message),) = letters
            assert reason == "CHUNKS_MISSING"
            assert message == (
                "chunks 3-5, 9 of 67 of message 'm-3' did not come within 60 s; send the message again"
            )
    finally:
        await database.close()
