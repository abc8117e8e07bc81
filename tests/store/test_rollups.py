"""Rollups, as they are read and as they are stored, are those of the samples, whatever happens."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from meshkit import db
from meshkit.db import DATABASE_ERRORS, tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR, Kind
from telemetry_store.feed import read_consumer
from telemetry_store.rollups import keeping, new_samples, stale
from telemetry_store.rollups.aggregates import MICROS_PER_MINUTE
from telemetry_store.rollups.expiry import expire_rollups
from telemetry_store.rollups.keeping import RollupKeeper, advance_rollups, register_rollups
from telemetry_store.rollups.reader import read_buckets
from telemetry_store.rollups.rows import CONSUMER, TABLES
from telemetry_store.storage_policies import Retention
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import archive_store
from telemetry_store.tiers.archiving import archive_day
from telemetry_store.tiers.codec import Samples
from telemetry_store.tiers.floor import forget_commits
from telemetry_store.tiers.reader import Span
from tests.store import archive
from tests.store.rollup_tables import END, FIRST, NUMERIC, TODAY, brute, check_stored, same, series_of, today
from tests.store.sealing import bound_now, seal_all
from tests.store.stored import insert_sealed
from tests.store.telemetry import Sent, recorder
from tests.store.writing import admin

KEPT = timedelta(days=3)


@pytest.fixture(autouse=True)
def of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may have begun on the day before."""
    monkeypatch.setattr(sys.modules[__name__], "TODAY", today())


@dataclass(frozen=True, slots=True)
class Pools:
    query: asyncpg.Pool
    maintenance: asyncpg.Pool


@pytest.fixture
async def pools(database: TestDatabase) -> AsyncIterator[Pools]:
    async with (
        db.pool(database.url("twinmesh_twin_query"), application="query") as query,
        db.pool(database.url("twinmesh_maintenance"), application="rollups", min_size=0) as maintenance,
    ):
        await register_rollups(maintenance, minutes_kept=KEPT)
        yield Pools(query, maintenance)


async def check_read(pool: asyncpg.Pool, tenant: str, *, start: int = FIRST, end: int = END) -> None:
    for kind, ids in (await series_of(pool, tenant)).items():
        if kind not in NUMERIC:
            continue
        spans = [Span(tenant, series_id, start, end) for series_id in ids]
        spans.append(Span(tenant, ids[0], TODAY, TODAY + MICROS_PER_DAY))
        async with tenant_transaction(pool, tenant, isolation="repeatable_read") as connection:
            for width_us in TABLES:
                found = await read_buckets(connection, kind, spans, width_us=width_us, archive=None)
                same(found, await brute(connection, kind, spans, width_us))


async def catch_up(pool: asyncpg.Pool) -> None:
    while await advance_rollups(pool, archive=None):
        pass


async def sealed(pool: asyncpg.Pool) -> None:
    """Seal whatever may be, and forget commits that everybody has taken."""
    bound = await bound_now(pool, with_rollups=False)
    if bound is not None:
        await seal_all(pool, bound)
        await forget_commits(pool)


