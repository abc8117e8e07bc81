"""Events are stored with their commit, exactly once, and read newest first."""

import json
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.events import EventFilter, StoredEvent, read_newest
from telemetry_store.requests import Event, RequestIdentity, WriteRequest, WriteResult, WriterIdentity
from tests.store.writing import T0, admin, columns, running_writer

LAST = (T0 + 1_000_000, 0)
ALL = EventFilter(device_id=None, asset_ids=None, types=None, severity=0, start_us=T0)
ONE = Event(
    device_id="pump-1",
    asset_id=None,
    type="door.opened",
    severity=200,
    time_us=T0,
    received_us=T0 + 999_999,
    message="läuft",
    attributes='{"by":"key 7"}',
)


def event(offset: int, **fields: Any) -> Event:
    return replace(ONE, time_us=T0 + offset, **fields)


def request(
    *events: Event, identity: RequestIdentity | WriterIdentity | None = None, **fields: Any
) -> WriteRequest:
    request = WriteRequest(
        tenant="demo",
        principal="user:ada",
        identity=identity,
        digest=bytes(32),
        samples=(),
        events=events,
        outcome=b"stored",
        refused_outcome=b"refused",
    )
    return replace(request, **fields)


async def read(
    database: TestDatabase,
    wanted: EventFilter = ALL,
    *,
    tenant: str = "demo",
    before: tuple[int, int] = LAST,
    limit: int = 100,
) -> list[StoredEvent]:
    async with (
        db.pool(database.url("twinmesh_twin_query"), application="test", max_size=1) as pool,
        db.tenant_transaction(pool, tenant) as connection,
    ):
        return await read_newest(connection, tenant=tenant, wanted=wanted, before=before, limit=limit)


async def offsets(database: TestDatabase, **wanted: Any) -> list[int]:
    return [stored.event.time_us - T0 for stored in await read(database, replace(ALL, **wanted))]


async def test_events_come_back_as_they_were_stored(database: TestDatabase) -> None:
    attributes = {"d": 3.0, "i": 2**53 + 1, "big": 1e23, "b": True, "s": "2", "p": {"latitude": 1.0}}
    text = json.dumps(attributes).replace("1e+23", "100000000000000000000000.0")
    sent = [
        event(3, severity=600, device_id=None, asset_id="hall", message="", attributes="{}"),
        event(1, asset_id="line", attributes=text),
        event(1, type="x"),
    ]
    async with running_writer(database) as writer, admin(database) as connection:
        assert await writer.write(request(*sent)) == WriteResult(b"stored", duplicate=False)
        numbers = await connection.fetch("SELECT instance, commit_no, order_no FROM telemetry.event")
        commits = await connection.fetch("SELECT instance, commit_no, order_no FROM telemetry.ingest_commit")
    found = await read(database)
    # Of equal times the one stored later comes first.
    assert [replace(stored.event, attributes="") for stored in found] == [
        replace(each, attributes="") for each in (sent[0], sent[2], sent[1])
    ]
    kept = [json.loads(stored.event.attributes) for stored in found]
    assert kept == [{}, {"by": "key 7"}, attributes]
    assert {name: type(value) for name, value in kept[2].items()} == {
        name: type(value) for name, value in attributes.items()
    }
    assert set(map(tuple, numbers)) == set(map(tuple, commits))
    assert len(commits) == 1


async def test_filters_hold_together(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.write(
            request(
                event(0, type="door"),
                event(1, type="door.opened", severity=400),
                event(2, type="door.opened.wide", asset_id="hall"),
                event(3, type="doors", device_id="pump-2"),
                event(4, type="motor.on", device_id=None, asset_id="hall", severity=600),
            )
        )
        await writer.write(request(event(2), tenant="rival"))
    assert await offsets(database) == [4, 3, 2, 1, 0]
    assert await offsets(database, start_us=T0 + 3) == [4, 3]
    assert await offsets(database, device_id="pump-1") == [2, 1, 0]
    assert await offsets(database, asset_ids=["hall", "line"]) == [4, 2]
    assert await offsets(database, asset_ids=["hall"], device_id="pump-1") == [2]
    assert await offsets(database, asset_ids=[]) == []
    assert await offsets(database, types=["door"]) == [2, 1, 0]
    assert await offsets(database, types=["door.opened", "motor"]) == [4, 2, 1]
    assert await offsets(database, severity=400) == [4, 1]
    assert await offsets(database, severity=300, types=["door"], device_id="pump-1") == [1]
    assert [stored.event.time_us for stored in await read(database, tenant="rival")] == [T0 + 2]


async def test_pages_go_on_behind_an_event(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.write(request(*(event(offset // 3, message=str(offset)) for offset in range(9))))
    found: list[str] = []
    before = LAST
    while page := await read(database, before=before, limit=2):
        found += [stored.event.message for stored in page]
        before = (page[-1].event.time_us, page[-1].event_id)
    assert found == [str(offset) for offset in reversed(range(9))]


@pytest.mark.parametrize("identity", [RequestIdentity("r"), WriterIdentity("w", 1)])
async def test_events_are_stored_once(
    database: TestDatabase, identity: RequestIdentity | WriterIdentity
) -> None:
    async with running_writer(database) as writer:
        first = await writer.write(request(event(1), identity=identity))
        again = await writer.write(request(event(1), identity=identity))
    assert (first.duplicate, again.duplicate) == (False, True)
    assert await offsets(database) == [1]


async def test_events_that_the_database_refuses_are_refused_with_their_batch(database: TestDatabase) -> None:
    samples = [columns(Kind.INT, [(1, 1, 1)])]
    async with running_writer(database) as writer, admin(database) as connection:
        bad = request(event(1), event(2, attributes='{"x":"\\u0000"}'), identity=WriterIdentity("w", 1))
        good = request(event(3), identity=WriterIdentity("w", 2), samples=samples)
        refused, stored = writer.submit(replace(bad, samples=samples)), writer.submit(good)
        assert (await refused).outcome == b"refused"
        assert (await stored).outcome == b"stored"
        assert await connection.fetchval("SELECT count(*) FROM telemetry.segment") == 1
    assert await offsets(database) == [3]


async def test_nobody_sees_events_without_a_tenant(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.write(request(event(1)))
    connection = await asyncpg.connect(database.url("twinmesh_twin_query"))
    try:
        assert await connection.fetchval("SELECT count(*) FROM telemetry.event") == 0
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({}, "event_time"),
        ({"device_id": "pump-7"}, "event_device_time"),
        ({"asset_ids": ["asset-7"]}, "event_asset_time"),
    ],
)
async def test_each_question_has_its_index(
    database: TestDatabase, wanted: dict[str, Any], index: str
) -> None:
    async with running_writer(database) as writer:
        await writer.write(
            request(
                *(
                    event(at, device_id=f"pump-{at % 1000}", asset_id=f"asset-{at % 1000}")
                    for at in range(5_000)
                )
            )
        )
    async with admin(database) as connection:
        await connection.execute("ANALYZE telemetry.event")
    await read(database, replace(ALL, **wanted), limit=10)
    async with admin(database) as connection:
        used = await connection.fetch(
            "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE relname = 'event'"
        )
    assert {row["indexrelname"] for row in used if row["idx_scan"]} == {index}
