"""Messages of gateways by the unary rpc: demultiplexed to children, whole or in chunks."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import json_format, struct_pb2

from ingest_svc import assembler
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from telemetry_store import chunks as stored_chunks
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
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, refused, running_ingest, serving, until
from twinmesh.asset.v1 import device_type_service_pb2 as type_pb2
from twinmesh.ingest.v1 import dead_letter_service_pb2 as dead_letter_pb2
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_grpc
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import receipt_service_pb2 as receipt_pb2
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as receipt_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


class Mesh:
    """ingest_svc processes on one database."""

    def __init__(self, database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint) -> None:
        self.assets = FakeAssets()
        add_gateways(self.assets)
        self.asset_address = ""
        self._database = database
        self._nats_url = nats_url
        self._auth_address = auth_address
        self._mint = mint

    @asynccontextmanager
    async def ingest(self) -> AsyncIterator[Ingest]:
        async with running_ingest(
            database=self._database,
            nats_url=self._nats_url,
            auth_address=self._auth_address,
            mint=self._mint,
            assets=self.assets,
            asset_address=self.asset_address,
        ) as running:
            yield running


@pytest.fixture
async def mesh(
    database: TestDatabase,
    nats_url: str,
    auth_address: str,
    mint: TokenMint,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(assembler, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(assembler, "_WHOLE_FOR_S", 0.1)
    made = Mesh(database, nats_url, auth_address, mint)
    async with serving(made.assets) as made.asset_address:
        yield made


@pytest.fixture
async def ingest(mesh: Mesh) -> AsyncIterator[Ingest]:
    async with mesh.ingest() as running:
        yield running


def tell(response: ingest_pb2.IngestMessageResponse) -> tuple[int, int, list[str]]:
    reasons = [ErrorReason.Name(told.reason).removeprefix("ERROR_REASON_") for told in response.refusals]
    return response.stored_samples, response.refused_samples, reasons


def message(gateway: str, content: object) -> ingest_pb2.DeviceMessage:
    return ingest_pb2.DeviceMessage(device_id=gateway, payload=json.dumps(content).encode())


def hub_objects(count: int) -> list[dict[str, object]]:
    return [
        {"tag": {"mac": f"b{number}"}, "time": NOW / 1e6, "count": number} for number in range(1, count + 1)
    ]


async def test_a_hub_s_message_is_of_its_children(ingest: Ingest, mesh: Mesh) -> None:
    response = await send(ingest, message(HUB, [*hub_objects(50), {"time": NOW / 1e6, "count": 50}]))
    assert tell(response) == (51, 0, [])
    assert await counts(ingest, HUB) == {f"b{number}": [number] for number in range(1, 51)}
    assert (await ingest.samples())[HUB, "count", NOW] == 50
    assert await letters(ingest) == []
    # The next message asks nobody.
    await send(ingest, message(HUB, hub_objects(50)))
    assert len(mesh.assets.children_asked) == 1


async def test_what_is_wrong_with_one_child_is_refused_and_the_rest_stored(ingest: Ingest) -> None:
    content = [
        *hub_objects(3),
        7,
        {"tag": {"mac": "stranger"}, "count": 1},
        {"tag": {"mac": "b4"}, "unheard": 1},
    ]
    response = await send(ingest, message(HUB, content))
    assert tell(response) == (3, 3, ["MESSAGE_MALFORMED", "CHILD_UNKNOWN", "METRIC_UNKNOWN"])
    assert "'stranger'" in response.refusals[1].message
    assert response.refusals[2].device_id == "hub-1-b4"
    ((reason, why, payload),) = await letters(ingest)
    assert (reason, payload) == ("MESSAGE_MALFORMED", json.dumps(content).encode())
    assert "'stranger'" in why


@pytest.mark.parametrize("said_by", ["request", "type"])
async def test_all_or_nothing(ingest: Ingest, mesh: Mesh, said_by: str) -> None:
    fields: dict[str, object] = {}
    if said_by == "type":
        mesh.assets.types["hub"].message_mode = type_pb2.MESSAGE_MODE_ALL_OR_NOTHING
    else:
        fields["mode"] = ingest_pb2.MODE_ALL_OR_NOTHING
    content = [
        *hub_objects(3),
        {"tag": {"mac": "stranger"}, "count": 1},
        {"tag": {"mac": "b4"}, "unheard": 1},
    ]
    response = await send(ingest, message(HUB, content), **fields)
    assert tell(response) == (0, 5, ["CHILD_UNKNOWN", "METRIC_UNKNOWN", "BATCH_REFUSED"])
    assert await counts(ingest, HUB) == {}
    assert tell(await send(ingest, message(HUB, hub_objects(3)), **fields)) == (3, 0, [])
    # The request's mode goes before the type's.
    assert tell(await send(ingest, message(HUB, content), mode=ingest_pb2.MODE_PARTIAL))[0] == 3


async def test_a_disabled_gateway_s_message_is_refused(ingest: Ingest, mesh: Mesh) -> None:
    mesh.assets.add("off", disabled=True, device_type="hub")
    assert tell(await send(ingest, message("off", hub_objects(1)))) == (0, 1, ["DEVICE_DISABLED"])
    assert tell(await send(ingest, message("nobody", hub_objects(1)))) == (0, 1, ["DEVICE_UNKNOWN"])


async def test_a_child_is_known_once_it_is_announced(ingest: Ingest, mesh: Mesh) -> None:
    new = [{"tag": {"mac": "new"}, "count": 1}]
    assert tell(await send(ingest, message(HUB, new)))[2] == ["CHILD_UNKNOWN"]
    mesh.assets.add_child("hub-1-new", HUB, "new")
    await ingest.announce(b'{"devices": ["hub-1-new"], "device_types": []}')

    async def is_known() -> bool:
        return tell(await send(ingest, message(HUB, new)))[0] == 1

    await until(is_known)
    del mesh.assets.children[HUB, "new"]
    await ingest.announce(b'{"devices": ["hub-1-new"], "device_types": []}')

    async def is_unknown() -> bool:
        return tell(await send(ingest, message(HUB, new)))[0] == 0

    await until(is_unknown)


async def test_a_message_in_json_is_the_same(ingest: Ingest) -> None:
    request = ingest_pb2.IngestMessageRequest(device_id=HUB, request_id="r-1")
    json_format.Parse(json.dumps(hub_objects(2)), request.json)
    first = await ingest.stub.IngestMessage(request, metadata=ingest.caller())
    assert tell(first) == (2, 0, [])
    again = await ingest.stub.IngestMessage(request, metadata=ingest.caller())
    assert (tell(again), again.duplicate) == ((2, 0, []), True)
    request.json.CopyFrom(struct_pb2.Value(number_value=float("nan")))
    assert (await refused(ingest.stub.IngestMessage(request, metadata=ingest.caller()))).fields == ["json"]
    other = ingest_pb2.IngestMessageRequest(device_id=HUB, request_id="r-1", payload=b"[]")
    assert (
        await refused(ingest.stub.IngestMessage(other, metadata=ingest.caller()))
    ).reason == "REQUEST_ID_REUSED"


async def test_chunks_in_any_order_with_duplicates_and_interleaved(ingest: Ingest) -> None:
    one = chunks("m-1", pieces(beacons(50), 7))
    other = chunks("m-2", pieces(beacons(50, offset=1_000), 11))
    for sent in shuffled([*one, *other], repeated=9):
        assert tell(await send(ingest, sent)) == (0, 0, [])

    async def are_stored() -> bool:
        return int(await ingest.fetch_value(ROWS)) >= 100

    await until(are_stored)
    assert await counts(ingest) == {f"b{number}": [number, number + 1_000] for number in range(1, 51)}
    # Late duplicates begin nothing.
    for sent in shuffled([*one, *other], seed=2):
        assert tell(await send(ingest, sent)) == (0, 0, [])
    assert await ingest.fetch_value(ROWS) == 100
    assert await ingest.fetch_value(KEPT) == 0
    assert await letters(ingest) == []


async def test_chunks_as_arrays_of_elements(ingest: Ingest) -> None:
    parts = [beacons(3), [], beacons(2, first=4)]
    for index in (2, 0, 1):
        request = ingest_pb2.IngestMessageRequest(
            device_id=BLE, chunk=ingest_pb2.Chunk(message_id="m", index=index, total=3)
        )
        json_format.Parse(json.dumps(parts[index]), request.json)
        assert tell(await ingest.stub.IngestMessage(request, metadata=ingest.caller())) == (0, 0, [])

    async def are_stored() -> bool:
        return await counts(ingest) == {f"b{number}": [number] for number in range(1, 6)}

    await until(are_stored)


async def test_chunks_that_disagree_are_refused(ingest: Ingest) -> None:
    parts = pieces(beacons(5), 3)
    first, second, third = chunks("m", parts)
    await send(ingest, first)
    bad = [
        ingest_pb2.DeviceMessage(device_id=BLE, payload=b"other", chunk=first.chunk),
        ingest_pb2.DeviceMessage(
            device_id=BLE, payload=b"x", chunk=ingest_pb2.Chunk(message_id="m", index=1, total=4)
        ),
    ]
    for sent in bad:
        assert tell(await send(ingest, sent)) == (0, 1, ["CHUNK_INVALID"])
    assert tell(await send(ingest, second, mode=ingest_pb2.MODE_PARTIAL))[2] == ["CHUNK_INVALID"]
    hub = ingest_pb2.DeviceMessage(device_id=HUB, payload=b"x", chunk=first.chunk)
    assert tell(await send(ingest, hub)) == (0, 1, ["CHUNK_INVALID"])
    await asyncio.gather(send(ingest, second), send(ingest, third))

    async def are_stored() -> bool:
        return len(await counts(ingest)) == 5

    await until(are_stored)
    # Within the hour the id is the message's.
    assert tell(await send(ingest, bad[0])) == (0, 1, ["CHUNK_INVALID"])
    assert [reason for reason, _, _ in await letters(ingest)] == ["CHUNK_INVALID"] * 5


async def test_a_whole_message_that_is_refused_becomes_one_dead_letter(ingest: Ingest) -> None:
    content = [*beacons(2), {"id": "stranger", "count": 1}]
    for sent in [*chunks("m", pieces(content, 3)), *chunks("no-json", [b"[1", b"2"])]:
        await send(ingest, sent)

    async def are_kept() -> bool:
        return len(await letters(ingest)) == 2

    await until(are_kept)
    assert {(reason, payload) for reason, _, payload in await letters(ingest)} == {
        ("CHILD_UNKNOWN", json.dumps(content).encode()),
        ("MESSAGE_MALFORMED", b"[12"),
    }
    assert await counts(ingest) == {"b1": [1], "b2": [2]}
    assert await ingest.fetch_value(KEPT) == 0


async def test_what_is_not_whole_expires_and_names_what_is_missing(ingest: Ingest) -> None:
    parts = pieces(beacons(20), 12)
    sent = chunks("m-7", parts)
    for index in (0, 1, 6, 7, 8, 10):
        await send(ingest, sent[index])
    assert await ingest.fetch_value("SELECT received FROM telemetry.chunked_message") == 6
    await ingest.execute(
        "UPDATE telemetry.chunked_message SET first_received_at = now() - interval '61 seconds'"
    )

    async def has_expired() -> bool:
        return int(await ingest.fetch_value(KEPT)) == 0

    await until(has_expired)
    ((reason, why, payload),) = await letters(ingest)
    assert reason == "CHUNKS_MISSING"
    assert why == "chunks 2-5, 9, 11 of 12 of message 'm-7' did not come within 60 s; send the message again"
    assert payload == b"".join(parts[index] for index in (0, 1, 6, 7, 8, 10))
    # With its gap it may read as another message, so it is not replayed.
    replays = dead_letter_grpc.DeadLetterServiceStub(ingest.channel)
    operator = ingest.caller(permissions=["dead_letter:write"])
    replayed = await replays.ReplayDeadLetters(
        dead_letter_pb2.ReplayDeadLettersRequest(filter=dead_letter_pb2.DeadLetterFilter()), metadata=operator
    )
    assert (replayed.stored_samples, replayed.failed) == (0, 1)
    assert [reason for reason, _, _ in await letters(ingest)] == ["CHUNKS_MISSING"]
    # The same message may be tried again.
    for each in sent:
        assert tell(await send(ingest, each)) == (0, 0, [])

    async def are_stored() -> bool:
        return len(await counts(ingest)) == 20

    await until(are_stored)
    receipts = receipt_grpc.ReceiptServiceStub(ingest.channel)
    receipt = await receipts.LookupReceipt(
        receipt_pb2.LookupReceiptRequest(message_id=f"{BLE}/m-7"),
        metadata=ingest.caller(permissions=["telemetry:write", "dead_letter:read"]),
    )
    assert (receipt.state, receipt.stored_samples) == (receipt_pb2.RECEIPT_STATE_COMMITTED, 20)


async def test_another_process_finishes_what_one_began(mesh: Mesh) -> None:
    sent = shuffled(chunks("m", pieces(beacons(50), 10)))
    async with mesh.ingest() as first:
        for each in sent[:6]:
            await send(first, each)
    async with mesh.ingest() as second:
        for each in sent[5:]:
            await send(second, each)

        async def are_stored() -> bool:
            return len(await counts(second)) == 50

        await until(are_stored)
        assert await second.fetch_value(ROWS) == 50


async def test_a_message_that_was_left_whole_is_found_at_the_start(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh.ingest() as first:
        await send(first, message(BLE, beacons(1)))  # Its profile is known.
        mesh.assets.answering.clear()  # Children cannot be had, so nothing is assembled.
        for each in chunks("m", pieces(beacons(20), 3)):
            await send(first, each)
        assert await first.fetch_value("SELECT received = total FROM telemetry.chunked_message")
    mesh.assets.answering.set()
    async with mesh.ingest() as second:

        async def are_stored() -> bool:
            return len(await counts(second)) == 20

        await until(are_stored)
        assert await second.fetch_value(KEPT) == 0


async def test_storage_is_bounded(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_chunks, "MAX_OPEN_MESSAGES", 3)
    opened = [chunks(f"m-{number}", pieces(beacons(5), 2)) for number in range(4)]
    for message_chunks in opened[:3]:
        await send(ingest, message_chunks[0])
    told = await refused(send(ingest, opened[3][0]))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CHUNK_STORAGE_FULL")
    assert told.metadata == {"limit_name": "gateway_open_messages", "limit": "3", "used": "3"}
    await send(ingest, opened[0][1])  # What is open may be finished.

    async def has_room() -> bool:
        return bool(await ingest.fetch_value("SELECT count(*) = 2 FROM telemetry.chunked_message"))

    await until(has_room)
    await send(ingest, opened[3][0])
    monkeypatch.setattr(stored_chunks, "MAX_OPEN_MESSAGES", 4)
    monkeypatch.setattr(stored_chunks, "MAX_TENANT_BYTES", 1_000)
    told = await refused(send(ingest, chunks("long", [b" " * 2_000, b""])[0]))
    assert told.metadata["limit_name"] == "tenant_chunk_bytes"
    monkeypatch.setattr(stored_chunks, "MAX_MESSAGE_BYTES", 1_000)
    assert tell(await send(ingest, chunks("long", [b" " * 2_000, b""])[0])) == (0, 1, ["CHUNK_INVALID"])


async def test_a_gateway_s_dead_letter_is_replayed_for_its_children(ingest: Ingest, mesh: Mesh) -> None:
    content = [*hub_objects(1), {"tag": {"mac": "late"}, "time": NOW / 1e6, "count": 7}]
    await send(ingest, message(HUB, content))
    mesh.assets.add_child("hub-1-late", HUB, "late")
    await ingest.announce(b'{"devices": ["hub-1-late"], "device_types": []}')
    stub = dead_letter_grpc.DeadLetterServiceStub(ingest.channel)
    caller = ingest.caller(permissions=["dead_letter:write"])

    async def is_replayed() -> bool:
        request = dead_letter_pb2.ReplayDeadLettersRequest(
            filter=dead_letter_pb2.DeadLetterFilter(device_id=HUB)
        )
        await stub.ReplayDeadLetters(request, metadata=caller)
        return await letters(ingest) == []

    await until(is_replayed)
    assert await counts(ingest, HUB) == {"b1": [1], "late": [7]}


async def test_raw_messages_are_found_by_gateway_and_by_child(ingest: Ingest) -> None:
    await send(ingest, message(HUB, hub_objects(2)))
    await send(ingest, chunks("m", [b"[", b"]"])[0])
    rows = await ingest.fetch_rows(
        "SELECT devices.device_ids FROM telemetry.raw_message JOIN telemetry.raw_device_set AS devices"
        " USING (tenant_id, device_set_id) ORDER BY raw_message_id"
    )
    assert [row["device_ids"] for row in rows] == [[HUB, "hub-1-b1", "hub-1-b2"], [BLE]]
