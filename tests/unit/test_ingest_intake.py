"""A batch becomes the writer's request: the same record whichever door it came through."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from ingest_svc.columns import SentColumns
from ingest_svc.outcome import RefusedContent
from ingest_svc.reading import NUMBER, Reading
from ingest_svc.series_table import SeriesDefinition
from meshkit.errors import FailedPrecondition, PermissionDenied, Unavailable
from telemetry_store.columns import Kind
from telemetry_store.requests import RequestIdentity, WriteRequest, WriterIdentity
from telemetry_store.series import SeriesKey
from tests.unit.ingest_world import NOW, OFF, PUMP, World, origin
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@pytest.fixture
def world() -> World:
    return World()


def doubles(*samples: tuple[int, list[float]]) -> SentColumns:
    """Return runs of (alias, values), all of now."""
    values = [value for _, of_run in samples for value in of_run]
    return SentColumns(
        np.array([alias for alias, _ in samples], np.uint32),
        np.array([len(of_run) for _, of_run in samples], np.int64),
        np.full(len(values), NOW, np.int64),
        {Kind.DOUBLE: np.array(values, np.float64)},
    )


def at_once(taking: Coroutine[Any, Any, WriteRequest]) -> WriteRequest:
    """Return what a coroutine answers without ever giving up its turn."""
    with pytest.raises(StopIteration) as finished:
        taking.send(None)
    request = finished.value.value
    assert isinstance(request, WriteRequest)
    return request


def results(request: WriteRequest) -> tuple[ingest_pb2.BatchResult, ingest_pb2.BatchResult]:
    """Return what is recorded, and what is when the database refuses the content."""
    return (
        ingest_pb2.BatchResult.FromString(request.outcome),
        ingest_pb2.BatchResult.FromString(request.refused_outcome),
    )


async def test_columns_become_a_request(world: World) -> None:
    request = await world.taking(doubles((0, [1.0, 2.0])))
    assert (request.tenant, request.principal) == ("acme", "api_key:hub")
    assert request.identity == WriterIdentity("w", 7, 3)
    [columns] = request.samples
    assert (columns.series.tolist(), columns.values.tolist()) == ([0, 0], [1.0, 2.0])
    assert world.series_ids.made == {SeriesKey("pump-1", "x", Kind.DOUBLE, "°C"): 0}
    stored, refused = results(request)
    assert stored == ingest_pb2.BatchResult(sequence=7, stored_samples=2)
    assert (refused.sequence, refused.stored_samples, refused.refused_samples) == (7, 0, 2)
    assert refused.reason == ErrorReason.ERROR_REASON_VALUE_REFUSED
    assert refused.message


async def test_readings_become_a_request(world: World) -> None:
    request = await world.readings(
        Reading("pump-1", None, [("x", NUMBER, 1.0)]),
        Reading("nobody", None, [("x", NUMBER, 1.0)]),
        identity=RequestIdentity("r-1"),
    )
    [columns] = request.samples
    assert columns.times.tolist() == [NOW]
    stored, refused = results(request)
    assert (stored.sequence, stored.stored_samples, stored.refused_samples) == (0, 1, 1)
    [refusal] = stored.refusals
    assert (refusal.reading_index, refusal.sample_count) == (1, 0)
    assert (refused.stored_samples, refused.refused_samples) == (0, 2)
    assert refused.refusals == stored.refusals
    assert refused.reason == ErrorReason.ERROR_REASON_VALUE_REFUSED


async def test_what_stores_nothing_cannot_be_refused_by_the_database(world: World) -> None:
    request = await world.readings(Reading("nobody", None, [("x", NUMBER, 1.0)]))
    assert not request.samples
    assert request.refused_outcome == request.outcome


async def test_a_backfill_needs_its_permission_and_replaces_the_live_window(world: World) -> None:
    old = Reading("pump-1", 500, [("x", NUMBER, 1.0)])
    with pytest.raises(PermissionDenied):
        await world.readings(old, backfill_id="bf-1")
    request = await world.readings(
        old, backfill_id="bf-1", permissions=["telemetry:write", "telemetry:backfill"]
    )
    assert results(request)[0].stored_samples == 1
    assert results(await world.readings(old))[0].refused_samples == 1


async def test_columns_that_disagree_are_recorded_as_refused(world: World) -> None:
    columns = SentColumns(np.zeros(1, np.uint32), np.array([2]), np.full(3, NOW), {})
    request = await world.taking(columns)
    assert not request.samples
    recorded, refused = results(request)
    assert recorded == refused
    assert (recorded.sequence, recorded.stored_samples, recorded.refused_samples) == (7, 0, 3)
    assert recorded.reason == ErrorReason.ERROR_REASON_COLUMNS_INVALID
    assert "add up to 2 samples, times has 3" in recorded.message
    assert request.digest == (await world.taking(columns)).digest


async def test_refused_content_is_recorded(world: World) -> None:
    why = (ErrorReason.ERROR_REASON_INVALID_FIELD, "readings[0]: wrong")
    refused = RefusedContent(why, samples=4, digest=b"d" * 32, payload=b"sent", device_ids=["pump-1"])
    request = world.intake.refuse(origin(WriterIdentity("w", 9, 1)), refused, received_us=NOW)
    assert (request.digest, list(request.samples)) == (b"d" * 32, [])
    expected = ingest_pb2.BatchResult(sequence=9, reason=why[0], message=why[1], refused_samples=4)
    assert results(request) == (expected, expected)
    (letter,) = request.dead_letters
    assert (letter.reason, letter.payload, letter.sample_count) == ("INVALID_FIELD", b"sent", 4)


async def test_an_unknown_alias_records_nothing(world: World) -> None:
    with pytest.raises(FailedPrecondition) as unknown:
        await world.taking(doubles((0, [1.0]), (1, [1.0])))
    assert unknown.value.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS
    assert world.assets.asked == []


async def test_what_is_remembered_is_taken_without_giving_up_the_turn(world: World) -> None:
    await world.taking(doubles((0, [1.0])))
    at_once(world.taking(doubles((0, [2.0]))))
    # A series more of a device that is known.
    world.table.define([(1, SeriesDefinition("pump-1", "x", Kind.DOUBLE, "°C"))])
    assert results(at_once(world.taking(doubles((1, [3.0])))))[0].stored_samples == 1
    assert world.assets.asked == [1]


async def test_a_change_shows_within_half_a_second(world: World) -> None:
    await world.taking(doubles((0, [1.0])))
    world.assets.devices["pump-1"] = OFF
    world.clock.advance(0.1)
    world.cache.forget("acme", device_ids=["pump-1"], device_type_ids=[])
    world.clock.advance(0.4)
    [refusal] = results(await world.taking(doubles((0, [1.0, 2.0]))))[0].refusals
    assert (refusal.reason, refusal.sample_count) == (ErrorReason.ERROR_REASON_DEVICE_DISABLED, 2)


async def test_a_missed_change_shows_when_the_definitions_are_old(world: World) -> None:
    await world.taking(doubles((0, [1.0])))
    world.assets.devices["pump-1"] = OFF
    world.clock.advance(29.9)
    assert results(at_once(world.taking(doubles((0, [1.0])))))[0].stored_samples == 1
    world.clock.advance(0.2)
    # The old profile serves while it is asked for again.
    assert results(at_once(world.taking(doubles((0, [1.0])))))[0].stored_samples == 1
    for _ in range(5):
        await asyncio.sleep(0)  # Lets the answer arrive.
    world.clock.advance(1)
    assert results(await world.taking(doubles((0, [1.0]))))[0].refused_samples == 1


async def test_nobody_can_tell_and_nothing_is_taken(world: World) -> None:
    world.assets.away = True
    with pytest.raises(Unavailable):
        await world.taking(doubles((0, [1.0])))
    world.assets.away = False
    assert results(await world.taking(doubles((0, [1.0]))))[0].stored_samples == 1


async def test_no_question_is_about_more_than_ten_thousand_devices(world: World) -> None:
    names = [f"d-{index}" for index in range(25_000)]
    world.assets.devices.update(dict.fromkeys(names, PUMP))
    world.table.define(
        [(index + 1, SeriesDefinition(name, "x", Kind.DOUBLE, "")) for index, name in enumerate(names)]
    )
    request = await world.taking(doubles((0, [1.0]), (25_000, [2.0])))
    assert results(request)[0].stored_samples == 2
    assert sum(world.assets.asked) == 25_001
    assert max(world.assets.asked) <= 10_000
    assert len(world.series_ids.made) == 25_001
    assert request.samples[0].series.tolist() == [
        world.series_ids.made[SeriesKey(device, "x", Kind.DOUBLE, "°C")] for device in ("pump-1", names[-1])
    ]


@pytest.mark.parametrize("epochs", [(1, 2), (None, 5)])
async def test_neither_stream_nor_door_is_part_of_the_content(
    world: World, epochs: tuple[int | None, int | None]
) -> None:
    one, other = [await world.taking(doubles((0, [1.0])), WriterIdentity("w", 1, epoch)) for epoch in epochs]
    assert (one.digest, one.outcome) == (other.digest, other.outcome)
