"""Messages of gateways by the stream and by MQTT: the same as by the unary rpc."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest_svc import assembler
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from telemetry_store import chunks as stored_chunks
from tests.rpc.ingest.device_site import DeviceNats, device_nats_server
from tests.rpc.ingest.gateway_site import (
    BLE,
    HUB,
    KEPT,
    NOW,
    ROWS,
    add_gateways,
    beacons,
    chunks,
    counts,
    letters,
    pieces,
    send,
    shuffled,
)
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, running_ingest, serving, until
from tests.rpc.ingest.streaming import columns, streaming
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@pytest.fixture
def site(short_home: Path) -> Iterator[DeviceNats]:
    with device_nats_server(short_home) as server:
        yield server


class Mesh:
    """ingest_svc processes on one database and one NATS."""

    def __init__(self, site: DeviceNats, database: TestDatabase, auth_address: str, mint: TokenMint) -> None:
        self.site = site
        self.assets = FakeAssets()
        add_gateways(self.assets)
        self.asset_address = ""
        self._database = database
        self._auth_address = auth_address
        self._mint = mint

    @asynccontextmanager
    async def ingest(self) -> AsyncIterator[Ingest]:
        async with running_ingest(
            database=self._database,
            nats_url=self.site.server.url,
            auth_address=self._auth_address,
            mint=self._mint,
            assets=self.assets,
            asset_address=self.asset_address,
            device_nats_url=self.site.url,
        ) as running:
            yield running


@pytest.fixture
async def mesh(
    site: DeviceNats,
    database: TestDatabase,
    auth_address: str,
    mint: TokenMint,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(assembler, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(assembler, "_WHOLE_FOR_S", 0)  # All processes are eager.
    made = Mesh(site, database, auth_address, mint)
    async with serving(made.assets) as made.asset_address:
        yield made


@pytest.fixture
async def ingest(mesh: Mesh) -> AsyncIterator[Ingest]:
    async with mesh.ingest() as running:
        yield running


async def until_counted(ingest: Ingest, children: int) -> None:
    async def is_so() -> bool:
        return len(await counts(ingest)) == children

    await until(is_so)


def envelopes(message_id: str, parts: Sequence[object]) -> list[bytes]:
    return [
        json.dumps({"messageId": message_id, "index": index, "total": len(parts), "payload": part}).encode()
        for index, part in enumerate(parts)
    ]


def told(results: Sequence[ingest_pb2.BatchResult]) -> list[tuple[int, int, list[tuple[int, str]]]]:
    return [
        (
            result.sequence,
            result.refused_samples,
            [
                (refusal.reading_index, ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"))
                for refusal in result.refusals
            ],
        )
        for result in results
    ]


async def test_messages_and_chunks_in_batches_of_a_stream(ingest: Ingest) -> None:
    whole = ingest_pb2.DeviceMessage(
        device_id=HUB, payload=json.dumps([{"tag": {"mac": "b1"}, "time": NOW / 1e6, "count": 1}]).encode()
    )
    bad = ingest_pb2.DeviceMessage(device_id=HUB, payload=b'[{"tag": {"mac": "stranger"}, "count": 1}]')
    parts = shuffled(chunks("m", pieces(beacons(50), 9)), repeated=3)
    async with streaming(ingest) as client:
        await client.open()
        await client.define(("pump-1", "temperature"))
        await client.batch(1, messages=[whole, bad])
        for number, part in enumerate(parts):
            await client.batch(number + 2, messages=[part])
        last = len(parts) + 2
        await client.batch(last, messages=chunks("m-2", [b"[1", b"2"])[:1] * 2)
        assert told(await client.durable(last)) == [(1, 1, [(1, "CHILD_UNKNOWN")])]
        # Sent again, a batch is a duplicate with its outcome; other content is another batch.
        await client.batch(1, messages=[whole, bad])
        await client.close()
    await until_counted(ingest, 50)
    assert await ingest.fetch_value(ROWS) == 51
    assert [(reason, payload) for reason, _, payload in await letters(ingest)] == [
        ("CHILD_UNKNOWN", bad.payload)
    ]
    async with streaming(ingest) as client:
        await client.open()
        await client.batch(1, messages=[bad, whole])
        assert (await client.fails()).reason == "SEQUENCE_REUSED"


async def test_what_breaks_the_contract_refuses_its_batch(ingest: Ingest) -> None:
    message = ingest_pb2.DeviceMessage(device_id=HUB, payload=b"{}")
    async with streaming(ingest) as client:
        await client.open()
        await client.define(("pump-1", "temperature"))
        await client.batch(1, messages=[message, ingest_pb2.DeviceMessage(device_id="NO", payload=b"{}")])
        await client.batch(2, columns(1.0), messages=[message])
        chunk = ingest_pb2.Chunk(message_id="m", index=3, total=3)
        await client.batch(3, messages=[ingest_pb2.DeviceMessage(device_id=BLE, payload=b"x", chunk=chunk)])
        await client.batch(4, messages=[message] * 1_001)
        results = await client.durable(4)
        await client.close()
    reasons = [ErrorReason.Name(result.reason).removeprefix("ERROR_REASON_") for result in results]
    assert reasons == ["INVALID_FIELD", "COLUMNS_INVALID", "INVALID_FIELD", "INVALID_FIELD"]
    assert results[0].message.startswith("messages[1].device_id")


async def test_a_stream_waits_for_room_and_goes_on(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_chunks, "MAX_OPEN_MESSAGES", 2)
    opened = [chunks(f"m-{number}", pieces(beacons(5, first=5 * number + 1), 2)) for number in range(3)]
    async with streaming(ingest) as client:
        await client.open()
        await client.batch(1, messages=[opened[0][0], opened[1][0]])
        await client.durable(1)
        await client.batch(2, messages=[opened[2][0]])
        throttle = await client.throttle()
        assert throttle.reason == ErrorReason.ERROR_REASON_CHUNK_STORAGE_FULL
        assert (throttle.limit_name, throttle.limit, throttle.used) == ("gateway_open_messages", 2, 2)
        assert throttle.first_refused_sequence == 2
        await send(ingest, opened[0][1])  # By another door.
        await until_counted(ingest, 5)
        await client.batch(2, messages=[opened[2][0]])
        await client.batch(3, messages=[opened[2][1], opened[1][1]])
        assert await client.durable(3) == []
        await client.close()
    await until_counted(ingest, 15)


async def test_chunks_by_mqtt(mesh: Mesh, ingest: Ingest) -> None:
    text = json.dumps(beacons(20))
    cut = [text[start : start + 100] for start in range(0, len(text), 100)]
    arrays = [beacons(10, first=21), beacons(5, first=31)]
    whole = json.dumps(beacons(5, first=36)).encode()
    sent = shuffled([*envelopes("1", cut), *envelopes("2", arrays), whole], repeated=5)
    bad = [
        b'{"messageId": "x", "index": 2, "total": 2, "payload": "a"}',
        b'{"messageId": "", "index": 0, "total": 2, "payload": "a"}',
        b'{"messageId": "x", "index": 0, "total": 20000, "payload": "a"}',
        b'{"messageId": "x", "index": 0, "total": 2, "payload": {}}',
    ]
    await mesh.site.send(*sent, *bad, device=BLE)
    await until_counted(ingest, 40)
    assert sorted(await counts(ingest)) == sorted(f"b{number}" for number in range(1, 41))

    async def are_kept() -> bool:
        return len(await letters(ingest)) == len(bad)

    await until(are_kept)
    assert {reason for reason, _, _ in await letters(ingest)} == {"MESSAGE_MALFORMED"}
    assert {payload for _, _, payload in await letters(ingest)} == set(bad)
    assert await ingest.fetch_value(KEPT) == 0


async def test_by_mqtt_what_cannot_be_kept_is_a_dead_letter(
    mesh: Mesh, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_chunks, "MAX_OPEN_MESSAGES", 1)
    first, full, other = (
        *envelopes("1", ["a", "b"])[:1],
        *envelopes("2", ["a", "b"])[:1],
        *envelopes("1", ["c", "d"])[:1],
    )
    for payload in (first, full, other):
        await mesh.site.send(payload, device=BLE)
    await mesh.site.send(first, device=HUB)  # Takes no chunks: it is a message without a child.

    async def are_kept() -> bool:
        return len(await letters(ingest)) == 3

    await until(are_kept)
    # They are told in any order.
    found = [(reason, payload) for reason, _, payload in await letters(ingest)]
    assert sorted(each for each in found if each[0].startswith("CHUNK_")) == [
        ("CHUNK_INVALID", other),
        ("CHUNK_STORAGE_FULL", full),
    ]
    assert await ingest.fetch_value("SELECT received FROM telemetry.chunked_message") == 1


async def test_a_message_by_all_doors_and_processes_is_stored_once(mesh: Mesh, ingest: Ingest) -> None:
    """Two eager processes; each chunk comes twice, by different doors."""
    messages = {f"m-{number}": pieces(beacons(50, offset=1_000 * number), 12) for number in range(3)}
    by_mqtt = [
        json.dumps({"messageId": name, "index": index, "total": 12, "payload": part.decode()}).encode()
        for name, parts in messages.items()
        for index, part in enumerate(parts)
        if index % 3 != 0
    ]
    by_unary = [
        part for name, parts in messages.items() for part in chunks(name, parts) if part.chunk.index % 3 != 1
    ]
    by_stream = [
        part for name, parts in messages.items() for part in chunks(name, parts) if part.chunk.index % 3 != 2
    ]
    async with mesh.ingest() as other, streaming(other) as client, mesh.site.device() as device:
        await client.open()

        async def stream() -> None:
            for number, part in enumerate(shuffled(by_stream)):
                await client.batch(number + 1, messages=[part])
            await client.durable(len(by_stream))

        await asyncio.gather(
            stream(),
            *(device.publish(f"devices/{BLE}/telemetry", each, qos=1) for each in shuffled(by_mqtt)),
            *(send(ingest, part) for part in shuffled(by_unary)),
        )

        async def is_done() -> bool:
            return int(await ingest.fetch_value(ROWS)) >= 150 and not await ingest.fetch_value(KEPT)

        await until(is_done)
        await client.close()
    assert await ingest.fetch_value(ROWS) == 150
    assert await counts(ingest) == {
        f"b{number}": [number, number + 1_000, number + 2_000] for number in range(1, 51)
    }
    assert await letters(ingest) == []
