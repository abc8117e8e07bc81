"""RawMessageService: every door's messages as they came, each tenant's own."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshkit.clock import to_datetime
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.device_site import DeviceNats, device_nats_server
from tests.rpc.ingest.neighbours import (
    FakeAssets,
    Ingest,
    reading,
    refused,
    running_ingest,
    serving,
    until,
)
from tests.rpc.ingest.streaming import DOUBLE, columns, locked_cursor, opened
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import raw_message_service_pb2 as raw_pb2
from twinmesh.ingest.v1 import raw_message_service_pb2_grpc as raw_grpc

BATCH = raw_pb2.RAW_MESSAGE_FORMAT_BATCH
DEFS = raw_pb2.RAW_MESSAGE_FORMAT_SERIES_DEFS
NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT


class Reader:
    """Somebody who may read raw messages."""

    def __init__(self, ingest: Ingest, tenant: str = "acme") -> None:
        self._stub: Any = raw_grpc.RawMessageServiceStub(ingest.channel)
        self._caller = ingest.caller(tenant=tenant, permissions=["raw_message:read"])

    async def page(self, **query: Any) -> raw_pb2.ListRawMessagesResponse:
        page: raw_pb2.ListRawMessagesResponse = await self._stub.ListRawMessages(
            raw_pb2.ListRawMessagesRequest(**query), metadata=self._caller
        )
        return page

    async def all(self, **query: Any) -> list[raw_pb2.RawMessage]:
        """Return messages with their content, the oldest first."""
        listed = list((await self.page(**query)).raw_messages)
        return [await self.get(message.id) for message in reversed(listed)]

    async def get(self, raw_message_id: str) -> raw_pb2.RawMessage:
        message: raw_pb2.RawMessage = await self._stub.GetRawMessage(
            raw_pb2.GetRawMessageRequest(id=raw_message_id), metadata=self._caller
        )
        return message


@pytest.fixture
def reader(ingest: Ingest) -> Reader:
    return Reader(ingest)


async def test_a_request_is_kept_as_it_came(ingest: Ingest, reader: Reader) -> None:
    request = ingest_pb2.IngestTelemetryRequest(
        readings=[reading("pump-2", temperature=1.5), reading("nobody", temperature=2)], request_id="r1"
    )
    # A field that this server does not know.
    request.MergeFromString(b"\xba\x3e\x04more")
    before = datetime.now(UTC)
    await ingest.stub.IngestTelemetry(request, metadata=ingest.caller())
    (message,) = await reader.all(device_id="pump-2")
    assert message.payload == request.SerializeToString()
    assert message.request == request
    assert (message.door, message.principal, message.request_id) == ("unary", "user:tester", "r1")
    assert list(message.device_ids) == ["nobody", "pump-2"]
    assert message.size == len(message.payload)
    assert before - timedelta(seconds=1) <= message.receive_time.ToDatetime(UTC) <= datetime.now(UTC)
    (listed,) = (await reader.page(request_id="r1")).raw_messages
    assert (listed.payload, listed.WhichOneof("content")) == (b"", None)


async def test_what_is_refused_for_good_is_kept(ingest: Ingest, reader: Reader) -> None:
    await ingest.send(reading("nobody", temperature=1))
    (message,) = await reader.all(device_id="nobody")
    assert message.request.readings[0].numbers["temperature"] == 1
    async with opened(ingest) as client:
        disagreeing = columns(1, 2, lengths=[3])
        both = ingest_pb2.Batch(
            sequence=2, columns=columns(1), readings=[reading("pump-2"), reading("No\x00device", x=1)]
        )
        await client.batch(1, disagreeing)
        await client.send(batch=both)
        assert [result.reason for result in await client.durable(2)] != []
    _, first, second = await reader.all(writer_id="gw")
    assert first.batch == ingest_pb2.Batch(sequence=1, columns=disagreeing)
    assert second.batch == both
    assert list(second.device_ids) == ["pump-1", "pump-2"]


async def test_a_repetition_is_not_kept_again(ingest: Ingest, reader: Reader) -> None:
    sent = reading(time_us=None, temperature=1)
    for _ in range(2):
        await ingest.send(sent, request_id="r1")
    assert len(await reader.all(request_id="r1")) == 1
    async with opened(ingest) as client:
        batch = await client.batch(1, columns(1))
        await client.durable(1)
    async with opened(ingest) as client:
        await client.batch(1, batch)
        await client.batch(2, columns(2))
        await client.durable(2)
    kept = await reader.all(writer_id="gw")
    assert [(message.format, message.sequence) for message in kept] == [
        (DEFS, 0),
        (BATCH, 1),
        (DEFS, 0),  # Of the second stream, with the first batch that was new.
        (BATCH, 2),
    ]
    assert [list(message.series_defs_ids) for message in kept if message.format == BATCH] == [
        [kept[0].id],
        [kept[2].id],
    ]


async def test_a_stream_s_batches_are_kept_with_what_their_aliases_stand_for(
    ingest: Ingest, reader: Reader
) -> None:
    async with opened(ingest) as client:
        first = await client.batch(1, columns(1), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
        await client.durable(1)
        await client.define(("pump-1", "temperature"))  # Again: it is not kept a second time.
        await client.batch(2, columns(2))
        await client.send(
            series_defs=ingest_pb2.SeriesDefs(
                defs=[ingest_pb2.SeriesDef(alias=7, device_id="pump-2", metric="temperature", kind=DOUBLE)]
            )
        )
        third = await client.batch(3, columns(3, 4, aliases=[7, 0], lengths=[1, 1]))
        await client.durable(3)
    definitions, one, two, more, three = await reader.all(writer_id="gw")
    assert [message.format for message in (definitions, one, two, more, three)] == [
        DEFS,
        BATCH,
        BATCH,
        DEFS,
        BATCH,
    ]
    assert [(each.alias, each.device_id) for each in definitions.series_defs.defs] == [(0, "pump-1")]
    assert [(each.alias, each.device_id) for each in more.series_defs.defs] == [(7, "pump-2")]
    assert (one.batch.columns, three.batch.columns) == (first, third)
    assert (one.sequence, one.epoch, one.door, one.trace_id) == (1, 1, "stream", "ab" * 16)
    assert list(three.series_defs_ids) == [definitions.id, more.id]
    assert list(three.device_ids) == ["pump-1", "pump-2"]
    assert [message.id for message in await reader.all(device_id="pump-2")] == [more.id, three.id]


async def test_what_is_thrown_back_is_kept_once_it_is_taken(
    ingest: Ingest, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry_store.writer.LOCK_WAIT_S", 0.05)
    async with opened(ingest) as client:
        async with locked_cursor(ingest):
            batch = await client.batch(1, columns(1))
            assert (await client.throttle()).first_refused_sequence == 1
        assert await reader.all() == []
        await client.batch(1, batch)
        await client.durable(1)
    assert [message.format for message in await reader.all()] == [DEFS, BATCH]


@pytest.fixture
async def devices(
    short_home: Path, database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> AsyncIterator[tuple[DeviceNats, Ingest]]:
    assets = FakeAssets()
    assets.add("pump-1")
    with device_nats_server(short_home) as site:
        async with (
            serving(assets) as asset_address,
            running_ingest(
                database=database,
                nats_url=nats_url,
                auth_address=auth_address,
                mint=mint,
                assets=assets,
                asset_address=asset_address,
                device_nats_url=site.url,
            ) as ingest,
        ):
            yield site, ingest


async def test_a_device_s_messages_are_kept_byte_for_byte(devices: tuple[DeviceNats, Ingest]) -> None:
    site, ingest = devices
    reader = Reader(ingest)
    payloads = [b'{"temperature": 1.50}', b"no json", b"\xff\xfe"]
    await site.send(*payloads, at_once=False)

    async def are_kept() -> bool:
        return len((await reader.page(device_id="pump-1")).raw_messages) == len(payloads)

    await until(are_kept)
    kept = await reader.all(device_id="pump-1", principal="mqtt")
    assert [message.payload for message in kept] == payloads
    assert [message.text for message in kept] == ['{"temperature": 1.50}', "no json", ""]
    assert {message.door for message in kept} == {"mqtt"}
    assert len({message.request_id for message in kept}) == 3


async def test_pages_go_on_where_the_last_one_ended(ingest: Ingest, reader: Reader) -> None:
    for number in range(5):
        await ingest.send(reading(temperature=number), request_id=f"r{number}")
    whole = [message.id for message in (await reader.page()).raw_messages]
    assert len(whole) == 5
    found: list[str] = []
    token = ""
    while True:
        page = await reader.page(page_size=2, page_token=token)
        found += [message.id for message in page.raw_messages]
        token = page.next_page_token
        if not token:
            break
        # What comes in between is told by no later page.
        await ingest.send(reading(temperature=9), request_id=f"later {token}"[:30].replace(" ", "-"))
    assert found == whole
    told = await refused(
        reader.page(page_token=(await reader.page(page_size=2)).next_page_token, device_id="pump-1")
    )
    assert (told.code, told.reason) == (INVALID, "PAGE_TOKEN_INVALID")


async def test_a_range_of_time_is_from_its_start_to_before_its_end(ingest: Ingest, reader: Reader) -> None:
    for number in range(3):
        await ingest.send(reading(temperature=number))
    newest, middle, oldest = (await reader.page()).raw_messages

    async def ids(**query: Any) -> list[str]:
        return [message.id for message in (await reader.page(**query)).raw_messages]

    assert await ids(start_time=middle.receive_time) == [newest.id, middle.id]
    assert await ids(end_time=middle.receive_time) == [oldest.id]
    reversed_range = await refused(reader.page(start_time=middle.receive_time, end_time=oldest.receive_time))
    assert (reversed_range.code, reversed_range.reason) == (INVALID, "TIME_RANGE_INVALID")
    earliest = to_datetime(-62_135_596_800_000_000)
    assert await ids(start_time=earliest) == [newest.id, middle.id, oldest.id]
    assert (await refused(reader.page(end_time=earliest))).reason == "TIME_RANGE_INVALID"
    assert (await refused(reader.page(start_time={"seconds": 2**60}))).fields == ["start_time"]


async def test_a_tenant_reads_its_own_messages_only(ingest: Ingest, reader: Reader) -> None:
    await ingest.send(reading(temperature=1), request_id="r")
    await ingest.send(reading("foreign", temperature=2), request_id="r", caller=ingest.caller(tenant="other"))
    rival = Reader(ingest, "other")
    (own,), (foreign,) = await reader.all(request_id="r"), await rival.all(request_id="r")
    assert (own.device_ids[0], foreign.device_ids[0]) == ("pump-1", "foreign")
    assert await reader.all(device_id="foreign") == []
    told = await refused(reader.get(foreign.id))
    assert (told.code, told.reason) == (NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize("raw_message_id", ["1-1", "99999999999999999-999999999999999999"])
async def test_a_message_that_is_not_there_is_not_found(reader: Reader, raw_message_id: str) -> None:
    assert (await refused(reader.get(raw_message_id))).code == NOT_FOUND


@pytest.mark.parametrize("raw_message_id", ["", "x", "0-1", "1", "1-", "-1-1", "1" * 18 + "-1"])
async def test_an_id_of_another_form_is_refused(reader: Reader, raw_message_id: str) -> None:
    told = await refused(reader.get(raw_message_id))
    assert (told.code, told.fields) == (INVALID, ["id"])


async def test_without_the_trail_nothing_is_kept(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    assets = FakeAssets()
    assets.add("pump-1")
    async with (
        serving(assets) as asset_address,
        running_ingest(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
            raw_messages=False,
        ) as ingest,
    ):
        await ingest.send(reading(temperature=1))
        async with opened(ingest) as client:
            await client.batch(1, columns(1))
            await client.durable(1)
        assert await Reader(ingest).all() == []
