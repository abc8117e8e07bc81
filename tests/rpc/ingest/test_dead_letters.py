"""Dead letters by rpc: each door leaves them; they are listed, read, replayed and purged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshkit import paging
from meshkit.clock import SystemClock
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import (
    TENANT,
    FakeAssets,
    Ingest,
    reading,
    refused,
    running_ingest,
    serving,
    until,
)
from tests.rpc.ingest.streaming import streaming
from twinmesh.ingest.v1 import dead_letter_service_pb2 as dead_letter_pb2
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_grpc
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import receipt_service_pb2 as receipt_pb2
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as receipt_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW_US = time.time_ns() // 1000
DAY_US = 86_400_000_000
ALL = ("telemetry:write", "telemetry:backfill", "dead_letter:read", "dead_letter:write")


class Letters:
    """A person who looks after dead letters."""

    def __init__(self, ingest: Ingest, *, tenant: str = TENANT, permissions: tuple[str, ...] = ALL) -> None:
        self.stub: Any = dead_letter_grpc.DeadLetterServiceStub(ingest.channel)
        self.receipts: Any = receipt_grpc.ReceiptServiceStub(ingest.channel)
        self.caller = ingest.caller(tenant=tenant, subject="keeper", permissions=permissions)

    async def page(self, page_size: int = 0, page_token: str = "", **chosen: Any) -> Any:
        request = dead_letter_pb2.ListDeadLettersRequest(
            filter=dead_letter_pb2.DeadLetterFilter(**chosen), page_size=page_size, page_token=page_token
        )
        return await self.stub.ListDeadLetters(request, metadata=self.caller)

    async def all(self, **chosen: Any) -> list[dead_letter_pb2.DeadLetter]:
        return list((await self.page(**chosen)).dead_letters)

    async def reasons(self, **chosen: Any) -> list[str]:
        return [reason_of(letter.reason) for letter in await self.all(**chosen)]

    async def get(self, letter_id: str) -> dead_letter_pb2.DeadLetter:
        letter: dead_letter_pb2.DeadLetter = await self.stub.GetDeadLetter(
            dead_letter_pb2.GetDeadLetterRequest(id=letter_id), metadata=self.caller
        )
        return letter

    async def replay(self, *ids: str, **fields: Any) -> dead_letter_pb2.ReplayDeadLettersResponse:
        if not ids:
            fields.setdefault("filter", dead_letter_pb2.DeadLetterFilter())
        answer: dead_letter_pb2.ReplayDeadLettersResponse = await self.stub.ReplayDeadLetters(
            dead_letter_pb2.ReplayDeadLettersRequest(ids=ids, **fields), metadata=self.caller
        )
        return answer

    async def purge(self, *ids: str, force: bool, **chosen: Any) -> int:
        chosen_by = None if ids else dead_letter_pb2.DeadLetterFilter(**chosen)
        request = dead_letter_pb2.PurgeDeadLettersRequest(ids=ids, filter=chosen_by, force=force)
        return int((await self.stub.PurgeDeadLetters(request, metadata=self.caller)).purge_count)

    async def receipt(
        self, caller: tuple[tuple[str, str], ...] | None = None, **asked: Any
    ) -> receipt_pb2.LookupReceiptResponse:
        answer: receipt_pb2.LookupReceiptResponse = await self.receipts.LookupReceipt(
            receipt_pb2.LookupReceiptRequest(**asked), metadata=caller or self.caller
        )
        return answer


def reason_of(reason: Any) -> str:
    return str(ErrorReason.Name(reason)).removeprefix("ERROR_REASON_")


@pytest.fixture
def letters(ingest: Ingest) -> Letters:
    return Letters(ingest)


async def create(ingest: Ingest, device_id: str) -> None:
    """Make a device that was missing, and have ingest_svc know it; leaves no letters of its own."""
    since = Timestamp()
    since.FromMicroseconds(SystemClock().now_us())
    ingest.assets.add(device_id)
    await ingest.announce(f'{{"devices": ["{device_id}"], "device_types": []}}'.encode())

    async def is_known() -> bool:
        answer = await ingest.send(reading(device_id, time_us=NOW_US - DAY_US, temperature=0.0))
        return bool(answer.stored_samples)

    await until(is_known)
    await Letters(ingest).purge(force=True, device_id=device_id, start_time=since)


async def samples_of(ingest: Ingest, device_id: str) -> dict[tuple[str, int], Any]:
    """Return what was stored of a device after the day before."""
    return {
        (metric, time_us): value
        for (of, metric, time_us), value in (await ingest.samples()).items()
        if of == device_id and time_us > NOW_US - DAY_US
    }


async def rows(ingest: Ingest, device_id: str) -> int:
    """Return how many samples are stored of a device, each as often as it is."""
    return int(
        await ingest.fetch_value(
            "SELECT coalesce(sum(cardinality(times)), 0) FROM telemetry.segment "
            "JOIN telemetry.series USING (tenant_id, series_id) WHERE device_id = $1 AND end_time > $2",
            device_id,
            NOW_US - DAY_US,
        )
    )


async def test_a_request_leaves_letters_and_what_is_mended_is_replayed_once(
    ingest: Ingest, letters: Letters
) -> None:
    sent = [
        reading("late-1", time_us=NOW_US, temperature=1.0, count=2),
        reading("pump-1", time_us=NOW_US, temperature=3.0, unheard=4.0),
        reading("late-1", temperature=5.0),
    ]
    answer = await ingest.send(*sent, request_id="r-1")
    assert (answer.stored_samples, answer.refused_samples) == (1, 4)
    assert (await ingest.send(*sent, request_id="r-1")).duplicate
    unheard, late = await letters.all()  # Of one arrival the later one comes first.
    assert (reason_of(late.reason), late.sample_count, list(late.device_ids)) == (
        "DEVICE_UNKNOWN",
        3,
        ["late-1"],
    )
    assert (late.door, late.request_id, late.principal) == ("unary", "r-1", "user:tester")
    assert (reason_of(unheard.reason), unheard.sample_count) == ("METRIC_UNKNOWN", 1)
    content = (await letters.get(late.id)).batch
    assert [each.numbers for each in content.readings] == [
        {"temperature": 1.0, "count": 2},
        {"temperature": 5},
    ]

    failing = await letters.replay(late.id)
    assert (failing.replayed, failing.failed, failing.stored_samples) == (0, 1, 0)
    assert [(each.id, reason_of(each.reason)) for each in failing.failures] == [(late.id, "DEVICE_UNKNOWN")]
    kept = await letters.get(late.id)
    assert (kept.replay_count, kept.sample_count, kept.batch) == (1, 3, content)
    assert kept.last_replay_time.ToMicroseconds() > NOW_US

    await create(ingest, "late-1")
    done = await letters.replay(late.id)
    assert (done.replayed, done.failed, done.skipped, done.stored_samples) == (1, 0, 0, 3)
    received_us = late.receive_time.ToMicroseconds()
    expected = {("temperature", NOW_US): 1.0, ("count", NOW_US): 2, ("temperature", received_us): 5.0}
    assert await samples_of(ingest, "late-1") == expected
    assert await rows(ingest, "late-1") == 3
    gone = await letters.replay(late.id)
    assert (gone.replayed, gone.skipped) == (0, 1)
    assert await rows(ingest, "late-1") == 3
    assert (await refused(letters.get(late.id))).reason == "NOT_FOUND"
    assert [letter.id for letter in await letters.all(reason=unheard.reason)] == [unheard.id]


async def test_what_fails_again_stays_and_the_rest_leaves_the_letter(
    ingest: Ingest, letters: Letters
) -> None:
    await ingest.send(
        reading("late-2", time_us=NOW_US, temperature=1.0), reading("never", time_us=NOW_US, temperature=2.0)
    )
    (letter,) = await letters.all()
    await create(ingest, "late-2")
    answer = await letters.replay(letter.id)
    assert (answer.failed, answer.stored_samples) == (1, 1)
    kept = await letters.get(letter.id)
    assert (list(kept.device_ids), kept.sample_count, kept.replay_count) == (["never"], 1, 1)
    assert [each.device_id for each in kept.batch.readings] == ["never"]
    assert await samples_of(ingest, "late-2") == {("temperature", NOW_US): 1.0}


async def test_a_stream_s_columns_are_replayed(ingest: Ingest, letters: Letters) -> None:
    async with streaming(ingest) as client:
        await client.open("gw")
        await client.define(("late-3", "temperature"), ("pump-1", "temperature"), ("pump-1", "unheard"))
        columns = ingest_pb2.Columns(
            series=[0, 1, 2, 0],
            run_lengths=[2, 1, 1, 1],
            times=[NOW_US, NOW_US + 1, NOW_US, NOW_US, NOW_US + 2],
            double_values=[1, 2, 3, 4, 5],
        )
        await client.batch(1, columns)
        await client.batch(2, ingest_pb2.Columns(series=[0], run_lengths=[1], times=[NOW_US]))
        await client.durable(2)
    found = {reason_of(letter.reason): letter for letter in await letters.all(door="stream")}
    assert {reason: (each.sequence, each.sample_count) for reason, each in found.items()} == {
        "DEVICE_UNKNOWN": (1, 3),
        "METRIC_UNKNOWN": (1, 1),
        "COLUMNS_INVALID": (2, 1),
    }
    content = (await letters.get(found["DEVICE_UNKNOWN"].id)).batch
    assert content.columns == ingest_pb2.Columns(
        series=[0, 0],
        run_lengths=[2, 1],
        times=[NOW_US, NOW_US + 1, NOW_US + 2],
        double_values=[1, 2, 5],
    )
    await create(ingest, "late-3")
    answer = await letters.replay(filter=dead_letter_pb2.DeadLetterFilter(door="stream"))
    assert (answer.replayed, answer.failed, answer.stored_samples) == (1, 2, 3)
    assert await samples_of(ingest, "late-3") == {
        ("temperature", NOW_US): 1,
        ("temperature", NOW_US + 1): 2,
        ("temperature", NOW_US + 2): 5,
    }
    assert sorted(await letters.reasons(door="stream")) == ["COLUMNS_INVALID", "METRIC_UNKNOWN"]


async def test_a_batch_of_all_or_nothing_is_replayed_whole(ingest: Ingest, letters: Letters) -> None:
    sent = [
        reading("pump-2", time_us=NOW_US, temperature=1.0),
        reading("late-4", time_us=NOW_US, temperature=2.0),
    ]
    await ingest.send(*sent, mode=ingest_pb2.MODE_ALL_OR_NOTHING)
    (letter,) = await letters.all()
    assert (reason_of(letter.reason), letter.sample_count) == ("DEVICE_UNKNOWN", 2)
    assert (await letters.replay(letter.id)).stored_samples == 0
    assert await rows(ingest, "pump-2") == 0
    await create(ingest, "late-4")
    assert (await letters.replay(letter.id)).stored_samples == 2
    assert (await rows(ingest, "pump-2"), await rows(ingest, "late-4")) == (1, 1)


async def test_readings_that_break_the_contract_stay_as_they_were_sent(
    ingest: Ingest, letters: Letters
) -> None:
    async with streaming(ingest) as client:
        await client.open("gw-2")
        bad = ingest_pb2.Reading(device_id="Pump 1\0", numbers={"temperature": 1.0})
        await client.batch(1, readings=[bad, reading("pump-1", temperature=2.0)])
        await client.durable(1)
    (letter,) = await letters.all()
    assert (reason_of(letter.reason), list(letter.device_ids)) == ("INVALID_FIELD", ["pump-1"])
    assert (await letters.replay(letter.id)).failed == 1
    kept = await letters.get(letter.id)
    assert (kept.replay_count, kept.batch.readings[0]) == (1, bad)


async def test_the_window_of_a_replay_is_that_of_the_arrival(ingest: Ingest, letters: Letters) -> None:
    old = NOW_US - 9 * DAY_US
    await ingest.send(
        reading("late-5", time_us=old, temperature=1.0),
        reading("pump-1", time_us=old - 5 * DAY_US, temperature=2.0),
    )
    # As if it had come three days ago: what was in the window then is taken, and what was not is not.
    await ingest.fetch_value(
        "UPDATE telemetry.dead_letter SET received_at = received_at - interval '3 days' RETURNING 1"
    )
    await ingest.fetch_value("SELECT telemetry.ensure_segment_days(20, 2)")
    await create(ingest, "late-5")
    answer = await letters.replay()
    assert (answer.replayed, answer.failed, answer.stored_samples) == (1, 1, 1)
    assert await letters.reasons() == ["TIME_OUT_OF_WINDOW"]
    found = await ingest.samples()
    assert found["late-5", "temperature", old] == 1.0


async def test_what_the_store_has_no_room_for_stays_and_disturbs_nobody(
    ingest: Ingest, letters: Letters
) -> None:
    """A missing day fails the whole group of a commit, and others' batches are in it."""
    await ingest.send(reading("late-9", time_us=NOW_US - 6 * DAY_US, temperature=1.0))
    await create(ingest, "late-9")
    day = await ingest.fetch_value(
        "SELECT to_char((now() AT TIME ZONE 'UTC')::date - 5, '\"telemetry.segment_\"YYYYMMDD')"
    )
    await ingest.fetch_value(f"DROP TABLE {day}")
    answer = await letters.replay()
    assert [reason_of(each.reason) for each in answer.failures] == ["TIME_OUT_OF_WINDOW"]
    await ingest.fetch_value("SELECT telemetry.ensure_segment_days(8, 2)")
    assert (await letters.replay()).replayed == 1


