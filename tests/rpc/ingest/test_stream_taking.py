"""The gateway stream: what is opened, taken, acknowledged and stored, and how it ends."""

from typing import Any

import grpc
import pytest

from meshkit.clock import SystemClock
from tests.rpc.ingest.neighbours import Ingest, reading
from tests.rpc.ingest.streaming import (
    DOUBLE,
    METHOD,
    NOW_US,
    Client,
    columns,
    locked_cursor,
    opened,
    streaming,
)
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def test_columns_and_readings_become_durable(ingest: Ingest) -> None:
    async with streaming(ingest) as client:
        told = await client.open()
        assert (told.epoch, told.last_committed_sequence, told.outcomes_kept) == (1, 0, 256)
        assert (told.max_batch_bytes, told.max_inflight_batches) == (2 << 20, 128)
        assert (told.max_inflight_bytes, told.max_series) == (8 << 20, 100_000)
        assert 3240 <= told.max_stream_lifetime.seconds <= 3600
        assert abs(told.server_time.ToMicroseconds() - SystemClock().now_us()) < 600_000_000
        await client.define(("pump-1", "temperature"), ("pump-2", "temperature"))
        sent = columns(1.0, 2.0, 3.0, aliases=(0, 1), lengths=(2, 1))
        await client.batch(1, sent)
        await client.batch(2, readings=[reading("pump-1", time_us=NOW_US - 1, temperature=4.0)])
        await client.batch(3)
        assert await client.durable(3) == []
        assert client.acks[-1].accepted_through == 3
        assert await client.close() == []
    assert await ingest.samples() == {
        ("pump-1", "temperature", sent.times[0]): 1.0,
        ("pump-1", "temperature", sent.times[1]): 2.0,
        ("pump-2", "temperature", sent.times[2]): 3.0,
        ("pump-1", "temperature", NOW_US - 1): 4.0,
    }


async def test_every_kind_is_stored(ingest: Ingest) -> None:
    kinds = {
        "temperature": value_pb2.VALUE_KIND_DOUBLE,
        "count": value_pb2.VALUE_KIND_INT,
        "running": value_pb2.VALUE_KIND_BOOL,
        "state": value_pb2.VALUE_KIND_STRING,
        "inlet": value_pb2.VALUE_KIND_POINT,
    }
    async with streaming(ingest) as client:
        await client.open()
        await client.send(
            series_defs=ingest_pb2.SeriesDefs(
                defs=[
                    ingest_pb2.SeriesDef(alias=alias, device_id="pump-1", metric=metric, kind=kind)
                    for alias, (metric, kind) in enumerate(kinds.items())
                ]
            )
        )
        await client.batch(
            1,
            ingest_pb2.Columns(
                series=range(5),
                run_lengths=[1] * 5,
                times=[NOW_US] * 5,
                double_values=[1.5],
                int_values=[2**60 + 1],
                bool_values=[True],
                string_values=["läuft"],
                point_values=[value_pb2.Point(latitude=1, longitude=2, altitude=3)],
            ),
        )
        assert await client.durable(1) == []
    stored = {metric: value for (_, metric, _), value in (await ingest.samples()).items()}
    assert stored == {
        "temperature": 1.5,
        "count": 2**60 + 1,
        "running": True,
        "state": "läuft",
        "inlet": (1, 2, 3),
    }


async def test_strings_may_come_as_codes_of_a_dictionary(ingest: Ingest) -> None:
    shape: dict[str, Any] = {"series": [0], "run_lengths": [5], "times": range(NOW_US, NOW_US + 5)}
    texts = ["on", "off", "on", "on", "läuft"]
    coded = ingest_pb2.Columns(
        **shape, string_dictionary=["läuft", "on", "unused", "off"], string_codes=[1, 3, 1, 1, 0]
    )
    async with streaming(ingest) as client:
        await client.open()
        await client.define(("pump-1", "state"), kind=value_pb2.VALUE_KIND_STRING)
        await client.batch(1, coded)
        # The same content in the other form is a duplicate.
        await client.batch(1, ingest_pb2.Columns(**shape, string_values=texts))
        await client.batch(2)
        assert await client.durable(2) == []
    stored = await ingest.samples()
    assert [stored["pump-1", "state", NOW_US + place] for place in range(5)] == texts
    row = "SELECT strings || codes::text[] FROM telemetry.segment"
    assert await ingest.fetch_value(row) == ["läuft", "on", "off", "2", "3", "2", "2", "1"]