async def load_in_bulk(database: TestDatabase, tenant: str, series_id: int, times: Sequence[int]) -> None:
    """Commit sealed rows, one a day, as a bulk load does."""
    days = sorted({moment // MICROS_PER_DAY for moment in times})
    async with admin(database) as connection, connection.transaction():
        instance = await connection.fetchval(
            "INSERT INTO telemetry.ingest_instance (last_commit_no, closed, closed_at) "
            "VALUES (1, true, now()) RETURNING instance"
        )
        order_no = await connection.fetchval("SELECT nextval('telemetry.commit_order')")
        for day in days:
            of_day = sorted({moment for moment in times if moment // MICROS_PER_DAY == day})
            samples = Samples(
                np.array(of_day, np.int64),
                np.arange(len(of_day), dtype=np.float64),
                np.full(len(of_day), 90, np.int32),
            )
            await insert_sealed(connection, series_id, samples, order_no, tenant=tenant)
        await connection.execute(
            """
            INSERT INTO telemetry.ingest_commit
                (instance, commit_no, order_no, days, bulk_series, bulk_starts, bulk_ends)
            VALUES ($1, 1, $2, ARRAY (SELECT date '1970-01-01' + day FROM unnest($3::integer[]) AS day),
                    $4, $5, $6)
            """,
            instance,
            order_no,
            days,
            [series_id],
            [min(times)],
            [max(times)],
        )


# Few minutes, so that buckets are shared and times are equal; hours, days and the horizon are crossed.
_TIMES = st.builds(
    lambda day, minute, second: day + minute * MICROS_PER_MINUTE + second * 1_000_000,
    st.sampled_from([TODAY, TODAY - MICROS_PER_DAY, TODAY - 5 * MICROS_PER_DAY]),
    st.sampled_from([0, 1, 59, 60, 61, 600]),
    st.integers(0, 5),
)
_VALUES = st.one_of(st.floats(-1e6, 1e6), st.integers(-5, 5), st.booleans(), st.sampled_from(["on", "off"]))
_SAMPLES = st.builds(Sent, st.sampled_from(["a", "b"]), st.just("m"), _TIMES, _VALUES)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.sampled_from([0, 1]), st.lists(_SAMPLES, min_size=1, max_size=12)),
        st.tuples(
            st.just("concurrent"),
            st.lists(_SAMPLES, min_size=1, max_size=8),
            st.lists(_SAMPLES, min_size=1, max_size=8),
        ),
        st.tuples(st.just("turn")),
        st.tuples(st.just("killed turn"), st.floats(0, 0.03)),
        st.tuples(st.just("cancelled turn"), st.floats(0, 0.03)),
        st.tuples(st.just("two turns")),
        st.tuples(st.just("seal")),
        st.tuples(st.just("seal in a turn")),
        st.tuples(st.just("bulk"), st.lists(_TIMES, min_size=1, max_size=6)),
        st.tuples(st.just("read")),
    ),
    min_size=2,
    max_size=10,
)


async def killed(database: TestDatabase, pool: asyncpg.Pool, after_s: float) -> None:
    """Run a turn whose backends are terminated in between."""
    turn = asyncio.create_task(advance_rollups(pool, archive=None))
    await asyncio.wait([turn], timeout=after_s)
    # One that a cancelled turn had may end by itself meanwhile.
    async with db.pool(database.url("twinmesh_maintenance"), application="killer", max_size=1) as killer:
        await killer.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'rollups' AND datname = current_database()"
        )
    await pool.expire_connections()
    with suppress(*DATABASE_ERRORS):
        await turn


async def cancelled(pool: asyncpg.Pool, after_s: float) -> None:
    turn = asyncio.create_task(advance_rollups(pool, archive=None))
    await asyncio.wait([turn], timeout=after_s)
    turn.cancel()
    with suppress(asyncio.CancelledError):
        await turn


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=_STEPS, most_samples=st.sampled_from([5, 2_000_000]))
async def test_rollups_are_those_of_the_samples_whatever_happens(
    database: TestDatabase,
    pools: Pools,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[Any, ...]],
    most_samples: int,
) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    monkeypatch.setattr(new_samples, "MOST_SAMPLES", most_samples)
    monkeypatch.setattr(stale, "MOST_SAMPLES", most_samples)
    async with recorder(database) as first, recorder(database) as second:
        for step in steps:
            match step:
                case ("commit", instance, samples):
                    await (first, second)[instance].commit(tenant, samples)
                case ("concurrent", some, others):
                    await asyncio.gather(first.commit(tenant, some), second.commit(tenant, others))
                case ("turn",):
                    await advance_rollups(pools.maintenance, archive=None)
                case ("killed turn", after_s):
                    await killed(database, pools.maintenance, after_s)
                case ("cancelled turn", after_s):
                    await cancelled(pools.maintenance, after_s)
                case ("two turns",):
                    outcomes = await asyncio.gather(
                        *(advance_rollups(pools.maintenance, archive=None) for _ in range(2)),
                        return_exceptions=True,
                    )
                    assert any(isinstance(outcome, bool) for outcome in outcomes)
                    assert all(isinstance(outcome, bool | asyncpg.SerializationError) for outcome in outcomes)
                case ("seal",):
                    await sealed(pools.maintenance)
                case ("seal in a turn",):
                    await asyncio.gather(
                        advance_rollups(pools.maintenance, archive=None), sealed(pools.maintenance)
                    )
                case ("bulk", times):
                    await first.commit(tenant, [Sent("a", "m", TODAY, 1.0)])
                    ids = await series_of(pools.query, tenant)
                    await load_in_bulk(database, tenant, ids[Kind.DOUBLE][0], times)
                case ("read",):
                    await check_read(pools.query, tenant)
    await check_read(pools.query, tenant)
    await catch_up(pools.maintenance)
    await check_read(pools.query, tenant)
    await check_stored(pools.query, tenant, await series_of(pools.query, tenant))


