"""Sealing moves samples, and answers stay what they were: against a model, step by step."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.instances import take_numbers
from telemetry_store.latest import advance_checkpoint
from telemetry_store.quality import NOT_JUDGED
from telemetry_store.series import Point, SeriesKey, Value
from telemetry_store.tiers.codec import Samples, encode
from telemetry_store.tiers.due import due_batches
from telemetry_store.tiers.floor import (
    Bound,
    SettledOrders,
    find_bound,
    forget_commits,
    raise_floors,
)
from telemetry_store.tiers.reader import Span, read_spans
from telemetry_store.tiers.sealing import seal
from tests.store.sealing import AT_ONCE, bound_now, seal_all
from tests.store.telemetry import Recorder, Sent, recorder
from tests.store.writing import T0, admin

SECOND = 1_000_000
TODAY = T0 // MICROS_PER_DAY * MICROS_PER_DAY
YESTERDAY = TODAY - MICROS_PER_DAY
DEVICES = ("pump-1", "pump-2", "pump-3")


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_maintenance"), application="sealing") as opened:
        yield opened


@pytest.fixture
async def query(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_twin_query"), application="query") as opened:
        yield opened


@dataclass
class Model:
    """What was committed: of equal times the later commit counts."""

    samples: dict[tuple[str, Kind], dict[int, Value]] = field(default_factory=dict)

    def add(self, samples: list[Sent]) -> None:
        for sample in samples:
            self.samples.setdefault((sample.device_id, sample.kind), {})[sample.time_us] = sample.value


async def series_ids(pool: asyncpg.Pool) -> dict[tuple[str, Kind], int]:
    rows = await pool.fetch("SELECT device_id, kind, series_id FROM telemetry.series")
    return {(row["device_id"], Kind(row["kind"])): row["series_id"] for row in rows}


def stated(kind: Kind, values: Any) -> list[Value]:
    if kind is Kind.POINT:
        return [
            Point(latitude, longitude, None if np.isnan(altitude) else altitude)
            for latitude, longitude, altitude in values.tolist()
        ]
    listed: list[Value] = values.tolist()
    return listed


async def assert_reads(query: asyncpg.Pool, pool: asyncpg.Pool, model: Model) -> None:
    """Compare every series with the model, the days' whole ranges."""
    ids = await series_ids(pool)
    for (device, kind), expected in model.samples.items():
        span = Span("demo", ids[device, kind], TODAY - 40 * MICROS_PER_DAY, TODAY + 2 * MICROS_PER_DAY)
        async with tenant_transaction(query, "demo", isolation="repeatable_read") as connection:
            found = (await read_spans(connection, kind, [span], archive=None)).samples
        assert dict(zip(found.times.tolist(), stated(kind, found.values), strict=True)) == expected
        assert found.times.tolist() == sorted(expected)


