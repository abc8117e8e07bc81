"""Old recordings are taken inside of a declared range, and only there."""

import time
from typing import Any

import grpc

from tests.rpc.ingest.neighbours import Ingest, Refused, reading, refused
from tests.rpc.ingest.streaming import columns, opened, streaming
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
START_US = 1_583_712_000 * SECOND_US  # 2020-03-09
END_US = START_US + DAY_US
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry.segment'::regclass"


def declaration(start_us: int, end_us: int) -> ingest_pb2.CreateBackfillRequest:
    request = ingest_pb2.CreateBackfillRequest()
    request.start_time.FromMicroseconds(start_us)
    request.end_time.FromMicroseconds(end_us)
    return request


async def declare(
    ingest: Ingest, start_us: int = START_US, end_us: int = END_US, **caller: Any
) -> ingest_pb2.Backfill:
    return await ingest.stub.CreateBackfill(declaration(start_us, end_us), metadata=ingest.caller(**caller))


async def test_old_samples_are_stored_inside_of_the_range_only(ingest: Ingest) -> None:
    backfill = await declare(ingest)
    now_us = time.time_ns() // 1000
    times = [START_US - 1, START_US, END_US - 1, END_US, now_us]
    response = await ingest.send(
        *[reading(time_us=time_us, count=index) for index, time_us in enumerate(times)],
        backfill_id=backfill.id,
    )
    assert [(refusal.reading_index, refusal.reason) for refusal in response.refusals] == [
        (index, ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW) for index in (0, 3, 4)
    ]
    assert await ingest.samples() == {("pump-1", "count", START_US): 1, ("pump-1", "count", END_US - 1): 2}
    live = await ingest.send(reading(time_us=START_US, count=9))
    assert live.refusals[0].reason == ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW


async def test_the_same_range_is_the_same_backfill(ingest: Ingest) -> None:
    first, again, wider = (
        await declare(ingest),
        await declare(ingest),
        await declare(ingest, end_us=END_US + 1),
    )
    assert first.id == again.id != wider.id
    assert (first.start_time.ToMicroseconds(), first.end_time.ToMicroseconds()) == (START_US, END_US)
    assert again.expire_time.ToMicroseconds() > time.time_ns() // 1000


async def test_a_backfill_of_the_greatest_length(ingest: Ingest) -> None:
    backfill = await declare(ingest, END_US - 400 * DAY_US)
    sent = [reading(time_us=END_US - days * DAY_US, count=days) for days in range(1, 401)]
    assert (await ingest.send(*sent, backfill_id=backfill.id)).stored_samples == 400


async def test_ranges_that_no_backfill_can_have(ingest: Ingest) -> None:
    now_us = time.time_ns() // 1000
    for start_us, end_us in [(START_US, START_US), (END_US, START_US), (END_US - 400 * DAY_US - 1, END_US)]:
        assert await refused(declare(ingest, start_us, end_us)) == Refused(INVALID, "TIME_RANGE_INVALID")
    assert await refused(declare(ingest, START_US, now_us + DAY_US)) == Refused(
        INVALID, "INVALID_FIELD", {}, ["end_time"]
    )
    assert await refused(declare(ingest, 631_151_999 * SECOND_US)) == Refused(
        INVALID, "INVALID_FIELD", {}, ["start_time"]
    )
    far = declaration(START_US, END_US)
    far.start_time.seconds = 2**62
    call = ingest.stub.CreateBackfill(far, metadata=ingest.caller())
    assert await refused(call) == Refused(INVALID, "TIME_RANGE_INVALID")
    call = ingest.stub.CreateBackfill(ingest_pb2.CreateBackfillRequest(), metadata=ingest.caller())
    assert await refused(call) == Refused(INVALID, "INVALID_FIELD", {}, ["start_time", "end_time"])


async def test_a_backfill_needs_its_permission_to_be_made_and_to_be_used(ingest: Ingest) -> None:
    missing = Refused(
        grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING", {"permission": "telemetry:backfill"}
    )
    writer = ingest.caller(permissions=["telemetry:write"])
    call = ingest.stub.CreateBackfill(declaration(START_US, END_US), metadata=writer)
    assert await refused(call) == missing
    backfill = await declare(ingest)
    sent = reading(time_us=START_US, count=1)
    assert await ingest.refused(sent, backfill_id=backfill.id, caller=writer) == missing
    assert await ingest.samples() == {}


