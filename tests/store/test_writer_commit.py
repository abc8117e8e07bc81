"""What a group commit stores, and under which numbers."""

import asyncio
import datetime as dt
import gc
import weakref
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from meshkit.errors import DomainError
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind, KindColumns
from telemetry_store.commit import Stored
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.instances import last_commits
from telemetry_store.requests import RequestIdentity, WriteRequest, WriteResult
from tests.store.writing import (
    T0,
    admin,
    columns,
    commit_numbers,
    numbered,
    reason_of,
    request,
    running_writer,
    stored_ints,
    until_blocked,
)


async def test_every_kind_is_stored_as_sent(database: TestDatabase) -> None:
    samples = [
        columns(Kind.DOUBLE, [(1, 1, 0.1), (1, 2, -1e308)]),
        columns(Kind.INT, [(2, 1, 2**63 - 1), (2, 2, -(2**63))]),
        columns(Kind.BOOL, [(3, 1, True), (3, 2, False)]),
        columns(Kind.STRING, [(4, 1, "größer"), (4, 2, "")]),
        columns(Kind.POINT, [(5, 1, (52.5, 13.4, 34.0)), (5, 2, (-90.0, 180.0, float("nan")))]),
    ]
    async with running_writer(database) as writer, admin(database) as connection:
        assert await writer.write(request(None, *samples)) == WriteResult(b"stored content", duplicate=False)
        rows = await connection.fetch(
            """
            SELECT tenant_id, series_id, start_time, end_time, times, doubles, ints, bools, strings,
                   points::text[] AS points, quality
            FROM telemetry.segment ORDER BY series_id
            """
        )
    times = [T0 + 1, T0 + 2]
    assert [tuple(row) for row in rows] == [
        ("demo", 1, *times, times, [0.1, -1e308], None, None, None, None, None),
        ("demo", 2, *times, times, None, [2**63 - 1, -(2**63)], None, None, None, None),
        ("demo", 3, *times, times, None, None, [True, False], None, None, None),
        ("demo", 4, *times, times, None, None, None, ["größer", ""], None, None),
        ("demo", 5, *times, times, None, None, None, None, ["52.5", "13.4", "34", "-90", "180", "NaN"], None),
    ]