async def test_what_came_too_late_is_replayed_into_a_backfill(ingest: Ingest, letters: Letters) -> None:
    old = NOW_US - 40 * DAY_US
    await ingest.send(reading("pump-1", time_us=old, temperature=2.0))
    (letter,) = await letters.all()
    assert (await letters.replay(letter.id)).failed == 1
    request = ingest_pb2.CreateBackfillRequest()
    request.start_time.FromMicroseconds(old - DAY_US)
    request.end_time.FromMicroseconds(old + DAY_US)
    backfill = await ingest.stub.CreateBackfill(request, metadata=ingest.caller())
    unknown = await refused(letters.replay(letter.id, backfill_id="bf-none"))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BACKFILL_UNKNOWN")
    poor = Letters(ingest, permissions=("dead_letter:write",))
    assert (await refused(poor.replay(letter.id, backfill_id=backfill.id))).reason == "PERMISSION_MISSING"
    assert (await letters.replay(letter.id, backfill_id=backfill.id)).replayed == 1
    assert (await ingest.samples())["pump-1", "temperature", old] == 2.0

    # A batch that named one goes back to it by itself, and stays while it is no longer declared.
    await ingest.send(reading("pump-1", time_us=old, unheard=2.0), backfill_id=backfill.id)
    (letter,) = await letters.all()
    assert letter.backfill_id == backfill.id
    await ingest.fetch_value("DELETE FROM telemetry.backfill RETURNING 1")
    answer = await letters.replay(letter.id)
    assert [reason_of(each.reason) for each in answer.failures] == ["BACKFILL_UNKNOWN"]