async def test_unknown_foreign_and_expired_backfills(ingest: Ingest) -> None:
    unknown = Refused(grpc.StatusCode.FAILED_PRECONDITION, "BACKFILL_UNKNOWN")
    sent = reading(time_us=START_US, count=1)
    assert await ingest.refused(sent, backfill_id="bf-0") == unknown
    foreign = await declare(ingest, tenant="other")
    assert await ingest.refused(sent, backfill_id=foreign.id) == unknown
    expired = await declare(ingest)
    assert foreign.id != expired.id
    await ingest.fetch_value("UPDATE telemetry.backfill SET expire_time = now() WHERE tenant_id = 'acme'")
    assert await ingest.refused(sent, backfill_id=expired.id) == unknown
    renewed = await declare(ingest)
    assert (await ingest.send(sent, backfill_id=renewed.id)).stored_samples == 1


async def test_stray_clocks_make_no_partitions(ingest: Ingest) -> None:
    before = await ingest.fetch_value(PARTITIONS)
    backfill = await declare(ingest)
    declared = await ingest.fetch_value(PARTITIONS)
    stray = [reading(time_us=time_us, count=1) for time_us in (0, 4_102_444_800 * SECOND_US)]
    for backfill_id in ("", backfill.id):
        assert (await ingest.send(*stray, backfill_id=backfill_id)).stored_samples == 0
    assert declared == before + 1
    assert await ingest.fetch_value(PARTITIONS) == declared


async def test_a_batch_of_a_stream_may_name_a_backfill(ingest: Ingest) -> None:
    backfill = await declare(ingest)
    times = [START_US + number * SECOND_US for number in range(100)]
    async with opened(ingest) as client:
        await client.batch(1, columns(*map(float, range(100)), times=times), backfill_id=backfill.id)
        await client.batch(
            2, columns(1.0, 2.0, times=[END_US, time.time_ns() // 1000]), backfill_id=backfill.id
        )
        await client.batch(3, columns(3.0, times=[START_US]))
        await client.batch(4, columns(4.0))
        await client.batch(
            5, readings=[reading(time_us=END_US - 1, temperature=5.0)], backfill_id=backfill.id
        )
        message = ingest_pb2.DeviceMessage(device_id="pump-1", payload=b"{}")
        await client.batch(6, messages=[message], backfill_id=backfill.id)
        results = {result.sequence: result for result in await client.durable(6)}
    # Out of the backfill's range, and what names none out of the live window.
    assert {sequence: result.refused_samples for sequence, result in results.items()} == {2: 2, 3: 1, 6: 1}
    assert results[6].reason == ErrorReason.ERROR_REASON_INVALID_FIELD
    sealed = "SELECT sum(samples) FROM telemetry.sealed_segment"
    assert await ingest.fetch_value(sealed) == 100
    hot = "SELECT sum(cardinality(times)) FROM telemetry.segment"
    assert await ingest.fetch_value(hot) == 2
    # The recording is one: of what names a backfill no raw message is kept.
    raw = "SELECT count(*) FROM telemetry.raw_message WHERE format = 1"
    assert await ingest.fetch_value(raw) == 2
    assert await ingest.fetch_value("SELECT DISTINCT (quality IS NOT NULL) FROM telemetry.sealed_segment")


async def test_a_stream_ends_that_names_a_backfill_it_may_not(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0, times=[START_US]), backfill_id="bf-0")
        told = await client.fails()
        assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BACKFILL_UNKNOWN")
    backfill = await declare(ingest)
    async with streaming(ingest, caller=ingest.caller(permissions=["telemetry:write"])) as client:
        await client.open()
        await client.define(("pump-1", "temperature"))
        await client.batch(1, columns(1.0, times=[START_US]), backfill_id=backfill.id)
        told = await client.fails()
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    # Nothing was used up.
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0, times=[START_US]), backfill_id=backfill.id)
        assert await client.durable(1) == []
