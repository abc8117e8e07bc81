"""Sealing moves samples, and answers stay what they were: against a model, step by step."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import asyncpg
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.instances import take_numbers
from telemetry_store.series import Point, SeriesKey, Value
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
from tests.store.sealing import AT_ONCE, bound_now, seal_all, take_all
from tests.store.stored import insert_sealed, samples_of
from tests.store.telemetry import Recorder, Sent, recorder
from tests.store.writing import T0, admin

SECOND = 1_000_000
TODAY = T0 // MICROS_PER_DAY * MICROS_PER_DAY
YESTERDAY = TODAY - MICROS_PER_DAY
DEVICES = ("pump-1", "pump-2", "pump-3")


@dataclass
class Model:
    """What was committed: of equal times the later order counts."""

    orders: dict[tuple[str, Kind], dict[int, int]] = field(default_factory=dict)
    samples: dict[tuple[str, Kind], dict[int, Value]] = field(default_factory=dict)

    def add(self, samples: list[Sent], order_no: int = 0) -> None:
        for sample in samples:
            orders = self.orders.setdefault((sample.device_id, sample.kind), {})
            if order_no >= orders.get(sample.time_us, 0):
                orders[sample.time_us] = order_no
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


async def registered(database: TestDatabase, samples: list[Sent]) -> list[int]:
    """Return the ids of samples' series, registered if need be."""
    async with (
        db.pool(database.url("twinmesh_ingest"), application="catalog", max_size=2) as pool,
        SeriesCatalog(pool=pool) as catalog,
    ):
        keys = [SeriesKey(sample.device_id, sample.metric, sample.kind, "unit") for sample in samples]
        found: list[int] = (await catalog.resolve("demo", keys)).tolist()
        return found


def day_of(sample: Sent) -> date:
    return date(1970, 1, 1) + timedelta(days=sample.time_us // MICROS_PER_DAY)


KINDS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: st.floats(-1e6, 1e6),
    Kind.INT: st.integers(-(2**40), 2**40),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.sampled_from(["on", "off", "", "späť"]),
    Kind.POINT: st.builds(
        Point, st.floats(-90, 90), st.floats(-180, 180), st.one_of(st.none(), st.floats(0, 100))
    ),
}


# Few times and mostly one series, so that things meet.
SLOT = MICROS_PER_HOUR // 3
SLOTS = 9


def runs(draw: st.DrawFn, day: int, device: str, kind: Kind) -> list[Sent]:
    first = draw(st.integers(0, SLOTS - 1))
    last = draw(st.integers(first, min(first + 3, SLOTS - 1)))
    return [Sent(device, "m", day + slot * SLOT, draw(KINDS[kind])) for slot in range(first, last + 1)]


@st.composite
def usual(draw: st.DrawFn) -> list[Sent]:
    return runs(draw, YESTERDAY, "pump-1", Kind.DOUBLE)


@st.composite
def mixed(draw: st.DrawFn) -> list[Sent]:
    day = draw(st.sampled_from([YESTERDAY - 20 * MICROS_PER_DAY, YESTERDAY, TODAY]))
    return [
        sample
        for _ in range(draw(st.integers(1, 3)))
        for sample in runs(draw, day, draw(st.sampled_from(DEVICES)), draw(st.sampled_from(sorted(KINDS))))
    ]


@dataclass
class Commit:
    samples: list[Sent]
    instance: int


@dataclass
class Bulk:
    """Sealed at once, in a commit of its own, over whatever is there."""

    samples: list[Sent]


@dataclass
class Open:
    """A transaction that has its order, and takes its time."""

    samples: list[Sent]


STEPS = st.one_of(
    st.builds(Commit, usual(), st.integers(0, 1)),
    st.builds(Commit, usual(), st.integers(0, 1)),
    st.builds(Commit, mixed(), st.integers(0, 1)),
    st.builds(Bulk, usual()),
    st.builds(Open, usual()),
    st.sampled_from(["commit", "roll back"]),
    st.just("round"),
    st.just("round"),
    st.sampled_from(["seal one", "round of one who stood still"]),
    st.sampled_from(["consumer lags", "consumer takes all"]),
    st.integers(1, 4).map(lambda hours: ("through", hours)),
)


async def numbers_of(connection: asyncpg.Connection, samples: list[Sent]) -> CommitNumbers:
    """Take the numbers of a commit in an instance of its own."""
    instance = await connection.fetchval(
        "INSERT INTO telemetry.ingest_instance DEFAULT VALUES RETURNING instance"
    )
    numbers = await take_numbers(connection, instance)
    assert numbers is not None
    await connection.execute(
        """
        INSERT INTO telemetry.ingest_commit (instance, commit_no, order_no, days)
        VALUES ($1, $2, $3, ARRAY[$4::date])
        """,
        *(numbers.instance, numbers.commit_no, numbers.order_no),
        day_of(samples[0]),
    )
    return numbers


async def load(database: TestDatabase, samples: list[Sent]) -> int:
    """Put samples into a sealed segment; returns its order."""
    [series_id] = await registered(database, samples[:1])
    loaded = samples_of(Kind.DOUBLE, [(sample.time_us, sample.value) for sample in samples])
    async with admin(database) as connection, connection.transaction():
        numbers = await numbers_of(connection, samples)
        await insert_sealed(connection, series_id, loaded, numbers.order_no)
    return numbers.order_no


