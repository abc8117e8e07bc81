"""What is loaded in bulk is sealed at once, and reads as if it had come by any other door."""

import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.backfill import create_backfill
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.feed import read_commits, snapshot
from telemetry_store.latest import advance_checkpoint, read_checkpoint, read_latest
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.maintenance.latest import keep_latest
from telemetry_store.rollups.keeping import advance_rollups, register_rollups
from telemetry_store.series import Point, Value
from telemetry_store.tiers.bulk import LEAST_SAMPLES
from telemetry_store.tiers.reader import Span, read_spans
from tests.store.telemetry import Recorder, Sent, recorder
from tests.store.writing import admin

# Some day of the past, at midnight.
START = 1_600_041_600_000_000
END = START + 3 * MICROS_PER_DAY
STEP = 20 * 60 * 1_000_000
LONG = 2 * LEAST_SAMPLES


@pytest.fixture
async def query(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_ingest"), application="test") as pool:
        await create_backfill(pool, tenant="demo", principal="user:ada", start_us=START, end_us=END)
    async with db.pool(database.url("twinmesh_twin_query"), application="query") as pool:
        yield pool


def ramp(
    device: str, count: int = LONG, *, metric: str = "flow", start: int = START, plus: float = 0.0
) -> list[Sent]:
    """Return samples of a device, at every second."""
    return [Sent(device, metric, start + place * 1_000_000, plus + place / 8) for place in range(count)]


async def read(
    database: TestDatabase, pool: asyncpg.Pool, device: str, kind: Kind = Kind.DOUBLE
) -> list[tuple[int, Any, int]]:
    """Return all samples of a device's series of a kind, as (time, value, quality)."""
    async with admin(database) as connection:
        series = await connection.fetch(
            "SELECT series_id FROM telemetry.series WHERE device_id = $1 AND kind = $2", device, kind
        )
    spans = [Span("demo", row["series_id"], START - MICROS_PER_DAY, END) for row in series]
    async with tenant_transaction(pool, "demo", isolation="repeatable_read") as connection:
        found = (await read_spans(connection, kind, spans, archive=None)).samples
    return list(zip(found.times.tolist(), found.values.tolist(), found.quality.tolist(), strict=True))


async def rows_of(database: TestDatabase, table: str, device: str) -> int:
    async with admin(database) as connection:
        count: int = await connection.fetchval(
            f"SELECT count(*) FROM telemetry.{table} JOIN telemetry.series USING (tenant_id, series_id) "
            "WHERE device_id = $1",
            device,
        )
    return count


async def test_a_load_is_sealed_by_days_and_its_commit_says_so(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    midnight = START + MICROS_PER_DAY
    loaded = ramp("pump-1", start=midnight - LONG // 2 * 1_000_000)
    async with recorder(database) as writer:
        await writer.commit("demo", loaded, bulk=True)
    assert [(time, value) for time, value, _ in await read(database, query, "pump-1")] == [
        (sample.time_us, sample.value) for sample in loaded
    ]
    assert await rows_of(database, "segment", "pump-1") == 0
    async with admin(database) as connection:
        sealed = await connection.fetch(
            "SELECT start_time, end_time, samples, compacted, order_no FROM telemetry.sealed_segment "
            "ORDER BY start_time"
        )
        [commit] = await connection.fetch("SELECT * FROM telemetry.ingest_commit")
    first, last, second = loaded[0].time_us, loaded[-1].time_us, 1_000_000
    assert [tuple(row) for row in sealed] == [
        (first, midnight - second, LONG // 2, False, commit["order_no"]),
        (midnight, last, LONG // 2, False, commit["order_no"]),
    ]
    assert (commit["bulk_starts"], commit["bulk_ends"]) == ([first], [last])
    assert len(commit["bulk_series"]) == 1
    assert len(commit["days"]) == 2


async def test_few_samples_are_stored_as_ever(database: TestDatabase, query: asyncpg.Pool) -> None:
    loaded = ramp("pump-1") + ramp("pump-2", LEAST_SAMPLES - 1)
    async with recorder(database) as writer:
        await writer.commit("demo", loaded, bulk=True)
        await writer.commit("demo", ramp("pump-3"))
    sealed = [await rows_of(database, "sealed_segment", f"pump-{number}") for number in (1, 2, 3)]
    hot = [await rows_of(database, "segment", f"pump-{number}") for number in (1, 2, 3)]
    assert (sealed, hot) == ([1, 0, 0], [0, 1, 1])
    for number, count in ((1, LONG), (2, LEAST_SAMPLES - 1), (3, LONG)):
        found = await read(database, query, f"pump-{number}")
        assert [value for _, value, _ in found] == [place / 8 for place in range(count)]


async def test_the_later_load_counts_where_both_have_a_sample(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    later = START + LONG // 2 * 1_000_000
    async with recorder(database) as writer:
        await writer.commit("demo", ramp("pump-1"), bulk=True)
        await writer.commit("demo", ramp("pump-1", start=later, plus=100.0), bulk=True)
        await writer.commit("demo", [Sent("pump-1", "flow", START, -1.0)])
    values = [value for _, value, _ in await read(database, query, "pump-1")]
    assert values == [
        -1.0,
        *(place / 8 for place in range(1, LONG // 2)),
        *(100 + place / 8 for place in range(LONG)),
    ]


def found_latest(columns: Sequence[LatestColumns]) -> dict[int, tuple[int, Any]]:
    found: dict[int, tuple[int, Any]] = {}
    for each in columns:
        for series, time, value in zip(
            each.samples.series.tolist(), each.samples.times.tolist(), each.samples.tolist(), strict=True
        ):
            found[series] = max(found.get(series, (0, None)), (time, value), key=lambda sample: sample[0])
    return found


async def test_followers_and_the_checkpoint_see_the_last_sample_of_each_kind(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    values: list[Value] = [1.5, 7, True, "open", Point(48.0, 16.0, 170.0)]
    count = 2 * MICROS_PER_DAY // STEP
    loaded = [
        Sent("pump-1", f"metric-{place}", START + number * STEP, value)
        for place, value in enumerate(values)
        for number in range(count)
    ]
    async with (
        recorder(database) as writer,
        db.pool(database.url("twinmesh_twin_feed"), application="feed") as feed,
        db.pool(database.url("twinmesh_maintenance"), application="maintenance") as maintenance,
    ):
        await keep_latest(maintenance)
        await writer.commit("demo", loaded, bulk=True)
        # Late: it is in history, and changes no twin.
        await writer.commit("demo", ramp("pump-1", metric="metric-0", start=START + 1), bulk=True)
        async with snapshot(feed) as connection:
            commits = (await read_commits(connection, {})).commits
            followed = found_latest(await read_latest(connection, commits))
        while await advance_checkpoint(maintenance, limit=1):
            pass
        async with snapshot(feed) as connection:
            _, pieces = await read_checkpoint(connection)
            kept = found_latest([columns async for piece in pieces for columns in piece])
    assert followed == kept
    assert [kept[series] for series in sorted(kept)] == [
        (START + (count - 1) * STEP, value) for value in [*values[:4], [48.0, 16.0, 170.0]]
    ]


samples = st.lists(
    st.tuples(
        st.integers(0, 150).map(lambda number: START + number * STEP),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=200,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(st.tuples(samples, st.booleans(), st.integers(0, 2)), min_size=1, max_size=4))
async def test_bulk_or_not_makes_no_difference_to_what_is_read(
    database: TestDatabase, query: asyncpg.Pool, commits: list[tuple[list[tuple[int, float]], bool, int]]
) -> None:
    name = uuid.uuid4().hex[:12]

    async def write(writer: Recorder, device: str, *, as_drawn: bool) -> None:
        for drawn, bulk, repeated in commits:
            # Some commits are long enough to be sealed, some days of them are not.
            sent = [
                Sent(device, "flow", time + shift, value)
                for shift in range(repeated + 1)
                for time, value in drawn
            ]
            await writer.commit("demo", sent, bulk=bulk and as_drawn)

    async with recorder(database) as writer:
        await write(writer, f"bulk-{name}", as_drawn=True)
        await write(writer, f"hot-{name}", as_drawn=False)
    found = await read(database, query, f"bulk-{name}")
    assert found == await read(database, query, f"hot-{name}")
    assert found


async def test_rollups_hold_what_was_loaded(database: TestDatabase, query: asyncpg.Pool) -> None:
    loaded = ramp("pump-1", 7_200)
    async with (
        recorder(database) as writer,
        db.pool(database.url("twinmesh_maintenance"), application="maintenance") as maintenance,
    ):
        await register_rollups(maintenance, minutes_kept=timedelta(days=7))
        await writer.commit("demo", loaded, bulk=True)
        while await advance_rollups(maintenance, archive=None):
            pass
        await advance_rollups(maintenance, archive=None)
    async with admin(database) as connection:
        hours = await connection.fetch(
            "SELECT count, first, last, sum FROM telemetry.rollup_hour ORDER BY start_time"
        )
    assert [tuple(row) for row in hours] == [
        (3_600, 0.0, 3_599 / 8, sum(range(3_600)) / 8),
        (3_600, 450.0, 7_199 / 8, sum(range(3_600, 7_200)) / 8),
    ]