async def hot_rows(pool: asyncpg.Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM telemetry.segment")
    return count


async def sealed_extents(pool: asyncpg.Pool) -> list[tuple[int, int, int, bool]]:
    rows = await pool.fetch(
        "SELECT start_time, end_time, samples, compacted FROM telemetry.sealed_segment ORDER BY start_time"
    )
    return [(row["start_time"], row["end_time"], row["samples"], row["compacted"]) for row in rows]


def every(seconds: int, start: int, count: int, value: float = 0.0, device: str = "pump-1") -> list[Sent]:
    return [Sent(device, "flow", start + place * seconds * SECOND, value + place) for place in range(count)]


async def test_an_hour_that_is_over_is_sealed_and_reads_the_same(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    samples = every(60, T0, 60)
    async with recorder(database) as writer:
        for place in range(0, 60, 10):
            await writer.commit("demo", samples[place : place + 10])
    model = Model()
    model.add(samples)
    bound = await bound_now(pool)
    assert bound is not None
    moved = await seal_all(pool, bound)

    assert (moved.segments, moved.rows, moved.samples) == (6, 1, 60)
    assert await hot_rows(pool) == 0
    assert len(await sealed_extents(pool)) == 1
    await assert_reads(query, pool, model)
    again = await seal_all(pool, bound)
    assert again.operations == 0


async def test_the_pieces_of_a_day_become_one_row_when_it_is_over(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    model = Model()
    async with recorder(database) as writer:
        for hour in range(5):
            samples = every(60, YESTERDAY + hour * MICROS_PER_HOUR, 60, float(hour))
            model.add(samples)
            await writer.commit("demo", samples)
            # As if the day was not over yet.
            bound = await bound_now(pool)
            assert bound is not None
            await seal_all(pool, Bound(bound.order_no, YESTERDAY + (hour + 1) * MICROS_PER_HOUR))
            assert (await sealed_extents(pool))[-1][2:] == (60, False)
    bound = await bound_now(pool)
    assert bound is not None
    moved = await seal_all(pool, bound)

    assert (moved.merged, moved.rows) == (5, 1)
    assert [extent[2:] for extent in await sealed_extents(pool)] == [(300, True)]
    await assert_reads(query, pool, model)
    assert (await seal_all(pool, bound)).operations == 0


async def test_a_single_piece_of_a_day_that_is_over_stays_as_it_is(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    samples = every(60, YESTERDAY, 10)
    async with recorder(database) as writer:
        await writer.commit("demo", samples)
    bound = await bound_now(pool)
    assert bound is not None
    await seal_all(pool, Bound(bound.order_no, YESTERDAY + MICROS_PER_HOUR))
    assert [extent[2:] for extent in await sealed_extents(pool)] == [(10, False)]
    await seal_all(pool, bound)
    assert [extent[2:] for extent in await sealed_extents(pool)] == [(10, True)]
    model = Model()
    model.add(samples)
    await assert_reads(query, pool, model)


async def test_late_rows_are_merged_with_what_they_meet_and_nothing_else(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    model = Model()
    async with recorder(database) as writer:
        for hour in (0, 1, 2):
            samples = every(60, YESTERDAY + hour * MICROS_PER_HOUR, 30)
            model.add(samples)
            await writer.commit("demo", samples)
            bound = await bound_now(pool)
            assert bound is not None
            await seal_all(pool, Bound(bound.order_no, YESTERDAY + (hour + 1) * MICROS_PER_HOUR))
        late = [Sent("pump-1", "flow", YESTERDAY + MICROS_PER_HOUR + 60 * SECOND, -1.0)]
        model.add(late)
        await writer.commit("demo", late)
    await assert_reads(query, pool, model)
    bound = await bound_now(pool)
    assert bound is not None
    moved = await seal_all(pool, Bound(bound.order_no, YESTERDAY + 3 * MICROS_PER_HOUR))
    assert (moved.segments, moved.merged, moved.samples) == (1, 1, 30)
    await assert_reads(query, pool, model)


async def writers_catalog(database: TestDatabase, samples: list[Sent]) -> list[int]:
    """Return the ids of samples' series, registered if need be."""
    async with (
        db.pool(database.url("twinmesh_ingest"), application="catalog", max_size=2) as pool,
        SeriesCatalog(pool=pool) as catalog,
    ):
        keys = [SeriesKey(sample.device_id, sample.metric, sample.kind, "unit") for sample in samples]
        found: list[int] = (await catalog.resolve("demo", keys)).tolist()
        return found


KINDS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: st.floats(-1e6, 1e6),
    Kind.INT: st.integers(-(2**40), 2**40),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.sampled_from(["on", "off", "", "späť"]),
    Kind.POINT: st.builds(
        Point, st.floats(-90, 90), st.floats(-180, 180), st.one_of(st.none(), st.floats(0, 100))
    ),
}


@st.composite
def commits(draw: st.DrawFn) -> list[Sent]:
    """A commit: a few runs, often over the same times as others."""
    samples = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(sorted(KINDS)))
        device = draw(st.sampled_from(DEVICES))
        start = draw(st.sampled_from([YESTERDAY - 20 * MICROS_PER_DAY, YESTERDAY, TODAY])) + draw(
            st.integers(0, 5)
        ) * (MICROS_PER_HOUR // 2)
        for place in range(draw(st.integers(1, 6))):
            samples.append(Sent(device, "m", start + place * 7 * SECOND, draw(KINDS[kind])))
    return samples


@dataclass
class Commit:
    samples: list[Sent]
    instance: int


@dataclass
class Bulk:
    """Sealed at once, in a commit of its own, over whatever is there."""

    samples: list[Sent]


@st.composite
def bulks(draw: st.DrawFn) -> Bulk:
    start = YESTERDAY + draw(st.integers(0, 5)) * (MICROS_PER_HOUR // 2)
    step = draw(st.sampled_from([7 * SECOND, MICROS_PER_HOUR // 4]))
    values = draw(st.lists(KINDS[Kind.DOUBLE], min_size=1, max_size=8))
    return Bulk([Sent("pump-1", "m", start + place * step, value) for place, value in enumerate(values)])


STEPS = st.one_of(
    st.builds(Commit, commits(), st.integers(0, 1)),
    bulks(),
    st.just("round"),
    st.sampled_from(["seal one", "round of one who stood still"]),
    st.sampled_from(["consumer lags", "consumer takes all"]),
    st.sampled_from(["open", "end"]),
    st.integers(0, 48).map(lambda hours: ("through", hours)),
)


class Machine:
    """Ingest, sealing, and what stands in its way, beside the model."""

    def __init__(self, database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool) -> None:
        self._database = database
        self._pool = pool
        self._query = query
        self._model = Model()
        self._through: int | None = None
        self._open: Any = None
        self._bounds: list[Bound] = []

    async def run(self, steps: list[Any]) -> None:
        async with AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(recorder(self._database)) for _ in range(2)]
            connection = await stack.enter_async_context(admin(self._database))
            for step in steps:
                await self._step(step, writers, connection)
                await assert_reads(self._query, self._pool, self._model)
            await self._end(connection)
            await connection.execute("DELETE FROM telemetry.feed_consumer WHERE name = 'lagging'")
            self._through = None
            await self._seal(one=False)
            await self._seal(one=False)
            await assert_reads(self._query, self._pool, self._model)
            now = T0 // MICROS_PER_HOUR * MICROS_PER_HOUR
            assert await connection.fetchval(
                "SELECT count(*) FROM telemetry.segment WHERE start_time < $1", now
            ) == 0  # fmt: skip

    async def _step(self, step: Any, writers: list[Recorder], connection: asyncpg.Connection) -> None:
        match step:
            case Commit(samples, instance):
                await writers[instance].commit("demo", samples)
                self._model.add(samples)
            case Bulk(samples):
                await self._load(samples)
                self._model.add(samples)
            case "round" | "seal one":
                await self._seal(one=step == "seal one")
            case "round of one who stood still" if self._bounds:
                async for batch in due_batches(self._pool, self._bounds[0]):
                    await seal(self._pool, batch, order_no=self._bounds[0].order_no)
            case "consumer lags":
                await connection.execute(
                    "INSERT INTO telemetry.feed_consumer (name, frontier) "
                    "SELECT 'lagging', coalesce(jsonb_object_agg(instance::text, last_commit_no), '{}') "
                    "FROM telemetry.ingest_instance ON CONFLICT DO NOTHING"
                )
            case "consumer takes all":
                await connection.execute(
                    "UPDATE telemetry.feed_consumer SET frontier = "
                    "(SELECT coalesce(jsonb_object_agg(instance::text, last_commit_no), '{}') "
                    "FROM telemetry.ingest_instance) WHERE name = 'lagging'"
                )
            case "open" if self._open is None:
                # A transaction that has an order, and takes its time: it will roll back.
                self._open = connection.transaction()
                await self._open.start()
                await connection.execute("SELECT pg_current_xact_id(), nextval('telemetry.commit_order')")
            case "end":
                await self._end(connection)
            case ("through", hours):
                self._through = YESTERDAY + hours * MICROS_PER_HOUR

    async def _load(self, samples: list[Sent]) -> None:
        [series_id] = await writers_catalog(self._database, samples[:1])
        columns = encode(
            Kind.DOUBLE,
            Samples(
                np.array([sample.time_us for sample in samples], np.int64),
                np.array([sample.value for sample in samples], np.float64),
                np.full(len(samples), NOT_JUDGED, np.int32),
            ),
        )
        day = date(1970, 1, 1) + timedelta(days=samples[0].time_us // MICROS_PER_DAY)
        async with admin(self._database) as connection, connection.transaction():
            await connection.execute("SELECT telemetry.ensure_sealed_months($1, $1)", day)
            instance = await connection.fetchval(
                "INSERT INTO telemetry.ingest_instance (closed) VALUES (false) RETURNING instance"
            )
            numbers = await take_numbers(connection, instance)
            assert numbers is not None
            await connection.execute(
                "INSERT INTO telemetry.ingest_commit (instance, commit_no, order_no, days) VALUES ($1, 1, $2, $3)",
                instance,
                numbers.order_no,
                [day],
            )
            await connection.execute(
                """
                INSERT INTO telemetry.sealed_segment
                    (tenant_id, series_id, start_time, end_time, samples, compacted, order_no, times, "values")
                VALUES ('demo', $1, $2, $3, $4, true, $5, $6, $7)
                """,
                series_id,
                samples[0].time_us,
                samples[-1].time_us,
                len(samples),
                numbers.order_no,
                columns.times,
                columns.values,
            )

    async def _end(self, connection: asyncpg.Connection) -> None:
        if self._open is not None:
            await self._open.rollback()
            self._open = None

    async def _seal(self, *, one: bool) -> None:
        while await advance_checkpoint(self._pool):
            pass
        settled = await SettledOrders(pool=self._pool).find()
        if settled is None:
            assert self._open is not None
            return
        bound = await find_bound(self._pool, settled, seal_after=AT_ONCE)
        if bound is None:
            return
        await raise_floors(self._pool, bound)
        self._bounds.append(bound)
        if self._through is not None:
            bound = Bound(bound.order_no, min(self._through, bound.through_us))
        async for batch in due_batches(self._pool, bound):
            await seal(self._pool, batch, order_no=bound.order_no)
            if one:
                return
        await forget_commits(self._pool)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(st.lists(STEPS, min_size=3, max_size=14))
async def test_answers_stay_the_same_whatever_is_sealed_when(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool, steps: list[Any]
) -> None:
    async with admin(database) as connection:
        await connection.execute(
            "SELECT telemetry.make_segment_day(date '1970-01-01' + $1::int)",
            (YESTERDAY - 20 * MICROS_PER_DAY) // MICROS_PER_DAY,
        )
        await connection.execute(
            "DELETE FROM telemetry.segment; DELETE FROM telemetry.sealed_segment; "
            "DELETE FROM telemetry.feed_consumer WHERE name = 'lagging'"
        )
    await Machine(database, pool, query).run(steps)
