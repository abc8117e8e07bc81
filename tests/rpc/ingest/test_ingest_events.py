"""Events, by the unary rpc and on the stream: stored exactly once, or refused by name."""

from typing import Any

import asyncpg
import grpc

from tests.rpc.ingest.neighbours import Ingest, Refused, reading, refused
from tests.rpc.ingest.streaming import NOW_US, columns, opened
from twinmesh.ingest.v1 import event_pb2
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import severity_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import Point, Value

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALL_OR_NOTHING = ingest_pb2.MODE_ALL_OR_NOTHING


def event(
    device_id: str = "pump-1", *, asset_id: str = "", time_us: int = NOW_US, **fields: Any
) -> event_pb2.Event:
    fields.setdefault("type", "door.opened")
    source: dict[str, Any] = {"asset_id": asset_id} if asset_id else {"device_id": device_id}
    built = event_pb2.Event(**source, **fields)
    built.time.FromMicroseconds(time_us)
    return built


async def send(ingest: Ingest, *events: event_pb2.Event, **fields: Any) -> ingest_pb2.IngestEventsResponse:
    request = ingest_pb2.IngestEventsRequest(events=events, **fields)
    return await ingest.stub.IngestEvents(request, metadata=ingest.caller())


async def stored(ingest: Ingest) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(ingest.database.admin_url)
    try:
        rows = await connection.fetch(
            "SELECT tenant_id, device_id, asset_id, type, severity, time, message, attributes "
            "FROM telemetry.event ORDER BY event_id"
        )
    finally:
        await connection.close()
    return [tuple(row) for row in rows]


