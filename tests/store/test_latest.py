"""Twin, checkpoint and history agree on what is the latest, however samples come."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, MICROS_PER_HOUR
from telemetry_store.feed import Frontier, read_commits, read_consumer, snapshot
from telemetry_store.history import HistoryQuestion, find_series, read_history
from telemetry_store.latest import CHECKPOINT, advance_checkpoint, read_checkpoint, read_latest, read_series
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.maintenance.latest import keep_latest
from telemetry_store.series import Point, Value
from tests.store.telemetry import Sent, recorder
from twin_svc.fleet import Fleet
from twin_svc.twins import Device

NOW = int(time.time()) * 1_000_000


@dataclass(frozen=True, slots=True)
class Pools:
    feed: asyncpg.Pool
    query: asyncpg.Pool
    maintenance: asyncpg.Pool


@pytest.fixture
async def pools(database: TestDatabase) -> AsyncIterator[Pools]:
    async with (
        db.pool(database.url("twinmesh_twin_feed"), application="feed") as feed,
        db.pool(database.url("twinmesh_twin_query"), application="query") as query,
        db.pool(database.url("twinmesh_maintenance"), application="maintenance") as maintenance,
    ):
        yield Pools(feed, query, maintenance)


def shown(fleet: Fleet, tenant: str, device_id: str) -> dict[str, tuple[int, Value]]:
    twin = fleet.twin(tenant, Device(device_id, "", "", {}))
    return {metric: (state.time_us, state.value) for metric, state in twin.metrics.items()}


async def apply(connection: db.Connection, fleet: Fleet, latest: Sequence[LatestColumns]) -> None:
    for columns in latest:
        fleet.learn(await read_series(connection, fleet.unknown(columns)))
        fleet.apply(columns)


async def follow(pool: asyncpg.Pool, fleet: Fleet, frontier: Frontier, *, limit: int) -> Frontier:
    behind = True
    while behind:
        async with snapshot(pool) as connection:
            read = await read_commits(connection, frontier, limit=limit)
            await apply(connection, fleet, await read_latest(connection, read.commits))
        frontier, behind = read.frontier, read.behind
    return frontier


async def from_checkpoint(pool: asyncpg.Pool) -> tuple[Fleet, Frontier]:
    fleet = Fleet()
    async with snapshot(pool) as connection:
        frontier, pieces = await read_checkpoint(connection)
        async for piece in pieces:
            await apply(connection, fleet, piece)
    return fleet, frontier


async def test_values_of_every_kind_pass_through_feed_and_checkpoint(
    database: TestDatabase, pools: Pools
) -> None:
    values: dict[str, Value] = {
        "double": -0.1,
        "int": 2**63 - 1,
        "bool": False,
        "string": "läuft ✓",
        "position": Point(59.9, 10.75, 12.5),
        "location": Point(-90.0, 180.0, None),
        "empty": "",
    }
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", metric, NOW, value) for metric, value in values.items()])

    followed = Fleet()
    await follow(pools.feed, followed, {}, limit=10)
    await advance_checkpoint(pools.maintenance)
    restarted, _ = await from_checkpoint(pools.feed)

    expected = {metric: (NOW, value) for metric, value in values.items()}
    assert shown(followed, "demo", "pump-1") == shown(restarted, "demo", "pump-1") == expected
    assert type(shown(restarted, "demo", "pump-1")["bool"][1]) is bool


@pytest.mark.parametrize("texts", [["on", "off", "on"], ["off", "on", "on", "off"], ["on", "on"], ["a", "b"]])
async def test_the_latest_state_is_found_however_its_row_holds_it(
    database: TestDatabase, pools: Pools, texts: list[str]
) -> None:
    start = NOW - NOW % MICROS_PER_HOUR
    async with recorder(database) as writer:
        await writer.commit(
            "demo", [Sent("pump-1", "state", start + place, text) for place, text in enumerate(texts)]
        )
    followed = Fleet()
    await follow(pools.feed, followed, {}, limit=10)
    await advance_checkpoint(pools.maintenance)
    restarted, _ = await from_checkpoint(pools.feed)
    expected = {"state": (start + len(texts) - 1, texts[-1])}
    assert shown(followed, "demo", "pump-1") == shown(restarted, "demo", "pump-1") == expected


# Few times, so that equal ones are common; hours and days are crossed; kinds change.
_TIMES = st.sampled_from(
    [NOW, NOW + 1, NOW - 1, NOW - MICROS_PER_HOUR, NOW - 3 * MICROS_PER_HOUR, NOW - 2 * MICROS_PER_DAY]
)
_VALUES = st.one_of(st.floats(-1e6, 1e6), st.integers(-5, 5), st.booleans(), st.sampled_from(["on", "off"]))
_SAMPLES = st.builds(
    Sent, st.sampled_from(["pump-1", "pump-2"]), st.sampled_from(["state", "speed"]), _TIMES, _VALUES
)
_COMMITS = st.lists(
    st.tuples(st.sampled_from([0, 1]), st.lists(_SAMPLES, min_size=1, max_size=12)), min_size=1, max_size=6
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=_COMMITS, limit=st.integers(1, 3), checkpoint_after=st.integers(0, 6))
async def test_twin_checkpoint_and_history_agree_with_a_model(
    database: TestDatabase,
    pools: Pools,
    commits: list[tuple[int, list[Sent]]],
    limit: int,
    checkpoint_after: int,
) -> None:
    tenant = f"tenant-{uuid.uuid4().hex}"
    # The rule in its shortest form: what is committed later replaces what has its time.
    kept: dict[tuple[str, str, int], dict[int, tuple[int, Value]]] = {}
    async with recorder(database) as first, recorder(database) as second:
        for order, (instance, samples) in enumerate(commits):
            await (first, second)[instance].commit(tenant, samples)
            for sample in samples:
                series = kept.setdefault((sample.device_id, sample.metric, sample.kind), {})
                series[sample.time_us] = (order, sample.value)
            if order == checkpoint_after:
                await advance_checkpoint(pools.maintenance, limit=limit)

    followed = Fleet()
    await follow(pools.feed, followed, {}, limit=limit)
    restarted, frontier = await from_checkpoint(pools.feed)
    await follow(pools.feed, restarted, frontier, limit=limit)
    while await advance_checkpoint(pools.maintenance, limit=limit):
        pass
    caught_up, _ = await from_checkpoint(pools.feed)

    for device_id in ("pump-1", "pump-2"):
        twin = shown(followed, tenant, device_id)
        assert twin == shown(restarted, tenant, device_id) == shown(caught_up, tenant, device_id)
        for metric in ("state", "speed"):
            newest = [
                (time_us, *series[time_us])
                for (device, name, _), series in kept.items()
                if (device, name) == (device_id, metric)
                for time_us in [max(series)]
            ]
            best = max((entry[:2] for entry in newest), default=None)
            candidates = [(time_us, value) for time_us, order, value in newest if (time_us, order) == best]
            # Two kinds of a metric at one time in one commit: either may be shown.
            assert (metric in twin) == bool(candidates)
            assert not candidates or twin[metric] in candidates

        async with tenant_transaction(pools.query, tenant, isolation="repeatable_read") as connection:
            page = await read_history(
                connection,
                await find_series(connection, tenant=tenant, device_ids=[device_id], metrics=()),
                HistoryQuestion(NOW - 3 * MICROS_PER_DAY, NOW + 2),
                position=None,
                limit=1_000,
                archive=None,
            )
        assert {
            (history.series.metric, history.series.kind): list(
                zip(history.times.tolist(), history.values.tolist(), strict=True)
            )
            for history in page.histories
        } == {
            (metric, kind): [(time_us, value) for time_us, (_, value) in sorted(series.items())]
            for (device, metric, kind), series in kept.items()
            if device == device_id
        }


async def test_a_device_silent_for_40_days_is_still_there_when_its_segments_are_gone(
    database: TestDatabase, pools: Pools
) -> None:
    silent_since = NOW - 40 * MICROS_PER_DAY
    await pools.maintenance.execute("SELECT telemetry.ensure_segment_days(41, 2)")
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", "pressure", silent_since, 4.2)])
    await keep_latest(pools.maintenance)
    admin = await asyncpg.connect(database.admin_url)
    await admin.execute("DELETE FROM telemetry.segment")
    await admin.close()

    fleet, _ = await from_checkpoint(pools.feed)

    assert shown(fleet, "demo", "pump-1") == {"pressure": (silent_since, 4.2)}


async def test_commits_years_apart_are_read_together(database: TestDatabase, pools: Pools) -> None:
    days_apart = [NOW - days * MICROS_PER_DAY for days in (0, 1, 5, 380)]
    await pools.maintenance.execute("SELECT telemetry.ensure_segment_days(385, 2)")
    async with recorder(database) as writer:
        await writer.commit(
            "demo",
            [
                Sent(f"pump-{place}", "pressure", time_us, float(place))
                for place, time_us in enumerate(days_apart)
            ],
        )
        await writer.commit("demo", [Sent("pump-3", "pressure", days_apart[1], 9.0)])
    fleet = Fleet()
    await follow(pools.feed, fleet, {}, limit=10)

    assert [shown(fleet, "demo", f"pump-{place}")["pressure"] for place in range(4)] == [
        (days_apart[0], 0.0),
        (days_apart[1], 1.0),
        (days_apart[2], 2.0),
        (days_apart[1], 9.0),
    ]


async def test_each_commit_is_taken_once_when_two_workers_try(database: TestDatabase, pools: Pools) -> None:
    async with recorder(database) as writer:
        for number in range(5):
            await writer.commit("demo", [Sent("pump-1", "pressure", NOW + number, float(number))])

    async def work() -> None:
        more = True
        while more:
            try:
                more = await advance_checkpoint(pools.maintenance, limit=1)
            except asyncpg.SerializationError:
                more = True

    await asyncio.gather(work(), work())

    fleet, frontier = await from_checkpoint(pools.feed)
    assert list(frontier.values()) == [5]
    assert shown(fleet, "demo", "pump-1") == {"pressure": (NOW + 4, 4.0)}


async def test_checkpoint_and_frontier_move_together_or_not_at_all(
    database: TestDatabase, pools: Pools
) -> None:
    async with recorder(database) as writer:
        await writer.commit("demo", [Sent("pump-1", "pressure", NOW, 1.0)])
        await advance_checkpoint(pools.maintenance)
        async with snapshot(pools.feed) as connection:
            before = await read_consumer(connection, CHECKPOINT)
        await writer.commit("demo", [Sent("pump-1", "pressure", NOW + 1, 2.0)])
    admin = await asyncpg.connect(database.admin_url)
    # The very last statement fails: what stood before it must not stay.
    await admin.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'full'; END $$; "
        "CREATE TRIGGER refuse BEFORE UPDATE ON telemetry.feed_consumer "
        "FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )

    with pytest.raises(asyncpg.RaiseError):
        await advance_checkpoint(pools.maintenance)
    fleet, frontier = await from_checkpoint(pools.feed)
    assert (frontier, shown(fleet, "demo", "pump-1")) == (before, {"pressure": (NOW, 1.0)})

    await admin.execute("DROP TRIGGER refuse ON telemetry.feed_consumer")
    await admin.close()
    await advance_checkpoint(pools.maintenance)
    fleet, frontier = await from_checkpoint(pools.feed)
    assert shown(fleet, "demo", "pump-1") == {"pressure": (NOW + 1, 2.0)}
    assert frontier != before
