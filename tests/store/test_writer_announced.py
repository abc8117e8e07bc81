"""Whoever follows commits is told of each one, once its callers are answered."""

import asyncio
from dataclasses import replace

import asyncpg
import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from opentelemetry.trace import SpanContext, TraceFlags

from meshkit.testing.database import TestDatabase
from telemetry_store.batch import Batch, prepare
from telemetry_store.columns import Kind
from telemetry_store.commit import Commit
from telemetry_store.requests import RequestIdentity, WriteResult
from tests.store.writing import T0, admin, columns, numbered, request, running_writer
from tests.unit.latest import Latest


def latest_of(commit: Commit) -> set[tuple[str, int, int, object]]:
    return {
        (tenant, series, time_us - T0, value)
        for tenant, samples in commit.latest
        for series, time_us, value in zip(
            samples.series.tolist(), samples.times.tolist(), samples.tolist(), strict=True
        )
    }


async def numbers(connection: asyncpg.Connection) -> list[tuple[int, int, int]]:
    rows = await connection.fetch(
        "SELECT instance, commit_no, order_no FROM telemetry.ingest_commit ORDER BY order_no"
    )
    return [tuple(row) for row in rows]


async def test_a_commit_is_told_with_the_latest_sample_of_each_series(database: TestDatabase) -> None:
    told: list[Commit] = []
    async with running_writer(database, on_committed=told.append) as writer, admin(database) as connection:
        await asyncio.gather(
            writer.write(request(None, columns(Kind.INT, [(1, 5, 50), (2, 1, 10), (1, 3, 30)]))),
            writer.write(request(None, columns(Kind.INT, [(3, 9, 90)]), tenant="other")),
            writer.write(request(None, columns(Kind.STRING, [(4, 2, "on")]))),
        )
        (commit,) = told
        assert latest_of(commit) == {
            ("demo", 1, 5, 50),
            ("demo", 2, 1, 10),
            ("other", 3, 9, 90),
            ("demo", 4, 2, "on"),
        }
        found = [(commit.numbers.instance, commit.numbers.commit_no, commit.numbers.order_no)]
        assert found == await numbers(connection)
        assert (commit.samples, commit.traceparent) == (5, "")


async def test_a_commit_is_told_once_its_callers_are_answered(database: TestDatabase) -> None:
    answers: list[asyncio.Future[WriteResult]] = []
    answered: list[bool] = []

    def see(_: Commit) -> None:
        answered.extend(answer.done() for answer in answers)

    async with running_writer(database, on_committed=see) as writer:
        answers.append(writer.submit(numbered(1)))
        await answers[0]
    assert answered == [True]


async def test_a_recorded_commit_is_told_with_its_trace(database: TestDatabase) -> None:
    told: list[Commit] = []
    span = SpanContext(0xA11CE, 0xB0B, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    async with running_writer(database, on_committed=told.append) as writer, admin(database) as connection:
        await writer.write(replace(numbered(1), span=span))
        recorded = await connection.fetchval("SELECT traceparent FROM telemetry.ingest_commit")
    assert [commit.traceparent for commit in told] == [recorded]
    assert recorded.startswith(f"00-{0xA11CE:032x}-")


async def test_a_commit_that_stores_nothing_is_told(database: TestDatabase) -> None:
    told: list[Commit] = []
    async with running_writer(database, on_committed=told.append) as writer:
        await writer.write(numbered(1, samples=[]))
    assert [(commit.numbers.commit_no, latest_of(commit)) for commit in told] == [(1, set())]


async def test_what_commits_nothing_new_is_not_told(database: TestDatabase) -> None:
    told: list[Commit] = []
    async with running_writer(database, on_committed=told.append) as writer:
        await writer.write(numbered(1))
        assert (await writer.write(numbered(1))).duplicate
    assert [commit.numbers.commit_no for commit in told] == [1]


async def test_each_commit_of_a_group_that_is_halved_is_told(database: TestDatabase) -> None:
    told: list[Commit] = []
    async with running_writer(database, on_committed=told.append) as writer, admin(database) as connection:
        # PostgreSQL refuses a NUL, which validation lets nobody send.
        bad = request(RequestIdentity("bad"), columns(Kind.STRING, [(9, 0, "\0")]), principal="user:eve")
        results = await asyncio.gather(
            writer.write(numbered(1)), writer.write(bad), writer.write(numbered(1, writer_id="v"))
        )
        assert [result.outcome for result in results] == [b"stored w 1", b"refused content", b"stored v 1"]
        assert [
            (commit.numbers.instance, commit.numbers.commit_no, commit.numbers.order_no) for commit in told
        ] == await numbers(connection)
        assert set().union(*map(latest_of, told)) == {("demo", 1, 1, 1)}


async def test_a_follower_that_fails_harms_nobody(database: TestDatabase) -> None:
    def fail(_: Commit) -> None:
        raise RuntimeError("broken")

    async with running_writer(database, on_committed=fail) as writer:
        assert not (await writer.write(numbered(1))).duplicate
        assert not (await writer.write(numbered(2))).duplicate


_SAMPLES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 7_200_000_000), st.integers(-5, 5)), max_size=12
)


@given(st.lists(st.tuples(st.sampled_from(["demo", "other"]), _SAMPLES), max_size=5))
def test_the_latest_of_a_group_is_that_of_a_model(sent: list[tuple[str, list[tuple[int, int, int]]]]) -> None:
    # A series is of one tenant, and those of tenants lie between each other's.
    parts = [
        (tenant, [(2 * series + (tenant == "demo"), time_us, value) for series, time_us, value in samples])
        for tenant, samples in sent
    ]
    prepared = prepare(
        [Batch(request(None, columns(Kind.INT, samples), tenant=tenant)) for tenant, samples in parts]
    )
    expected: dict[int, Latest] = {}
    for tenant, samples in parts:
        for series, time_us, value in samples:
            known = expected.get(series)
            if known is None or time_us >= known.time_us:
                expected[series] = Latest(tenant, series, time_us, 0, value)
    found = [
        Latest(tenant, series, time_us - T0, 0, value)
        for tenant, samples_ in prepared.latest
        for series, time_us, value in zip(
            samples_.series.tolist(), samples_.times.tolist(), samples_.tolist(), strict=True
        )
    ]
    assert sorted(found, key=lambda one: one.series_id) == [expected[series] for series in sorted(expected)]
    assert all(samples_.series.dtype == np.int32 for _, samples_ in prepared.latest)