async def test_letters_are_listed_by_page_and_filter(ingest: Ingest, letters: Letters) -> None:
    for number in range(5):
        await ingest.send(reading(f"gone-{number}", temperature=1.0), reading("pump-1", unheard=1.0))
    first = await letters.page(page_size=4)
    second = await letters.page(page_size=4, page_token=first.next_page_token)
    third = await letters.page(page_size=4, page_token=second.next_page_token)
    found = [letter for page in (first, second, third) for letter in page.dead_letters]
    assert len({letter.id for letter in found}) == 10
    times = [letter.receive_time.ToNanoseconds() for letter in found]
    assert times == sorted(times, reverse=True)
    assert third.next_page_token == ""
    assert not any(letter.HasField("batch") or letter.payload for letter in found)
    other = await refused(letters.page(page_size=4, page_token=first.next_page_token, door="unary"))
    assert other.reason == "PAGE_TOKEN_INVALID"
    # Anybody can make a token that belongs to the question.
    for position in ([10**20, 1], [10**30, 1], [-(10**18), 1], [0, 2**63], [0, 0], [0], ["", ""]):
        made = paging.encode(["list", TENANT, ""], position)
        assert (await refused(letters.page(page_token=made))).reason == "PAGE_TOKEN_INVALID", position

    assert [list(each.device_ids) for each in await letters.all(device_id="gone-3")] == [["gone-3"]]
    assert len(await letters.all(reason=ErrorReason.ERROR_REASON_METRIC_UNKNOWN)) == 5
    assert len(await letters.all(text="GONE-2'")) == 1
    assert await letters.all(door="mqtt") == []
    middle = found[5].receive_time
    since, before = await letters.all(start_time=middle), await letters.all(end_time=middle)
    assert (len(since) + len(before), found[5].id in {each.id for each in since}) == (10, True)
    assert (await refused(letters.page(start_time=middle, end_time=middle))).reason == "TIME_RANGE_INVALID"
    counted = await letters.stub.CountDeadLetters(
        dead_letter_pb2.CountDeadLettersRequest(), metadata=letters.caller
    )
    assert [
        (reason_of(each.reason), each.door, each.dead_letters, each.samples) for each in counted.counts
    ] == [
        ("DEVICE_UNKNOWN", "unary", 5, 5),
        ("METRIC_UNKNOWN", "unary", 5, 5),
    ]