async def test_only_what_is_asked_for_is_read(database: TestDatabase, pools: Pools) -> None:
    async with recorder(database) as writer:
        await writer.commit(
            "demo", [Sent("a", "m", TODAY - hour * MICROS_PER_HOUR, float(hour)) for hour in range(48)]
        )
        await check_read(pools.query, "demo", start=TODAY - MICROS_PER_DAY, end=TODAY)
        await catch_up(pools.maintenance)
        await check_read(pools.query, "demo", start=TODAY - MICROS_PER_DAY, end=TODAY)
    ids = await series_of(pools.query, "demo")
    async with tenant_transaction(pools.query, "other", isolation="repeatable_read") as connection:
        span = Span("demo", ids[Kind.DOUBLE][0], TODAY - MICROS_PER_DAY, TODAY)
        found = await read_buckets(connection, Kind.DOUBLE, [span], width_us=MICROS_PER_HOUR, archive=None)
    assert len(found) == 0


async def last_taken(database: TestDatabase) -> int:
    """Return the number of the last commit that rollups have taken, of one instance."""
    async with admin(database) as connection:
        (taken,) = (await read_consumer(connection, CONSUMER)).values()
    return taken


async def test_a_turn_takes_as_many_commits_as_may_be_read_at_once(
    database: TestDatabase, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_samples, "MOST_SAMPLES", 5)
    async with recorder(database) as writer:
        for commit in range(6):
            times = (TODAY + 10 * commit, TODAY + 10 * commit + 1)
            await writer.commit("demo", [Sent("a", "m", time_us, 1.0) for time_us in times])
    async with admin(database) as connection:
        # As those of before version 18 are.
        await connection.execute(
            "UPDATE telemetry.ingest_commit SET doubles = NULL, ints = NULL, bools = NULL WHERE commit_no = 4"
        )
    taken = []
    behind = True
    while behind:
        behind = await advance_rollups(pools.maintenance, archive=None)
        taken.append(await last_taken(database))
    assert taken == [2, 3, 4, 6]
    await check_stored(pools.query, "demo", await series_of(pools.query, "demo"))


async def test_a_run_that_has_much_to_do_ends_before_it_has_caught_up(
    database: TestDatabase, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_samples, "MOST_SAMPLES", 1)
    monkeypatch.setattr(keeping, "_RUN_S", 0.0)
    async with recorder(database) as writer:
        for second in range(3):
            await writer.commit("demo", [Sent("a", "m", TODAY + second * 1_000_000, 1.0)])
    keeper = RollupKeeper(pool=pools.maintenance, minutes_kept=timedelta(days=7), archive=None)
    taken = []
    for _ in range(4):
        await keeper.run()
        taken.append(await last_taken(database))
    assert taken == [1, 2, 3, 3]
    await check_stored(pools.query, "demo", await series_of(pools.query, "demo"))


async def test_a_consumer_that_is_expired_is_rebuilt(database: TestDatabase, pools: Pools) -> None:
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("a", "m", TODAY, 1.0), Sent("a", "m", TODAY + 1, 2.0)])
        await catch_up(pools.maintenance)
        await writer.commit(
            "demo", [Sent("a", "m", TODAY - 5 * MICROS_PER_DAY, 3.0), Sent("b", "m", TODAY, 4.0)]
        )
        await writer.commit("demo", [Sent("a", "m", TODAY + 5, 5.0)])
    async with admin(database) as connection:
        await connection.execute("UPDATE telemetry.ingest_instance SET floor_commit_no = 3")
        await connection.execute("DELETE FROM telemetry.ingest_commit WHERE commit_no <= 3")

    await check_read(pools.query, "demo")
    assert await advance_rollups(pools.maintenance, archive=None)
    await check_read(pools.query, "demo")
    await catch_up(pools.maintenance)
    await check_read(pools.query, "demo")
    await check_stored(pools.query, "demo", await series_of(pools.query, "demo"))


async def test_rollups_outlive_the_samples(database: TestDatabase, pools: Pools) -> None:
    start = TODAY - 5 * MICROS_PER_DAY
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("a", "m", start + second, float(second)) for second in range(10)])
        await catch_up(pools.maintenance)
        async with admin(database) as connection:
            await connection.execute("DELETE FROM telemetry.segment")
        await writer.commit("demo", [Sent("a", "m", start + 3, 33.0)])
        for _ in range(2):
            ids = await series_of(pools.query, "demo")
            async with tenant_transaction(pools.query, "demo", isolation="repeatable_read") as connection:
                for width_us in (MICROS_PER_HOUR, MICROS_PER_DAY):
                    found = await read_buckets(
                        connection,
                        Kind.DOUBLE,
                        [Span("demo", ids[Kind.DOUBLE][0], start, start + MICROS_PER_DAY)],
                        width_us=width_us,
                        archive=None,
                    )
                    assert (found.counts.tolist(), found.lasts.tolist()) == ([10], [9.0])
            await catch_up(pools.maintenance)