def reasons(refusals: Any) -> list[tuple[int, str]]:
    return [
        (refusal.event_index, ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"))
        for refusal in refusals
    ]


async def test_events_are_stored_as_they_were_sent(ingest: Ingest) -> None:
    ingest.assets.add("pump-3", asset_id="line-1")
    answer = await send(
        ingest,
        event("pump-3", severity=severity_pb2.SEVERITY_CRITICAL, message="läuft"),
        event(
            asset_id="hall",
            attributes={
                "d": Value(double_value=3),
                "i": Value(int_value=2**53 + 1),
                "p": Value(point_value=Point(latitude=1, longitude=2)),
            },
        ),
    )
    assert answer == ingest_pb2.IngestEventsResponse(stored_events=2)
    assert await stored(ingest) == [
        ("acme", "pump-3", "line-1", "door.opened", 600, NOW_US, "läuft", "{}"),
        (
            "acme",
            None,
            "hall",
            "door.opened",
            200,
            NOW_US,
            "",
            '{"d": 3.0, "i": 9007199254740993, "p": {"latitude": 1.0, "longitude": 2.0}}',
        ),
    ]


async def test_what_cannot_be_stored_is_refused_by_name(ingest: Ingest) -> None:
    bad = [
        event("foreign"),
        event("off"),
        event(asset_id="elsewhere"),
        event(time_us=0),
        event(time_us=4_102_444_800_000_000),
    ]
    expected = [
        (1, "DEVICE_UNKNOWN"),
        (2, "DEVICE_DISABLED"),
        (3, "ASSET_UNKNOWN"),
        (4, "TIME_OUT_OF_WINDOW"),
        (5, "TIME_OUT_OF_WINDOW"),
    ]
    answer = await send(ingest, event(), *bad)
    assert (answer.stored_events, answer.refused_events) == (1, 5)
    assert reasons(answer.refusals) == expected
    answer = await send(ingest, event(), *bad, mode=ALL_OR_NOTHING, request_id="r")
    assert (answer.stored_events, answer.refused_events) == (0, 6)
    assert reasons(answer.refusals) == [(0, "BATCH_REFUSED"), *expected]
    assert await send(ingest, event(), *bad, mode=ALL_OR_NOTHING, request_id="r") == (
        ingest_pb2.IngestEventsResponse(
            stored_events=0, refused_events=6, refusals=answer.refusals, duplicate=True
        )
    )
    assert len(await stored(ingest)) == 1


async def test_a_repeated_request_stores_nothing(ingest: Ingest) -> None:
    for fields in ({"request_id": "r"}, {"writer_id": "w", "sequence": 1}):
        first = await send(ingest, event(), **fields)
        assert (first.stored_events, first.duplicate) == (1, False)
        again = await send(ingest, event(), **fields)
        assert (again.stored_events, again.duplicate) == (1, True)
    assert len(await stored(ingest)) == 2
    other = await refused(send(ingest, event(message="other"), request_id="r"))
    assert other == Refused(INVALID, "REQUEST_ID_REUSED")
    # Samples and events of a writer have one sequence.
    await ingest.send(reading(temperature=1.0), writer_id="w", sequence=2)
    other = await refused(send(ingest, event(), writer_id="w", sequence=2))
    assert other == Refused(INVALID, "SEQUENCE_REUSED", {"sequence": "2"})


async def test_what_breaks_the_contract_is_named(ingest: Ingest) -> None:
    bad = event_pb2.Event(type="Door", attributes={"1": Value(int_value=1)})
    told = await refused(send(ingest, event(), bad))
    assert (told.code, told.reason) == (INVALID, "INVALID_FIELD")
    assert set(told.fields) == {"events[1].source", "events[1].type", "events[1].attributes['1']"}


async def test_events_of_assets_wait_for_asset_svc(ingest: Ingest) -> None:
    ingest.assets.refusing = True
    told = await refused(send(ingest, event(asset_id="hall"), request_id="r"))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    ingest.assets.refusing = False
    assert (await send(ingest, event(asset_id="hall"), request_id="r")).stored_events == 1


async def test_events_come_in_a_streams_batches(ingest: Ingest) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0), events=[event(message="1"), event("pump-9")])
        await client.batch(
            2, readings=[reading(time_us=NOW_US - 1, temperature=2.0)], events=[event(message="2")]
        )
        await client.batch(3, events=[event(asset_id="hall", message="3")])
        await client.batch(4, columns(4.0), events=[event(type="Bad")])
        await client.batch(5, columns(5.0), events=[event(), event("off")], mode=ALL_OR_NOTHING)
        await client.batch(6, columns(6.0, lengths=[2]), events=[event()])
        results = await client.durable(6)
    assert [(each.sequence, ErrorReason.Name(each.reason)[13:]) for each in results] == [
        (1, "UNSPECIFIED"),
        (4, "UNSPECIFIED"),
        (5, "BATCH_REFUSED"),
        (6, "COLUMNS_INVALID"),
    ]
    assert [(each.stored_samples, each.refused_samples) for each in results] == [
        (1, 0),
        (1, 0),
        (0, 1),
        (0, 1),
    ]
    assert [(each.stored_events, each.refused_events) for each in results] == [(1, 1), (0, 1), (0, 2), (0, 1)]
    assert reasons(results[1].event_refusals) == [(0, "INVALID_FIELD")]
    assert results[1].event_refusals[0].message.startswith("type: ")
    assert reasons(results[0].event_refusals) == [(1, "DEVICE_UNKNOWN")]
    assert reasons(results[2].event_refusals) == [(0, "BATCH_REFUSED"), (1, "DEVICE_DISABLED")]
    assert [row[6] for row in await stored(ingest)] == ["1", "2", "3"]
    assert set((await ingest.samples()).values()) == {1.0, 2.0, 4.0}


async def test_a_batch_with_other_events_is_another_one(ingest: Ingest) -> None:
    sent = columns(1.0)
    async with opened(ingest) as client:
        await client.batch(1, sent, events=[event()])
        await client.batch(1, sent, events=[event()])
        assert await client.durable(1) == []
        await client.batch(1, sent, events=[event(message="x")])
        told = await client.fails()
    assert (told.code, told.reason) == (INVALID, "SEQUENCE_REUSED")
    assert len(await stored(ingest)) == 1