async def test_a_replay_by_filter_goes_on_page_by_page(ingest: Ingest, letters: Letters) -> None:
    for number in range(5):
        await ingest.send(reading("late-6", time_us=NOW_US, temperature=float(number)))
        await ingest.send(reading("never", time_us=NOW_US, temperature=float(number)))
    await create(ingest, "late-6")
    chosen = dead_letter_pb2.DeadLetterFilter(end_time=(await letters.all(device_id="never"))[0].receive_time)
    answers = [await letters.replay(filter=chosen, page_size=3)]
    while token := answers[-1].next_page_token:
        answers.append(await letters.replay(filter=chosen, page_size=3, page_token=token))
    assert len(answers) == 3
    assert sum(answer.replayed for answer in answers) == 5
    assert sum(answer.failed for answer in answers) == 4
    # The oldest came first, so the last one sent counts.
    assert await samples_of(ingest, "late-6") == {("temperature", NOW_US): 4.0}


async def test_replays_at_the_same_time_store_once(ingest: Ingest, letters: Letters) -> None:
    for number in range(8):
        await ingest.send(reading("late-7", time_us=NOW_US + number, temperature=1.0))
    await create(ingest, "late-7")
    ids = [letter.id for letter in await letters.all()]
    answers = await asyncio.gather(*(letters.replay(*ids) for _ in range(4)))
    assert sum(answer.replayed for answer in answers) == 8
    assert sum(answer.skipped for answer in answers) == 24
    assert await rows(ingest, "late-7") == 8