async def test_an_archive_that_is_away_stops_no_commit(database: TestDatabase, pools: Pools) -> None:
    class Away:
        async def read(self, *_: object) -> Sequence[object]:
            raise ConnectionError("away")

    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("a", "m", TODAY, 1.0)])
        await catch_up(pools.maintenance)
        await writer.commit("demo", [Sent("a", "m", TODAY, 2.0), Sent("b", "m", TODAY, 3.0)])
    with pytest.raises(ConnectionError):
        await advance_rollups(pools.maintenance, archive=Away())  # type: ignore[arg-type]
    async with admin(database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM telemetry.rollup_day") == 2
        assert await connection.fetchval("SELECT count(*) FROM telemetry.rollup_stale") == 1
    await check_read(pools.query, "demo")
    await catch_up(pools.maintenance)
    await check_stored(pools.query, "demo", await series_of(pools.query, "demo"))


async def test_a_damaged_day_holds_up_no_other(database: TestDatabase, pools: Pools, tmp_path: Path) -> None:
    day, day_us = archive.DAY, archive.DAY_US
    samples = archive.samples_of(Kind.DOUBLE, [(second, 1.0) for second in range(0, 86_400, 3_600)])
    next_day = replace(samples, times=samples.times + MICROS_PER_DAY)
    async with admin(database) as connection, archive_store(str(tmp_path)) as store:
        assert store is not None
        days = archive.SealedDays(connection)
        for tenant in ("acme", "demo"):
            series_id = await days.series("a", tenant=tenant)
            for of_day in (samples, next_day):
                await days.seal(series_id, of_day, 1, tenant=tenant)
            await archive_day(pools.maintenance, store, tenant, day)
            await connection.execute(
                "INSERT INTO telemetry.rollup_stale VALUES ($1, $2, $3, $4)",
                tenant,
                series_id,
                day_us,
                day_us + 2 * MICROS_PER_DAY,
            )
        damaged = next(path for path in archive.objects(tmp_path) if "tenant=acme" in str(path))
        content = damaged.read_bytes()
        damaged.write_bytes(b"")
        keeper = RollupKeeper(pool=pools.maintenance, minutes_kept=KEPT, archive=ArchiveReader(store))

        with capture_logs() as logs:
            await keeper.run()

        # The other tenant's, and the other day of the same.
        assert await rows_by_tenant(database, "rollup_day") == {"acme": 1, "demo": 2}
        (left,) = await connection.fetch("SELECT tenant_id, start_time, end_time FROM telemetry.rollup_stale")
        assert tuple(left) == ("acme", day_us, day_us + MICROS_PER_DAY)
        assert keeper.damaged == 1
        assert [
            (line["tenant"], line["day"]) for line in logs if line["event"] == "rollups of a damaged day wait"
        ] == [("acme", day.isoformat())]

        damaged.write_bytes(content)
        assert not await advance_rollups(pools.maintenance, archive=ArchiveReader(store))
        await connection.execute("UPDATE telemetry.rollup_stale SET retry_at = now()")
        while await advance_rollups(pools.maintenance, archive=ArchiveReader(store)):
            pass
        assert await rows_by_tenant(database, "rollup_day") == {"acme": 2, "demo": 2}
        assert await rows_by_tenant(database, "rollup_stale") == {}


async def rows_by_tenant(database: TestDatabase, table: str) -> dict[str, int]:
    async with admin(database) as connection:
        rows = await connection.fetch(f"SELECT tenant_id, count(*) FROM telemetry.{table} GROUP BY 1")
    return {row["tenant_id"]: row["count"] for row in rows}


async def test_rollups_expire_by_tenant_and_are_computed_from_then_on(
    database: TestDatabase, pools: Pools
) -> None:
    tenants = ("short", "default", "long")
    days = [TODAY - age * MICROS_PER_DAY for age in range(7)]
    async with admin(database) as connection:
        await connection.execute("UPDATE telemetry.rollup_horizon SET start_time = $1", FIRST)
    async with recorder(database) as writer:
        for tenant in tenants:
            await writer.commit(tenant, [Sent("a", "m", day, 1.0) for day in days])
        await catch_up(pools.maintenance)
        assert await rows_by_tenant(database, "rollup_minute") == dict.fromkeys(tenants, 7)

        kept = Retention(minute_rollups_kept=timedelta(days=3))
        by_tenant = {
            "short": replace(
                kept,
                minute_rollups_kept=timedelta(days=1),
                hour_rollups_kept=timedelta(days=2),
                day_rollups_kept=timedelta(days=4),
            ),
            "long": replace(kept, minute_rollups_kept=timedelta(days=5)),
        }
        await expire_rollups(pools.maintenance, kept=kept, kept_by_tenant=by_tenant)

        # Of today, and of so many days before; one day more stays of what goes as a whole.
        assert await rows_by_tenant(database, "rollup_minute") == {"short": 2, "default": 4, "long": 7}
        assert await rows_by_tenant(database, "rollup_hour") == {"short": 3, "default": 7, "long": 7}
        assert await rows_by_tenant(database, "rollup_day") == {"short": 5, "default": 7, "long": 7}
        for tenant in tenants:
            await check_read(pools.query, tenant)
        # What is late goes by the horizons.
        for tenant in tenants:
            await writer.commit(tenant, [Sent("a", "m", day + 1, 2.0) for day in days])
            await writer.commit(tenant, [Sent("a", "m", day, 3.0) for day in days])
        await catch_up(pools.maintenance)
        for tenant in tenants:
            await check_read(pools.query, tenant)
            await check_stored(pools.query, tenant, await series_of(pools.query, tenant))

        # Who is named no more is as the others, and nothing that is gone comes back.
        await expire_rollups(
            pools.maintenance, kept=replace(kept, minute_rollups_kept=timedelta(days=2)), kept_by_tenant={}
        )
        assert await rows_by_tenant(database, "rollup_minute") == {
            "short": 2,
            "default": 3 + 1,
            "long": 3 + 1,
        }
        for tenant in tenants:
            await check_read(pools.query, tenant)


async def test_days_of_minutes_are_dropped_when_nobody_reads_for_long(
    database: TestDatabase, pools: Pools
) -> None:
    async with admin(database) as connection:
        await connection.execute("UPDATE telemetry.rollup_horizon SET start_time = $1", FIRST)
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("a", "m", TODAY - age * MICROS_PER_DAY, 1.0) for age in range(7)])
    await catch_up(pools.maintenance)
    kept = Retention(minute_rollups_kept=timedelta(days=3))
    async with tenant_transaction(pools.query, "demo") as reader:
        await reader.execute("SELECT FROM telemetry.rollup_minute LIMIT 1")
        # Neither waited for, nor is the rest of what expires put off.
        await expire_rollups(pools.maintenance, kept=kept, kept_by_tenant={})
    assert await rows_by_tenant(database, "rollup_minute") == {"demo": 7}
    await expire_rollups(pools.maintenance, kept=kept, kept_by_tenant={})
    assert await rows_by_tenant(database, "rollup_minute") == {"demo": 4 + 1}