async def test_half_closing_acknowledges_what_was_taken(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        for sequence in range(1, 21):
            await client.batch(sequence, columns(1.0))
        await client.call.done_writing()
        rest = await client.ends()
    assert rest[-1].ack.durable_through == 20
    assert len(await ingest.samples()) == 20


async def test_batches_behind_close_are_not_read(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        async with locked_cursor(ingest):  # So that the stream does not end before all is sent.
            await client.batch(1, columns(1.0))
            await client.send(close=ingest_pb2.Close())
            await client.send(batch=ingest_pb2.Batch(sequence=2))
        rest = await client.ends()
    assert rest[-1].ack.durable_through == 1
    async with streaming(ingest) as client:
        assert (await client.open()).last_committed_sequence == 1


async def test_accepted_is_told_before_durable_when_asked_for(ingest: Ingest) -> None:
    async with opened(ingest, ack_level=ingest_pb2.ACK_LEVEL_ACCEPTED) as client:
        async with locked_cursor(ingest):
            await client.batch(1, columns(1.0))
            told = (await client.read()).ack
            assert (told.accepted_through, told.durable_through) == (1, 0)
        await client.durable(1)


async def test_a_resumed_stream_learns_the_refusals_again(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.define(("pump-1", "temperature"), ("absent", "temperature"))
        first, second = columns(1.0), columns(1.0, 2.0, aliases=(0, 1), lengths=(1, 1))
        await client.batch(1, first)
        await client.batch(2, second)
        told = await client.durable(2)
    assert [(result.sequence, result.stored_samples, result.refused_samples) for result in told] == [
        (2, 1, 1)
    ]
    (refusal,) = told[0].refusals
    assert (refusal.reading_index, refusal.device_id, refusal.metric, refusal.sample_count) == (
        1,
        "absent",
        "temperature",
        1,
    )
    assert refusal.reason == ErrorReason.ERROR_REASON_DEVICE_UNKNOWN
    async with streaming(ingest) as client:
        again = await client.open()
        assert (again.epoch, again.last_committed_sequence) == (2, 2)
        # Under other aliases: what they stand for counts.
        await client.define(("absent", "temperature"), ("pump-1", "temperature"))
        first.series[0] = 1
        second.series[:] = [1, 0]
        await client.batch(1, first)
        await client.batch(2, second)
        assert await client.durable(2) == told
        await client.batch(3, columns(1.0, aliases=(1,)))
        await client.durable(3)
    assert len(await ingest.samples()) == 3


async def test_outcomes_of_the_other_door_are_told(ingest: Ingest) -> None:
    bad = reading("absent", time_us=NOW_US, temperature=1.0)
    await ingest.send(bad, writer_id="gw", sequence=1)
    async with streaming(ingest) as client:
        assert (await client.open()).last_committed_sequence == 1
        await client.batch(1, readings=[bad])
        (result,) = await client.durable(1)
    assert (result.sequence, result.refused_samples) == (1, 1)
    assert [refusal.device_id for refusal in result.refusals] == ["absent"]


async def test_outcomes_are_kept_for_so_many_batches(ingest: Ingest) -> None:
    async with streaming(ingest) as client:
        await client.open()
        for sequence in range(1, 101):
            await client.batch(sequence)
        await client.durable(100)
        for sequence in range(101, 201):
            await client.batch(sequence)
        await client.durable(200)
        for sequence in range(201, 258):
            await client.batch(sequence)
        await client.durable(257)
    async with streaming(ingest) as client:
        await client.open()
        await client.batch(1)
        await client.batch(2)
        results = await client.durable(2)
    assert [(result.sequence, result.reason) for result in results] == [
        (1, ErrorReason.ERROR_REASON_OUTCOME_EXPIRED)
    ]
    assert results[0].message


async def test_a_gap_ends_the_stream(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0))
        await client.batch(3, columns(1.0))
        refused = await client.fails()
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_GAP")
    assert refused.metadata == {"expected": "2"}


async def test_a_sequence_with_other_content_ends_the_stream(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0))
        await client.durable(1)
        await client.batch(1, columns(2.0))
        refused = await client.fails()
    assert (refused.code, refused.reason, refused.metadata) == (INVALID, "SEQUENCE_REUSED", {"sequence": "1"})


async def test_an_unknown_alias_asks_for_definitions_and_uses_up_nothing(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        sent = columns(1.0, aliases=(7,))
        await client.batch(1, sent)
        await client.batch(2, columns(1.0))  # On its way already; dropped without a word.
        throttle = await client.throttle()
        assert (throttle.first_refused_sequence, throttle.limit_name) == (1, "")
        assert throttle.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS
        assert throttle.retry_after.ToMilliseconds() == 0
        definition = ingest_pb2.SeriesDef(alias=7, device_id="pump-2", metric="temperature", kind=DOUBLE)
        await client.send(series_defs=ingest_pb2.SeriesDefs(defs=[definition]))
        await client.batch(1, sent)
        await client.batch(2, columns(1.0))
        assert await client.durable(2) == []
    assert len(await ingest.samples()) == 2


async def test_while_nobody_knows_the_devices_the_client_is_throttled(ingest: Ingest) -> None:
    ingest.assets.refusing = True
    async with opened(ingest) as client:
        sent = columns(1.0)
        await client.batch(1, sent)
        throttle = await client.throttle()
        assert throttle.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        assert throttle.retry_after.ToMilliseconds() > 0
        ingest.assets.refusing = False
        await client.batch(1, sent)
        await client.durable(1)


async def test_a_client_beyond_its_credits_is_throttled(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What waits is not to be thrown back, however long sending takes.
    monkeypatch.setattr("telemetry_store.writer.LOCK_WAIT_S", 60.0)
    sent = [columns(1.0) for _ in range(131)]
    async with opened(ingest) as client:
        async with locked_cursor(ingest):
            for sequence, content in enumerate(sent, start=1):
                await client.batch(sequence, content)
            throttle = await client.throttle()
        assert throttle.reason == ErrorReason.ERROR_REASON_INGEST_BUSY
        assert (throttle.limit_name, throttle.limit, throttle.used) == ("inflight_batches", 128, 128)
        assert (throttle.first_refused_sequence, throttle.retry_after.ToMilliseconds()) == (129, 500)
        await client.durable(128)
        for sequence in (129, 130, 131):
            await client.batch(sequence, sent[sequence - 1])
        await client.durable(131)
    assert len(await ingest.samples()) == 131


async def test_credits_count_bytes(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    # What waits is not to be thrown back, however long sending takes.
    monkeypatch.setattr("telemetry_store.writer.LOCK_WAIT_S", 60.0)
    async with opened(ingest) as client:
        async with locked_cursor(ingest):
            for sequence in range(1, 7):
                await client.batch(sequence, columns(*range(100_000)))
            throttle = await client.throttle()
        assert (throttle.limit_name, throttle.limit) == ("inflight_bytes", 8 << 20)
        assert throttle.first_refused_sequence == 6
        assert 8_000_000 < throttle.used <= 8 << 20


async def test_a_writer_is_another_principals(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.close()
    async with streaming(ingest, caller=ingest.caller(subject="somebody")) as client:
        await client.send(open=ingest_pb2.Open(writer_id="gw"))
        refused = await client.fails()
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "WRITER_NOT_OWNED")
    async with streaming(ingest, caller=ingest.caller(tenant="other", subject="somebody")) as client:
        assert (await client.open()).epoch == 1


async def test_a_caller_needs_the_permission(ingest: Ingest) -> None:
    async with streaming(ingest, caller=ingest.caller(permissions=["telemetry:read"])) as client:
        refused = await client.fails()
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")


async def test_many_streams_of_one_connection_share_commits(ingest: Ingest) -> None:
    async with streaming(ingest) as one, streaming(ingest) as two:
        for client, writer_id in ((one, "a"), (two, "b")):
            await client.open(writer_id)
            await client.define(("pump-1", "temperature"))
        for sequence in range(1, 51):
            await one.batch(sequence, columns(1.0))
            await two.batch(sequence, columns(1.0))
        await one.durable(50)
        await two.durable(50)
    assert len(await ingest.samples()) == 100


async def test_raw_bytes_of_the_contract_are_enough(ingest: Ingest) -> None:
    call: Client = Client(
        ingest.channel.stream_stream(METHOD)(metadata=ingest.caller()),
    )
    request = ingest_pb2.StreamTelemetryRequest(open=ingest_pb2.Open(writer_id="gw"))
    await call.call.write(request.SerializeToString())
    assert ingest_pb2.StreamTelemetryResponse.FromString(await call.call.read()).opened.epoch == 1
    call.call.cancel()