async def test_letters_are_purged_by_filter_and_by_id(ingest: Ingest, letters: Letters) -> None:
    for number in range(4):
        await ingest.send(reading(f"gone-{number}", temperature=1.0), reading("pump-1", unheard=1.0))
    unknown = ErrorReason.ERROR_REASON_METRIC_UNKNOWN
    assert await letters.purge(force=False, reason=unknown) == 4
    assert len(await letters.all()) == 8
    assert await letters.purge(force=True, reason=unknown) == 4
    assert await letters.reasons() == ["DEVICE_UNKNOWN"] * 4
    ids = [letter.id for letter in await letters.all()][:2]
    assert await letters.purge(*ids, force=False) == 2
    assert await letters.purge(*ids, "999999999", force=True) == 2
    assert await letters.purge(*ids, force=True) == 0
    assert len(await letters.all()) == 2
    neither = dead_letter_pb2.PurgeDeadLettersRequest(force=True)
    both = dead_letter_pb2.PurgeDeadLettersRequest(ids=["1"], filter=dead_letter_pb2.DeadLetterFilter())
    for request in (neither, both):
        call = letters.stub.PurgeDeadLetters(request, metadata=letters.caller)
        assert (await refused(call)).reason == "INVALID_FIELD"
    assert len(await letters.all()) == 2


async def test_another_tenant_s_letters_are_absent(ingest: Ingest, letters: Letters) -> None:
    await ingest.send(reading("gone", temperature=1.0), request_id="r-1", writer_id="")
    (letter,) = await letters.all()
    rival = Letters(ingest, tenant="other")
    assert await rival.all() == []
    absent = await refused(rival.get("999999999"))
    theirs = await refused(rival.get(letter.id))
    assert (
        (theirs.code, theirs.reason)
        == (absent.code, absent.reason)
        == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    )
    assert (await rival.replay(letter.id)).skipped == 1
    assert await rival.purge(letter.id, force=False) == 0
    assert await rival.purge(letter.id, force=True) == 0
    assert await rival.purge(force=True) == 0
    reader = Letters(ingest, permissions=("dead_letter:read",))
    assert (await refused(reader.purge(letter.id, force=True))).reason == "PERMISSION_MISSING"
    assert len(await reader.all()) == 1


async def test_a_time_that_json_cannot_tell_is_in_the_payload(ingest: Ingest, letters: Letters) -> None:
    never = reading("pump-1", temperature=1.0)
    never.time.seconds = 2**62
    await ingest.send(never)
    (listed,) = await letters.all()
    letter = await letters.get(listed.id)
    assert not letter.HasField("batch")
    assert dead_letter_pb2.RefusedBatch.FromString(letter.payload).readings[0].time.seconds == 2**62
    assert (await letters.replay(letter.id)).failed == 1


