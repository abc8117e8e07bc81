"""Bad input on the gateway stream: a documented code and reason, and nobody else is disturbed."""

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from meshkit.service_identity import channel_options
from meshkit.testing import identities
from tests.rpc.ingest.neighbours import Ingest, Refused, reading, refused
from tests.rpc.ingest.streaming import METHOD, NOW_US, Client, columns, opened, streaming
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INVALID_FIELD = Refused(INVALID, "INVALID_FIELD")
_OPEN = ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id="raw"))


def _definition(**fields: Any) -> ingest_pb2.SeriesDefs:
    usual: dict[str, Any] = {"alias": 0, "device_id": "pump-1", "metric": "temperature", "kind": 1}
    return ingest_pb2.SeriesDefs(defs=[ingest_pb2.SeriesDef(**{**usual, **fields})])


@pytest.mark.parametrize(
    "message",
    [
        {"series_defs": _definition()},
        {"batch": ingest_pb2.Batch(sequence=1)},
        {"reauthenticate": ingest_pb2.Reauthenticate(token="t")},
        {"close": ingest_pb2.Close()},
        {},
    ],
)
async def test_nothing_comes_before_open(ingest: Ingest, message: dict[str, Any]) -> None:
    async with streaming(ingest) as client:
        await client.send(**message)
        told = await client.fails()
    # What holds nothing breaks no rule of its fields.
    assert (told.code, told.reason) == (INVALID, "STREAM_NOT_OPENED")


async def test_a_stream_is_opened_once(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.send(open=ingest_pb2.Open(writer_id="other"))
        told = await client.fails()
    assert (told.code, told.reason) == (INVALID, "STREAM_OPENED_TWICE")
    async with streaming(ingest) as client:
        assert (await client.open("other")).epoch == 1  # The second one had no effect.


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"batch": ingest_pb2.Batch(sequence=0)}, "batch.sequence"),
        ({"batch": ingest_pb2.Batch(sequence=2**64 - 1)}, "batch.sequence"),
        ({"batch": ingest_pb2.Batch(sequence=2**63)}, "batch.sequence"),
        ({"batch": ingest_pb2.Batch(sequence=1, mode=9)}, "batch.mode"),  # type: ignore[arg-type]
        ({"batch": ingest_pb2.Batch(sequence=1, traceparent="x" * 65)}, "batch.traceparent"),
        ({"series_defs": _definition(alias=100_000)}, "series_defs.defs[0].alias"),
        ({"series_defs": _definition(kind=0)}, "series_defs.defs[0].kind"),
        ({"series_defs": _definition(kind=77)}, "series_defs.defs[0].kind"),
        ({"series_defs": _definition(device_id="UPPER")}, "series_defs.defs[0].device_id"),
        ({"series_defs": _definition(unit="x" * 33)}, "series_defs.defs[0].unit"),
        ({"reauthenticate": ingest_pb2.Reauthenticate()}, "reauthenticate.token"),
        ({}, "message"),
    ],
)
async def test_what_breaks_a_rule_ends_the_stream(
    ingest: Ingest, message: dict[str, Any], field: str
) -> None:
    async with opened(ingest) as client:
        await client.send(**message)
        told = await client.fails()
    assert told == Refused(INVALID, "INVALID_FIELD", fields=[field])


async def test_a_bad_writer_id_ends_the_stream(ingest: Ingest) -> None:
    async with streaming(ingest) as client:
        await client.send(open=ingest_pb2.Open(writer_id="a b"))
        assert await client.fails() == Refused(INVALID, "INVALID_FIELD", fields=["open.writer_id"])