async def test_a_commit_says_how_many_numbers_its_segments_have(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(
            request(
                None,
                columns(Kind.DOUBLE, [(1, 0, 1.0), (1, 1, 2.0), (1, 1, 3.0), (2, 0, 4.0)]),
                columns(Kind.BOOL, [(3, 0, True)]),
                columns(Kind.STRING, [(4, 0, "on")]),
            )
        )
        [row] = await connection.fetch("SELECT doubles, ints, bools FROM telemetry.ingest_commit")
    assert dict(row) == {"doubles": 3, "ints": 0, "bools": 1}


async def test_runs_are_split_at_hours_and_routed_to_days(database: TestDatabase) -> None:
    midnight = T0 // MICROS_PER_DAY * MICROS_PER_DAY - T0
    samples = columns(
        Kind.INT,
        [(1, midnight - 1, 1), (1, midnight, 2), (1, midnight + 1, 3), (1, midnight + MICROS_PER_HOUR, 4)],
    )
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(request(None, samples))
        rows = await connection.fetch(
            "SELECT tableoid::regclass::text AS part, ints FROM telemetry.segment ORDER BY start_time"
        )
        days = await connection.fetchval("SELECT days FROM telemetry.ingest_commit")
    today = dt.datetime.fromtimestamp(T0 / 1e6, dt.UTC).date()
    yesterday = today - dt.timedelta(days=1)
    assert [(row["part"], row["ints"]) for row in rows] == [
        (f"telemetry.segment_{yesterday:%Y%m%d}", [1]),
        (f"telemetry.segment_{today:%Y%m%d}", [2, 3]),
        (f"telemetry.segment_{today:%Y%m%d}", [4]),
    ]
    assert days == [yesterday, today]


async def test_waiting_batches_become_one_commit_and_the_later_of_equal_times_stays(
    database: TestDatabase,
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        results = await asyncio.gather(
            *(
                writer.write(
                    request(None, columns(Kind.INT, [(1, 5, value), (value, 6, value)]), content=str(value))
                )
                for value in range(1, 6)
            )
        )
        assert [result.outcome for result in results] == [f"stored {value}".encode() for value in range(1, 6)]
        assert await stored_ints(connection) == [
            (1, 5, 5),
            (1, 6, 1),
            (2, 6, 2),
            (3, 6, 3),
            (4, 6, 4),
            (5, 6, 5),
        ]
        assert await commit_numbers(connection) == [(1, 1)]


async def test_results_say_which_commit_stored_them(database: TestDatabase) -> None:
    async with running_writer(database) as first, admin(database) as connection:
        ones = await asyncio.gather(
            *(first.write(numbered(1, writer_id=f"w{number}")) for number in range(3))
        )
        async with running_writer(database) as second:
            two = await second.write(numbered(1, writer_id="w3"))
            again = await second.write(numbered(1, writer_id="w0"))
        orders = [
            row["order_no"] for row in await connection.fetch("SELECT order_no FROM telemetry.ingest_commit")
        ]
        known = await last_commits(connection)
    assert [one.commit for one in ones] == [CommitNumbers(1, 1, orders[0])] * 3
    assert two.commit == CommitNumbers(2, 1, orders[1])
    assert (again.duplicate, again.commit) == (True, None)
    assert known == {1: 1, 2: 1}  # The second instance is closed.


async def test_the_tenants_of_one_commit_stay_apart(database: TestDatabase) -> None:
    tenants = ["demo", "acme", "a-much-longer-tenant", "demo"]
    async with running_writer(database) as writer, admin(database) as connection:
        await asyncio.gather(
            *(
                writer.write(request(None, columns(Kind.INT, [(series, 1, series)]), tenant=tenant))
                for series, tenant in enumerate(tenants)
            )
        )
        rows = await connection.fetch("SELECT series_id, tenant_id FROM telemetry.segment ORDER BY series_id")
    assert [tuple(row) for row in rows] == [
        (0, "demo"),
        (1, "acme"),
        (2, "a-much-longer-tenant"),
        (3, "demo"),
    ]


async def test_large_groups_are_prepared_in_a_thread_while_another_commits(database: TestDatabase) -> None:
    batches, size = 40, 5_000
    series = np.arange(size, dtype=np.int32)

    def part(number: int) -> KindColumns:
        return KindColumns(
            Kind.INT, series, np.full(size, T0 + number), np.full(size, number, dtype=np.int64)
        )

    async with running_writer(database) as writer, admin(database) as connection:
        await asyncio.gather(*(writer.write(request(None, part(number))) for number in range(batches)))
        row = await connection.fetchrow(
            "SELECT sum(cardinality(times)), count(DISTINCT series_id) FROM telemetry.segment"
        )
        commits = await commit_numbers(connection)
    assert tuple(row or ()) == (batches * size, size)
    assert commits == [(1, number) for number in range(1, len(commits) + 1)]


async def test_commit_numbers_have_no_gap_where_orders_may(database: TestDatabase) -> None:
    nowhere = columns(Kind.INT, [(1, -800 * MICROS_PER_DAY, 1)])  # No partition: SQLSTATE 23514.
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        for _ in range(3):
            with pytest.raises(DomainError) as caught:
                await writer.write(request(RequestIdentity("nowhere"), nowhere))
            assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
            assert caught.value.retry_after_s is not None
        await writer.write(numbered(2))
        rows = await connection.fetch(
            "SELECT commit_no, order_no FROM telemetry.ingest_commit ORDER BY commit_no"
        )
        assert await connection.fetchval("SELECT count(*) FROM telemetry.request_id") == 0
    assert [row["commit_no"] for row in rows] == [1, 2]
    assert rows[1]["order_no"] > rows[0]["order_no"]


async def test_segments_carry_their_commit_s_numbers(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        for sequence in range(1, 4):
            await writer.write(numbered(sequence))
        matching = await connection.fetchval(
            """
            SELECT count(*) FROM telemetry.segment
            JOIN telemetry.ingest_commit USING (instance, commit_no, order_no)
            """
        )
        last = await connection.fetchval("SELECT last_commit_no FROM telemetry.ingest_instance")
    assert (matching, last) == (3, 3)


async def test_a_cancelled_caller_disturbs_nobody(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        async with connection.transaction():
            # The group under way waits here, and the next one behind it.
            await connection.execute("SELECT FROM telemetry.ingest_instance FOR UPDATE")
            under_way = [
                asyncio.create_task(writer.write(request(None, columns(Kind.INT, [(series, 1, 7)]))))
                for series in (2, 3)
            ]
            await until_blocked(connection)
            waiting = [
                asyncio.create_task(writer.write(request(None, columns(Kind.INT, [(series, 1, 7)]))))
                for series in (4, 5)
            ]
            await asyncio.sleep(0)
            under_way[0].cancel()
            waiting[0].cancel()
        assert (await under_way[1]).outcome == b"stored content"
        assert (await waiting[1]).outcome == b"stored content"
        await asyncio.wait([under_way[0], waiting[0]])
        assert under_way[0].cancelled()
        assert waiting[0].cancelled()
        assert await stored_ints(connection) == [(1, 1, 1), (2, 1, 7), (3, 1, 7), (5, 1, 7)]


async def test_a_full_waiting_room_refuses_and_takes_nothing(database: TestDatabase) -> None:
    three = columns(Kind.INT, [(1, offset, 0) for offset in range(3)])
    async with running_writer(database, max_waiting_samples=5) as writer, admin(database) as connection:
        first = writer.submit(request(None, three))
        with pytest.raises(DomainError) as caught:
            writer.submit(request(None, three))
        assert reason_of(caught.value) == "INGEST_BUSY"
        assert caught.value.metadata == {"limit_name": "waiting_samples", "limit": "5", "used": "3"}
        assert caught.value.retry_after_s
        await first
        await writer.write(request(None, three))  # There is room again.
        assert len(await stored_ints(connection)) == 6


async def test_bytes_are_limited_too(database: TestDatabase) -> None:
    async with running_writer(database, max_waiting_bytes=1_000) as writer:
        first = writer.submit(numbered(1))
        with pytest.raises(DomainError) as caught:
            writer.submit(numbered(2))
        assert caught.value.metadata["limit_name"] == "waiting_bytes"
        assert not (await first).duplicate


async def test_a_submitted_batch_is_dropped_when_its_future_is_cancelled(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        first, second = writer.submit(numbered(1)), writer.submit(numbered(2))
        second.cancel()
        assert (await first).outcome == b"stored w 1"
        assert (await writer.write(numbered(2, content="other"))).outcome == b"stored other"
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2)]


async def test_an_answer_that_nobody_looks_at_is_no_defect(database: TestDatabase) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with running_writer(database) as writer:
        let_go = weakref.ref(writer.submit(numbered(7)))  # A gap.
        assert not (await writer.write(numbered(1))).duplicate
        gc.collect()
    assert let_go() is None
    assert not complaints


async def test_a_batch_larger_than_the_waiting_room_is_let_in_alone(database: TestDatabase) -> None:
    three = columns(Kind.INT, [(1, offset, 0) for offset in range(3)])
    async with running_writer(database, max_waiting_samples=2, max_waiting_bytes=1) as writer:
        assert not (await writer.write(request(None, three))).duplicate


async def test_leaving_commits_what_waits_and_closes_the_instance(database: TestDatabase) -> None:
    async with admin(database) as connection:
        async with running_writer(database) as writer:
            tasks = [asyncio.create_task(writer.write(numbered(sequence))) for sequence in range(1, 20)]
            await asyncio.sleep(0)
        assert all(not task.result().duplicate for task in tasks)
        assert len(await stored_ints(connection)) == 19
        assert await connection.fetchval("SELECT bool_and(closed) FROM telemetry.ingest_instance")
        with pytest.raises(DomainError) as caught:
            await writer.write(numbered(20))
    assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"


async def test_the_commit_is_traced_and_linked_to_the_requests_it_carries(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("telemetry_store.writer.tracer", provider.get_tracer("test"))
    sampled = [SpanContext(trace, trace, False, TraceFlags(TraceFlags.SAMPLED)) for trace in (11, 12)]
    unsampled = SpanContext(13, 13, False, TraceFlags())
    plain = request(None, columns(Kind.INT, [(1, 1, 1)]))

    def traced(span: SpanContext) -> WriteRequest:
        return WriteRequest(
            plain.tenant,
            plain.principal,
            None,
            plain.digest,
            plain.samples,
            plain.outcome,
            plain.refused_outcome,
            span,
        )

    async with running_writer(database) as writer:
        await asyncio.gather(*(writer.write(traced(span)) for span in (unsampled, *sampled)))
        await writer.write(traced(unsampled))
    [span] = exporter.get_finished_spans()
    assert span.name == "telemetry.commit"
    assert span.parent is not None
    assert span.parent.trace_id == 11
    assert [link.context.trace_id for link in span.links] == [11, 12]
    assert dict(span.attributes or {}) == {
        "twinmesh.batches": 3,
        "twinmesh.samples": 1,
        "twinmesh.instance": 1,
        "twinmesh.commit_no": 1,
        "twinmesh.order_no": 1,
    }


async def test_each_group_is_told_with_its_answers(database: TestDatabase) -> None:
    told: list[tuple[Stored, float]] = []
    async with running_writer(
        database, on_group=lambda stored, took_s: told.append((stored, took_s))
    ) as writer:
        await writer.write(numbered(1))
        await writer.write(numbered(1))
    (first, took_s), (repeated, _) = told
    assert took_s > 0
    assert first.commit is not None
    assert first.commit.samples == 1
    assert repeated.commit is None
    assert [answer for stored, _ in told for answer in stored.answers.values()] == [
        WriteResult(b"stored w 1", duplicate=False),
        WriteResult(b"stored w 1", duplicate=True),
    ]