async def test_receipts_of_requests(ingest: Ingest, letters: Letters) -> None:
    trace_id = "ab" * 16
    mine = (*ingest.caller(), ("traceparent", f"00-{trace_id}-{'cd' * 8}-01"))
    request = ingest_pb2.IngestTelemetryRequest(
        readings=[reading("pump-1", temperature=1.0, unheard=2.0)], request_id="r-1"
    )
    await ingest.stub.IngestTelemetry(request, metadata=mine)
    for caller, principal in ((mine, ""), (letters.caller, "user:tester")):
        receipt = await letters.receipt(caller, request_id="r-1", principal=principal)
        assert receipt.state == receipt_pb2.RECEIPT_STATE_COMMITTED
        assert (receipt.stored_samples, receipt.refused_samples) == (1, 1)
        assert [reason_of(each.reason) for each in receipt.refusals] == ["METRIC_UNKNOWN"]
        assert list(receipt.dead_letter_ids) == [letter.id for letter in await letters.all()]
        assert abs(receipt.commit_time.ToMicroseconds() - SystemClock().now_us()) < 600_000_000
        assert receipt.trace_id == trace_id
    stranger = ingest.caller(subject="stranger")
    unknown = await letters.receipt(stranger, request_id="r-1")
    assert (unknown.state, unknown.may_have_expired) == (receipt_pb2.RECEIPT_STATE_UNKNOWN, True)
    theirs = letters.receipt(stranger, request_id="r-1", principal="user:tester")
    assert (await refused(theirs)).reason == "PERMISSION_MISSING"
    wrong: list[dict[str, Any]] = [
        {},
        {"request_id": "r", "writer_id": "w", "sequence": 1},
        {"writer_id": "w"},
    ]
    for asked in wrong:
        assert (await refused(letters.receipt(mine, **asked))).reason == "INVALID_FIELD"


async def test_receipts_of_a_writer(ingest: Ingest, letters: Letters) -> None:
    sent = [reading("pump-1", time_us=NOW_US, temperature=1.0), reading("gone", temperature=2.0)]
    for _ in range(2):  # A duplicate changes nothing.
        await ingest.send(*sent, writer_id="w", sequence=1)
    await ingest.send(reading("pump-1", temperature=1.0), writer_id="w", sequence=2)
    receipt = await letters.receipt(ingest.caller(), writer_id="w", sequence=1)
    assert receipt.state == receipt_pb2.RECEIPT_STATE_COMMITTED
    assert (receipt.stored_samples, receipt.refused_samples) == (1, 1)
    assert len(receipt.dead_letter_ids) == 1
    assert receipt == await letters.receipt(writer_id="w", sequence=1)
    later = await letters.receipt(ingest.caller(), writer_id="w", sequence=3)
    assert (later.state, later.may_have_expired) == (receipt_pb2.RECEIPT_STATE_UNKNOWN, False)
    await letters.purge(force=True)
    assert not (await letters.receipt(writer_id="w", sequence=1)).dead_letter_ids

    absent = await letters.receipt(ingest.caller(), writer_id="none", sequence=1)
    strangers = [ingest.caller(subject="stranger"), ingest.caller(tenant="other", permissions=ALL)]
    for caller in strangers:
        assert await letters.receipt(caller, writer_id="w", sequence=1) == absent
    await ingest.fetch_value("DELETE FROM telemetry.writer_outcome WHERE sequence = 1 RETURNING 1")
    expired = await letters.receipt(writer_id="w", sequence=1)
    assert expired.state == receipt_pb2.RECEIPT_STATE_EXPIRED_OUTCOME


@pytest.fixture
async def metric_assets() -> AsyncIterator[tuple[FakeAssets, str]]:
    assets = FakeAssets()
    assets.add("pump-1")
    async with serving(assets) as address:
        yield assets, address


async def test_a_letter_is_replayed_by_another_process(
    metric_assets: tuple[FakeAssets, str],
    database: TestDatabase,
    nats_url: str,
    auth_address: str,
    mint: TokenMint,
) -> None:
    assets, address = metric_assets
    parts: dict[str, Any] = {
        "database": database,
        "nats_url": nats_url,
        "auth_address": auth_address,
        "mint": mint,
        "assets": assets,
        "asset_address": address,
    }
    async with running_ingest(**parts) as ingest:
        await ingest.send(reading("late-8", time_us=NOW_US, temperature=1.0))
    assets.add("late-8")
    async with running_ingest(**parts) as ingest:
        assert (await Letters(ingest).replay()).replayed == 1
        assert await samples_of(ingest, "late-8") == {("temperature", NOW_US): 1.0}