async def test_the_largest_sequence_is_a_gap(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(2**63 - 1)
        assert (await client.fails()).reason == "SEQUENCE_GAP"


async def test_an_alias_stands_for_one_series(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.send(series_defs=_definition())  # The same again.
        await client.send(series_defs=_definition(device_id="pump-2"))
        told = await client.fails()
    assert told == Refused(INVALID, "ALIAS_REDEFINED", {"alias": "0"})


async def test_a_batch_above_the_negotiated_size_uses_up_nothing(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        sent = columns(*range(131_072))  # 16 bytes each.
        size = ingest_pb2.Batch(sequence=1, columns=sent).ByteSize()
        await client.batch(1, sent)
        told = await client.fails()
    assert told == Refused(INVALID, "BATCH_TOO_LARGE", {"limit": str(2 << 20), "size": str(size)})
    async with streaming(ingest) as client:
        assert (await client.open()).last_committed_sequence == 0


async def test_a_message_above_4_mib_is_grpcs_own_refusal(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(*range(300_000)))
        assert await client.call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def _lengths() -> dict[str, ingest_pb2.Columns]:
    return {
        "a run length too many": columns(1.0, lengths=(1, 1)),
        "a time too few": columns(1.0, 2.0, times=[NOW_US]),
        "a value too few": columns(1.0, times=[NOW_US, NOW_US], lengths=(2,)),
        "a value of another kind": columns(1.0, int_values=[1]),
        "a run without samples": columns(1.0, aliases=(0, 0), lengths=(1, 0)),
        "a code beyond the dictionary": columns(1.0, string_dictionary=["on"], string_codes=[1]),
        "strings in both forms": columns(1.0, string_values=["on"], string_dictionary=["on"]),
        "a sum beyond 32 bits": columns(1.0, aliases=(0, 0), lengths=(2**32 - 1, 2)),
    }


@pytest.mark.parametrize("wrong", _lengths())
async def test_columns_that_disagree_refuse_the_batch_for_good(ingest: Ingest, wrong: str) -> None:
    async with opened(ingest) as client:
        await client.batch(1, _lengths()[wrong])
        await client.batch(2, columns(2.0))
        (result,) = await client.durable(2)
    assert (result.sequence, result.reason) == (1, ErrorReason.ERROR_REASON_COLUMNS_INVALID)
    assert result.message
    assert list((await ingest.samples()).values()) == [2.0]


async def test_columns_beside_readings_refuse_the_batch_for_good(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0), readings=[reading(temperature=1.0)])
        (result,) = await client.durable(1)
    assert (result.reason, result.refused_samples) == (ErrorReason.ERROR_REASON_COLUMNS_INVALID, 2)


@pytest.mark.parametrize(
    "bad",
    [
        reading("Bad Name", temperature=1.0),
        reading(temperature=math.nan),
        reading(),
        reading(values={"temperature": value_pb2.Value()}),
        reading(location=value_pb2.Point(latitude=math.inf, altitude=math.nan)),
        reading(values={"state": value_pb2.Value(string_value="\0")}),
    ],
)
async def test_a_bad_reading_refuses_its_batch_for_good(ingest: Ingest, bad: ingest_pb2.Reading) -> None:
    async with opened(ingest) as client:
        await client.batch(1, readings=[reading(temperature=1.0), bad])
        (result,) = await client.durable(1)
        assert result.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
        assert "readings[1]" in result.message
        await client.batch(1, readings=[reading(temperature=1.0), bad])
        assert await client.durable(1) == [result]  # Recorded, not decided anew.


async def test_bad_samples_are_refused_and_the_rest_is_stored(ingest: Ingest) -> None:
    async with streaming(ingest) as client:
        await client.open()
        await client.define(
            ("pump-1", "temperature"),
            ("foreign", "temperature"),
            ("off", "temperature"),
            ("pump-1", "nothing"),
            ("pump-1", "count"),
        )
        aliases = (0, 1, 2, 3, 4, 0, 0)
        sent = columns(*[1.0] * 5, math.nan, 2.0, aliases=aliases, lengths=[1] * 7)
        sent.times[6] = 0
        await client.batch(1, sent)
        (result,) = await client.durable(1)
    assert (result.stored_samples, result.refused_samples, result.reason) == (1, 6, 0)
    assert [(told.reading_index, told.device_id, told.reason) for told in result.refusals] == [
        (1, "foreign", ErrorReason.ERROR_REASON_DEVICE_UNKNOWN),
        (2, "off", ErrorReason.ERROR_REASON_DEVICE_DISABLED),
        (3, "pump-1", ErrorReason.ERROR_REASON_METRIC_UNKNOWN),
        (4, "pump-1", ErrorReason.ERROR_REASON_KIND_MISMATCH),
        (5, "pump-1", ErrorReason.ERROR_REASON_VALUE_INVALID),
        (6, "pump-1", ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW),
    ]
    # Another tenant's device is answered in the words for one that is absent.
    assert result.refusals[0].message == "device 'foreign' does not exist"
    assert await ingest.samples(tenant="other") == {}


async def test_all_or_nothing_stores_nothing(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0, math.inf), mode=ingest_pb2.MODE_ALL_OR_NOTHING)
        (result,) = await client.durable(1)
    assert (result.stored_samples, result.refused_samples) == (0, 2)
    assert await ingest.samples() == {}


async def test_refusals_are_told_up_to_100(ingest: Ingest) -> None:
    bad = [reading("absent", time_us=NOW_US + index, temperature=1.0) for index in range(150)]
    async with streaming(ingest) as client:
        await client.open()
        await client.batch(1, readings=bad)
        (result,) = await client.durable(1)
    assert (result.refused_samples, len(result.refusals)) == (150, 100)


async def test_many_refusals_are_split_over_acks(ingest: Ingest) -> None:
    name = "a" * 64
    bad = [reading(name, time_us=NOW_US + index, temperature=1.0) for index in range(100)]
    async with streaming(ingest) as client:
        await client.open()
        for sequence in range(1, 121):
            await client.batch(sequence, readings=bad)
        results = await client.durable(120)
    assert [result.sequence for result in results] == list(range(1, 121))
    assert {len(result.refusals) for result in results} == {100}
    assert all(ack.ByteSize() < 1 << 20 for ack in client.acks)
    for ack in client.acks:
        assert ack.results[-1].sequence == ack.durable_through


def _damaged(seed: int) -> list[bytes]:
    """Return messages as bytes, of which one is random, cut short or changed."""
    chance = random.Random(seed)
    whole = [
        _OPEN.SerializeToString(),
        ingest_pb2.StreamTelemetryRequest(series_defs=_definition()).SerializeToString(),
        ingest_pb2.StreamTelemetryRequest(
            batch=ingest_pb2.Batch(sequence=1, columns=columns(1.0, 2.0))
        ).SerializeToString(),
    ]
    damages: list[Callable[[bytes], bytes]] = [
        lambda sent: chance.randbytes(len(sent)),
        lambda sent: sent[: chance.randrange(1, len(sent))],
        lambda sent: bytes([*sent[:3], sent[3] ^ 0xFF, *sent[4:]]),
    ]
    place = chance.randrange(len(whole))
    whole[place] = chance.choice(damages)(whole[place])
    return whole


def _ended(address: str, messages: list[bytes], caller: Any) -> grpc.StatusCode:
    """Return how a stream of these messages ends.

    Not by grpc.aio: when a call ends while it is written to, that may put an INTERNAL of
    its own in the place of the server's status.
    """
    with grpc.secure_channel(
        address, identities.credentials(), options=channel_options("ingest_svc")
    ) as channel:
        stream: Any = channel.stream_stream(METHOD)
        call = stream(iter(messages), metadata=caller)
        with suppress(grpc.RpcError):
            for _ in call:
                pass
        code = call.code()
        assert isinstance(code, grpc.StatusCode)
        return code


async def test_random_and_truncated_bytes_disturb_nobody(ingest: Ingest) -> None:
    with capture_logs() as logs:
        async with opened(ingest, "good") as good:
            for seed in range(60):
                caller = ingest.caller(subject=f"u{seed}")
                assert await asyncio.to_thread(_ended, ingest.address, _damaged(seed), caller) in {
                    grpc.StatusCode.OK,
                    INVALID,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.PERMISSION_DENIED,
                }
                await good.batch(seed + 1, columns(float(seed)))
            await good.durable(60)
    assert "rpc failed" not in {log["event"] for log in logs}


async def test_bytes_that_are_no_message_are_named(ingest: Ingest) -> None:
    call: Any = ingest.channel.stream_stream(METHOD)(metadata=ingest.caller())
    await call.write(_OPEN.SerializeToString())
    await call.read()
    await call.write(b"\xff\xff\xff")
    assert await refused(call.read()) == INVALID_FIELD


async def test_the_others_go_on_while_one_is_refused(ingest: Ingest) -> None:
    async with opened(ingest, "good") as good, opened(ingest, "bad") as bad:
        await good.batch(1, columns(1.0))
        await bad.batch(2)
        assert (await bad.fails()).reason == "SEQUENCE_GAP"
        await good.batch(2, columns(1.0))
        await good.durable(2)


async def test_a_call_without_a_credential_is_refused(ingest: Ingest) -> None:
    client = Client(ingest.stub.StreamTelemetry())
    told = await client.fails()
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
