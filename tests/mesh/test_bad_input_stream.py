"""Bad input on the gateway stream, through the gateway: a code and a reason, and no other stream notices."""

import asyncio
import math
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest

from meshkit.testing.auth import bearer
from meshkit.testing.calls import write
from meshkit.testing.mesh import Mesh
from tests.mesh.stream_site import SOAK
from tests.rpc.ingest.neighbours import Refused, refused
from tests.rpc.ingest.streaming import METHOD, NOW_US, Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INVALID_FIELD = (INVALID, "INVALID_FIELD")
GARBLED = 500 if SOAK else 30
TEMPERATURE = ("temp-5", "temperature")
Opener = Callable[[str], Client]


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mesh.address) as opened:
        yield opened


@pytest.fixture
def start(channel: grpc.aio.Channel) -> Iterator[Opener]:
    """Begins streams with a token, all over one connection."""
    stub: Any = ingest_grpc.IngestServiceStub(channel)
    calls: list[Any] = []

    def begin(token: str) -> Client:
        calls.append(stub.StreamTelemetry(metadata=bearer(token)))
        return Client(calls[-1])

    yield begin
    for call in calls:
        call.cancel()


@pytest.fixture
async def bad(start: Opener, admin_token: str) -> Client:
    """A stream that is open, with `temperature` under alias 0."""
    client = start(admin_token)
    await client.open(f"bad-{uuid.uuid4()}")
    await client.define(TEMPERATURE)
    return client


@pytest.fixture(autouse=True)
async def good(start: Opener, admin_token: str) -> AsyncIterator[None]:
    """Another stream of the same connection, which goes on after what each test does."""
    client = start(admin_token)
    await client.open(f"good-{uuid.uuid4()}")
    await client.define(TEMPERATURE)
    await client.batch(1, columns(1.0))
    yield
    await client.batch(2, columns(2.0))
    assert await client.durable(2) == []
    await client.close()


def definition(device_id: str = "temp-5", alias: int = 0, kind: Any = 1) -> ingest_pb2.SeriesDefs:
    return ingest_pb2.SeriesDefs(
        defs=[ingest_pb2.SeriesDef(alias=alias, device_id=device_id, metric="temperature", kind=kind)]
    )


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ({"open": ingest_pb2.Open(writer_id="again")}, (INVALID, "STREAM_OPENED_TWICE")),
        ({"batch": ingest_pb2.Batch(sequence=0)}, INVALID_FIELD),
        ({"batch": ingest_pb2.Batch(sequence=2**64 - 1)}, INVALID_FIELD),
        (
            {"batch": ingest_pb2.Batch(sequence=2**63 - 1)},
            (grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_GAP"),
        ),
        (
            {"batch": ingest_pb2.Batch(sequence=1, columns=columns(*range(150_000)))},
            (INVALID, "BATCH_TOO_LARGE"),
        ),
        ({"series_defs": definition("temp-4")}, (INVALID, "ALIAS_REDEFINED")),
        ({"series_defs": definition(alias=100_000)}, INVALID_FIELD),
        ({"series_defs": definition(alias=1, kind=77)}, INVALID_FIELD),
        ({}, INVALID_FIELD),
    ],
)
async def test_a_confused_client_is_told_how(
    bad: Client, message: dict[str, Any], end: tuple[grpc.StatusCode, str]
) -> None:
    await bad.send(**message)
    told = await bad.fails()
    assert (told.code, told.reason) == end


async def test_a_message_above_4_mib_is_grpcs_own_refusal(bad: Client) -> None:
    await bad.batch(1, columns(*range(300_000)))
    assert await bad.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_nothing_comes_before_open(start: Opener, admin_token: str) -> None:
    client = start(admin_token)
    await client.batch(1, columns(1.0))
    told = await client.fails()
    assert (told.code, told.reason) == (INVALID, "STREAM_NOT_OPENED")


@pytest.mark.parametrize("token", ["", "nonsense"])
async def test_a_stream_needs_a_credential(start: Opener, token: str) -> None:
    told = await start(token).fails()
    assert told.code is grpc.StatusCode.UNAUTHENTICATED
    assert told.reason


@pytest.mark.parametrize(
    "wrong",
    [
        columns(1.0, lengths=(1, 1)),
        columns(1.0, 2.0, times=[NOW_US]),
        columns(1.0, times=[NOW_US, NOW_US], lengths=(2,)),
        columns(1.0, int_values=[1]),
        columns(1.0, aliases=(0, 0), lengths=(1, 0)),
        columns(1.0, aliases=(0, 0), lengths=(2**32 - 1, 2)),
        columns(1.0, aliases=()),
    ],
)
async def test_columns_whose_lengths_differ_refuse_their_batch_for_good(
    bad: Client, wrong: ingest_pb2.Columns
) -> None:
    await bad.batch(1, wrong)
    await bad.batch(2, columns(2.0))
    [result] = await bad.durable(2)
    assert (result.sequence, result.reason) == (1, ErrorReason.ERROR_REASON_COLUMNS_INVALID)