class Machine:
    """Ingest, sealing, and what stands in its way, beside the model."""

    def __init__(self, database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool) -> None:
        self._database = database
        self._pool = pool
        self._query = query
        self._model = Model()
        self._through: int | None = None
        self._open: Any = None
        self._to_come: tuple[list[Sent], int] = [], 0
        self._bounds: list[Bound] = []

    async def run(self, steps: list[Any]) -> None:
        async with AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(recorder(self._database)) for _ in range(2)]
            connection = await stack.enter_async_context(admin(self._database))
            for step in steps:
                await self._step(step, writers, connection)
                await assert_reads(self._query, self._pool, self._model)
            await self._end(commit=True)
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
                order_no = await connection.fetchval("SELECT last_value FROM telemetry.commit_order")
                self._model.add(samples, order_no)
            case Bulk(samples):
                self._model.add(samples, await load(self._database, samples))
            case Open(samples) if self._open is None:
                await self._begin(connection, samples)
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
            case "commit" | "roll back":
                await self._end(commit=step == "commit")
            case ("through", hours):
                self._through = YESTERDAY + hours * MICROS_PER_HOUR

    async def _begin(self, connection: asyncpg.Connection, samples: list[Sent]) -> None:
        [series_id] = await registered(self._database, samples[:1])
        self._open = connection.transaction()
        await self._open.start()
        numbers = await numbers_of(connection, samples)
        # A run never crosses an hour.
        for sample in samples:
            await connection.execute(
                """
                INSERT INTO telemetry.segment
                    (tenant_id, series_id, start_time, end_time, times, doubles,
                     instance, commit_no, order_no)
                VALUES ('demo', $1, $2, $2, ARRAY[$2::bigint], ARRAY[$3::float8], $4, $5, $6)
                """,
                *(series_id, sample.time_us, sample.value),
                *(numbers.instance, numbers.commit_no, numbers.order_no),
            )
        self._to_come = samples, numbers.order_no

    async def _end(self, *, commit: bool) -> None:
        if self._open is None:
            return
        if commit:
            await self._open.commit()
            self._model.add(*self._to_come)
        else:
            await self._open.rollback()
        self._open = None

    async def _seal(self, *, one: bool) -> None:
        await take_all(self._pool)
        # Other tests have transactions on the same server, which end.
        patience_s = 60.0 if self._open is None else 0.0
        settled = await SettledOrders(pool=self._pool).find(patience_s=patience_s)
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


async def test_rows_beyond_the_window_are_taken_where_a_bulk_row_joins_them_with_it(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    model = Model()
    first, second = YESTERDAY + SLOT, YESTERDAY + MICROS_PER_HOUR + SLOT
    bulk = [Sent("pump-1", "m", time_us, 1.0) for time_us in (first, first + 1, second)]
    model.add(bulk, await load(database, bulk))
    async with recorder(database) as writer:
        for samples in ([Sent("pump-1", "m", second, 2.0)], [Sent("pump-1", "m", first, 3.0)]):
            await writer.commit("demo", samples)
            model.add(samples, 1 << 40)
    bound = await bound_now(pool)
    assert bound is not None
    moved = await seal_all(pool, Bound(bound.order_no, YESTERDAY + MICROS_PER_HOUR))
    assert (moved.segments, moved.merged, moved.rows) == (2, 1, 1)
    await assert_reads(query, pool, model)


async def test_a_bulk_row_above_the_bound_is_not_merged(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    model = Model()
    early, late = YESTERDAY + SLOT, YESTERDAY + 2 * SLOT
    async with recorder(database) as writer:
        for value, times in ((1.0, (early, late)), (2.0, (late,))):
            samples = [Sent("pump-1", "m", time_us, value) for time_us in times]
            await writer.commit("demo", samples)
            model.add(samples)
    async with admin(database) as connection:
        await connection.execute(
            "INSERT INTO telemetry.feed_consumer (name, frontier) VALUES ('lagging', '{\"1\": 1}')"
        )
    bulk = [Sent("pump-1", "m", early, 3.0)]
    model.add(bulk, await load(database, bulk))
    bound = await bound_now(pool)
    assert bound is not None
    # The second commit lies between what is sealed and the bulk row.
    moved = await seal_all(pool, Bound(bound.order_no, YESTERDAY + MICROS_PER_DAY))
    assert (moved.segments, moved.merged) == (1, 0)
    await assert_reads(query, pool, model)


async def test_no_row_spans_one_that_stays(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool
) -> None:
    model = Model()
    bulk = [Sent("pump-1", "m", YESTERDAY + MICROS_PER_HOUR + place, 1.0) for place in range(3)]
    model.add(bulk, await load(database, bulk))
    samples = [Sent("pump-1", "m", YESTERDAY + hour * MICROS_PER_HOUR, 2.0) for hour in (0, 2)]
    async with recorder(database) as writer:
        await writer.commit("demo", samples)
    model.add(samples, 1 << 40)
    bound = await bound_now(pool)
    assert bound is not None
    moved = await seal_all(pool, bound)
    assert (moved.segments, moved.merged, moved.rows) == (2, 0, 2)
    await assert_reads(query, pool, model)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=10, max_size=30))
async def test_answers_stay_the_same_whatever_is_sealed_when(
    database: TestDatabase, pool: asyncpg.Pool, query: asyncpg.Pool, steps: list[Any]
) -> None:
    async with admin(database) as connection:
        await connection.execute(
            "SELECT telemetry.make_segment_day($1)",
            date(1970, 1, 1) + timedelta(days=YESTERDAY // MICROS_PER_DAY - 20),
        )
        await connection.execute(
            "DELETE FROM telemetry.segment; DELETE FROM telemetry.sealed_segment; "
            "DELETE FROM telemetry.feed_consumer WHERE name = 'lagging'"
        )
    await Machine(database, pool, query).run(steps)
