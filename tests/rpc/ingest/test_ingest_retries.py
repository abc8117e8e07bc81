"""A request sent again, in whatever way, is stored once."""

import asyncio
import time

import grpc

from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.ingest.neighbours import FakeAssets, Ingest, Refused, reading, running_ingest, serving, until
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SEGMENTS = "SELECT count(*) FROM telemetry.segment"


async def test_a_repeated_request_id_is_answered_with_the_first_outcome(ingest: Ingest) -> None:
    sent = [reading(temperature=1.0), reading("absent", temperature=1.0)]
    first = await ingest.send(*sent, request_id="r-1")
    again = await ingest.send(*sent, request_id="r-1")
    assert (first.duplicate, again.duplicate) == (False, True)
    again.duplicate = False
    assert again == first
    assert first.refused_samples == 1
    # The time is the server's, so a second storing would show as a second sample.
    assert len(await ingest.samples()) == 1


async def test_a_request_id_may_not_be_reused(ingest: Ingest) -> None:
    await ingest.send(reading(temperature=1.0), request_id="r-1")
    refused = await ingest.refused(reading(temperature=2.0), request_id="r-1")
    assert (refused.code, refused.reason) == (INVALID, "REQUEST_ID_REUSED")
    assert list((await ingest.samples()).values()) == [1.0]


async def test_request_ids_are_their_callers_own(ingest: Ingest) -> None:
    await ingest.send(reading(temperature=1.0), request_id="r-1")
    other = await ingest.send(
        reading(temperature=2.0), request_id="r-1", caller=ingest.caller(subject="somebody")
    )
    foreign = await ingest.send(
        reading("foreign", temperature=3.0), request_id="r-1", caller=ingest.caller(tenant="other")
    )
    assert (other.duplicate, other.stored_samples) == (False, 1)
    assert (foreign.duplicate, foreign.stored_samples) == (False, 1)


async def test_one_of_many_equal_requests_at_once_is_stored(ingest: Ingest) -> None:
    sent = [reading(temperature=float(value)) for value in range(20)]
    answers = await asyncio.gather(*(ingest.send(*sent, request_id="r-1") for _ in range(30)))
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 29
    assert {answer.stored_samples for answer in answers} == {20}
    # All twenty have one time, the server's: the last stays.
    assert list((await ingest.samples()).values()) == [19.0]
    assert await ingest.fetch_value(SEGMENTS) == 1


async def test_without_identity_equal_requests_are_stored_again_and_show_once(ingest: Ingest) -> None:
    sent = reading(time_us=time.time_ns() // 1000, temperature=1.0)
    answers = [await ingest.send(sent) for _ in range(2)]
    assert [answer.duplicate for answer in answers] == [False, False]
    assert await ingest.fetch_value(SEGMENTS) == 2
    assert len(await ingest.samples()) == 1


async def test_a_request_refused_in_whole_is_remembered_too(ingest: Ingest) -> None:
    first = await ingest.send(reading("late", temperature=1.0), request_id="r-1")
    ingest.assets.add("late")
    await ingest.announce(b'{"devices": ["late"], "device_types": []}')
    again = await ingest.send(reading("late", temperature=1.0), request_id="r-1")
    assert (first.refused_samples, again.refused_samples, again.duplicate) == (1, 1, True)
    assert await ingest.samples() == {}


async def test_a_writer_numbers_its_batches(ingest: Ingest) -> None:
    at = time.time_ns() // 1000
    for sequence in (1, 2, 3):
        answer = await ingest.send(
            reading(time_us=at + sequence, count=sequence), writer_id="hub.7:a", sequence=sequence
        )
        assert (answer.duplicate, answer.stored_samples) == (False, 1)
    again = await ingest.send(reading(time_us=at + 2, count=2), writer_id="hub.7:a", sequence=2)
    assert (again.duplicate, again.stored_samples) == (True, 1)
    assert await ingest.fetch_value(SEGMENTS) == 3


async def test_a_gap_tells_what_is_expected_and_a_reuse_is_refused(ingest: Ingest) -> None:
    gap = await ingest.refused(reading(count=1), writer_id="hub", sequence=2)
    assert gap == Refused(grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_GAP", {"expected": "1"})
    await ingest.send(reading(count=1), writer_id="hub", sequence=1)
    gap = await ingest.refused(reading(count=1), writer_id="hub", sequence=2**63 - 1)
    assert gap == Refused(grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_GAP", {"expected": "2"})
    reused = await ingest.refused(reading(count=2), writer_id="hub", sequence=1)
    assert reused == Refused(INVALID, "SEQUENCE_REUSED", {"sequence": "1"})
    assert list((await ingest.samples()).values()) == [1]


async def test_a_refused_batch_consumes_its_sequence(ingest: Ingest) -> None:
    refused = await ingest.send(
        reading(count=1),
        reading("absent", count=1),
        writer_id="hub",
        sequence=1,
        mode=ingest_pb2.MODE_ALL_OR_NOTHING,
    )
    assert refused.stored_samples == 0
    assert (await ingest.send(reading(count=2), writer_id="hub", sequence=2)).stored_samples == 1


async def test_a_writer_belongs_to_who_used_it_first(ingest: Ingest) -> None:
    await ingest.send(reading(count=1), writer_id="hub", sequence=1)
    refused = await ingest.refused(
        reading(count=2), writer_id="hub", sequence=2, caller=ingest.caller(subject="somebody")
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "WRITER_NOT_OWNED")
    other_tenant = ingest.caller(tenant="other")
    answer = await ingest.send(reading("foreign", count=1), writer_id="hub", sequence=1, caller=other_tenant)
    assert answer.stored_samples == 1


async def test_the_same_batch_sent_many_times_at_once_is_stored_once(ingest: Ingest) -> None:
    answers = await asyncio.gather(
        *(ingest.send(reading(count=1), writer_id="hub", sequence=1) for _ in range(20))
    )
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 19
    assert await ingest.fetch_value(SEGMENTS) == 1


async def test_requests_under_way_at_shutdown_get_their_answers(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> None:
    assets = FakeAssets()
    # As many as asset_svc is asked about at once: others would not be seen to be under way.
    devices = ["pump-1", "pump-2"]
    for device_id in devices:
        assets.add(device_id)
    ready: asyncio.Future[Ingest] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def run(asset_address: str) -> None:
        async with running_ingest(
            database=database,
            nats_url=nats_url,
            auth_address=auth_address,
            mint=mint,
            assets=assets,
            asset_address=asset_address,
        ) as running:
            ready.set_result(running)
            await stop.wait()

    async with serving(assets) as asset_address, asyncio.TaskGroup() as group:
        running = group.create_task(run(asset_address))
        ingest = await ready
        assets.answering.clear()
        under_way = [group.create_task(ingest.send(reading(device_id, count=1))) for device_id in devices]
        await until(lambda: sum(map(len, assets.asked)) == len(devices))
        stop.set()
        await until(lambda: is_stopping(ingest))
        assert not running.done()
        assets.answering.set()
    assert [task.result().stored_samples for task in under_way] == [1, 1]
    assert len(await ingest.samples()) == 2


async def is_stopping(ingest: Ingest) -> bool:
    return not await ingest.is_serving()