async def test_the_keeper_rests_when_it_has_caught_up(database: TestDatabase, pools: Pools) -> None:
    keeper = RollupKeeper(pool=pools.maintenance, minutes_kept=KEPT, archive=None)
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("a", "m", TODAY, 1.0)])
        await keeper.run()
        assert await rows_by_tenant(database, "rollup_day") == {"demo": 1}
        assert keeper.lag_s < 60
        await writer.commit("demo", [Sent("b", "m", TODAY, 1.0)])
        await keeper.run()
        assert await rows_by_tenant(database, "rollup_day") == {"demo": 1}


async def test_people_see_deviation_and_mean_quality(database: TestDatabase, pools: Pools) -> None:
    async with recorder(database) as writer:
        await writer.commit(
            "demo", [Sent("a", "m", TODAY + place, float(value)) for place, value in enumerate([1, 3])]
        )
    await catch_up(pools.maintenance)
    async with tenant_transaction(pools.query, "demo") as connection:
        row = await connection.fetchrow(
            "SELECT count, mean, stddev, quality, start_time::text AS start_time FROM telemetry.rollup_minute"
        )
    assert row is not None
    assert (row["count"], row["mean"], row["stddev"], row["quality"]) == (2, 2.0, 1.0, None)
    assert row["start_time"].endswith("00:00:00+00")


async def test_what_was_just_written_is_found_by_its_commit(database: TestDatabase, pools: Pools) -> None:
    async with recorder(database) as writer:
        # More than a range of pages.
        await writer.commit("demo", [Sent(f"device-{number}", "m", TODAY, 1.0) for number in range(12_000)])
    assert await pools.maintenance.fetchval("SELECT telemetry.summarize_segment_days()") > 0
    assert await pools.maintenance.fetchval("SELECT telemetry.summarize_segment_days()") == 0