async def test_values_that_are_none_are_refused_one_by_one(bad: Client) -> None:
    await bad.batch(1, columns(1.0, math.nan, math.inf, -math.inf, 2.0))
    [result] = await bad.durable(1)
    assert (result.stored_samples, result.refused_samples) == (2, 3)
    assert {told.reason for told in result.refusals} == {ErrorReason.ERROR_REASON_VALUE_INVALID}


async def test_a_kind_that_is_not_the_metrics_refuses_its_samples(bad: Client) -> None:
    await bad.send(series_defs=definition(alias=1, kind=value_pb2.VALUE_KIND_INT))
    await bad.batch(1, ingest_pb2.Columns(series=[1], run_lengths=[1], times=[NOW_US], int_values=[1]))
    [result] = await bad.durable(1)
    assert [told.reason for told in result.refusals] == [ErrorReason.ERROR_REASON_KIND_MISMATCH]


async def test_another_tenants_device_does_not_exist(start: Opener, rival_token: str) -> None:
    rival = start(rival_token)
    await rival.open(f"rival-{uuid.uuid4()}")
    await rival.send(series_defs=definition())
    await rival.batch(1, columns(1.0, 2.0))
    [result] = await rival.durable(1)
    assert (result.stored_samples, result.refused_samples) == (0, 2)
    assert [told.reason for told in result.refusals] == [ErrorReason.ERROR_REASON_DEVICE_UNKNOWN]


async def test_an_unknown_alias_is_asked_for(bad: Client) -> None:
    await bad.batch(1, columns(1.0, aliases=(7,)))
    throttle = await bad.throttle()
    assert throttle.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS
    assert throttle.first_refused_sequence == 1
    await bad.send(series_defs=definition("temp-4", alias=7))
    await bad.batch(1, columns(1.0, aliases=(7,)))
    assert await bad.durable(1) == []


def garbled(messages: Sequence[bytes], chance: random.Random) -> list[bytes]:
    """Return the messages of a stream with one of them random, cut short or changed in a bit."""
    place = chance.randrange(len(messages))
    sent = messages[place]
    match chance.randrange(3):
        case 0:
            broken = chance.randbytes(chance.randint(1, 200))
        case 1:
            broken = sent[: chance.randrange(len(sent))]
        case _:
            bit = chance.randrange(8 * len(sent))
            broken = (int.from_bytes(sent, "big") ^ 1 << bit).to_bytes(len(sent), "big")
    return [*messages[:place], broken, *messages[place + 1 :]]


async def test_random_and_truncated_messages_end_at_most_their_stream(
    channel: grpc.aio.Channel, admin_token: str, chance: random.Random
) -> None:
    batch = ingest_pb2.Batch(sequence=1, columns=columns(1.0, 2.0))
    for _ in range(GARBLED):
        messages = [
            ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id=f"garbled-{uuid.uuid4()}")),
            ingest_pb2.StreamTelemetryRequest(series_defs=definition()),
            ingest_pb2.StreamTelemetryRequest(batch=batch),
        ]
        sent = garbled([message.SerializeToString() for message in messages], chance)
        raw: Any = channel.stream_stream(METHOD)
        call = raw(metadata=bearer(admin_token))
        for message in sent:
            await write(call, message)
        await call.done_writing()
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() in {
            grpc.StatusCode.OK,
            INVALID,
            grpc.StatusCode.FAILED_PRECONDITION,
            # A writer id that came out as somebody else's.
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAUTHENTICATED,
        }, (sent, await call.details())


async def test_bytes_that_are_no_message_are_named(channel: grpc.aio.Channel, admin_token: str) -> None:
    raw: Any = channel.stream_stream(METHOD)
    call = raw(metadata=bearer(admin_token))
    await call.write(b"\xff\xff\xff")
    assert await refused(call.read()) == Refused(*INVALID_FIELD)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 8,
        # A frame that says it is longer than what follows, then a header block that is none.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x20\1\5\0\0\0\1" + b"\xff" * 32,
    ],
)
async def test_garbage_below_grpc_ends_its_connection_only(mesh: Mesh, garbage: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(garbage)
    writer.write_eof()
    with suppress(ConnectionError):
        await reader.read()
    writer.close()
